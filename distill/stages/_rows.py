"""Rows that can be trained on, and how they become a batch. Labels and weights are shifted here, once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from distill.encoding import encode_prompt, encode_response
from distill.errors import DataError
from distill.example import Example
from distill.responses import Row, TeacherResponses

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# B rows, T tokens of a row, S positions with targets, K targets kept

IGNORED = -100
PAD_TO = 8


@dataclass(frozen=True)
class TokenRow:
    """One row as tokens: `input_ids_T` int32, prompt first; its number in the data; where its targets lie."""

    number: int
    input_ids_T: np.ndarray
    prompt_length: int
    store: TeacherResponses | None = None


@dataclass
class TokenRows:
    """The rows of a training run, and what had to be cut to make them."""

    rows: list[TokenRow] = field(default_factory=list)
    cut_responses: int = 0
    left_out: int = 0

    def add(self, number: int, ids: np.ndarray, prompt_length: int, max_length: int, store=None) -> None:
        """Keeps the row if at least one response token fits beside its prompt."""
        if prompt_length >= max_length:
            self.left_out += 1
            return
        self.cut_responses += len(ids) > max_length
        self.rows.append(TokenRow(number, ids[:max_length], prompt_length, store))

    def notes(self, max_length: int) -> list[str]:
        """What was cut, in words; empty when nothing was."""
        said = []
        if self.cut_responses:
            said.append(f"{self.cut_responses} responses were cut at {max_length} tokens (training.max_length).")
        if self.left_out:
            said.append(
                f"{self.left_out} rows were left out: their prompt alone reaches {max_length} tokens "
                "(training.max_length)."
            )
        return said


def token_rows(
    examples: Sequence[Example],
    responses: TeacherResponses,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    own_answers: bool = False,
    same_tokenizer: bool,
) -> TokenRows:
    """The responses' rows (or, with `own_answers`, the data's own labelled rows) as tokens of the student.

    Raises:
        DataError: nothing is left to train on.
    """
    made = TokenRows()
    for number, example in enumerate(examples):
        if own_answers:
            if example.response is None:
                continue
            row = Row(number, example.response, "data")
        else:
            row = responses[number]
        if row.source not in {"data", "teacher", "teacher, cut"}:
            continue  # teach said why, and how many
        if row.input_ids_T is not None and same_tokenizer:
            store = responses if row.token_ids_SK is not None else None
            made.add(number, row.input_ids_T, row.prompt_length, max_length, store)
        else:
            prompt = encode_prompt(tokenizer, example.prompt)
            ids = np.array(prompt + encode_response(tokenizer, row.text), dtype=np.int32)
            made.add(number, ids, len(prompt), max_length)
    if not made.rows:
        raise DataError(
            f"No row is left to train on: of {len(examples)}, {made.left_out} have prompts that reach "
            f"training.max_length={max_length}; the others have no answer."
        )
    return made


def collate(
    rows: Sequence[TokenRow], *, pad_id: int, prompt_weight: float, target_vocab: int | None
) -> dict[str, "Tensor"]:
    """One right-padded batch: position t of `labels` and `weights` speaks of token t + 1.

    input_ids, attention_mask, labels int64 and weights float32 `[B, T]`; with `target_vocab`, the size of the
    student's vocabulary, also token_ids int32 and logprobs float32 `[B, T, K]`, where -1 and 0 pad.
    """
    import torch

    # few different lengths: oneDNN and cuBLAS keep a plan, with its buffers, for each shape that they meet
    longest = max(len(row.input_ids_T) for row in rows)
    B, T = len(rows), -(-longest // PAD_TO) * PAD_TO
    input_ids = np.full((B, T), pad_id, dtype=np.int64)
    attention_mask = np.zeros((B, T), dtype=np.int64)
    labels = np.full((B, T), IGNORED, dtype=np.int64)
    weights = np.zeros((B, T), dtype=np.float32)
    for b, row in enumerate(rows):
        length = len(row.input_ids_T)
        input_ids[b, :length] = row.input_ids_T
        attention_mask[b, :length] = 1
        weights[b, : length - 1] = prompt_weight
        weights[b, row.prompt_length - 1 : length - 1] = 1.0
        labels[b, : length - 1] = np.where(weights[b, : length - 1] > 0, row.input_ids_T[1:], IGNORED)
    batch: Mapping[str, np.ndarray] = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "weights": weights,
        "rows": np.array([row.number for row in rows], dtype=np.int64),
    }
    if target_vocab is not None:
        batch = {**batch, **_collate_targets(rows, T, target_vocab)}
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _collate_targets(rows: Sequence[TokenRow], T: int, vocab_size: int) -> dict[str, np.ndarray]:
    # Any: token_rows gives a store only to rows that have targets
    stored = [cast(Any, row.store)[row.number] for row in rows]
    K = stored[0].token_ids_SK.shape[1]
    token_ids = np.full((len(rows), T, K), -1, dtype=np.int32)
    logprobs = np.zeros((len(rows), T, K), dtype=np.float32)
    for b, (row, said) in enumerate(zip(rows, stored, strict=True)):
        # targets belong to the last S of the positions that the whole stored row has; the row may have been cut
        first = len(said.input_ids_T) - 1 - len(said.token_ids_SK)
        kept = max(0, len(row.input_ids_T) - 1 - first)
        token_ids[b, first : first + kept] = said.token_ids_SK[:kept]
        logprobs[b, first : first + kept] = said.logprobs_SK[:kept]
    # padding tokens of a teacher whose vocabulary is padded further than the student's: their mass goes to the tail
    token_ids[token_ids >= vocab_size] = -1
    return {"token_ids": token_ids, "logprobs": logprobs}
