"""A teacher's next-token distributions: how they are drawn, packed into bytes, and laid out in a batch."""

from distill.targets.dense import DenseTargets
from distill.targets.frozen_head import FrozenHeadTargets
from distill.targets.layout import Kind, Layout
from distill.targets.next_token import NextTokenTargets
from distill.targets.places import Places
from distill.targets.sampled import SampledTargets
from distill.targets.top_k import TopKTargets

__all__ = ["KINDS", "Kind", "Layout", "Places", "RowTargets"]

RowTargets = SampledTargets | TopKTargets | DenseTargets | FrozenHeadTargets | NextTokenTargets
"""The targets of one row, one for each of its last S positions that have a next token."""

KINDS: dict[str, type[RowTargets]] = {
    "sampled": SampledTargets,
    "top_k": TopKTargets,
    "dense": DenseTargets,
    "frozen_head": FrozenHeadTargets,
    "next": NextTokenTargets,
}
