"""read_answers: a file's rows as answers, whichever layout they are in."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from distill.answer_file import axolotl, axolotl_prepared, distillkit, openai_batch, ours
from distill.answer_file.given import GivenAnswer, checked
from distill.answer_file.rows import rows_of
from distill.teacher.file import File

LAYOUTS = {
    "distill": ours,
    "axolotl": axolotl,
    "axolotl_prepared": axolotl_prepared,
    "axolotl_prepared_legacy": axolotl_prepared,
    "distillkit": distillkit,
    "openai_batch": openai_batch,
}


def read_answers(teacher: File) -> Iterator[GivenAnswer]:
    """The answers in `teacher.path`, in its order, one in memory at a time.

    Raises:
        DataError: there is no such file, or a row is not as its layout has it; the message names the row.
    """
    rows = rows_of(teacher)
    first = next(rows)
    if teacher.layout == "auto":
        teacher = replace(teacher, layout=layout_of(first[1], teacher))
    read = LAYOUTS[teacher.layout].reader(teacher)
    for where, row in chain([first], rows):
        answer = read(row, where)
        if answer is not None:
            yield checked(answer)


def layout_of(row: Mapping[str, Any], teacher: File) -> Any:
    """The layout that a row's fields are of."""
    if "input_ids" in row and ("compressed_logprobs" in row or "packed_indices" in row):
        return "distillkit"
    if "input_ids" in row and "target_logprobs" in row:
        return "axolotl_prepared"
    if openai_batch.is_row(row):
        return "openai_batch"
    logprobs = row.get(teacher.logprobs_field)
    if logprobs is not None and ("target_token_ids" in row or axolotl.is_entries(logprobs)):
        return "axolotl"
    return "distill"
