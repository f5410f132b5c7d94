"""What of a file's log-probabilities a store keeps, for all rows the same."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from distill.answer_file.given import GivenAnswer
from distill.checkpoint import read_config
from distill.errors import DataError, RecipeError
from distill.targets import Layout
from distill.teacher.file import File

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def targets_layout(
    answers: Sequence[GivenAnswer | None], teacher: File, vocab_size: int, *, only_next: bool = False
) -> Layout:
    """The layout of the targets that these answers give. For recipes whose loss needs them; the others need none.

    `kept` is teacher.top_k, or as many token ids as most positions give when that is fewer. `only_next`: the loss needs
    the text's own tokens, whatever else there is.

    Raises:
        DataError: there are no log-probabilities, only some answers have them, or they cannot give what is asked for.
    """
    found = [answer for answer in answers if answer is not None]
    without = [answer for answer in found if not answer.num_targets]
    if without:
        who = "none of the answers has" if len(without) == len(found) else f"{len(without)} answers have no"
        raise DataError(
            f"{without[0].where}: {who} log-probabilities, and this loss compares the student with them. "
            "Use loss=text, or a file with log-probabilities for every answer (docs of teacher.layout)."
        )
    without_top = [answer for answer in found if answer.top_ids_SK is None]
    if only_next or teacher.targets == "next" or (teacher.targets == "auto" and without_top):
        renormalised = next((answer for answer in found if answer.values == "renormalised"), None)
        if renormalised:
            raise DataError(
                f"{renormalised.where}: log-probabilities that were renormalised over the k kept are not those of the "
                "text. Use teacher.targets=top_k, or loss=text."
            )
        return Layout("next", vocab_size)
    if without_top:
        raise DataError(
            f"{without_top[0].where}: has the log-probability of each token alone, not of its alternatives. "
            "Use teacher.targets=next, or loss=text."
        )
    return Layout("top_k", vocab_size, min(teacher.top_k, vocab_size, _commonest(found)))


def vocab_size_of(source: tuple[str, str | None], tokenizer: "PreTrainedTokenizerBase") -> int:
    """Rows of the teacher's output head: what its config.json says, where there is one, else the tokenizer's size.

    `source`: the checkpoint, and its revision, that the tokenizer is of.
    """
    try:
        config = read_config(*source, "teacher.tokenizer")
    except RecipeError:  # a tokenizer alone
        config = {}
    return max(int(config.get("vocab_size") or 0), len(tokenizer))


def _commonest(found: Sequence[GivenAnswer]) -> int:
    counts: dict[int, int] = {}
    for answer in found:
        assert answer.top_ids_SK is not None
        for width, times in enumerate(np.bincount((answer.top_ids_SK >= 0).sum(axis=1))):
            counts[width] = counts.get(width, 0) + int(times)
    counts.pop(0, None)
    # the larger of two that are as common
    return max(counts, key=lambda width: (counts[width], width)) if counts else 1
