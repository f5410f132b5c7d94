"""What `python -m distill.recipes` says of a recipe: from its YAML alone, or composed where that is not enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from distill import shipped
from distill._licences import Verdict, verdict
from distill.checkpoint import BUNDLED, weight_bytes
from distill.errors import RecipeError
from distill.family.known import published
from distill.recipe import GROUPS


@dataclass(frozen=True)
class Listed:
    """One recipe of the list."""

    name: str
    file: Path
    summary: str
    """Its first comment line."""
    teachers: tuple[str, ...]
    """Each as people call it, with its size; none without a teacher."""
    student: str
    hardware: str
    licences: Verdict

    @property
    def verdict(self) -> str:
        """In a word or two; with the setting that a refused one needs."""
        accept = self.licences.to_accept
        return f"refused: licence.accept=[{','.join(accept)}]" if accept else self.licences.level

    def as_json(self) -> dict[str, Any]:
        """Plain values, for `--json`."""
        return {
            "name": self.name,
            "file": str(self.file),
            "summary": self.summary,
            "teachers": list(self.teachers),
            "student": self.student,
            "hardware": self.hardware or None,
            "licence": {
                "verdict": self.licences.level,
                "accept": self.licences.to_accept,
                "sentences": self.licences.sentences,
            },
        }


def listed(name: str, file: Path, typed: Sequence[str] = ()) -> Listed:
    """What the list says of one recipe; `typed` are the arguments that found it, such as hydra.searchpath=….

    Raises:
        RecipeError: the file cannot be read or composed.
    """
    config = _plain(file)
    if config is None:
        # a recipe that builds on more than our options and its own keys; slower
        from distill import _hydra

        config = _hydra.compose([f"recipe={file}", *typed]).config
        options = {group: config.get(group) for group in ("teacher", "student")}
        wrong = next((name for name, one in options.items() if not isinstance(one, dict) or "kind" not in one), None)
        if wrong:
            raise RecipeError(f"{file} cannot be read: {wrong} is not an option with its keys.")
    return Listed(
        name=str(config.get("name") or name),
        file=file,
        summary=shipped.first_comment(file),
        teachers=_teachers(config["teacher"]),
        student=_student(config["student"]),
        hardware=str(config.get("hardware") or ""),
        licences=verdict(config),
    )


def _plain(file: Path) -> dict[str, Any] | None:
    """The recipe as Hydra would compose it, each group with its `kind`; None for what only Hydra itself can read."""
    try:
        text = file.read_text("utf-8")
        body = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}.") from None
    if not isinstance(body, dict) or "${" in text or not text.lstrip().startswith("# @package _global_"):
        return None
    choices = _base()
    for item in body.pop("defaults", None) or []:
        found = _override(item)
        if found is None:
            return None
        choices = {**choices, **found}
    options = {group: _option(group, choices[group]) for group in GROUPS if isinstance(choices.get(group), str)}
    if None in options.values() or not all(isinstance(body.get(group) or {}, dict) for group in options):
        return None
    return {**body, **{group: {**(kind or {}), **(body.get(group) or {})} for group, kind in options.items()}}


def _override(item: Any) -> dict[str, Any] | None:
    """{group: option} of the line `override /group: option` of a recipe's defaults; None for any other line."""
    if not isinstance(item, Mapping) or len(item) != 1:
        return None
    ((words, option),) = item.items()
    word, _, group = str(words).partition(" ")
    group = group.strip().lstrip("/")
    return {group: option} if word == "override" and group in GROUPS else None


@cache
def _base() -> dict[str, Any]:
    """Group → option that every recipe starts from."""
    defaults = yaml.safe_load((shipped.conf_folder() / "config.yaml").read_text("utf-8"))["defaults"]
    return {group: option for item in defaults if isinstance(item, dict) for group, option in item.items()}


@cache
def _option(group: str, option: str) -> dict[str, Any] | None:
    file = shipped.conf_folder() / group / f"{option}.yaml"
    return yaml.safe_load(file.read_text("utf-8")) if file.is_file() else None


def _teachers(teacher: Mapping[str, Any]) -> tuple[str, ...]:
    kind = teacher["kind"]
    if kind == "none":
        return ()
    if kind == "routed":
        each = teacher.get("teachers") or {}
        return tuple(dict.fromkeys(name for one in each.values() for name in _teachers(one)))
    if kind == "file":
        return (Path(str(teacher.get("path", "?"))).name,)
    model = teacher.get("model")
    return (_model(str(model)) if model else "yours",)


def _student(student: Mapping[str, Any]) -> str:
    if student["kind"] == "scratch":
        shape = [student.get(key) for key in ("hidden_size", "num_hidden_layers")]
        return f"new, {shape[0]} x {shape[1]}" if all(shape) else "new"
    return _model(str(student["model"])) if student.get("model") else "yours"


def _model(model: str) -> str:
    """ "LLaMA 65B" for a published checkpoint; else what was written, with its bytes where it is on this disk."""
    known = published(model)
    if known:
        family, checkpoint = known
        *words, last = family.title.split()
        # "Llama 3" and "3.1 70B"
        title = " ".join(words) if words and checkpoint.size.startswith(last) else family.title
        return f"{title} {checkpoint.size}"
    folder = BUNDLED / model.removeprefix("bundled:") if model.startswith("bundled:") else Path(model)
    weights = weight_bytes(folder) if folder.is_dir() else 0
    return f"{model} ({weights / 1e6:.1f} MB)" if weights else model
