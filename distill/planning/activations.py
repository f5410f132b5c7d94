"""Activations: what one micro-batch keeps for its backward pass, and what passing through a block takes.

Two and three blocks of the exact architecture are run without data (`LiveBytes`); the rest follows, since every further
block adds the same. B rows, T tokens, D hidden size, O and I outputs and inputs of a layer, R rank.
"""

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pass:
    """How a body of `layers` blocks is run."""

    rows: int
    length: int
    bf16: bool = False
    """Autocast to bfloat16, or, without gradients, weights of bfloat16."""
    attention: str | None = None
    """None: as transformers chooses."""
    checkpointing: bool = False
    dropout: float = 0.0
    cut: bool = False
    """Over several devices; with `bf16` the weights of linear layers then come in 16 bits and need no copies."""
    adapter: str = "none"
    rank: int = 0


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch; weights, their gradients and the loss aside."""

    forward: int
    """Held when the body has been run; under autocast the weights' 16-bit copies are among them."""
    backward: int
    """Peak of the backward pass, right after it began."""
    last_block: int
    """Peak of the backward pass through the first block, when all the others' activations are gone."""


def of_training(config: dict[str, Any], layers: int, how: Pass) -> Activations:
    """For `layers` blocks of the architecture in `config` (a config.json)."""
    one, two, three = (_step(json.dumps(config), number, how) for number in (1, 2, 3))

    def at(which: int) -> int:
        return two[which] + (layers - 2) * (three[which] - two[which]) if layers > 1 else one[which]

    return Activations(forward=at(0), backward=at(1), last_block=one[1])


@functools.cache
def of_reading(config: str, how: Pass) -> int:
    """Peak bytes of a forward pass without gradients, weights and keys and values aside. `config` as JSON."""
    import torch

    with _body(json.loads(config), 2, how, trained=False) as (body, inputs, live):
        with torch.no_grad(), live:
            body(**inputs, use_cache=False)
        return live.peak


@functools.cache
def _step(config: str, layers: int, how: Pass) -> tuple[int, int]:
    """(held after the forward pass, peak of the backward pass) for so few blocks, gradients of weights aside."""
    import torch

    with _body(json.loads(config), layers, how, trained=True) as (body, inputs, live), live:
        with torch.autocast("cpu", torch.bfloat16, enabled=how.bf16):
            hidden_BTD = body(**inputs, use_cache=False).last_hidden_state
            forward = live.now
        live.start_peak()
        gradient_BTD = torch.empty_like(hidden_BTD)
        torch.autograd.backward(hidden_BTD, gradient_BTD)
        return forward, live.peak


@contextlib.contextmanager
def _body(config: dict[str, Any], layers: int, how: Pass, *, trained: bool) -> Iterator[Any]:
    """A model without its head and without data, its inputs, and a counter that knows its weights already."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    from distill.family.head import transformers_config
    from distill.planning.live_bytes import LiveBytes
    from distill.stages._dropout import residual_dropout

    few = transformers_config(config)
    text = few.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    dtype = torch.bfloat16 if how.bf16 and not trained else torch.float32
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(few, attn_implementation=how.attention, dtype=dtype)
        body = model.base_model.train(trained)
        # the gradient of the embeddings, as large as they, is accounted for by whoever knows whether it exists
        body.get_input_embeddings().weight.requires_grad_(False)
        if trained:
            model.enable_input_require_grads()
        if trained and how.adapter != "none":
            _adapt(body, how)
        if how.cut and how.bf16:
            _halve(body)
        if how.checkpointing:
            _checkpoint(model)
        if trained:
            residual_dropout(body, how.dropout)  # its hooks go with the body
        ids_BT = torch.zeros(how.rows, how.length, dtype=torch.long)
        inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        live = LiveBytes([*model.parameters(), *model.buffers()])
        for weight in body.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(functools.partial(_forget_gradient, live))
        yield body, inputs, live


def _forget_gradient(live: Any, weight: "torch.Tensor") -> None:
    # gradients of weights are accounted for by their number, not here
    if weight.grad is not None:
        live.forget(weight.grad)


def _halve(body: Any) -> None:
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for module in body.modules():
        if isinstance(module, nn.Linear | Conv1D):
            for name, weight in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(weight.detach().to(torch.bfloat16)))


def _checkpoint(model: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable()


def _adapt(body: Any, how: Pass) -> None:
    """Every linear layer frozen, with a LoRA beside it, as peft computes one; of nf4 where the adapter is qlora."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    body.requires_grad_(False)

    class Dequantised(torch.autograd.Function):
        """A product with a weight that exists for the time of the product alone, forward and backward."""

        @staticmethod
        def forward(ctx: Any, x: Any, num_outputs: int) -> Any:
            ctx.num_inputs, ctx.dtype = x.shape[-1], x.dtype
            return x @ torch.empty(num_outputs, ctx.num_inputs, dtype=x.dtype).T

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (gradient,) = gradients
            return gradient @ torch.empty(gradient.shape[-1], ctx.num_inputs, dtype=gradient.dtype), None

    class WithLora(nn.Module):
        def __init__(self, base: nn.Module):
            super().__init__()
            first, second = cast(Any, base).weight.shape
            I, O = (first, second) if isinstance(base, Conv1D) else (second, first)
            self.base, self.num_outputs = base, O
            self.down, self.up = nn.Linear(I, how.rank, bias=False), nn.Linear(how.rank, O, bias=False)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            # bitsandbytes gives its product in the dtype of its input, also where autocast took it in 16 bits
            base = Dequantised.apply(x, self.num_outputs).to(x.dtype) if how.adapter == "qlora" else self.base(x)
            return base + self.up(self.down(x.to(self.down.weight.dtype))) * 2.0

    for name, module in list(body.named_modules()):
        if isinstance(module, nn.Linear | Conv1D):
            owner, _, leaf = name.rpartition(".")
            setattr(body.get_submodule(owner), leaf, WithLora(module))
