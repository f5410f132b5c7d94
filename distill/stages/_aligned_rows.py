"""Rows for a student whose tokenizer is not the teacher's: its own tokens, and what the teacher said of their spans."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distill.alignment import NO_SPAN, TokenBytes, common_spans
from distill.encoding import encode_response
from distill.errors import TargetMismatch
from distill.responses import Row
from distill.targets.next_token import NextTokenTargets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# B rows, T tokens of a row in the student's tokens, C spans of a row


@dataclass(frozen=True)
class AlignedRow:
    """`input_ids_T` int32 with the prompt first; `span_T` int32, the span of the next token at each position, -1
    where there is none; `span_logprob_C` float32, the teacher's log-probability of each span."""

    input_ids_T: np.ndarray
    prompt_length: int
    span_T: np.ndarray
    span_logprob_C: np.ndarray

    def cut(self, max_length: int) -> "AlignedRow":
        """The first `max_length` tokens. A span that is cut through is no span: the teacher spoke of all of it."""
        if len(self.input_ids_T) <= max_length:
            return self
        # position max_length - 1 had a next token before, and lost it
        lost = self.span_T[max_length - 1 :]
        whole = int(lost[lost != NO_SPAN].min(initial=len(self.span_logprob_C)))
        span_T = self.span_T[:max_length].copy()
        span_T[span_T >= whole] = NO_SPAN
        return AlignedRow(self.input_ids_T[:max_length], self.prompt_length, span_T, self.span_logprob_C[:whole])


class Aligner:
    """Turns rows of a store of next-token targets into rows of the student's tokens."""

    def __init__(self, teacher: "PreTrainedTokenizerBase", student: "PreTrainedTokenizerBase"):
        self._student = student
        self._teacher_bytes, self._student_bytes = TokenBytes(teacher), TokenBytes(student)

    def align(self, row: Row, prompt_ids: Sequence[int]) -> AlignedRow:
        """`prompt_ids`: the prompt in the student's tokens.

        An answer that was cut gets no end-of-sequence token, and the half of a character that it may end with is left.

        Raises:
            TargetMismatch: the row has no log-probability for each of its response's tokens.
        """
        ended = row.ended
        theirs, teacher_logprob_N = _response(row)
        text = row.text if ended else row.text.rstrip("\N{REPLACEMENT CHARACTER}")
        ours = encode_response(self._student, text)[: None if ended else -1]
        spans = common_spans(
            self._teacher_bytes.ends(theirs, text, ended=ended), self._student_bytes.ends(ours, text, ended=ended)
        )
        span_logprob_C = np.zeros(spans.count)
        known = spans.teacher_N != NO_SPAN
        np.add.at(span_logprob_C, spans.teacher_N[known], teacher_logprob_N[known])

        input_ids_T = np.array([*prompt_ids, *ours], dtype=np.int32)
        span_T = np.full(len(input_ids_T), NO_SPAN, dtype=np.int32)
        span_T[len(prompt_ids) - 1 : len(input_ids_T) - 1] = spans.student_N
        return AlignedRow(input_ids_T, len(prompt_ids), span_T, span_logprob_C.astype(np.float32))


def batch_spans(rows: Sequence[AlignedRow], num_positions: int) -> dict[str, np.ndarray]:
    """span int64 `[B, num_positions]`, where -1 pads, and span_logprob float32 `[B, C]`, where 0 pads."""
    most = max(1, *(len(row.span_logprob_C) for row in rows))
    span_BT = np.full((len(rows), num_positions), NO_SPAN, dtype=np.int64)
    span_logprob_BC = np.zeros((len(rows), most), dtype=np.float32)
    for b, row in enumerate(rows):
        span_BT[b, : len(row.span_T)] = row.span_T
        span_logprob_BC[b, : len(row.span_logprob_C)] = row.span_logprob_C
    return {"span": span_BT, "span_logprob": span_logprob_BC}


def _response(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's ids of the response, and its log-probability of each."""
    targets = row.targets
    if row.input_ids_T is None or not isinstance(targets, NextTokenTargets):
        found = "no targets" if targets is None else type(targets).__name__
        raise TargetMismatch(
            f"Row {row.number} of the responses holds {found}; loss=aligned needs the log-probabilities of the "
            "response's own tokens. Ask the teacher for them with the same recipe and loss=aligned, or use loss=text."
        )
    ids = row.input_ids_T[row.prompt_length :]
    # targets belong to the last positions that have a next token; there may be some of the prompt's before
    if len(targets) < len(ids):
        raise TargetMismatch(
            f"Row {row.number} of the responses has {len(ids)} response tokens, but {len(targets)} log-probabilities. "
            "The store is of another version: delete it, and the same command asks the teacher again."
        )
    return ids, targets.logprobs_S[len(targets) - len(ids) :]
