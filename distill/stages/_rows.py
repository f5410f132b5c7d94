"""Rows that can be trained on, and how they become a batch. Labels and weights are shifted here, once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.encoding import encode_prompt, encode_response, template_hash, tokenizer_hash
from distill.errors import DataError
from distill.example import Example
from distill.loss._divergence import IGNORED
from distill.responses import TeacherResponses
from distill.stages._aligned_rows import AlignedRow, Aligner, batch_spans
from distill.stages._packing import pack
from distill.stages.teach import ROOM_FOR_ANSWER
from distill.targets import KINDS, Places, RowTargets
from distill.windows import windows_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# B rows, T tokens of a row

PAD_TO = 8


@dataclass(frozen=True)
class Said:
    """What one teacher said, and to what: a store's row `number` answers `examples[number // samples]`."""

    examples: Sequence[Example]
    responses: TeacherResponses

    def prompts(self) -> Iterator[Any]:
        """The prompt of each row."""
        return (self.examples[number // self.responses.header.samples].prompt for number in range(len(self.responses)))


@dataclass(frozen=True)
class TokenRow:
    """One row to train on: its number, its length and its prompt's in tokens, and where the tokens are.

    The tokens are in the store, or, where the student has a tokenizer of its own, in `given_T`.
    """

    number: int
    length: int
    prompt_length: int
    store: TeacherResponses | None = None
    given_T: np.ndarray | None = None
    spans: AlignedRow | None = None
    """What the teacher said of spans of these tokens, for loss=aligned."""

    def read(self) -> tuple[np.ndarray, RowTargets | None]:
        """`input_ids_T` int32, prompt first, and the targets of the whole stored row, which may be longer."""
        if self.given_T is not None:
            return self.given_T, None
        assert self.store is not None
        row = self.store[self.number]
        assert row.input_ids_T is not None
        return row.input_ids_T[: self.length], row.targets


@dataclass
class TokenRows:
    """The rows of a training run, and what had to be cut to make them."""

    rows: list[TokenRow] = field(default_factory=list)
    cut_responses: int = 0
    left_out: int = 0
    going_on: int = 0
    """Rows that go on with a plain text which was cut here, and not before the teacher was asked."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [row.length for row in self.rows]

    def add(
        self, number: int, length: int, prompt_length: int, max_length: int, store=None, ids=None, spans=None
    ) -> None:
        """Keeps the row if at least one response token fits beside its prompt."""
        if prompt_length >= max_length:
            self.left_out += 1
            return
        self.cut_responses += length > max_length
        given = None if ids is None else ids[:max_length]
        self.rows.append(TokenRow(number, min(length, max_length), prompt_length, store, given, spans))

    def notes(self, max_length: int) -> list[str]:
        """What was cut, in words; empty when nothing was."""
        said = []
        if self.going_on:
            said.append(
                f"{self.going_on} of {len(self.rows)} rows go on with a text that is longer than {max_length} tokens "
                "(training.max_length)."
            )
        if self.cut_responses:
            were = "response was" if self.cut_responses == 1 else "responses were"
            said.append(f"{self.cut_responses} {were} cut at {max_length} tokens (training.max_length).")
        if self.left_out:
            said.append(
                f"{self.left_out} rows were left out: their prompt alone reaches {max_length} tokens "
                "(training.max_length)."
            )
        return said


def token_rows(said: Sequence[Said], tokenizer: "PreTrainedTokenizerBase", *, max_length: int) -> TokenRows:
    """The teachers' responses as tokens of the student.

    Raises:
        DataError: nothing is left to train on.
    """
    made = TokenRows()
    for one in said:
        _add_responses(made, one.examples, one.responses, tokenizer, max_length)
    return _not_empty(made, [prompt for one in said for prompt in one.prompts()], tokenizer, max_length)


def _add_responses(
    made: TokenRows, examples: Sequence[Example], responses: TeacherResponses, tokenizer, max_length: int
) -> None:
    in_store = responses.header.kind != "text" and speaks_like(responses, tokenizer)
    for number in range(len(responses)):
        lengths = responses.lengths(number)
        if lengths is None:
            continue  # teach said why, and how many
        if in_store:
            made.add(number, *lengths, max_length, store=responses)
        else:
            row, example = responses[number], examples[number // responses.header.samples]
            _add_text(made, tokenizer, number, example, row.text, max_length, ended=row.ended)


def speaks_like(responses: TeacherResponses, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the store's token ids are what this tokenizer and its chat template would give."""
    header = responses.header
    return (header.tokenizer_hash, header.template_hash) == (tokenizer_hash(tokenizer), template_hash(tokenizer))


def aligned_rows(
    said: Sequence[Said],
    teacher: "PreTrainedTokenizerBase",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
) -> TokenRows:
    """The teachers' responses in the student's own tokens, with what the teachers said of the spans that both share.

    Raises:
        DataError: nothing is left to train on.
        TargetMismatch: a store's tokens are not those of the `teacher` tokenizer.
    """
    aligner, made = Aligner(teacher, tokenizer), TokenRows()
    for one in said:
        one.responses.header.require_tokenizer(tokenizer_hash(teacher), one.responses.path)
        for number in range(len(one.responses)):
            if one.responses.lengths(number) is None:
                continue
            example = one.examples[number // one.responses.header.samples]
            row = aligner.align(one.responses[number], encode_prompt(tokenizer, example.prompt))
            cut = row.cut(max_length)
            made.add(number, len(row.input_ids_T), row.prompt_length, max_length, ids=row.input_ids_T, spans=cut)
    return _not_empty(made, [prompt for one in said for prompt in one.prompts()], tokenizer, max_length)


def own_rows(examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", *, max_length: int) -> TokenRows:
    """The data's own labelled rows as tokens of the student. Raises like `token_rows`."""
    made = TokenRows()
    for number, example in enumerate(examples):
        if example.response is not None:
            _add_text(made, tokenizer, number, example, example.response, max_length, ended=example.ends)
    return _not_empty(made, [example.prompt for example in examples], tokenizer, max_length)


def _add_text(
    made: TokenRows, tokenizer, number: int, example: Example, response: str, max_length: int, *, ended: bool = True
) -> None:
    prompt = encode_prompt(tokenizer, example.prompt)
    # an answer that was cut does not end, and may stop inside a character
    text = response if ended else response.rstrip("\N{REPLACEMENT CHARACTER}")
    # plain text is in rows already, unless the tokenizer was made only now, or has more tokens for it
    parts = [(text, ended)]
    if example.prompt == "":
        sides = [(tokenizer, max_length - len(prompt))]
        parts = [(part, ends) for part, ends, _ in windows_of(text, sides, ends=ended)]
        made.going_on += max(0, len(parts) - 1)
    for part, ends in parts:
        ids = encode_response(tokenizer, part)[: None if ends else -1]
        made.add(number, len(prompt) + len(ids), len(prompt), max_length, ids=np.array(prompt + ids, dtype=np.int32))


def _not_empty(made: TokenRows, prompts: Sequence[Any], tokenizer, max_length: int) -> TokenRows:
    if made.rows:
        return made
    # also those that the teacher was not asked for this very reason
    too_long = sum(len(encode_prompt(tokenizer, prompt)) + ROOM_FOR_ANSWER > max_length for prompt in prompts)
    others = len(prompts) - too_long
    raise DataError(
        f"No row is left to train on: of {len(prompts)}, {too_long} have prompts that leave no room for an answer in "
        f"training.max_length={max_length}{f'; the other {others} have no answer' if others else ''}.\n"
        f"{'Raise training.max_length, or shorten the prompts.' if too_long else ''}".rstrip()
    )


def collate(
    rows: Sequence[TokenRow],
    *,
    pad_id: int,
    prompt_weight: float,
    target_vocab: int | None,
    most: int | None = None,
    pack_to: int | None = None,
) -> dict[str, "Tensor"]:
    """One right-padded batch: position t of `labels` and `weights` speaks of token t + 1.

    input_ids, attention_mask, labels int64 and weights float32 `[B, T]`; with `target_vocab`, the size of the
    student's vocabulary, also what the store's kind of targets lays out (its `batch()` says what). T is `most` at most:
    no row is longer, and a student may have no position behind it. With `pack_to`, the
    rows stand side by side in sequences of so many tokens at most, and position_ids take the place of attention_mask.
    """
    import torch

    # few different lengths: oneDNN and cuBLAS keep a plan, with its buffers, for each shape that they meet
    longest = max(row.length for row in rows)
    B, T = len(rows), min(-(-longest // PAD_TO) * PAD_TO, most or 1 << 30)
    input_ids = np.full((B, T), pad_id, dtype=np.int64)
    attention_mask = np.zeros((B, T), dtype=np.int64)
    labels = np.full((B, T), IGNORED, dtype=np.int64)
    weights = np.zeros((B, T), dtype=np.float32)
    read = [row.read() for row in rows]
    for b, (row, (ids, _)) in enumerate(zip(rows, read, strict=True)):
        length = len(ids)
        input_ids[b, :length] = ids
        attention_mask[b, :length] = 1
        weights[b, : length - 1] = prompt_weight
        weights[b, row.prompt_length - 1 : length - 1] = 1.0
        labels[b, : length - 1] = np.where(weights[b, : length - 1] > 0, ids[1:], IGNORED)
    batch: Mapping[str, np.ndarray] = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "weights": weights,
        "rows": np.array([row.number for row in rows], dtype=np.int64),
    }
    if target_vocab is not None:
        batch = {**batch, **_collate_targets(rows, [targets for _, targets in read], T, target_vocab)}
    if pack_to is not None:
        batch = pack(batch, [len(ids) for ids, _ in read], pack_to, pad_to=PAD_TO)
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _collate_targets(rows: Sequence[TokenRow], targets: list, T: int, vocab_size: int) -> dict[str, np.ndarray]:
    if rows[0].spans is not None:
        return batch_spans([row.spans for row in rows if row.spans is not None], T)
    layout = rows[0].store.layout if rows[0].store else None
    assert layout is not None
    firsts, counts = [], []
    for row, said in zip(rows, targets, strict=True):
        stored = row.store.lengths(row.number) if row.store and row.store.layout == layout else None
        assert stored is not None  # all stores of a training keep their targets in the same way
        # targets belong to the last S of the positions that the whole stored row has; the row may have been cut
        firsts.append(stored[0] - 1 - len(said))
        counts.append(max(0, row.length - 1 - firsts[-1]))
    laid_out = KINDS[layout.kind].batch(targets, Places((len(rows), T), firsts, counts), layout)
    if "token_ids" in laid_out:
        # padding tokens of a teacher whose vocabulary is padded further than the student's: their mass goes to the tail
        laid_out["token_ids"][laid_out["token_ids"] >= vocab_size] = -1
    return laid_out
