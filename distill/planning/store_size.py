"""Bytes of the response store, from its own encoding."""

from distill.planning.volume import Volume
from distill.recipe import Recipe
from distill.targets import Layout
from distill.targets.packing import packed_bytes
from distill.targets.sampled import sampled_bytes
from distill.targets.top_k import top_k_bytes

DISTINCT_SHARE = 9.7 / 50
"""Ids met by 50 systematic draws, as measured in docs/sampling.md; a surer teacher meets fewer."""
TEXT_BYTES = 4.0
"""UTF-8 bytes of text per token."""
ROW_BYTES = 45
"""Head, frame and index of a row."""
SOME = 1000


def target_bytes(kind: str | None, vocab: int, kept: int) -> float:
    """Of one token's targets. `kept`: draws of "sampled", ids of "top_k", the student's width of "frozen_head"."""
    match kind:
        case "sampled":
            entries = round(SOME * max(1.0, DISTINCT_SHARE * kept))
            return sampled_bytes(entries, SOME, Layout("sampled", vocab, kept)) / SOME
        case "top_k":
            return top_k_bytes(SOME, Layout("top_k", vocab, min(kept, vocab))) / SOME
        case "dense":
            return 2.0 * vocab
        case "frozen_head":
            return 2.0 * kept + 4.0
        case "next":
            return 4.0
    return 0.0


def text_bytes(vocab: int) -> float:
    """Of one token itself: its id and its text."""
    return packed_bytes(SOME, Layout("sampled", vocab).id_bits) / SOME + TEXT_BYTES


def store_bytes(recipe: Recipe, volume: Volume, vocab: int, width: int) -> float:
    """Of everything that the recipe's teachers leave. `width`: the student's hidden size, for frozen_head."""
    kind, teacher = recipe.target_kind, recipe.teacher
    samples = getattr(teacher, "samples", 1)
    kept = {"sampled": getattr(teacher, "draws", 50), "top_k": getattr(teacher, "top_k", 20), "frozen_head": width}
    row = volume.prompt + volume.answer
    learnt = row if recipe.training.prompt_weight > 0 or not volume.prompt else volume.answer
    per_row = row * text_bytes(vocab) + ROW_BYTES + learnt * target_bytes(kind, vocab, kept.get(str(kind), 0))
    return volume.rows * samples * per_row
