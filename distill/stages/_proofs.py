"""What the loss takes for granted about a model's architecture, shown on a few tokens before anything is computed.

Hidden states and the output head are taken apart, so that no full logits need to exist, and rows may share a sequence.
An architecture that does something in between would be trained, or asked, as another model, and nothing would look
wrong.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from distill.errors import RecipeError
from distill.family.head import hidden_states, output_head

MOST_OFF_ALONE = 1e-2
"""Of the states' norm: rounding in 16 bits stays below, a second row's tokens do not."""
MOST_OFF_LOGITS = 2e-2
"""Of the logits' norm: logits of 16 bits stay below, a multiplier or a cap that we do not know does not."""


def prove(model: Any, *, packing: bool) -> None:
    """Both of these, before a model is trained. Raises RecipeError."""
    require_own_logits(model)
    if packing:
        require_separate_rows(model)


def require_own_logits(model: Any) -> None:
    """Raises RecipeError where `output_head` of the hidden states is not what the model itself says.

    Takes one forward of five tokens; `model` may be anywhere, and keeps its mode.
    """
    ids = torch.arange(3, 8)[None].to(next(model.parameters()).device)
    with _evaluating(model):
        found_NV = output_head(model).logits(hidden_states(model, ids, None)[0]).cpu()
        own_NV = model(input_ids=ids, use_cache=False).logits[0].float().cpu()
    off, size = float((found_NV - own_NV).norm()), float(own_NV.norm())
    if off > MOST_OFF_LOGITS * size:  # NaN is met, and named, in training
        raise RecipeError(
            f"{type(model).__name__} does something to its logits that the loss does not know: its output head makes "
            f"others of the same states (off by {off / size:.2g} of their norm).\nTake a checkpoint of a known family; "
            "python -m distill.recipes names some."
        )


def require_separate_rows(model: Any) -> None:
    """Raises RecipeError where this model lets rows of one sequence see each other; two short rows show it.

    Not every architecture that takes positions builds its mask from them, and nothing would fail later.
    """
    first, second = torch.arange(5)[None] + 7, torch.arange(4)[None] + 3
    device = next(model.parameters()).device
    both, positions = torch.cat([first, second], 1), torch.cat([torch.arange(5), torch.arange(4)])[None]
    with _evaluating(model):
        packed_ND = hidden_states(model, both.to(device), None, positions.to(device))[0].float()
        alone_ND = torch.cat([hidden_states(model, row.to(device), None)[0].float() for row in (first, second)])
    off = float((packed_ND - alone_ND).norm() / alone_ND.norm())
    if off > MOST_OFF_ALONE:
        raise RecipeError(
            f"training.packing: {type(model).__name__} lets rows in one sequence see each other (its states are off by "
            f"{off:.2g} of their norm). Leave packing out."
        )


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout and gradients, for the time of the block."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
