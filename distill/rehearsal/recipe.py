"""rehearsed(): what a rehearsal runs: the same options, tiny checkpoints, a sample of the data, two steps."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill._teacher_checks import teachers_of
from distill.checks import load
from distill.encoding import prompt_text
from distill.example import Examples
from distill.family.tiny import tiny_config
from distill.family.tiny_tokenizer import VOCAB_SIZE
from distill.recipe import YOURS, Recipe
from distill.rehearsal._checkpoints import make_checkpoint
from distill.rehearsal._data import NUM_EVALUATION_ROWS, NUM_ROWS, sample
from distill.rehearsal._sources import Source, student_source, teacher_sources
from distill.rehearsal._tokenizers import tokenizers_for
from distill.teacher.hf import Hf
from distill.tracking.none import NoTracking

STEPS = 2
NEW_TOKENS = 8
"""Of every answer that is generated."""
ROWS_PER_MICRO_BATCH = 2
MAX_KL_NATS = 1e-2
"""What a package may differ from its student at least: 8 bits blur random rows of 64 by 1e-3, trained ones by less.
Heads in a wrong order, or a wrong base of the positions, differ by far more."""
MEANT_FOR_REAL_WEIGHTS = {"cut", "final_answer", "known_answer"}
"""Filters that a random model's answers never pass."""


@dataclass(frozen=True)
class Rehearsed:
    """A recipe to run, and what it cannot show. `shapes`: one sentence on each stand-in."""

    recipe: Recipe
    shapes: tuple[str, ...]
    not_proven: tuple[str, ...]


def rehearsed(recipe: Recipe, folder: Path, num_processes: int = 1) -> Rehearsed:
    """Writes the stand-ins and the sample into `folder`, and makes the recipe that uses them.

    Args:
        num_processes: that will train together; each gets rows of every batch.

    Raises:
        RecipeError: a checkpoint, a file or a field is not what the recipe says.
    """
    data = sample(recipe, folder / "data")
    not_proven = list(data.not_proven)
    strict = [name for name, option in recipe.compression.items() if option.max_kl_nats < MAX_KL_NATS]
    if strict and "verify" in recipe.stages:
        not_proven.append(f"max_kl_nats of {', '.join(strict)}: {MAX_KL_NATS:g} was allowed, as the weights are random")
    if "gguf_q4_k_m" in recipe.compression and "compress" in recipe.stages:
        not_proven.append("gguf_q4_k_m: its types of 4 and 6 bits take rows of 256; rows of 64 have 5 and 8 bits")
    examples = load(data.data)
    teachers, student = teacher_sources(recipe), student_source(recipe)
    sources = [*teachers.values(), *([student] if student else [])]
    places, shapes, stood_in = _checkpoints(sources, recipe, examples, folder)
    not_proven += [
        f"{source.key} is left to you: a {source.config['model_type']} of our own shape stood in; with {source.key}=… "
        "yours is rehearsed"
        for source in teachers.values()
        if source.model == YOURS
    ]
    not_proven += [f"{who}: its own tokenizer and chat template; a tokenizer of its kind stood in" for who in stood_in]
    options = {
        key: _teacher(teacher, key, recipe, teachers.get(key), places, not_proven)
        for key, teacher in teachers_of(recipe).items()
    }
    teacher: Any = options.get("teacher")
    if recipe.teacher.kind == "routed":
        named = {key.removeprefix("teacher.teachers."): option for key, option in options.items()}
        teacher = replace(recipe.teacher, teachers=named)
    made = replace(
        recipe,
        name=f"{recipe.name}_rehearsal",
        data=data.data,
        teacher=teacher,
        student=_student(recipe, student, places),
        training=_training(recipe, num_processes),
        compression={name: _compression(option) for name, option in recipe.compression.items()},
        evaluation=_evaluation(recipe.evaluation),
        tracking=NoTracking(kind="none"),
    )
    return Rehearsed(made, tuple(shapes), tuple(not_proven))


def _checkpoints(
    sources: list[Source], recipe: Recipe, examples: Examples, folder: Path
) -> tuple[dict[tuple[str, str | None], str], list[str], list[str]]:
    """(model, revision) → folder of its stand-in, a sentence on each, and those whose tokenizer is not here."""
    distinct = list({(source.model, source.revision): source for source in sources}.values())
    texts = [text for e in examples.train for text in (prompt_text(e.prompt), e.response) if text]
    places, shapes, stood_in = {}, [], []
    for number, (one, tokenized) in enumerate(zip(distinct, tokenizers_for(distinct, texts), strict=True)):
        # numbered: two folders may have the same name
        place = folder / "checkpoints" / f"{one.name}-{number}"
        layers = _kept_layers(recipe)
        config = make_checkpoint(one, tokenized, place, layers) if layers else make_checkpoint(one, tokenized, place)
        places[one.model, one.revision] = str(place)
        shapes.append(_shape(one, config, tokenized.is_real, len(tokenized.tokenizer)))
        if not tokenized.is_real and not one.stands_in:
            stood_in.append(one.who)
    return places, shapes, stood_in


def _shape(source: Source, config: dict[str, Any], has_real_tokenizer: bool, num_tokens: int) -> str:
    kind = "its own tokenizer" if has_real_tokenizer else f"a tokenizer of its kind with {num_tokens} tokens"
    padded = f", padded to {config['vocab_size']}" if config["vocab_size"] != num_tokens else ""
    family = source.known[0].title if source.known else config["model_type"]
    return f"{source.who}: {family} ({config['model_type']}) at a width of 64, {kind}{padded}"


def _teacher(
    teacher: Any, key: str, recipe: Recipe, source: Source | None, places: dict[Any, str], not_proven: list[str]
) -> Any:
    place = places[source.model, source.revision] if source else None
    filters = [name for name in getattr(teacher, "filters", ()) if name not in MEANT_FOR_REAL_WEIGHTS]
    if len(filters) < len(getattr(teacher, "filters", ())):
        not_proven.append(f"{key}.filters: only a trained teacher gives answers that pass them")
    if teacher.kind == "none":
        return teacher
    if teacher.kind == "file":
        assert source is None or place is not None
        if source is None or source.is_folder:
            return replace(teacher, filters=filters)
        if recipe.target_kind is None:
            return replace(teacher, filters=filters, tokenizer=place, tokenizer_revision=None)
        not_proven.append(f"{key}.path was not read: its tokens are those of {source.who}, whose tokenizer is not here")
    if teacher.kind in {"server", "vllm"}:
        server = f"vLLM with {teacher.model}" if teacher.kind == "vllm" else f"{teacher.model} at {teacher.base_url}"
        not_proven.append(f"{server} was not asked: a tiny model in this process stood in for it")
    small = {
        "model": place,
        "revision": None,
        "filters": filters,
        "samples": min(teacher.samples, 2),
        "batch_size": min(teacher.batch_size, NUM_ROWS),
    }
    if teacher.kind == "hf":
        return replace(teacher, **small, max_new_tokens=min(teacher.max_new_tokens, NEW_TOKENS))
    return Hf(
        kind="hf",
        **small,
        responses=teacher.responses,
        keep_answers=teacher.keep_answers,
        targets="top_k" if recipe.target_kind == "top_k" else "auto",
        top_k=teacher.top_k,
        temperature=teacher.temperature,
        max_new_tokens=min(getattr(teacher, "max_new_tokens", NEW_TOKENS), NEW_TOKENS),
    )


def _student(recipe: Recipe, source: Source | None, places: dict[Any, str]) -> Any:
    student = recipe.student
    if student.kind == "pretrained":
        assert source is not None
        layers = _kept_layers(recipe)
        kept = None if layers is None else [*range(layers - 2), layers - 1]
        return replace(student, model=places[source.model, source.revision], revision=None, layers=kept)
    shape = tiny_config(student.config(VOCAB_SIZE), VOCAB_SIZE)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    return replace(student, **{name: shape[name] for name in names}, vocab_size=min(student.vocab_size, VOCAB_SIZE))


def _kept_layers(recipe: Recipe) -> int | None:
    """Layers of the stand-ins where the student keeps some of its own: one more than are kept here."""
    kept = getattr(recipe.student, "layers", None)
    return None if kept is None else min(len(kept), 2) + 1


def _training(recipe: Recipe, num_processes: int) -> Any:
    """Two steps of the smallest batch that still has rows for every process and each of two micro-batches."""
    training = recipe.training
    accumulation = min(training.gradient_accumulation_steps, 2)
    batch_size = num_processes * accumulation * ROWS_PER_MICRO_BATCH
    while training.on_policy and not round(training.on_policy * batch_size):
        batch_size *= 2
    return replace(
        training,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        warmup_steps=min(training.warmup_steps, STEPS - 1),
        save_steps=1,
        logging_steps=1,
        on_policy_rounds=min(training.on_policy_rounds, STEPS),
        on_policy_max_new_tokens=min(training.on_policy_max_new_tokens, NEW_TOKENS),
    )


def _compression(option: Any) -> Any:
    """Healing takes two steps, and no more directions than a tiny layer has."""
    option = replace(option, max_kl_nats=max(option.max_kl_nats, MAX_KL_NATS))
    return replace(option, max_steps=STEPS, rank=min(option.rank, 16)) if option.heals else option


def _evaluation(evaluation: Any) -> Any:
    return replace(
        evaluation,
        max_new_tokens=min(evaluation.max_new_tokens, NEW_TOKENS),
        rows=min(evaluation.rows or NUM_EVALUATION_ROWS, NUM_EVALUATION_ROWS),
        positions=min(evaluation.positions, 200),
        speed=False,
    )
