"""The wheel: its top level is exactly two packages, recipes and teacher are inside, and it runs from anywhere."""

import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT, cli_environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # no isolation: the build backend is part of the test extra, so nothing is fetched
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_the_top_level_is_exactly_two_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"distill", "distill_kernels"}


def test_configs_recipes_templates_and_the_teacher_are_inside(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"distill/_conf/{p.relative_to(ROOT / 'conf')}" for p in (ROOT / "conf").rglob("*.yaml")}
    shipped |= {f"distill/_recipes/{p.name}" for p in (ROOT / "recipes").glob("*.yaml")}
    shipped |= {str(p.relative_to(ROOT)) for end in ("j2", "css") for p in (ROOT / "distill").rglob(f"*.{end}")}
    shipped |= {"distill/stages/_report.html.j2", "distill/bundled/quickstart_teacher/model.safetensors"}
    assert shipped <= names, shipped - names


def test_an_installed_wheel_runs_from_another_directory(wheel, tmp_path):
    """In a fresh environment that borrows the dependencies of this one, but not this checkout."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    here = subprocess.run(
        [sys.executable, "-c", "import hydra, pathlib; print(pathlib.Path(hydra.__file__).parents[1])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (site,) = environment.glob("lib/python*/site-packages")
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    # everything that is installed here, except distill and the hooks of editable installs
    from pathlib import Path

    for entry in Path(here).iterdir():
        if not entry.name.startswith(("distill", "_distill", "_editable", "__editable")) and entry.suffix != ".pth":
            (borrowed / entry.name).symlink_to(entry)
    (site / "borrowed.pth").write_text(str(borrowed))
    run = dict(cwd=tmp_path, env=cli_environment(PYTHONPATH=""), capture_output=True, text=True)
    where = subprocess.run([str(python), "-c", "import distill, distill_kernels; print(distill.__file__)"], **run)
    assert str(environment) in where.stdout, where.stderr
    shown = subprocess.run([str(python), "-m", "distill", "recipe=customer_service", "--cfg", "job"], **run)
    assert shown.returncode == 0 and "response_field: label_text" in shown.stdout, shown.stderr
    taught = subprocess.run(
        [str(python), "-m", "distill", "data.num_rows=4", "data.labelled_rows=4", "until=teach"], **run
    )
    assert taught.returncode == 0, taught.stderr
    assert list((tmp_path / "outputs" / "store" / "responses").glob("*/manifest.json"))
