"""compose(): what the user typed → the configuration of every run that it asks for, before anything is written.

Hydra 1.3 refuses a key that no YAML names, exits 1 for its own errors and makes the run folder before it calls us.
So keys get `++` here (pydantic alone judges them), and everything is composed once before Hydra runs.
"""

import difflib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from distill import shipped
from distill._dropped import drop_foreign_pins, given_twice
from distill._hydra_errors import explain, nearest, without_header
from distill._hydra_source import recipe_name, register
from distill.errors import RecipeError
from distill.recipe import GROUPS, fields_of, options_of

VERSION_BASE = "1.3"
MANY = "compression"
"""The group that takes a list of options; each nests itself under its own name."""


@dataclass(frozen=True)
class Composed:
    """One run as the command line asks for it. `config` is resolved and plain, ready for `distill.recipe.parse`.

    `choices` says which option of each group was taken, `dropped` (one line each) which keys of the recipe do not
    belong to an option that the command line chose instead. `overrides` is what Hydra gets to compose the same.
    """

    config: dict[str, Any]
    choices: dict[str, Any]
    dropped: tuple[str, ...]
    overrides: tuple[str, ...]


def compose(typed: Sequence[str], config_dir: str | None = None) -> Composed:
    """The one run that `typed` (arguments such as "recipe=x", "loss=jsd", "seed=1") asks for.

    Raises:
        RecipeError: an argument, a recipe or an option is wrong. In six lines: what was found and what there is.
    """
    with explain(typed):
        loader = _loader(config_dir)
        return _compose(loader, for_hydra(typed, config_dir))


def compose_sweep(typed: Sequence[str], config_dir: str | None = None) -> list[Composed]:
    """Every run of a sweep (-m), in Hydra's order. Raises like `compose`.

    Only values written out (`loss=a,b`, `seed=range(3)`) are taken apart; a sweeper that draws its values by itself is
    checked at its first values only.
    """
    with explain(typed):
        loader = _loader(config_dir)
        overrides = for_hydra(typed, config_dir)
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        about_hydra = [override.input_line or "" for override in parsed if override.is_hydra_override()]
        ours = [override for override in parsed if not override.is_hydra_override()]
        [jobs] = BasicSweeper.split_arguments(ours, max_batch_size=None)
        return [_compose(loader, [*about_hydra, *job]) for job in jobs]


def for_hydra(typed: Sequence[str], config_dir: str | None = None) -> list[str]:
    """`typed` as Hydra has to get it, item by item: keys with `++`, recipes that are files as absolute paths."""
    with explain(typed):
        loader = _loader(config_dir)
        parser = OverridesParser.create(config_loader=loader)
        # of several, Hydra takes the last
        folders = user_folders(
            [text for text in typed if text.lstrip("+").startswith("hydra.searchpath=")][-1:], parser
        )
        if config_dir is not None:
            folders.append(Path(config_dir) / "recipe")
        overrides = []
        for text in typed:
            if text.startswith("recipe="):
                overrides.append(_with_recipe_file(text, parser, folders))
                continue
            override = parser.parse_overrides([text])[0]
            key = override.key_or_group
            plain = override.type is not None and override.get_key_element() == key
            is_group = loader.repository.group_exists(key) or "/" in key
            if key in GROUPS:
                _check_option(override)
            overrides.append(f"++{text}" if plain and not is_group and not key.startswith("hydra.") else text)
        return overrides


def _check_option(override: Override) -> None:
    """Refuses what Hydra would trip over or would quietly merge. Raises RecipeError."""
    group, value = override.key_or_group, override.value()
    if override.is_delete() or override.is_sweep_override() or isinstance(value, str):
        return
    if group == MANY and isinstance(value, list) and all(isinstance(option, str) for option in value):
        return
    needed = "one option, or a list of them" if group == MANY else "one option"
    raise RecipeError(f"{override.input_line}: {group} takes {needed}; {nearest('', shipped.groups()[group])}")


def recompose(overrides: Sequence[str], config_dir: str | None = None) -> Composed:
    """The run of overrides that Hydra has already, in a job of its own. Raises like `compose`."""
    with explain(overrides):
        return _compose(_loader(config_dir), overrides)


def _loader(config_dir: str | None) -> ConfigLoaderImpl:
    """Hydra's composer on our search path. Not `hydra.compose`: that one is global state, which `hydra.main` needs."""
    version.setbase(VERSION_BASE)
    setup_globals()
    register()
    search_path = create_config_search_path(str(shipped.conf_folder()))
    if config_dir is not None:
        folder = Path(config_dir).absolute()
        if not folder.is_dir():
            raise RecipeError(f"--config-dir {config_dir}: there is no such folder.")
        search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
    return ConfigLoaderImpl(config_search_path=search_path)


def _compose(loader: ConfigLoaderImpl, overrides: Sequence[str]) -> Composed:
    """Composed by Hydra, then as a run takes it: named, resolved, without keys that belong to other options."""
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
    config = loader.load_configuration("config", list(overrides), run_mode=RunMode.RUN)
    choices = _choices(config, parsed)
    recipe = choices.pop("recipe", None)
    if not recipe:
        raise RecipeError(f"A run needs a recipe; {nearest('', list(shipped.recipes()))}")
    settled = _resolved(config)
    if "recipe" in settled:
        raise RecipeError(without_header(recipe))
    # a list of no options brings nothing, which means none
    settled.setdefault(MANY, {})
    settled["name"] = recipe_name(settled.get("name"), recipe)
    dropped: list[str] = []
    if any(override.key_or_group.partition(".")[0] in GROUPS for override in parsed):
        own = [override for override in parsed if override.is_hydra_override() or override.key_or_group == "recipe"]
        texts = [override.input_line or "" for override in own]
        recipes_own = loader.load_configuration("config", texts, run_mode=RunMode.RUN)
        typed = [override.key_or_group for override in parsed]
        dropped = _drop_foreign_keys(settled, choices, _choices(recipes_own, own), typed, recipe)
        dropped += drop_foreign_pins(settled, recipes_own, parsed, recipe)
    dropped += given_twice(parsed)
    return Composed(settled, choices, tuple(dropped), tuple(overrides))


def _resolved(config: DictConfig) -> dict[str, Any]:
    """Plain values without the `hydra` node. Raises for missing values (`???`) and interpolations that lead nowhere."""
    body = OmegaConf.create({str(key): node for key, node in config.items_ex(resolve=False) if key != "hydra"})
    plain = OmegaConf.to_container(body, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _choices(config: DictConfig, overrides: Sequence[Override]) -> dict[str, Any]:
    """Group → option as composed; for `compression` the list of its options."""
    choices = {str(group): option for group, option in config.hydra.runtime.choices.items() if "/" not in str(group)}
    # Hydra notes no choice where an option is a list: typed, or else what the composed files brought
    many = config.get(MANY) or {}
    choices[MANY] = [str(name) for name, body in many.items() if OmegaConf.is_dict(body) and "kind" in body]
    for override in overrides:
        if override.key_or_group == MANY and not override.is_delete():
            value = override.value()
            choices[MANY] = [str(name) for name in (value if isinstance(value, list) else [value]) if name]
    return choices


def _drop_foreign_keys(
    config: dict[str, Any], choices: dict[str, Any], recipes_own: dict[str, Any], typed: Sequence[str], recipe: str
) -> list[str]:
    """Takes keys out of `config` that only the recipe's option has, not the one chosen instead; a line for each."""
    lines = []
    for group in GROUPS:
        body, choice = config.get(group), choices.get(group)
        if not isinstance(body, dict) or choice == recipes_own.get(group):
            continue
        if isinstance(choice, list):
            known, shown = set(choice), f"[{','.join(choice)}]"
        elif choice in options_of(group):
            known, shown = fields_of(group, choice), choice
            # the recipe's body comes last, and its kind would bring the recipe's option back
            body["kind"] = body["kind"] if _was_typed(f"{group}.kind", typed) else choice
        else:
            continue
        for key in [key for key in body if key not in known and not _was_typed(f"{group}.{key}", typed)]:
            value = textwrap.shorten(str(body.pop(key)), 60, placeholder=" …")
            lines.append(f"{group}.{key}={value} of recipe={recipe} is dropped: {group}={shown} does not have it.")
    return lines


def _was_typed(key: str, typed: Sequence[str]) -> bool:
    return any(name == key or name.startswith(f"{key}.") for name in typed)


def user_folders(typed: Sequence[str], parser: OverridesParser) -> list[Path]:
    """The folders of hydra.searchpath=[file://…] in which recipes are looked for: each itself, and two in it.

    Raises:
        RecipeError: there is no such folder.
    """
    folders: list[Path] = []
    for text in typed:
        if text.lstrip("+").startswith("hydra.searchpath="):
            value = parser.parse_overrides([text])[0].value()
            for item in value if isinstance(value, list) else [value]:
                scheme, separator, path = str(item).rpartition("://")
                if not separator or scheme == "file":
                    if not Path(path).is_dir():
                        raise RecipeError(f"hydra.searchpath: {item}: there is no such folder, seen from {Path.cwd()}.")
                    folders += [Path(path), Path(path) / "recipes", Path(path) / "recipe"]
    return folders


def _with_recipe_file(text: str, parser: OverridesParser, folders: Sequence[Path]) -> str:
    """recipe=NAME stays; recipe=FILE gets the file's absolute path, quoted, so that any path passes Hydra's grammar."""
    # as it stands first: a path with spaces or brackets is no valid Hydra value, and is a path all the same
    file = _recipe_file(text.removeprefix("recipe="), folders)
    if file is not None:
        return f"recipe={_quoted(file)}"
    override = parser.parse_overrides([text])[0]
    if override.is_choice_sweep():
        values = list(override.sweep_string_iterator())
        return "recipe=" + ",".join(_named_or_quoted(_unquoted(value), folders) for value in values)
    value = override.value()
    if not isinstance(value, str) or not value:
        raise RecipeError(f"{text}: a run needs a recipe; {nearest('', list(shipped.recipes()))}")
    return f"recipe={_named_or_quoted(value, folders)}"


def _named_or_quoted(value: str, folders: Sequence[Path]) -> str:
    file = _recipe_file(value, folders)
    if file is not None:
        return _quoted(file)
    stem, path = value.removesuffix(".yaml"), Path(value).expanduser()
    names = list(shipped.recipe_files(folders))
    if stem in names:
        return stem
    if path.is_dir():
        raise RecipeError(f"recipe={value}: this folder holds no recipe.yaml. {_files_in(path)}")
    if "/" in value or value != stem:
        raise RecipeError(f"recipe={value}: there is no such file, seen from {Path.cwd()}{_near_files(path) or '.'}")
    # Hydra would name the shipped ones alone, and no file
    hint = _near_files(path.with_name(f"{path.name}.yaml"))
    others = f"; {nearest(value, names)} A YAML file's path works too."
    raise RecipeError(f"recipe={value}: no such recipe{hint or others}")


def _near_files(wanted: Path) -> str:
    """A question for YAML files beside `wanted` with nearly its name; empty where there are none."""
    there = [file.name for file in _yaml_files(wanted.parent)]
    near = difflib.get_close_matches(wanted.name, there, n=2, cutoff=0.8)
    return f"; did you mean recipe={' or recipe='.join(str(wanted.with_name(name)) for name in near)}?" if near else ""


def _files_in(folder: Path) -> str:
    files = [str(file) for file in _yaml_files(folder)][:5]
    return f"Name the file: recipe={' or recipe='.join(files)}." if files else "Give a YAML file, or a run's folder."


def _yaml_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.y*ml") if file.suffix in {".yaml", ".yml"})


def _recipe_file(value: str, folders: Sequence[Path]) -> Path | None:
    """The YAML file behind `value`: a file, the run folder that holds it, or a name in one of the user's folders."""
    path = Path(value).expanduser()
    candidates = [path] if path.suffix in {".yaml", ".yml"} else [path / "recipe.yaml"]
    if "/" in value:
        candidates.append(path.with_name(path.name + ".yaml"))
    candidates += [folder / f"{value.removesuffix('.yaml')}.yaml" for folder in folders]
    return next((file.absolute() for file in candidates if value and file.is_file()), None)


def _quoted(file: Path) -> str:
    return QuotedString(text=file.as_posix(), quote=Quote.single).with_quotes()


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
