"""A small sample of a recipe's data in the same columns, and what the whole of it says against the recipe."""

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill._shape_checks import check_schedule, rows_to_learn
from distill.artifact import write_whole
from distill.checks import check_rows, load
from distill.data._prompt import fields_of
from distill.data._rows import read_rows
from distill.data.known import DataSet, data_set
from distill.data.local import Local
from distill.data.word_problems import WordProblems
from distill.errors import DataError
from distill.option import is_meant_as_path
from distill.planning.volume import volume_of
from distill.recipe import Recipe

NUM_ROWS, NUM_EVALUATION_ROWS = 56, 8
"""Rows of a sample: three batches, and enough held-out text for a divergence."""


@dataclass(frozen=True)
class Sample:
    """The data of a rehearsal. `not_proven`: sentences on what a sample cannot show."""

    data: Any
    not_proven: tuple[str, ...] = ()


def check_data(recipe: Recipe) -> int | None:
    """Reads data that is here as a run does, and holds the rest against what is known of it. Rows in an epoch, or None.

    Raises:
        DataError: a file, a field, a split or a slice is wrong.
    """
    data = recipe.data
    if is_here(data):
        # before a tokenizer is, texts are in as many rows as a plan expects
        return check_rows(recipe, load(data), volume_of(recipe).rows if recipe.is_plain_text else None)
    assert isinstance(data, Local)
    for path, split, key in ((data.path, data.split, "split"), (data.eval_path, data.eval_split, "eval_split")):
        known = data_set(path) if path and not Path(path).exists() else None
        if known:
            _is_there(known, split, f"data.{key}", data.subset if path == data.path else known.subset)
    known = data_set(data.path)
    if known is None or Path(data.path).exists() or not known.is_of(data.subset):
        return None
    num_rows = rows_to_learn(recipe, _rows_left(data, known.splits[data.split]))
    num_rows = volume_of(recipe).rows if recipe.is_plain_text else num_rows
    check_schedule(recipe, num_rows)
    return num_rows


def is_here(data: Any) -> bool:
    """Whether all rows can be read without a network: they are made, or in files on this disk."""
    return not isinstance(data, Local) or all(Path(path).is_file() for path in (data.path, data.eval_path) if path)


def sample(recipe: Recipe, folder: Path) -> Sample:
    """A small file of the recipe's own rows, of rows like a known data set's, or of the columns that the recipe names.

    Raises:
        DataError: there is no such file, or a line of it cannot be read.
    """
    data = recipe.data
    labelled = None if data.labelled_rows is None else min(data.labelled_rows, NUM_ROWS // 2)
    if not isinstance(data, Local):
        rows = {"num_rows": min(data.num_rows, NUM_ROWS), "evaluation_rows": NUM_EVALUATION_ROWS}
        return Sample(replace(data, **rows, new_template_rows=min(data.new_template_rows, 4), labelled_rows=labelled))
    folder.mkdir(parents=True, exist_ok=True)
    train, said = _rows_of(data.path, data.split, recipe, NUM_ROWS)
    path = _write(train, folder / f"{_stem(data.path)}.train.jsonl")
    evaluation_path = None
    if data.eval_path:
        evaluation, more = _rows_of(data.eval_path, data.eval_split, recipe, NUM_EVALUATION_ROWS)
        evaluation_path = str(_write(evaluation, folder / f"{_stem(data.eval_path)}.evaluation.jsonl"))
        said += [words for words in more if words not in said]
    here = {"path": str(path), "eval_path": evaluation_path, "rows": None, "labelled_rows": labelled}
    # `subset` is of a hub data set; a file has none
    return Sample(replace(data, **here, subset=None, evaluation_rows=NUM_EVALUATION_ROWS), tuple(said))


def _rows_of(path: str, split: str, recipe: Recipe, count: int) -> tuple[list[Mapping[str, Any]], list[str]]:
    if Path(path).exists() or (data_set(path) is None and is_meant_as_path(path)):
        asked_by = "data.path" if path == getattr(recipe.data, "path", None) else "data.eval_path"
        rows = (row for _, row in read_rows(path, split, asked_by=asked_by))
        return _first_rows(rows, recipe, count), []
    known = data_set(path)
    if known:
        said = [f"the rows of {known.hub_id}: the columns are its own, the words are ours"]
        subset = getattr(recipe.data, "subset", None) if path == getattr(recipe.data, "path", None) else known.subset
        if not known.is_of(subset):
            said.append(f"that {known.hub_id} has {subset}: the columns of {known.subset} stood in")
        return list(itertools.islice(itertools.cycle(known.rows()), min(count, 2 * len(known.rows())))), said
    return _made_up(recipe, count), [
        f"columns of {path}: not proven; this data set is not known here, so the sample has the fields that the recipe "
        "names"
    ]


def _first_rows(rows: Iterable[Mapping[str, Any]], recipe: Recipe, count: int) -> list[Mapping[str, Any]]:
    """The first rows; of several teachers, as many that each is asked."""
    if recipe.teacher.kind != "routed":
        return list(itertools.islice(rows, count))
    field, names = getattr(recipe.data, "teacher_field", None), recipe.teacher.teachers
    share = -(-count // len(names))
    chosen: dict[str, list[Mapping[str, Any]]] = {name: [] for name in names}
    others: list[Mapping[str, Any]] = []
    for row in rows:
        of = chosen.get(str(row.get(str(field))), others)
        if len(of) < share:
            of.append(row)
    return [*itertools.chain(*chosen.values()), *others[:1]]


def _made_up(recipe: Recipe, count: int) -> list[Mapping[str, Any]]:
    data, rows = recipe.data, []
    assert isinstance(data, Local)
    teachers = itertools.cycle(recipe.teacher.teachers if recipe.teacher.kind == "routed" else ["teacher"])
    problems = WordProblems(kind="word_problems", num_rows=count, evaluation_rows=1, new_template_rows=0)
    for example, teacher in zip(problems.load().train, teachers, strict=False):
        prompt, response = str(example.prompt), str(example.response)
        turns = [("user", prompt), (data.agent, response)]
        row: dict[str, Any] = {data.prompt_field: prompt, data.response_field: response}
        if data.messages_field:
            row[data.messages_field] = [{data.speaker_field: who, data.content_field: what} for who, what in turns]
        row |= dict.fromkeys(fields_of(data.prompt_template) if data.prompt_template else (), prompt)
        row |= {data.text_field: f"{prompt}\n{response}"} if data.text_field else {}
        row |= {data.teacher_field: teacher} if data.teacher_field else {}
        rows.append(row)
    return rows


def _is_there(known: DataSet, split: str, key: str, subset: str | None) -> None:
    if known.subset and subset is None:
        raise DataError(
            f"{known.hub_id} comes in several configurations, one of which has to be named, such as "
            f"data.subset={known.subset}."
        )
    if known.is_of(subset) and split not in known.splits:
        raise DataError(f"{key}={split}: {known.hub_id} has no such split; it has {', '.join(known.splits)}.")


def _rows_left(data: Local, count: int) -> int:
    left = data.rows_left(count)
    if not left:
        raise DataError(f"data.rows={data.rows} leaves no row of the {count:,} in {data.path}.")
    return left


def _write(rows: Iterable[Mapping[str, Any]], file: Path) -> Path:
    write_whole(file, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
    return file


def _stem(path: str) -> str:
    return Path(path).stem if Path(path).exists() else path.replace("/", "--")
