"""Finds conf/ and recipes/: beside the package in a checkout, inside it in a wheel (scripts/build_hook.py)."""

from collections.abc import Sequence
from pathlib import Path

from distill.errors import DistillError

_PACKAGE = Path(__file__).resolve().parent


def conf_folder() -> Path:
    """The folder with config.yaml and one folder per group. Raises DistillError where the installation lacks it."""
    return _find("_conf", "conf", "config.yaml")


def recipes_folder() -> Path:
    """The folder of the shipped recipes, one YAML file each. Raises DistillError where the installation lacks it."""
    return _find("_recipes", "recipes", "")


def recipes() -> dict[str, str]:
    """Name → first comment line of every shipped recipe, by name."""
    return {file.stem: first_comment(file) for file in sorted(recipes_folder().glob("*.yaml"))}


def recipe_files(folders: Sequence[Path] = ()) -> dict[str, Path]:
    """Name → file of every recipe that `recipe=NAME` finds: in a user's folders, from the first on, else shipped."""
    found: dict[str, Path] = {}
    for folder in (*folders, recipes_folder()):
        for file in sorted(folder.glob("*.yaml")):
            found.setdefault(file.stem, file)
    return found


def groups() -> dict[str, tuple[str, ...]]:
    """Group → its options, both as the command line spells them, in the order of their names."""
    folders = sorted(folder for folder in conf_folder().iterdir() if folder.is_dir() and folder.name != "hydra")
    return {folder.name: tuple(sorted(file.stem for file in folder.glob("*.yaml"))) for folder in folders}


def first_comment(file: Path) -> str:
    """The first comment line of a YAML file that is not a Hydra header (`# @package …`); empty where there is none."""
    for line in file.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#") and not text.lstrip("#").strip().startswith("@"):
            return text.lstrip("#").strip()
        if text and not text.startswith("#"):
            break
    return ""


def _find(in_wheel: str, in_checkout: str, needed: str) -> Path:
    # The wheel's copy first: beside an installed package, `conf` may be anybody's folder.
    folders = (_PACKAGE / in_wheel, _PACKAGE.parent / in_checkout)
    for folder in folders:
        if folder.is_dir() and (folder / needed).exists():
            return folder
    raise DistillError(
        f"This installation is incomplete: neither {folders[0]} nor {folders[1]} exists. Install distill again."
    )
