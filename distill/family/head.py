"""The output head of a causal language model, apart from the body, so that no full logits need to exist."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distill.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

# B rows, T positions, D hidden size, V vocabulary


@dataclass(frozen=True)
class Head:
    """logits = softcap * tanh(scale * (hidden_D @ weight_VD.T + bias_V) / softcap), or without what is None."""

    weight_VD: "Tensor"
    bias_V: "Tensor | None"
    scale: float
    softcap: float | None

    def logits(self, hidden_ND: "Tensor") -> "Tensor":
        """float32 logits `[N, V]` on the head's device; the product is taken in float32 too."""
        import torch

        # of a model that lies on several devices, hidden states come from the last and a tied head lies on the first
        hidden_ND = hidden_ND.to(self.weight_VD.device)
        # autocast would round the product to bfloat16, which ruins small divergences
        with torch.autocast(hidden_ND.device.type, enabled=False):
            bias = None if self.bias_V is None else self.bias_V.float()
            logits_NV = torch.nn.functional.linear(hidden_ND.float(), self.weight_VD.float(), bias) * self.scale
        return logits_NV if self.softcap is None else self.softcap * torch.tanh(logits_NV / self.softcap)


def output_head(model: Any) -> Head:
    """The head of `model`, read through PEFT's wrappers; its weight is the parameter itself, not a copy.

    Where `device_map=auto` left the head in the machine's memory or on its disk, it is fetched to where it computes.
    """
    from accelerate.utils import align_module_device

    layer = model.get_output_embeddings()
    if hasattr(layer, "lora_A"):
        raise RecipeError(
            "adapter.target_modules names the output head; a LoRA there is not supported. Leave the head out."
        )
    if hasattr(layer, "modules_to_save"):
        layer = layer.modules_to_save[layer.active_adapter]
    scale, softcap = logit_facts(model.config)
    with align_module_device(layer):  # the tensors outlive it
        return Head(layer.weight, getattr(layer, "bias", None), scale, softcap)


def logit_facts(config: "PretrainedConfig") -> tuple[float, float | None]:
    """(scale, softcap) that the architecture applies to its logits: Cohere multiplies, Granite divides, Gemma caps."""
    if getattr(config, "logits_scaling", None):
        return 1.0 / float(config.logits_scaling), None
    softcap = getattr(config, "final_logit_softcapping", None)
    return float(getattr(config, "logit_scale", None) or 1.0), float(softcap) if softcap else None


def hidden_states(
    model: Any,
    input_ids_BT: "Tensor",
    attention_mask_BT: "Tensor | None",
    position_ids_BT: "Tensor | None" = None,
) -> "Tensor":
    """Last hidden states `[B, T, D]`, just before the head; the head is not called.

    Without a mask, positions that start again begin a row of their own (`distill.stages._packing`).
    """
    body = model.get_base_model() if hasattr(model, "get_base_model") else model
    positions = {} if position_ids_BT is None else {"position_ids": position_ids_BT}
    output = body.base_model(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False, **positions)
    return output.last_hidden_state
