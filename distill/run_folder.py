"""RunFolder: what a run left behind, read back in one go. The report, the cards and the trackers start from it.

A run that stopped early lacks some of the files; what is missing reads as empty, never as an error.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HIDDEN = "(hidden)"
_LOGIN = re.compile(r"(\w+://)[^\s/@]+@")
_ARGUMENT = re.compile(r"(?P<path>[\w./+~@-]+)=(?P<value>'[^']*'|\"[^\"]*\"|\S+)")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run as plain values, secrets already hidden.

    `recipe` is the composed recipe with every `kind` filled in; `recipe_text` is the file as it stands.
    `start` is the last start event of the record (a resumed run starts several times), `stages` are all stage events.
    `scores`, `metrics`, `samples` and `verification` hold scores.json, metrics.jsonl, samples.json and
    verification.json.
    """

    path: Path
    recipe: dict[str, Any]
    recipe_text: str
    start: dict[str, Any]
    num_starts: int
    stages: list[dict[str, Any]]
    scores: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    verification: list[dict[str, Any]]

    @classmethod
    def read(cls, run: Path) -> "RunFolder":
        """Reads `run`. Raises ValueError, which names the file, where a whole JSON or YAML file is broken."""
        recipe, recipe_text = _read_recipe(run / "recipe.yaml")
        record = _read_lines(run / "record.jsonl")
        starts = [event for event in record if event.get("event") == "start"]
        start = dict(starts[-1]) if starts else {}
        if "command" in start:
            start["command"] = hide_secrets_in_command(str(start["command"]))
        return cls(
            path=run,
            recipe=recipe,
            recipe_text=recipe_text,
            start=start,
            num_starts=len(starts),
            stages=[event for event in record if event.get("event") == "stage"],
            scores=_read_json(run / "scores.json", {}),
            metrics=_read_lines(run / "metrics.jsonl"),
            samples=_read_json(run / "samples.json", []),
            verification=_read_json(run / "verification.json", []),
        )

    @property
    def name(self) -> str:
        """The recipe's name, or the folder's where no file says it."""
        return str(self.scores.get("recipe") or self.start.get("recipe") or self.recipe.get("name") or self.path.name)

    @property
    def models(self) -> list[dict[str, Any]]:
        """The entries of scores.json, in display order; the bytes of an adapter are those of its base too.

        Beside whole packages, a few KiB that nobody can run alone would be the smallest of all.
        """
        models = list(self.scores.get("models") or [])
        return [
            {**model, "bytes": model["bytes"] + model["base_bytes"]}
            if model.get("bytes") and model.get("base_bytes")
            else model
            for model in models
        ]

    @property
    def task(self) -> str | None:
        """The main score's name: scores.json's task where any model has it, else the first score that one has."""
        scores = [model.get("scores") or {} for model in self.models]
        names = [name for each in scores for name, value in each.items() if value is not None]
        task = self.scores.get("task")
        return task if task in names or not names else names[0]

    def model(self, name: str) -> dict[str, Any] | None:
        """The entry of scores.json called `name`, or None."""
        return next((model for model in self.models if model.get("name") == name), None)


def without_secrets(value: Any, path: tuple[str, ...] = ()) -> Any:
    """`value` with every secret replaced by "(hidden)", judged by the names of the keys that lead to it.

    Everything below "secret", "password" or "credential" goes; below other names with "key" or "token" in them
    only strings do, so that `max_new_tokens: 64` and `tokenizer: org/name` stay. In addresses, user:password@ goes.
    """
    if isinstance(value, Mapping):
        return {name: without_secrets(child, (*path, str(name))) for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(child, path) for child in value]
    if value is not None and any(_is_secret(name, value) for name in path):
        return HIDDEN
    return _LOGIN.sub(rf"\1{HIDDEN}@", value) if isinstance(value, str) else value


def hide_secrets_in_command(command: str) -> str:
    """`command` with the values of its `some.key=value` arguments hidden as `without_secrets` hides them."""

    def hide(argument: re.Match[str]) -> str:
        path = tuple(argument["path"].lstrip("+~").split("."))
        shown = without_secrets(_parsed(argument["value"]), path)
        return f"{argument['path']}={HIDDEN}" if shown == HIDDEN else argument[0]

    return _LOGIN.sub(rf"\1{HIDDEN}@", _ARGUMENT.sub(hide, command))


def _is_secret(name: str, value: Any) -> bool:
    name = name.lower()
    if any(word in name for word in ("secret", "password", "passwd", "credential")):
        return True
    # key_env is the name of a variable, and a recipe without it cannot be run again
    named = name != "key_env" and "tokenizer" not in name
    return isinstance(value, str) and named and ("key" in name or "token" in name)


def _parsed(text: str) -> Any:
    """A command-line value as YAML would read it: `3` is a number, `sk-3` a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_recipe(path: Path) -> tuple[dict[str, Any], str]:
    """The recipe as a mapping and as text; both without secrets.

    A run's recipe.yaml can be run again, so it names options in its `defaults` list and not as `kind`s.
    """
    import yaml

    if not path.is_file():
        return {}, ""
    try:
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text) or {}
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise _broken(path, error) from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{path.name} is broken: it holds {type(recipe).__name__}, a mapping is needed")
    hidden = without_secrets(recipe)
    if hidden != recipe:
        text = yaml.safe_dump(hidden, sort_keys=False, allow_unicode=True)
    defaults = hidden.pop("defaults", None)
    for default in defaults if isinstance(defaults, list) else ():
        for group, option in default.items() if isinstance(default, dict) else ():
            group = str(group).removeprefix("override ").strip().lstrip("/")
            if isinstance(option, str) and isinstance(hidden.setdefault(group, {}), dict):
                hidden[group].setdefault("kind", option)
            elif isinstance(option, list) and isinstance(hidden.setdefault(group, {}), dict):
                for name in map(str, option):
                    body = hidden[group].get(name)
                    hidden[group][name] = {"kind": name} | (body if isinstance(body, dict) else {})
    return hidden, text


def _read_json(path: Path, missing: Any) -> Any:
    if not path.is_file():
        return missing
    try:
        text = path.read_text(encoding="utf-8")
        value = (json.loads(text) or missing) if text.strip() else missing
    except (ValueError, RecursionError) as error:
        raise _broken(path, error) from None
    if not isinstance(value, type(missing)):
        raise ValueError(f"{path.name} is broken: it holds {type(value).__name__}, not {type(missing).__name__}")
    return value


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path.name} is broken: {' '.join(str(error).split())}")


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines. A line that a crash cut in half is left out: the run went on after it."""
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise _broken(path, error) from None
    lines = []
    # not splitlines(): JSON strings may hold U+2028 and its like as they are
    for line in text.split("\n"):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines
