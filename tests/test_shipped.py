"""distill/shipped.py: what ships is found in a checkout and in a wheel."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill import shipped

ROOT = Path(__file__).resolve().parent.parent


def test_a_checkout_uses_its_own_folders():
    assert shipped.conf_folder() == ROOT / "conf"
    assert shipped.recipes_folder() == ROOT / "recipes"


def test_groups_are_the_folders_of_conf_with_their_files():
    groups = shipped.groups()
    assert set(groups) == {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    for group, options in groups.items():
        assert set(options) == {path.stem for path in (ROOT / "conf" / group).iterdir()}, group


def test_every_default_option_exists():
    from omegaconf import OmegaConf

    for default in OmegaConf.load(ROOT / "conf" / "config.yaml").defaults:
        for group, options in default.items() if hasattr(default, "items") else ():
            if group in shipped.groups():
                for option in [options] if isinstance(options, str) else options:
                    assert option in shipped.groups()[group]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# @package _global_\n# two minutes\n# second\nseed: 1\n", "two minutes"),
        ("\n#   spaces  \n", "spaces"),
        ("# @package _global_\nseed: 1\n# too late\n", ""),
        ("", ""),
    ],
)
def test_the_first_comment_line_describes_a_recipe(tmp_path, text, line):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert shipped.first_comment(file) == line


def in_a_fresh_process(site: Path, code: str) -> subprocess.CompletedProcess:
    # -I: neither PYTHONPATH nor the current directory can lend this process our checkout
    program = f"import sys; sys.path.insert(0, {str(site)!r}); {code}"
    return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=site)


@pytest.fixture
def site(tmp_path):
    """A folder as pip leaves it: the package, without the checkout around it."""
    (tmp_path / "distill").mkdir()
    for name in ("__init__.py", "errors.py", "shipped.py"):
        shutil.copy(ROOT / "distill" / name, tmp_path / "distill")
    return tmp_path


def test_a_wheel_uses_the_folders_inside_the_package(site):
    shutil.copytree(ROOT / "conf", site / "distill" / "_conf")
    (site / "distill" / "_recipes").mkdir()
    # anybody's folders beside the installed package
    (site / "conf").mkdir()
    (site / "conf" / "config.yaml").write_text("somebody: else\n")
    (site / "recipes").mkdir()
    done = in_a_fresh_process(site, "from distill import shipped as s; print(s.conf_folder(), s.recipes_folder())")
    assert done.stdout.split() == [str(site / "distill" / "_conf"), str(site / "distill" / "_recipes")], done.stderr


def test_an_incomplete_installation_says_so(site):
    done = in_a_fresh_process(site, "from distill import shipped as s; s.conf_folder()")
    assert done.returncode == 1
    assert "installation is incomplete" in done.stderr
