"""A checkpoint's own dropout is off while it trains (`without_own_dropout`): `training.dropout` alone decides.

GPT-2 and OPT carry a dropout of 0.1 in config.json, from their pre-training; LLaMA and what came after carry none. Left
on, it would be noise in the divergence, which no recipe asked for and no other family has.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

# What transformers' models keep as plain numbers and hand to functional dropout.
_NUMBERS = ("dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "layerdrop")
_OF_ADAPTERS = "lora_dropout"
"""PEFT's; adapter.dropout asks for it."""


@contextlib.contextmanager
def without_own_dropout(model: nn.Module) -> Iterator[None]:
    """Every dropout that came with the model's config is 0 inside; the config itself stays as it is."""
    found: list[tuple[nn.Module, str, float]] = []
    for name, module in model.named_modules():
        if _OF_ADAPTERS in name.split("."):
            continue
        names = ("p",) if isinstance(module, nn.Dropout) else _NUMBERS
        values = ((module, key, vars(module).get(key)) for key in names)
        found += [(owner, key, value) for owner, key, value in values if isinstance(value, float) and value]
    for module, key, _ in found:
        setattr(module, key, 0.0)
    try:
        yield
    finally:
        for module, key, value in found:
            setattr(module, key, value)


class residual_dropout:
    """Dropout on embeddings and on each block's output projections while the block of code runs.

    Hooks, because the architectures' own options drop attention weights only, and because nothing of it may
    stay in the checkpoint.
    """

    OUTPUTS = ("o_proj", "down_proj", "c_proj", "out_proj", "fc2", "dense_4h_to_h", "dense")

    def __init__(self, model: Any, probability: float):
        self.handles = []
        if probability:
            places = [m for name, m in model.named_modules() if name.rpartition(".")[2] in self.OUTPUTS]
            for module in [*places, model.get_input_embeddings()]:
                self.handles.append(module.register_forward_hook(partial(self._drop, probability)))

    @staticmethod
    def _drop(probability: float, module: nn.Module, inputs, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, probability, module.training)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()
