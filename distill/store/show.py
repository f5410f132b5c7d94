"""One store for people: who answered, how much there is, and a few rows with the teacher's alternatives."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distill._command import visible
from distill.encoding import load_tokenizer, tokenizer_hash
from distill.errors import RecipeError, TargetMismatch
from distill.responses import Header, Row, TeacherResponses
from distill.store.listing import Facts, open_store
from distill.targets import RowTargets
from distill.targets.dense import DenseTargets
from distill.targets.frozen_head import FrozenHeadTargets
from distill.targets.next_token import NextTokenTargets
from distill.targets.sampled import SampledTargets
from distill.targets.top_k import TopKTargets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_POSITIONS = 4
NUM_ALTERNATIVES = 5
NUM_CHARACTERS = 400
"""Of a prompt or a response; its middle is left out."""
NUM_IDS = 24


def show(store: Path, *, rows: int, tokenizer: Path | None, out) -> None:
    """Prints the header, the counts and `rows` rows spread over the store."""
    responses = open_store(store)
    words = Words(responses.header, store, tokenizer)
    lines = [*_header_lines(responses.header), *_count_lines(responses, Facts.read(store))]
    for name, value in lines:
        out.print(f"{name:<15}{value}", markup=False)
    rows = min(rows, len(responses))
    for place in range(rows):
        out.print()
        _print_row(responses[place * len(responses) // rows], words, out)
    if rows and words.tokenizer is None and responses.header.vocab_size:
        out.print("\n--tokenizer FOLDER (the teacher's checkpoint) shows tokens as text.", markup=False, style="dim")


class Words:
    """Token ids as text, or as numbers where no tokenizer is known."""

    def __init__(self, header: Header, store: Path, folder: Path | None):
        self.tokenizer: PreTrainedTokenizerBase | None = None
        if folder is None:
            return
        if not folder.is_dir():
            raise RecipeError(f"--tokenizer {folder} is no folder. Name the checkpoint folder of {header.teacher}.")
        try:
            self.tokenizer = load_tokenizer(folder)
        except RecipeError:
            raise
        except Exception as error:  # transformers and tokenizers raise whatever their parsers do
            raise RecipeError(f"--tokenizer {folder}: no tokenizer could be loaded ({error}).") from None
        theirs = tokenizer_hash(self.tokenizer)
        if theirs != header.tokenizer_hash:
            raise TargetMismatch(
                f"{store} was asked of {header.teacher} (tokenizer {header.tokenizer_hash}), "
                f"but {folder} has tokenizer {theirs}. Name the checkpoint folder of {header.teacher}."
            )

    def text(self, ids: np.ndarray) -> str:
        """A run of tokens."""
        if self.tokenizer is not None:
            return clipped(str(self.tokenizer.decode(ids.tolist())))
        return f"{len(ids)} ids: {' '.join(map(str, ids[:NUM_IDS]))}{' …' if len(ids) > NUM_IDS else ''}"

    def token(self, token_id: int) -> str:
        """One token."""
        return str(token_id) if self.tokenizer is None else repr(str(self.tokenizer.decode([token_id])))


def _header_lines(header: Header) -> list[tuple[str, str]]:
    kind = header.kind
    if header.layout is not None:
        kept = {"sampled": "draws", "top_k": "tokens kept", "frozen_head": "numbers a position"}.get(header.kind)
        kind += f", {header.kept} {kept}" if kept else ""
        kind += f", at temperature {header.target_temperature:g}"
    lines = [
        ("teacher", header.teacher),
        ("revision", header.revision),
        ("engine", header.engine),
        ("dtype", header.dtype),
        ("targets", kind),
        ("vocabulary", None if header.vocab_size is None else f"{header.vocab_size:,} tokens"),
        ("always kept", " ".join(map(str, header.always_keep)) or None),
        ("sampler seed", None if header.seed is None else str(header.seed)),
        ("tokenizer", header.tokenizer_hash),
        ("chat template", header.template_hash),
        ("samples", f"{header.samples} of each prompt" if header.samples > 1 else None),
    ]
    return [(name, visible(value)) for name, value in lines if value is not None]


def _count_lines(responses: TeacherResponses, facts: Facts | None) -> list[tuple[str, str]]:
    summary = responses.summary
    lines = [
        ("rows", f"{len(responses):,}"),
        ("tokens", f"{summary['tokens']:,}, {summary['targets']:,} positions with targets"),
    ]
    if facts is not None and facts.tokens:
        share = f", {facts.target_bytes / facts.tokens:.2f} of them targets" if facts.target_bytes else ""
        lines.append(("bytes/token", f"{facts.bytes_per_token:.2f}{share} ({facts.size_bytes:,} bytes in all)"))
    elif facts is not None:
        lines.append(("bytes", f"{facts.size_bytes:,}"))
    said = ", ".join(f"{visible(source)} {count:,}" for source, count in summary["sources"].items())
    return [*lines, ("sources", said)]


def _print_row(row: Row, words: Words, out) -> None:
    out.print(f"row {row.number} ({visible(row.source)})", markup=False, style="bold")
    if row.input_ids_T is not None:
        out.print(f"  prompt    {words.text(row.input_ids_T[: row.prompt_length])}", markup=False)
    out.print(f"  response  {clipped(row.text)}", markup=False)
    if row.input_ids_T is None or row.targets is None or not len(row.targets):
        return
    # targets are of the last positions: the first of them says what follows token `first`
    first = len(row.input_ids_T) - 1 - len(row.targets)
    start = max(row.prompt_length, first + 1)
    chosen = np.unique(np.linspace(start, len(row.input_ids_T) - 1, NUM_POSITIONS).astype(int))
    for place in chosen if start < len(row.input_ids_T) else ():
        said = alternatives(row.targets, int(place) - 1 - first, int(row.input_ids_T[place]), words)
        out.print(f"  {'token ' + str(place):<11} {words.token(int(row.input_ids_T[place]))}  ←  {said}", markup=False)


def alternatives(targets: RowTargets, s: int, next_id: int, words: Words) -> str:
    """What the teacher thought of position `s`: its likeliest tokens with their probabilities, and the rest."""
    at = targets.part(s, s + 1)
    if isinstance(at, SampledTargets):
        order = np.argsort(-at.counts_E, kind="stable")[:NUM_ALTERNATIVES]
        said = [f"{words.token(int(at.token_ids_E[e]))} {at.counts_E[e]}/{at.counts_E.sum()}" for e in order]
        more = len(at.counts_E) - len(order)
        return "  ".join([*said, *([f"and {more} more"] if more else []), f"entropy {at.entropy_S[0]:.3f} nats"])
    if isinstance(at, TopKTargets):
        listed = _likeliest(at.token_ids_SK[0], at.logprobs_SK[0], words)
        return f"{listed}  tail {math.exp(at.tail_S[0]):.3g}  {_own(at.next_S[0])}"
    if isinstance(at, DenseTargets):
        logprobs_V = at.logprobs_SV[0]
        return f"{_likeliest(np.arange(len(logprobs_V)), logprobs_V, words)}  {_own(logprobs_V[next_id])}"
    if isinstance(at, NextTokenTargets):
        return _own(at.logprobs_S[0])
    assert isinstance(at, FrozenHeadTargets)
    return f"entropy {at.entropy_S[0]:.3f} nats, a vector of length {np.linalg.norm(at.vectors_SD[0]):.3g}"


def _likeliest(ids_K: np.ndarray, logprobs_K: np.ndarray, words: Words) -> str:
    order = np.argsort(-logprobs_K, kind="stable")[:NUM_ALTERNATIVES]
    return "  ".join(f"{words.token(int(ids_K[k]))} {math.exp(logprobs_K[k]):.3f}" for k in order)


def _own(logprob: float) -> str:
    """What the teacher gave to the token that the text goes on with."""
    return f"its own {math.exp(logprob):.3g} ({logprob:.3f} nats)"


def clipped(text: str) -> str:
    """`text` in one line, its middle left out where it is long."""
    text = visible(text)
    if len(text) <= NUM_CHARACTERS:
        return text
    half = NUM_CHARACTERS // 2
    return f"{text[:half]} … {text[-half:]}"
