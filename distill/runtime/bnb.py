"""What we need of bitsandbytes beyond loading: quiet import, no packing of weights, exact merges, residual LoRA.

Letters: O output features, I input features, R rank.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from distill.errors import DistillError

if TYPE_CHECKING:
    import torch


def import_bitsandbytes() -> Any:
    """The module `bitsandbytes`, or None where it is not installed.

    On CPUs with AVX512-BF16 its import asks the network for a kernel if the package `kernels` is there, and warns
    if not; its own C++ kernel is what we want either way. Later it warns at every int8 forward that it casts.
    `import peft` imports it as well: call this before.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if "bitsandbytes" in sys.modules:
        return sys.modules["bitsandbytes"]
    hidden = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]  # makes `from kernels import …` an ImportError
    try:
        import bitsandbytes
    except ImportError:
        return None
    finally:
        del sys.modules["kernels"]
        if hidden is not None:
            sys.modules["kernels"] = hidden
    return bitsandbytes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the progress bars with which transformers loads and saves shards."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def disable_cpu_packing(model: Any) -> int:
    """Keeps every 4-bit layer of the model in the layout that is saved; returns how many there are.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 rewrites a layer's weight in place at the first eval forward. What is
    saved or merged afterwards is wrong (the scales stay transposed), the packed product is rounded to bfloat16, and
    odd shapes fail. Call this right after a model is loaded and before anything runs.
    """
    if "bitsandbytes" not in sys.modules:
        return 0
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        state = getattr(layer.weight, "quant_state", None)
        assert not getattr(state, "packing_format_for_cpu", False), "the model ran before its packing was disabled"
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def cast_unquantised(model: Any, dtype: Any) -> None:
    """Casts what bitsandbytes did not quantise to `dtype`, in place, and lets 4-bit layers compute in it.

    `model.to(dtype)` refuses quantised models, and `from_pretrained(dtype=…)` leaves the stored dtypes of a quantised
    checkpoint as they are.
    """
    import torch
    from bitsandbytes.nn import Int8Params, Linear4bit, Params4bit

    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    for parameter in model.parameters():
        if not isinstance(parameter, (Int8Params, Params4bit)) and parameter.dtype.is_floating_point:
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype
    model.config.dtype = dtype


def dequantised_weight(layer: Any) -> "torch.Tensor":
    """float32 `[O, I]`: exactly the weight that a bitsandbytes layer (4-bit or int8) stands for."""
    import torch
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit

    if isinstance(layer, Linear4bit):
        weight_OI = functional.dequantize_4bit(layer.weight.data, cast(Any, layer.weight).quant_state)
        return weight_OI.to(torch.float32)
    # int8 moves its scales from the weight to the state at the first forward.
    scale_O = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    values_OI = layer.weight.data if layer.state.CB is None else layer.state.CB
    return values_OI.to(torch.float32) * (scale_O.to(torch.float32) / 127.0)[:, None]


def dequantised_merge(peft_model: Any) -> Any:
    """The float32 model that computes what a LoRA trained on a bitsandbytes base computes; `peft_model` is used up.

    Merging into the quantised weights rounds again, and merging into the student's own weights gives a function that
    was never trained. Here every quantised layer becomes a float layer with the weight it stands for, and the adapter
    is added to that. The result has no trace of quantisation and can be saved.

    Raises:
        DistillError: the model has more than one active adapter.
    """
    import copy

    import torch
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if len(peft_model.active_adapters) != 1:
        raise DistillError(f"merging needs exactly one active adapter, found {peft_model.active_adapters}")
    name = peft_model.active_adapters[0]
    # False: where the adapter names the output head, PEFT would give the head's frozen weight too
    state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    adapter = {key: value.detach().clone() for key, value in state.items()}
    config = copy.deepcopy(peft_model.peft_config[name])
    # Its values come from `adapter`; pissa, loftq and their like would rewrite the base as well.
    config.init_lora_weights = True
    model = peft_model.unload()
    replace_quantised_layers(model)
    config.fan_in_fan_out = model.config.model_type == "gpt2"  # PEFT's name for transposed layers; it warns otherwise
    model = model.to(torch.float32)
    merged = get_peft_model(model, config)
    set_peft_model_state_dict(merged, adapter)
    return merged.merge_and_unload().eval()


def replace_quantised_layers(model: Any) -> None:
    """Puts a float32 layer with the dequantised weight in the place of every bitsandbytes layer, in place."""
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers.pytorch_utils import Conv1D

    for name, layer in list(model.named_modules()):
        if not isinstance(layer, (Linear4bit, Linear8bitLt)):
            continue
        weight_OI = dequantised_weight(layer)
        # GPT-2 has transposed layers; left as Linear they would be saved the wrong way round.
        transposed = getattr(layer, "source_cls", None) is Conv1D
        with torch.device("meta"):
            plain = (
                Conv1D(layer.out_features, layer.in_features)
                if transposed
                else torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            )
        plain.weight = torch.nn.Parameter(weight_OI.T.contiguous() if transposed else weight_OI)
        if layer.bias is not None:
            plain.bias = torch.nn.Parameter(layer.bias.detach().to(torch.float32))
        model.set_submodule(name, plain.train(layer.training))
    _forget_quantisation(model)


def residual_lora_init(peft_model: Any, student_state: "Mapping[str, torch.Tensor]") -> int:
    """Starts each adapter at the best rank-R part of what quantisation took away; returns the number of layers.

    For a layer with student weight W and quantised weight Q, the update `scaling * B @ A` becomes the truncated
    singular value decomposition of W - Q (Eckart and Young 1936: no other rank-R matrix is nearer). Its factors share
    the singular values evenly, so that both get gradients of one size. This is one step of LoftQ (Li et al. 2023,
    arXiv:2310.08659), with the base left as it is.

    Args:
        peft_model: LoRA on a bitsandbytes base; the active adapter is overwritten.
        student_state: the student's own weights, named as in its checkpoint, any float dtype; each is read once.

    Raises:
        DistillError: the student has no weight of a layer's name or shape.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    adapter = peft_model.active_adapters[0]
    modules = peft_model.get_base_model().named_modules()
    layers: dict[str, Any] = {n: m for n, m in modules if isinstance(m, LoraLayer)}
    for name, layer in layers.items():
        if adapter not in layer.lora_A:
            continue
        base = layer.get_base_layer()
        residual_OI = _student_weight(student_state, name, base) - dequantised_weight(base)
        rank = layer.r[adapter]
        left_OR, values_R, right_RI = _truncated_svd(residual_OI / layer.scaling[adapter], rank)
        with torch.no_grad():
            lora_a, lora_b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
            lora_a.copy_(values_R.sqrt()[:, None] * right_RI)
            lora_b.copy_(left_OR * values_R.sqrt())
    return len(layers)


def _student_weight(student_state: "Mapping[str, torch.Tensor]", name: str, base: Any) -> "torch.Tensor":
    """float32 `[O, I]` on the device of the quantised layer `base`."""
    import torch
    from transformers.pytorch_utils import Conv1D

    key = f"{name}.weight"
    if key not in student_state:
        raise DistillError(
            f"the student has no weight {key}, which the quantised model has: they are not the same model"
        )
    weight_OI = student_state[key].to(base.weight.device, torch.float32)
    if getattr(base, "source_cls", None) is Conv1D:
        weight_OI = weight_OI.T
    needed = (base.out_features, base.in_features)
    if tuple(weight_OI.shape) != needed:
        raise DistillError(f"the student's {key} has shape {tuple(weight_OI.shape)}, the quantised model's is {needed}")
    return weight_OI


def _truncated_svd(matrix_OI: "torch.Tensor", rank: int) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Left vectors `[O, R]`, values `[R]`, right vectors `[R, I]` of the `rank` largest singular values."""
    import torch

    if min(matrix_OI.shape) <= 2048:
        left, values, right = torch.linalg.svd(matrix_OI, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    # The whole decomposition of one 4096 x 4096 layer takes half a minute on a CPU, and there are hundreds of them.
    left, values, right_IR = torch.svd_lowrank(matrix_OI, q=rank + 32, niter=4)
    return left[:, :rank], values[:rank], right_IR.T[:rank]


def _forget_quantisation(model: Any) -> None:
    """Removes what transformers remembers of a quantised load, so that the float model saves and loads as one."""
    for attribute in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    # Private, and a test holds it: otherwise saving replays the load backwards and fails (NotImplementedError).
    model._weight_conversions = None
    for module in model.modules():
        if hasattr(module, "config") and getattr(module.config, "_is_quantized", False):
            module.config._is_quantized = False
