"""The output head of a causal language model, apart from the body, so that no full logits need to exist."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distill.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

# B rows, T positions, N of them, D hidden size, V vocabulary, R rank of a LoRA


@dataclass(frozen=True)
class LowRank:
    """What LoRA adds to a head's frozen weight: scale * B_VR @ A_RD."""

    A_RD: "Tensor"
    B_VR: "Tensor"
    scale: float
    """PEFT's alpha / rank."""


@dataclass(frozen=True)
class Head:
    """logits = softcap * tanh(scale * (hidden_D @ weight_VD.T + bias_V) / softcap), or without what is None.

    With `low_rank`, its update is added to the weight.
    """

    weight_VD: "Tensor"
    bias_V: "Tensor | None"
    scale: float
    softcap: float | None
    low_rank: LowRank | None = None

    @property
    def whole_weight_VD(self) -> "Tensor":
        """The weight, where it is all there is: for a model that is not trained.

        Raises:
            RecipeError: a LoRA changes it.
        """
        if self.low_rank is not None:
            raise RecipeError(
                "This model's output head has an adapter (LoRA) that is not merged, and its weight alone is another "
                "head.\nMerge it with PEFT's merge_and_unload(), save the model, and name that folder."
            )
        return self.weight_VD

    def logits(self, hidden_ND: "Tensor") -> "Tensor":
        """float32 logits `[N, V]` on the head's device; the product is taken in float32 too."""
        import torch

        # of a model that lies on several devices, hidden states come from the last and a tied head lies on the first
        logits_NV = self.product(hidden_ND.to(self.weight_VD.device)) * self.scale
        return logits_NV if self.softcap is None else self.softcap * torch.tanh(logits_NV / self.softcap)

    def product(self, hidden_ND: "Tensor") -> "Tensor":
        """float32 `[N, V]` before scale and soft cap; see `product`."""
        return product(hidden_ND, self.weight_VD, self.bias_V, self.low_rank)

    def in_float32(self) -> "Head":
        """The same head in float32, for several products."""
        bias_V = None if self.bias_V is None else self.bias_V.float()
        return replace(self, weight_VD=self.weight_VD.float(), bias_V=bias_V)


def product(
    hidden_ND: "Tensor", weight_VD: "Tensor", bias_V: "Tensor | None", low_rank: LowRank | None = None
) -> "Tensor":
    """float32 `[N, V]` hidden_ND @ weight_VD.T + bias_V, with the low-rank update; with every gradient.

    The update is never added to the weight: nothing of V x D is made, for a gradient neither.
    """
    from torch import autocast
    from torch.nn.functional import linear

    # autocast would round the product to bfloat16, which ruins small divergences
    with autocast(hidden_ND.device.type, enabled=False):
        hidden_ND = hidden_ND.float()
        made_NV = linear(hidden_ND, weight_VD.float(), None if bias_V is None else bias_V.float())
        if low_rank is None:
            return made_NV
        inner_NR = linear(hidden_ND, low_rank.A_RD.float())
        return made_NV + linear(inner_NR * low_rank.scale, low_rank.B_VR.float())


def output_head(model: Any) -> Head:
    """The head of `model`, read through PEFT's wrappers; its weight is the parameter itself, not a copy.

    Where `device_map=auto` left the head in the machine's memory or on its disk, it is fetched to where it computes.

    Raises:
        RecipeError: an adapter of the head computes something else than `LowRank` does.
    """
    from accelerate.utils import align_module_device

    layer, low_rank = model.get_output_embeddings(), None
    if hasattr(layer, "lora_A"):
        layer, low_rank = layer.get_base_layer(), _low_rank(layer)
    elif hasattr(layer, "modules_to_save"):
        layer = layer.modules_to_save[layer.active_adapter]
    scale, softcap = logit_facts(model.config)
    with align_module_device(layer):  # the tensors outlive it
        return Head(layer.weight, getattr(layer, "bias", None), scale, softcap, low_rank)


def _low_rank(layer: Any) -> LowRank | None:
    """The update of PEFT's LoRA `layer`; None where it is switched off, or merged into the weight already.

    Raises:
        RecipeError: there is more to it than one update of a float weight.
    """
    if layer.disable_adapters or layer.merged:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if not names:
        return None
    name = names[0]
    more = {
        f"{len(names)} active adapters": len(names) > 1,
        "a weight that is quantised": not layer.get_base_layer().weight.is_floating_point(),
        "a variant of LoRA (DoRA and its like)": name in getattr(layer, "lora_variant", {}),
        "a bias of its own": layer.lora_B[name].bias is not None,
        # PEFT drops parts of the hidden states for the update alone, which the fused loss cannot tell apart
        "dropout": layer.training and bool(getattr(layer.lora_dropout[name], "p", 0.0)),
    }
    found = [what for what, is_there in more.items() if is_there]
    if found:
        instead = "Set adapter.dropout=0" if found == ["dropout"] else "Merge it into the weights"
        raise RecipeError(
            f"The adapter of the output head has {' and '.join(found)}; one plain LoRA on a float weight is computed "
            f"there.\n{instead}, or leave the head out of adapter.target_modules."
        )
    return LowRank(layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))


def transformers_config(config: Mapping[str, Any]) -> Any:
    """transformers' configuration of a config.json; nothing in it is run."""
    from transformers import AutoConfig

    left_out = {"model_type", "quantization_config", "architectures", "transformers_version", "auto_map"}
    return AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k not in left_out})


def described_by(config: Mapping[str, Any]) -> Any:
    """The causal language model that a config.json describes: shapes only, no weights; made once, and not to change."""
    return _described(json.dumps(config))


@functools.cache
def _described(config: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(transformers_config(json.loads(config)))


def head_facts(config: Mapping[str, Any]) -> tuple[str, bool]:
    """(name of the output head, whether its weight is the embeddings') of the model that a config.json describes."""
    model = described_by(config)
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    return name, head.weight is model.get_input_embeddings().weight


def takes(named: str, layer: str) -> bool:
    """Whether an entry of `adapter.target_modules` means the layer of this whole name, as PEFT reads it."""
    return layer == named or layer.endswith(f".{named}")


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
