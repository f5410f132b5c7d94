"""explain(): Hydra's own errors in our words: what was found, the nearest valid names, all of them if few."""

import contextlib
import re
import shlex
from collections.abc import Iterator, Sequence

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from distill import shipped
from distill.errors import RecipeError, did_you_mean
from distill.recipe import GROUPS, takes

FEW = 12
"""So many names are listed in full."""


@contextlib.contextmanager
def explain(typed: Sequence[str]) -> Iterator[None]:
    """Turns what Hydra, OmegaConf and YAML raise inside into RecipeError; `typed` is what the user had written."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise RecipeError(_explained(error, typed)) from error


def nearest(name: str, valid: Sequence[str]) -> str:
    """ "did you mean x? there are: x, y, z." for a name that is none of `valid`."""
    question = did_you_mean(name, valid, 3)
    listed = f"there are: {', '.join(valid)}." if valid and (len(valid) <= FEW or not question) else ""
    return (question + listed).strip() or "there are none."


def _explained(error: BaseException, typed: Sequence[str]) -> str:
    # Hydra wraps OmegaConf's errors into an empty one of its own
    inner = error.__cause__
    cause = inner if inner and isinstance(inner, OmegaConfBaseException | yaml.YAMLError) else error
    key = getattr(cause, "full_key", None) or "a key"
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, OverrideParseException):
        return _bad_argument(error)
    if isinstance(cause, yaml.MarkedYAMLError):
        mark = cause.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        return f"A YAML file cannot be read ({_recipe_of(typed)}): {cause.problem or cause} at {where}."
    if isinstance(cause, MissingMandatoryValue):
        return f"{key} is needed; give {key}=…"
    if isinstance(cause, InterpolationResolutionError):
        return f"{key}: {_first_line(cause)}"
    text = _first_line(error)
    if text.startswith("Ambiguous value"):
        argument = re.search(r"'(.*)'", text)
        found = argument[1].lstrip("+") if argument else "a value with commas"
        return _several_values(found, typed)
    if "requires --multirun" in text:
        return f"{text.replace('--multirun', '-m')}: put -m before it to run each of its values."
    elsewhere = re.search(r"In 'recipe/(.*)': Could not override '[^'@]*@(?!_global_)", text)
    if elsewhere:
        return without_header(elsewhere[1])
    unused = re.search(r"Could not override '/?([^'@]*)'\. No match", text)
    if unused:
        return f"{unused[1]}: no such group; {nearest(unused[1], list(shipped.groups()))}"
    if text.startswith("Multiple values for"):
        group = text.removeprefix("Multiple values for").split(".")[0].strip()
        return (
            f"{group} is chosen twice. On the command line write {group}=option without a plus sign; "
            f"in the defaults of a recipe write `- override /{group}: option`."
        )
    lines = [line.strip() for line in f"{error}\n{cause if cause is not error else ''}".splitlines()]
    lines = [line for line in lines if line and not line.startswith(("full_key:", "object_type="))]
    return "\n".join(dict.fromkeys(lines[:5])) or type(cause).__name__


def without_header(recipe: str) -> str:
    """What to do about a recipe that Hydra puts anywhere but at the top."""
    return (
        f"recipe={recipe} does not begin with the line `# @package _global_`; without it, its keys land under "
        "`recipe:` instead of at the top. Put it first in the file."
    )


def _several_values(found: str, typed: Sequence[str]) -> str:
    """For loss=a,b: every way to write it that this key can take."""
    name, _, value = found.partition("=")
    lines = [
        f"{found} names several values.",
        f"  one run for each:  python -m distill -m {' '.join(shlex.quote(text) for text in typed)}",
    ]
    with contextlib.suppress(yaml.YAMLError):
        if name == "compression" or takes(name, yaml.load(f"[{value}]", Loader=get_yaml_loader())):
            lines.append(f"  a list:            {name}=[{value}]")
    if name not in GROUPS and takes(name, value):
        lines.append(f"  one text:          {name}=\"'{value}'\"")
    return "\n".join(lines)


def _missing_option(error: MissingConfigException) -> str:
    """For "In 'recipe/x': Could not find 'loss/foo'"."""
    found = re.search(r"Could not (?:find|load) '(?:([^']*?)/)?([^'/]*)'", str(error))
    where = re.search(r"In '([^']*)'", str(error))
    if not found:
        return _first_line(error)
    group, option = found[1], found[2]
    if group is None:
        return f"There is no configuration called {option}."
    if group == "recipe":
        return (
            f"recipe={option}: no such recipe; {nearest(option, list(shipped.recipes()))} A YAML file's path works too."
        )
    if group.startswith("recipe/"):
        group = group.removeprefix("recipe/")
        return f"A recipe's defaults name {group}: {option} without `override`; write `- override /{group}: {option}`."
    source = f" (chosen in {where[1]})" if where and where[1].startswith("recipe/") else ""
    valid = list(error.options or shipped.groups().get(group, ()))
    if not valid:
        return f"{group}: no such group{source}; {nearest(group, [*shipped.groups()])}"
    return f"{group}={option}: no such option{source}; {nearest(option, valid)}"


def _bad_argument(error: OverrideParseException) -> str:
    text = error.override or ""
    key, equals, value = text.partition("=")
    if not equals:
        meant = f"recipe={text}" if text in shipped.recipes() else "group=option or key=value, for example loss=jsd"
        return f"{text!r} is no argument of ours; write {meant}."
    quoted = value.replace("'", "\\'")
    return (
        f"{text!r} cannot be read.\nValues with spaces, brackets or other signs need quotes twice: \"{key}='{quoted}'\""
    )


def _recipe_of(typed: Sequence[str]) -> str:
    return next((text for text in typed if text.startswith("recipe=")), "recipe=quickstart")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
