"""`student=pretrained`: start from a checkpoint, all of its layers or some."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from distill.checkpoint import checkpoint_folder, local_folder
from distill.errors import RecipeError
from distill.option import STRICT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Pretrained:
    """A checkpoint from a folder or the hub, possibly with fewer layers."""

    kind: Literal["pretrained"]
    model: Annotated[str, AfterValidator(checkpoint_folder)]
    """A folder, a hub id, or `bundled:NAME`."""
    revision: str | None = None
    layers: Annotated[list[int], Field(min_length=1)] | None = None
    """Keep only these layers, counted from 0; None keeps all."""

    def __post_init__(self) -> None:
        if self.layers and len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers={self.layers} names a layer twice, and both would share their weights")

    def build(self, tokenizer: "PreTrainedTokenizerBase", seed: int) -> "PreTrainedModel":
        """The model with float32 weights, on the CPU. `tokenizer` and `seed` decide nothing here."""
        import torch

        from distill.runtime._causal_lm import read_causal_lm

        model = read_causal_lm(local_folder(self.model, self.revision), dtype=torch.float32)
        if self.layers is not None:
            keep_layers(model, self.layers)
        return model

    def outline(self, tokenizer: "PreTrainedTokenizerBase") -> "PreTrainedModel":
        """What `build` gives, with every tensor on torch's meta device: nothing but config.json is read."""
        import torch

        from distill.runtime._outline import outline_of

        model = outline_of(local_folder(self.model, self.revision), dtype=torch.float32)
        if self.layers is not None:
            keep_layers(model, self.layers)
        return model


def config_with_layers(config: dict[str, Any], layers: list[int]) -> dict[str, Any]:
    """What config.json says of a checkpoint that is cut to the given decoder layers."""
    names = ("num_hidden_layers", "n_layer", "num_layers")
    few = {**config, next((name for name in names if name in config), names[0]): len(layers)}
    if few.get("layer_types"):
        few["layer_types"] = [config["layer_types"][layer] for layer in layers]
    if few.get("attention_types"):
        few |= _kinds_of_attention(config["attention_types"], layers)
    return few


def _kinds_of_attention(pairs: Sequence[Any], layers: list[int]) -> dict[str, Any]:
    """GPT-Neo's layers of two kinds: it writes lists of kinds, each with how often it occurs, and each layer's kind."""
    kinds = [kind for kinds, often in pairs for kind in list(kinds) * often]
    kept = [kinds[layer] for layer in layers]
    return {"attention_types": [[kept, 1]], "attention_layers": kept}


def keep_layers(model: "PreTrainedModel", layers: list[int]) -> None:
    """Cuts `model` in place to the given decoder layers, in that order."""
    from torch import nn

    decoder = getattr(model.base_model, "decoder", model.base_model)  # OPT's lies one level down
    name = next((n for n in ("layers", "h") if isinstance(getattr(decoder, n, None), nn.ModuleList)), None)
    if name is None:
        raise RecipeError(
            f"student.layers: {type(model).__name__} keeps its layers where we do not look; leave it out."
        )
    blocks = getattr(decoder, name)
    wrong = [index for index in layers if not 0 <= index < len(blocks)]
    if wrong:
        raise RecipeError(f"student.layers={layers}: the checkpoint has layers 0 to {len(blocks) - 1}, not {wrong}.")
    setattr(decoder, name, nn.ModuleList(blocks[index] for index in layers))
    for position, block in enumerate(getattr(decoder, name)):
        for part in block.modules():
            for place in ("layer_idx", "layer_id"):
                if hasattr(part, place):
                    setattr(part, place, position)  # the key-value cache is addressed by it
    model.config.num_hidden_layers = len(layers)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in layers]
    if getattr(model.config, "attention_types", None):
        for key, value in _kinds_of_attention(model.config.attention_types, layers).items():
            setattr(model.config, key, value)
