"""write_recipe(): a run's own recipe.yaml, which composes to the very same configuration when it is run again."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from distill._hydra import Composed
from distill.artifact import write_whole
from distill.recipe import GROUPS

HEADER = "# @package _global_\n# as it was composed and run; python -m distill recipe=<this file> runs it again\n"


def write_recipe(composed: Composed, path: Path) -> None:
    """Writes `composed` as a recipe: the option of every group in `defaults`, then every value, no `kind`s."""
    defaults = [{f"override /{group}": composed.choices[group]} for group in GROUPS if group in composed.choices]
    body = {key: _without_kinds(value) if key in GROUPS else value for key, value in composed.config.items()}
    recipe = {
        "defaults": defaults,
        **{key: _escaped(value) for key, value in body.items() if key not in GROUPS or value},
    }
    # OmegaConf's writer, not PyYAML's: both have to agree that the text "1e-3" needs quotes
    write_whole(path, HEADER + OmegaConf.to_yaml(OmegaConf.create(recipe, flags={"allow_objects": False})))


def _without_kinds(body: Any) -> Any:
    """`body` of a group without `kind`: its own, or that of each of its options (compression)."""
    if not isinstance(body, dict):
        return body
    own = {key: value for key, value in body.items() if key != "kind"}
    if "kind" in body:
        return own
    nested = {name: _without_kinds(option) for name, option in own.items()}
    return {name: option for name, option in nested.items() if option != {}}


def _escaped(value: Any) -> Any:
    """`value` with ${…} in its texts kept as text: everything was resolved before."""
    if isinstance(value, dict):
        return {key: _escaped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_escaped(child) for child in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
