"""Recipe and parse(): the only door from YAML to types. Nothing heavier than pydantic is imported here."""

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from distill import shipped
from distill.adapter import Adapter
from distill.compression import Compression
from distill.data import Data
from distill.errors import RecipeError, did_you_mean
from distill.evaluation import Evaluation
from distill.hardware import hardware_of
from distill.loss import Loss
from distill.option import STRICT
from distill.student import Student
from distill.teacher import Teacher
from distill.tracking import Tracking
from distill.training import Training

Stage = Literal["teach", "train", "compress", "verify", "evaluate", "report"]
STAGES: tuple[str, ...] = typing.get_args(Stage)
YOURS = "your own teacher"
"""A rehearsal's `teacher.model` where the recipe leaves it to its user: a model of our own shape stands in."""

NEEDED = {
    "bool_type": "true or false is needed",
    "int_type": "a whole number is needed",
    "float_type": "a number is needed",
    "string_type": "text is needed",
    "string_pattern_mismatch": "letters, digits, _, . and - are needed, and no other signs",
}
"""pydantic's type of a fault → what to give instead, in the words of whoever types it."""

GROUPS: dict[str, Any] = {
    "data": Data,
    "teacher": Teacher,
    "student": Student,
    "loss": Loss,
    "adapter": Adapter,
    "compression": Compression,
    "evaluation": Evaluation,
    "tracking": Tracking,
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Licence:
    """Licences whose conditions the user has read and accepts."""

    accept: list[str] = dataclasses.field(default_factory=list)


def _readable(hardware: str) -> str:
    """`hardware` as it stands, which a plan can read. Raises RecipeError."""
    hardware_of(hardware)
    return hardware


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """One reproducible run; the only thing that stages see of Hydra."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    seed: Annotated[int, Field(ge=0)] = 0
    until: Stage = "report"
    """The last stage to run; typing the command again without it goes on."""
    rehearse: bool = False
    """Tiny random models of the same architectures take the place of the checkpoints; two steps of each stage."""
    hardware: Annotated[str, AfterValidator(_readable)] | None = None
    """What it is meant to run on, such as 8xh100-80gb or "4xmine:memory_gb=48,…" (`distill.hardware`): for
    `distill.plan` and `distill.recipes`, decides nothing."""
    licence: Licence = dataclasses.field(default_factory=Licence)
    data: Data
    teacher: Teacher
    student: Student
    loss: Loss
    adapter: Adapter
    training: Training = dataclasses.field(default_factory=Training)
    compression: dict[str, Compression] = dataclasses.field(default_factory=dict)
    baselines: list[Literal["baseline_text", "baseline_no_teacher"]] = dataclasses.field(default_factory=list)
    evaluation: Evaluation
    tracking: Tracking

    def __post_init__(self) -> None:
        has_teacher = self.teacher.kind != "none"
        if not has_teacher and self.loss.kind != "text":
            raise ValueError(
                f"loss={self.loss.kind} compares the student with a teacher, but teacher=none. "
                "Use loss=text, or name a teacher"
            )
        if not has_teacher and self.baselines:
            raise ValueError("baselines say what a teacher adds; with teacher=none there is nothing to compare")
        if "baseline_no_teacher" in self.baselines and not _has_own_answers(self.data):
            raise ValueError("baselines: baseline_no_teacher needs data.labelled_rows, the rows that have an answer")
        for name, compression in self.compression.items():
            if name != compression.kind:
                raise ValueError(f"compression.{name} holds kind {compression.kind!r}; they must be the same")
        if "lora" in self.compression and not (self.adapter.kind == "lora" and _whole_checkpoint(self.student)):
            raise ValueError(
                "compression=lora keeps the adapter alone, to be put on the checkpoint that the student was; it needs "
                "adapter=lora, student=pretrained and all of its layers"
            )
        if self.adapter.kind == "qlora" and self.student.kind != "pretrained":
            raise ValueError("adapter=qlora freezes the student's weights; a student from scratch has none worth that")
        self._check_targets()
        if self.is_plain_text:
            generated = self.teacher.kind != "none" and self.teacher.responses == "generate"
            instead = ["teacher.responses=data"] if generated else []
            instead += ["evaluation=bits_per_byte"] if self.evaluation.kind == "exact_match" else []
            if instead:
                raise ValueError(f"data.text_field has no prompts to answer; use {' '.join(instead)}")

    @property
    def is_plain_text(self) -> bool:
        """Whether rows are texts without prompts, which are learnt from their first token to their last."""
        return bool(getattr(self.data, "text_field", None))

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that are run, in their order: up to `until`."""
        return STAGES[: STAGES.index(self.until) + 1]

    @property
    def live(self) -> bool:
        """Whether the teacher stays in memory beside the student."""
        return self.teacher.kind == "hf" and self.teacher.live

    @property
    def each_scores(self) -> bool:
        """Whether each of several processes loads the teacher that scores the student's answers; else one asks it."""
        return self.teacher.kind == "hf" and self.teacher.device_map is None

    @property
    def target_kind(self) -> str | None:
        """What is stored of the teacher's distributions; None when nothing is."""
        if self.teacher.kind == "none" or self.live or self.loss.kind == "text":
            return None
        if self.loss.kind == "aligned":
            return "next"
        teachers = [*self.teacher.teachers.values()] if self.teacher.kind == "routed" else [self.teacher]
        asked = sorted({teacher.targets for teacher in teachers} - {"auto"})
        if len(asked) > 1:
            raise ValueError(f"teacher.teachers: one student cannot learn from {' and '.join(asked)} targets at once")
        # only a teacher in this process gives its whole distribution to draw from
        whole = all(teacher.kind == "hf" for teacher in teachers)
        return asked[0] if asked else "sampled" if self.loss.kind == "forward_kl" and whole else "top_k"

    def _check_targets(self) -> None:
        """Raises ValueError when the loss cannot be had from what would be stored."""
        kind = self.target_kind
        if self.loss.kind == "aligned":
            if self.training.packing:
                raise ValueError("training.packing with loss=aligned: its spans belong to rows; leave packing out")
            if self.live or self.training.on_policy:
                raise ValueError(
                    "loss=aligned compares the likelihoods of stored answers; it goes with neither teacher.live nor "
                    "training.on_policy"
                )
            if self.teacher.kind != "none" and self.teacher.tokenizer_from is None:
                raise ValueError("loss=aligned needs the teacher's tokenizer: name it with teacher.tokenizer")
        routed, field = self.teacher.kind == "routed", getattr(self.data, "teacher_field", None)
        if routed != (field is not None):
            raise ValueError("teacher=routed and data.teacher_field=… belong together: it names each row's teacher")
        if self.teacher.kind == "routed":
            size = {"sampled": "draws", "top_k": "top_k"}.get(str(kind), "kind")
            sizes = {name: getattr(teacher, size) for name, teacher in self.teacher.teachers.items()}
            if size != "kind" and len(set(sizes.values())) > 1:
                raise ValueError(f"teacher.teachers keep {size} of {sizes}; give all of them the same targets")
        if self.training.on_policy:
            self._check_on_policy()
        if kind == "next" and self.loss.kind != "aligned":
            raise ValueError(
                f"teacher.targets=next with loss={self.loss.kind}: the probability of the text itself is for "
                "loss=aligned alone. Use teacher.targets=top_k, or loss=text"
            )
        if kind in {"sampled", "frozen_head"} and self.loss.kind != "forward_kl":
            raise ValueError(
                f"teacher.targets={kind} with loss={self.loss.kind}: samples and averages of the teacher's "
                "distribution are exact on average for forward_kl alone. Use teacher.targets=top_k or dense"
            )
        if kind == "frozen_head" and not (self.adapter.kind != "none" and _whole_checkpoint(self.student)):
            raise ValueError(
                "teacher.targets=frozen_head averages the student's output head once and for all, so that head must "
                "not be trained: it needs adapter=lora or qlora, student=pretrained and all of its layers. Else use "
                "sampled"
            )

    def _check_on_policy(self) -> None:
        """Raises ValueError when nobody could score what the student writes."""
        if self.loss.kind == "text" or getattr(self.loss, "hard_weight", 0.0):
            raise ValueError(
                f"training.on_policy with loss={self.loss.kind}: its own text (loss=text, loss.hard_weight) teaches a "
                "student nothing; the teacher must score it. Use loss=reverse_kl or jsd without hard_weight"
            )
        if self.teacher.kind in {"file", "routed"}:
            raise ValueError(
                f"training.on_policy with teacher={self.teacher.kind}: what the student writes must be scored by one "
                "teacher that can be asked. Use teacher=hf, vllm or server"
            )


def parse(config: Mapping[str, Any]) -> Recipe:
    """The typed recipe of a composed and resolved configuration.

    Raises:
        RecipeError: unknown keys, wrong types, values out of range, options that exclude each other. Six lines at most.
    """
    try:
        # as JSON: strict types, yet objects become dataclasses and lists stay lists
        return TypeAdapter(Recipe).validate_json(json.dumps(_with_a_teacher(config)))
    except ValidationError as error:
        lines = [_describe(problem, str(config.get("name"))) for problem in error.errors(include_url=False)]
        shown, left_out = lines[:5], len(lines) - 5
        raise RecipeError("\n".join(shown) + (f"\n… and {left_out} more" if left_out > 0 else "")) from None


def options_of(group: str) -> dict[str, type]:
    """kind → option class, for one group of the recipe."""
    union = typing.get_args(GROUPS[group])[0]
    classes = typing.get_args(union) or (union,)
    return {typing.get_args(typing.get_type_hints(cls)["kind"])[0]: cls for cls in classes}


def fields_of(group: str, kind: str) -> set[str]:
    """Names of the keys that an option has."""
    return {field.name for field in dataclasses.fields(options_of(group)[kind])}


def takes(key: str, value: Any) -> bool:
    """Whether `value` can stand for a dotted key in any option that has it; True for keys that cannot be told."""
    *owners, name = key.split(".")
    if not owners:
        classes: list[Any] = [Recipe]
    elif owners == ["training"] or owners == ["licence"]:
        classes = [{"training": Training, "licence": Licence}[owners[0]]]
    elif len(owners) == 1 and owners[0] in GROUPS:
        classes = [*options_of(owners[0]).values()]
    else:
        return True
    hints = [typing.get_type_hints(owner, include_extras=True) for owner in classes]
    wanted = [hint[name] for hint in hints if name in hint]
    return not wanted or any(_fits(value, kind) for kind in wanted)


def _fits(value: Any, kind: Any) -> bool:
    try:
        TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


def _whole_checkpoint(student: Any) -> bool:
    return student.kind == "pretrained" and student.layers is None


def _has_own_answers(data: Any) -> bool:
    return getattr(data, "labelled_rows", None) is not None


def _with_a_teacher(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration; in a rehearsal a teacher that is still to be named is `YOURS`."""
    teacher = config.get("teacher")
    if config.get("rehearse") is True and isinstance(teacher, Mapping) and teacher.get("kind") in {"hf", "vllm"}:
        return {**config, "teacher": {"model": YOURS, **teacher}}
    return dict(config)


def _describe(problem: Mapping[str, Any], recipe: str) -> str:
    """One line: which key, what was found, what is needed."""
    where = [str(part) for part in problem["loc"]]
    # pydantic puts the union's tag into the path ("loss", "jsd", "beta"); users write loss.beta
    if len(where) > 1 and where[0] in GROUPS:
        tag = 2 if where[0] == "compression" else 1
        if len(where) > tag and where[tag] in options_of(where[0]):
            where.pop(tag)
    key, found, kind = ".".join(where) or "recipe", problem["input"], problem["type"]
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        known = sorted(_keys_beside(problem["loc"]))
        hint = did_you_mean(where[-1], known, 2)
        keys = [k for k in known if k != "kind"]
        return f"{key}: no such key; {hint}" + (f"there are: {', '.join(keys)}." if keys else "this option has none.")
    if kind in {"missing", "missing_argument"}:
        return f"{key}: is needed; give {key}={_wanted(key, recipe)}"
    if kind == "union_tag_invalid":
        valid = sorted(options_of(where[0]))
        hint = did_you_mean(str(found.get("kind")), valid)
        return f"{key}: no option {found.get('kind')!r}; {hint}there are: {', '.join(valid)}."
    if kind == "list_type":
        # one name is a list of one; a number says how many, where a list says which
        if isinstance(found, str):
            return f"{key}={found!r}: a list is needed; write {key}=[{found}]."
        first = (
            f"; write {key}={[*range(found)]} for the first {found}" if type(found) is int and 0 < found < 100 else ""
        )
        return f"{key}={found!r}: a list is needed{first}."
    if kind == "literal_error" and isinstance(found, str):
        hint = did_you_mean(found, re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
        return f"{key}={found!r}: {hint}there are: {problem['ctx']['expected']}."
    if kind in NEEDED:
        return f"{key}={found!r}: {NEEDED[kind]}."
    message = problem["msg"].removeprefix("Value error, ")
    if kind in {"value_error", "dataclass_type"}:
        # what names its key itself is a whole message
        return message if message.startswith(f"{key}=") else f"{key}: {message}."
    return f"{key}={found!r}: {message[0].lower()}{message[1:]}."


def _wanted(key: str, recipe: str) -> str:
    """What to give for a key that is needed."""
    if key not in {"teacher.model", "student.model"}:
        return "…"
    maker = f"{recipe}_teacher"
    made = key == "teacher.model" and maker in shipped.recipes()
    said = f"FOLDER (recipe={maker} makes outputs/{maker}/…/packages/bf16)" if made else "FOLDER"
    return f"{said}, a checkpoint's, or a hub id such as Qwen/Qwen3-0.6B."


def _keys_beside(location: tuple) -> set[str]:
    group = location[0] if location else None
    if group in GROUPS and len(location) > 2:
        kind = location[2] if group == "compression" else location[1]
        return fields_of(group, str(kind))
    owner = {"training": Training, "licence": Licence}.get(str(group), Recipe) if len(location) > 1 else Recipe
    # at the top stands the recipe's own name as well, which Hydra takes
    return {field.name for field in dataclasses.fields(owner)} | ({"recipe"} if owner is Recipe else set())
