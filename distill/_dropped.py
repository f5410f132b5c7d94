"""What does not hold for a run although it was written, with a line for each: pins of other models, repeated keys."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

PINS = {"model": "revision", "tokenizer": "tokenizer_revision", "path": "revision"}
"""What a name is, to the commit that is a commit of this name alone."""
PINNED_GROUPS = ("teacher", "student")


def drop_foreign_pins(
    config: dict[str, Any], recipes_own: DictConfig, overrides: Sequence[Override], recipe: str
) -> list[str]:
    """Takes the recipe's commits out of `config` where another model was typed and no commit for it; a line for each.

    `recipes_own` is what the recipe composes to without what was typed.
    """
    lines = []
    for group in PINNED_GROUPS:
        own = _plain(recipes_own, group)
        for path, pinned in _mappings(config.get(group), (group,)):
            before = _at(own, path[1:])
            for name, pin in PINS.items():
                if not before.get(pin) or before[pin] != pinned.get(pin) or before.get(name) == pinned.get(name):
                    continue
                if name not in before or _gives((*path, pin), overrides):
                    continue
                key, commit = ".".join(path), pinned.pop(pin)
                lines.append(
                    f"{key}.{pin}={commit} of recipe={recipe} is dropped: it is of {before[name]}, "
                    f"not of {key}.{name}={pinned.get(name)}. {key}.{pin}=… gives another."
                )
    return lines


def given_twice(overrides: Sequence[Override]) -> list[str]:
    """A line for each argument that a later one for the same key overrules: in Hydra, the last one counts."""
    last = {(override.key_or_group, override.package): override for override in overrides}
    lines = []
    for override in overrides:
        counts = last[override.key_or_group, override.package]
        # a mapping is merged with what comes after it
        if override is not counts and not isinstance(override.value(), dict):
            first, second = (str(each.input_line).lstrip("+") for each in (override, counts))
            lines.append(f"{first} is dropped: {second} comes after it.")
    return lines


def _plain(config: DictConfig, group: str) -> Any:
    """The recipe's own values of a group; None where they cannot be told."""
    node = config.get(group)
    try:
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_dict(node) else None
    except OmegaConfBaseException:  # it leads to a key that only the command line gives
        return None


def _mappings(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every mapping in `value` with the keys that lead to it."""
    if isinstance(value, dict):
        yield path, value
        for key, child in value.items():
            yield from _mappings(child, (*path, str(key)))


def _at(value: Any, path: Sequence[str]) -> Mapping[str, Any]:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _gives(path: Sequence[str], overrides: Sequence[Override]) -> bool:
    """Whether an argument names this very key, or is a mapping that holds it."""
    for override in overrides:
        keys = override.key_or_group.split(".")
        if keys == list(path[: len(keys)]):
            rest, value = path[len(keys) :], override.value()
            if not rest or rest[-1] in _at(value, rest[:-1]):
                return True
    return False
