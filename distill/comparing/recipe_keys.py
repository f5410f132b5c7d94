"""Recipes as flat keys: which decide what a student is, and in which several recipes differ."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.recipe import GROUPS, Recipe, options_of
from distill.teacher._asking import NEEDED_BY
from distill.teacher._served import PACE

NOT_THE_STUDENTS = ("seed", "until", "rehearse", "hardware", "licence", "tracking", "evaluation")
"""Keys, or groups of them, that change no weight. The seed does; runs that differ in it alone are one recipe."""
NOT_THE_STUDENTS += ("baselines", "compression")
"""Which other models a run made; how it made a package belongs to that package."""
NOT_THE_STUDENTS += ("training.save_steps", "training.logging_steps", "training.sharding")
NOT_THE_STUDENTS += ("training.gradient_accumulation_steps", "training.gradient_checkpointing")
"""What is seen and kept, and where things lie meanwhile: the same sums, cut otherwise."""
NOT_THE_STUDENTS += tuple(f"data.{key}" for key in ("eval_path", "eval_split", "evaluation_rows", "new_template_rows"))
"""What models are judged on; see `judged_on`."""
NOT_THE_TEACHERS = ("batch_size", *PACE, "key_env", "max_cost", "python", "start_seconds", "gpu_memory_utilization")
NOT_THE_TEACHERS += ("price_per_million_prompt_tokens", "price_per_million_answer_tokens")
NOT_THE_TEACHERS += ("tensor_parallel_size", "pipeline_parallel_size")
"""Keys of a teacher, or of each of several, that change nothing in what it says."""


@dataclass(frozen=True)
class Keys:
    """Dotted key → value. `defaults` holds the values that the options themselves would choose.

    `asked`: the recipe's own values, where `values` holds what they come to.
    """

    values: Mapping[str, Any]
    defaults: Mapping[str, Any]
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def below(self, prefix: str) -> "Keys":
        """The keys that start with `prefix`, without it."""
        cut, all_three = len(prefix), (self.values, self.defaults, self.asked)
        return Keys(*({key[cut:]: value for key, value in of.items() if key.startswith(prefix)} for of in all_three))

    def only(self, wanted: Iterable[str]) -> "Keys":
        """The keys that are `wanted`."""
        kept, all_three = set(wanted), (self.values, self.defaults, self.asked)
        return Keys(*({key: value for key, value in of.items() if key in kept} for of in all_three))

    @property
    def identity(self) -> str:
        """The same text for the same values, whatever their order: 1 and 1.0 are the same."""
        return json.dumps({key: _canonical(value) for key, value in self.values.items()}, sort_keys=True, default=str)


def keys_of(recipe: Mapping[str, Any]) -> Keys:
    """All keys of a recipe as RunFolder reads it, with the defaults that its file leaves out.

    What this version does not know (an option of another one) stays as it is written.
    """
    values, defaults = dict(_flat(recipe)), {}
    for where, option in _options(recipe):
        for field in dataclasses.fields(option):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if default is dataclasses.MISSING or dataclasses.is_dataclass(default):
                continue
            for key, value in _flat(default, f"{where}{field.name}"):
                defaults[key] = value
                values.setdefault(key, value)
    return Keys(values, defaults)


def students_keys(keys: Keys) -> Keys:
    """Those that decide the student's weights, the seed aside. A teacher's `targets` hold the kind that is stored."""
    own = keys.only(k for k in keys.values if not any(f"{k}.".startswith(f"{no}.") for no in NOT_THE_STUDENTS))
    teachers = {key.rpartition(".")[0] for key in own.values if key.startswith("teacher.teachers.")} or {"teacher"}
    kind = _target_kind(own.values, teachers)
    left_out = {*NOT_THE_TEACHERS, "targets", *(name for name, needed_by in NEEDED_BY.items() if needed_by != kind)}
    left_out = {f"{teacher}.{name}" for teacher in teachers for name in left_out}
    values = {key: value for key, value in own.values.items() if key not in left_out}
    if kind not in {None, "next"}:
        values |= {f"{teacher}.targets": kind for teacher in teachers}
    return Keys(values, own.defaults, own.values)


def _target_kind(values: Mapping[str, Any], teachers: Iterable[str]) -> str | None:
    """What is stored of the teacher's distributions; as `Recipe.target_kind` says, also of another version's recipe."""
    loss = values.get("loss.kind")
    if values.get("teacher.kind") == "none" or values.get("teacher.live") is True or loss == "text":
        return None
    if loss == "aligned":
        return "next"
    asked = sorted({str(values.get(f"{teacher}.targets", "auto")) for teacher in teachers} - {"auto"})
    whole = all(values.get(f"{teacher}.kind") == "hf" for teacher in teachers)
    return asked[0] if asked else "sampled" if loss == "forward_kl" and whole else "top_k"


def differing(several: Sequence[Keys]) -> list[str]:
    """The keys that are not equal in all of `several`, sorted; neither as they were asked for nor as they come to.

    A key that some of the options lack counts where another one has it set to something of its own: a sweep over
    losses differs in loss.kind, and in loss.beta only where that is not jsd's default.
    """
    return [key for key in sorted({key for each in several for key in each.values}) if _differs(key, several)]


def _differs(key: str, several: Sequence[Keys]) -> bool:
    there = [each for each in several if key in each.values]
    asked = {_text(each.asked[key]) if key in each.asked else None for each in several}
    if all(each.asked for each in several) and len(asked) == 1:
        return False
    if len({_text(each.values[key]) for each in there}) > 1:
        return True
    own = [key not in each.defaults or _text(each.defaults[key]) != _text(each.values[key]) for each in there]
    return len(there) < len(several) and any(own)


def shown(value: Any) -> str:
    """A value as a recipe would write it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _options(recipe: Mapping[str, Any]) -> Iterable[tuple[str, type]]:
    """(what stands before its keys, class) of each option that the recipe chose and this version has."""
    yield "", Recipe
    training = next(field for field in dataclasses.fields(Recipe) if field.name == "training")
    yield "training.", training.type  # type: ignore[misc]
    for group in GROUPS:
        body = recipe.get(group)
        chosen = body.items() if group == "compression" and isinstance(body, Mapping) else [("", body)]
        for name, option in chosen:
            kind = option.get("kind") if isinstance(option, Mapping) else None
            known = options_of(group)
            if isinstance(kind, str) and kind in known:
                yield (f"{group}.{name}." if name else f"{group}."), known[kind]


def _flat(value: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _flat(child, f"{path}.{name}" if path else str(name))
    elif path:
        yield path, value


def _canonical(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return [_canonical(each) for each in value] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    return json.dumps(_canonical(value), sort_keys=True, default=str)
