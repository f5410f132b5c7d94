"""One tokenizer for each distinct real one: sources that share theirs share it here, others do not."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill.encoding import load_tokenizer, train_tokenizer
from distill.errors import RecipeError, first_line
from distill.family.facts import Family, Published
from distill.family.tiny_tokenizer import SPLITS, VOCAB_SIZE, train_like
from distill.rehearsal._sources import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PADDING = 16
"""Rows of the embedding beyond the tokenizer's, in steps: 16 for the source that pads least, 32 for the next, …"""


@dataclass(frozen=True)
class Tokenized:
    """The tokenizer of a source's stand-in, and the rows of its embedding."""

    tokenizer: "PreTrainedTokenizerBase"
    vocab_size: int
    is_real: bool


def tokenizers_for(sources: Sequence[Source], texts: Sequence[str]) -> list[Tokenized]:
    """For each source in its place: its own tokenizer where it is here, else one of its kind, trained on `texts`.

    Known checkpoints share one where the facts of theirs agree; with a real one, where that has the same facts.

    Raises:
        RecipeError: a folder has no tokenizer.
    """
    real = [real_tokenizer(source) if source.known is None and not source.stands_in else None for source in sources]
    trained: dict[Any, PreTrainedTokenizerBase] = {}
    found: list[Tokenized] = []
    for number, source in enumerate(sources):
        own = real[number]
        if own is not None:
            found.append(Tokenized(own, _vocab_size(source), True))
        elif source.known is None:
            tokenizer = trained.setdefault("closed", train_tokenizer(texts, VOCAB_SIZE))
            found.append(Tokenized(tokenizer, len(tokenizer), False))
        else:
            family, checkpoint = source.known
            same = next((other for other in real if other is not None and _is_of(other, family, checkpoint)), None)
            if same is not None:
                found.append(Tokenized(_with_template(same, source.known, same), _vocab_size(source), True))
                continue
            key = facts(family, checkpoint)
            if key not in trained:
                trained[key] = _train(family, texts, number=len(_keys(trained)))
            tokenizer = _with_template(trained[key], source.known, None)
            found.append(Tokenized(tokenizer, len(tokenizer) + _padding(source.known, key, sources), False))
    return found


def facts(family: Family, checkpoint: Published) -> tuple[Any, ...]:
    """What makes two published vocabularies the same, as far as we know them; each may end with a token of its own."""
    end = family.special_tokens.get("eos_token")
    return (family.tokenizer, SPLITS.get(family.name), checkpoint.num_tokens, end, family.added_tokens)


def _end(family: Family, checkpoint: Published) -> str | None:
    """The end of sequence of a checkpoint's tokenizer."""
    return checkpoint.eos_token or family.special_tokens.get("eos_token")


def _train(family: Family, texts: Sequence[str], number: int) -> "PreTrainedTokenizerBase":
    tokenizer = train_like(family, texts)
    if number:  # one family, two vocabularies: they differ here as they do in reality
        tokenizer.add_special_tokens({"additional_special_tokens": [f"<|vocabulary {number}|>"]})
    return tokenizer


def _keys(trained: dict[Any, Any]) -> list[Any]:
    return [key for key in trained if isinstance(key, tuple)]


def real_tokenizer(source: Source) -> "PreTrainedTokenizerBase":
    """The tokenizer of a checkpoint on this disk. Raises RecipeError where it has none."""
    try:
        return load_tokenizer(source.model, source.revision)
    except (OSError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"{source.key}={source.model}: it has no tokenizer that transformers can load "
            f"({type(error).__name__}: {first_line(error)}). Put its tokenizer.json beside config.json."
        ) from None


def _is_of(tokenizer: Any, family: Family, checkpoint: Published) -> bool:
    """Whether a real tokenizer is the published one, by its size, its kind and its end."""
    model = tokenizer.backend_tokenizer.to_str()
    kind = "sentencepiece_bpe" if '"byte_fallback":true' in model.replace(" ", "") else "byte_level_bpe"
    same_end = tokenizer.eos_token == _end(family, checkpoint)
    return len(tokenizer) == checkpoint.num_tokens and kind == family.tokenizer and same_end


def _with_template(tokenizer: Any, known: tuple[Family, Published], real: Any) -> Any:
    family, checkpoint = known
    own = copy.deepcopy(tokenizer)
    own.eos_token = _end(family, checkpoint)
    theirs = getattr(real, "chat_template", None) or family.chat_template
    own.chat_template = theirs if checkpoint.has_chat_template else None
    return own


def _vocab_size(source: Source) -> int:
    return int(source.config.get("text_config", source.config)["vocab_size"])


def _padding(known: tuple[Family, Published], key: tuple[Any, ...], sources: Sequence[Source]) -> int:
    """Rows beyond the tokenizer, in the order in which the real ones pad: who pads more there pads more here."""

    def extra(checkpoint: Published) -> int:
        return checkpoint.config["vocab_size"] - checkpoint.num_tokens

    sharing = [source.known[1] for source in sources if source.known and facts(*source.known) == key]
    steps = sorted({extra(checkpoint) for checkpoint in sharing if extra(checkpoint) > 0})
    mine = extra(known[1])
    return PADDING * (steps.index(mine) + 1) if mine in steps else 0
