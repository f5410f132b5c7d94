"""likely_mistakes(): what speaks against a recipe, stops no run, and cannot be known for sure to be wrong."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill._encoding_checks import around_an_answer, num_embeddings
from distill.checks import load
from distill.data.known import data_set
from distill.data.local import Local
from distill.planning.volume import volume_of
from distill.recipe import Recipe
from distill.rehearsal._data import is_here
from distill.rehearsal._sources import Source
from distill.rehearsal._tokenizers import real_tokenizer

UNLIMITED = 1 << 24
"""Tokens that no answer reaches."""


def likely_mistakes(recipe: Recipe, sources: Sequence[Source]) -> list[str]:
    """A sentence on each, with the figures that it rests on."""
    folders = {source.model: source for source in sources if source.is_folder}
    of_tokenizers = [words for source in folders.values() for words in _of_tokenizer(source)]
    return [*_of_rows(recipe), *_of_lengths(recipe), *_of_answers(recipe), *of_tokenizers]


def _of_rows(recipe: Recipe) -> list[str]:
    """Of rows that show less than they seem to."""
    data = recipe.data
    if not isinstance(data, Local):
        return []
    if not is_here(data):
        same = data.eval_path and (data.eval_path.lower(), data.eval_split) == (data.path.lower(), data.split)
        said = f"data.eval_split={data.eval_split} of data.eval_path={data.eval_path} is the split that is learnt from"
        return [f"{said}: scores on it show what was memorised. Name another split."] if same else []
    examples = load(data)
    distinct = {(str(row.prompt), row.response) for row in examples.train}
    said = f"All {len(examples.train)} training rows are the same prompt with the same answer: is that the right file?"
    return [said] if len(distinct) == 1 and len(examples.train) > 1 else []


def _of_lengths(recipe: Recipe) -> list[str]:
    """Of rows that do not fit into what is learnt of one."""
    most = recipe.training.max_length
    if not _is_counted(recipe):
        return []
    found = volume_of(recipe)
    if found.prompt + found.answer <= most:
        return []
    fate = "many prompts alone reach it, and are left out" if found.prompt >= most else "many answers are cut"
    return [
        f"training.max_length={most}, and a row has about {found.prompt:.0f} tokens of prompt and {found.answer:.0f} "
        f"of answer on average: {fate}. Raise it, or shorten the prompts."
    ]


def _of_answers(recipe: Recipe) -> list[str]:
    """Of answers that the teacher has no room for."""
    teacher: Any = recipe.teacher
    most = getattr(teacher, "max_new_tokens", None)
    if most is None or teacher.responses != "generate" or not _is_counted(recipe):
        return []
    # what the plan takes them to have; where it knows nothing, they are as long as they may be
    answer = volume_of(replace(recipe, teacher=replace(teacher, max_new_tokens=UNLIMITED))).answer
    if answer <= most or answer >= UNLIMITED:
        return []
    dropped = [name for name in ("cut", "final_answer") if name in teacher.filters]
    fate = f"teacher.filters={','.join(dropped)} would drop many of them" if dropped else "many of them would be cut"
    return [
        f"teacher.max_new_tokens={most}, and the teacher's answers are estimated at {answer:.0f} tokens on average "
        f"(python -m distill.plan says from what): {fate}. Raise it."
    ]


def _of_tokenizer(source: Source) -> list[str]:
    """Of a checkpoint on this disk."""
    tokenizer: Any = real_tokenizer(source)
    said, num_rows = [], num_embeddings(source.model)
    if num_rows is not None and len(tokenizer) > num_rows:
        said.append(
            f"{source.who}: its tokenizer has {len(tokenizer):,} tokens, its embedding {num_rows:,} rows. No row that "
            "was looked at uses the others; one that does would stop the run."
        )
    file, ends = _ends(Path(source.model))
    if ends and tokenizer.eos_token_id not in ends:
        named = ", ".join(f"{n} ({tokenizer.convert_ids_to_tokens(n)!r})" for n in ends if n < len(tokenizer))
        said.append(
            f"{source.who}: it stops at token {named or ends} ({file}), its tokenizer ends an answer with "
            f"{tokenizer.eos_token_id} ({tokenizer.eos_token!r}). A teacher that says the latter would go on; a "
            "student learns to say the latter. Make eos_token_id there name both, if both are meant."
        )
    around = around_an_answer(tokenizer) if tokenizer.chat_template else None
    if around and not around[1]:
        said.append(
            f"{source.who}: its chat template puts nothing after an answer. The last one of a row is ended with "
            f"{tokenizer.eos_token!r} all the same; earlier turns of a conversation would not end."
        )
    return said


def _ends(folder: Path) -> tuple[str, list[int]]:
    """The file that says where answers end, and the tokens; transformers asks the first of the two that has any."""
    for name in ("generation_config.json", "config.json"):
        found = json.loads((folder / name).read_text("utf-8")) if (folder / name).is_file() else {}
        ends = found.get("eos_token_id")
        if ends is not None:
            return name, ends if isinstance(ends, list) else [ends]
    return "config.json", []


def _is_counted(recipe: Recipe) -> bool:
    """Whether lengths are known: of rows that can be read here, or of a data set whose means are known."""
    data = recipe.data
    if not isinstance(data, Local) or data.text_field:
        return False
    known = data_set(data.path)
    return Path(data.path).is_file() or bool(known and known.is_of(data.subset) and known.characters_per_row)
