"""Model: what a checkpoint's config.json says of its size, counted on a model without data. No weights are needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.errors import RecipeError, first_line
from distill.family.head import described_by, takes

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Model:
    """Parameters by the kind of layer, and what keys and values take. Tied weights count once, as in transformers."""

    name: str
    config: dict[str, Any]
    parameters: int
    embedding: int
    """Of token embeddings, which are the output head too where `tied`."""
    head: int
    """Of an output head of its own; 0 where tied."""
    linear: int
    """Of the linear layers in blocks: what is quantised, and what LoRA adapts."""
    largest_block: int
    linear_sizes: int
    """Sum of inputs and outputs over these linear layers: parameters of a LoRA of rank 1."""
    layer_sizes: dict[str, int]
    """The same for each of them by name, and for the output head."""
    head_name: str
    tied: bool
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int | None
    windows: tuple[int | None, ...]
    """For each layer, how many tokens its attention looks back on; None: all."""
    stored: str
    """dtype of the published weights, or of the checkpoint on this disk."""
    on_disk: bool

    @property
    def blocks(self) -> int:
        """Parameters of all blocks and norms."""
        return self.parameters - self.embedding - self.head

    @property
    def head_size(self) -> int:
        """Elements of the output head, tied or not."""
        return self.vocab * self.hidden

    def lora_size(self, named: Sequence[str] | None) -> int:
        """Parameters of a LoRA of rank 1 on the layers that `adapter.target_modules` names; none: all in blocks."""
        if not named:
            return self.linear_sizes
        return sum(size for layer, size in self.layer_sizes.items() if any(takes(name, layer) for name in named))

    def head_lora_size(self, named: Sequence[str] | None) -> int:
        """Of these, the output head's."""
        on_head = any(takes(name, self.head_name) for name in named or ())
        return self.layer_sizes[self.head_name] if on_head else 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of the checkpoint's weights."""
        return self.parameters * BYTES[self.stored]

    def kv_bytes(self, tokens: int, bytes_per_value: int = 2) -> int:
        """Bytes of the keys and values of one row of so many tokens."""
        seen = sum(min(tokens, window or tokens) for window in self.windows)
        return 2 * seen * self.kv_heads * self.head_dim * bytes_per_value

    def flops_per_token(self, context: float) -> float:
        """Multiplications and additions of one token's forward pass that looks back on `context` tokens on average.

        Two for each parameter that is multiplied (embeddings are looked up), and four for each token, head and
        dimension of attention: scores, then their mixture of values.
        """
        multiplied = self.parameters - self.embedding + (self.head_size if self.tied else 0)
        looked_at = sum(min(context, window or context) for window in self.windows)
        return 2.0 * multiplied + 4.0 * looked_at * self.heads * self.head_dim


def model_of(name: str, config: dict[str, Any], stored: str, *, on_disk: bool) -> Model:
    """Counted on torch's meta device: exactly what transformers makes of `config`.

    Raises:
        RecipeError: transformers has no such architecture, or its config.json does not describe a model.
    """
    return Model(name=name, config=config, stored=stored, on_disk=on_disk, **_counted(name, config))


def _counted(name: str, config: dict[str, Any]) -> dict[str, Any]:
    import torch
    from transformers.pytorch_utils import Conv1D

    try:
        model = described_by(config)
    except (KeyError, ValueError, TypeError) as error:
        raise RecipeError(
            f"{name}: its config.json is of no causal language model that transformers can build "
            f"({first_line(error)}). A plan counts parameters on it; choose another checkpoint."
        ) from None
    text = model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    blocks = [m for m in model.modules() if type(m).__name__ in set(model._no_split_modules or ())]
    head_name = next(name for name, m in model.named_modules() if m is model.get_output_embeddings())
    layers = {n: m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    linears = [weight for weight in layers.values() if weight is not head]
    heads = text.num_attention_heads
    return {
        "parameters": model.num_parameters(),
        "embedding": embedding.numel(),
        "head": 0 if head is embedding else head.numel(),
        "linear": sum(weight.numel() for weight in linears),
        "largest_block": max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0),
        "linear_sizes": sum(sum(weight.shape) for weight in linears),
        "layer_sizes": {name: sum(weight.shape) for name, weight in (layers | {head_name: head}).items()},
        "head_name": head_name,
        "tied": head is embedding,
        "layers": text.num_hidden_layers,
        "hidden": head.shape[1],
        "heads": heads,
        "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
        "vocab": head.shape[0],
        "positions": getattr(text, "max_position_embeddings", None),
        "windows": _windows(text),
    }


def _windows(text: Any) -> tuple[int | None, ...]:
    """As transformers' cache reads them: by layer, else one window for all. GPT-Neo's local layers keep everything."""
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return tuple(window if "sliding" in kind else None for kind in kinds)
