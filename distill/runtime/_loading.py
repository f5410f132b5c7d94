"""Loading any package that transformers reads, quantising on load, and nothing that runs code from a checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.checkpoint import local_folder
from distill.errors import DataError
from distill.family.text_part import adapter_key_mapping
from distill.runtime._causal_lm import read_causal_lm
from distill.runtime._placement import places, said_if_too_large
from distill.runtime.bnb import cast_unquantised, disable_cpu_packing, import_bitsandbytes, quiet

INT8: Mapping[str, Any] = {"load_in_8bit": True}
NF4: Mapping[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def load_as(
    folder: Path | str, *, dtype: Any = None, device: str | None = None, quantise: str | None, device_map: str | None
) -> Any:
    """`load_quantised` where `quantise` ("nf4", "int8") asks for it, else `load_model`."""
    if quantise is not None:
        return load_quantised(folder, quantise, rest=dtype, device=device, device_map=device_map)
    return load_model(folder, dtype=dtype, device=device, device_map=device_map)


def load_model(
    folder: Path | str, *, dtype: Any = None, device: str | None = None, device_map: str | None = None
) -> Any:
    """The model of a package in eval mode: a `PreTrainedModel`, or a `PeftModel` where the package is an adapter alone.

    An adapter beside config.json is the package's own, and transformers puts it on. The `adapter/` folder of a student
    is merged into its weights already and left alone.

    Args:
        folder: see `distill.runtime.hf.Transformers`.
        dtype: a torch dtype or its name; None keeps what is stored.
        device: "cpu" or "cuda"; None takes the GPU where there is one.
        device_map: "auto" spreads the layers over all GPUs, then the CPU's memory, then the disk.
    """
    root = Path(folder)
    is_adapter = (root / "adapter_config.json").is_file() and not (root / "config.json").is_file()
    base = _base_of(root) if is_adapter else folder
    quantised = _is_quantised(base)
    if quantised or is_adapter:
        import_bitsandbytes()
    with quiet():
        model = read_causal_lm(
            base,
            dtype="auto" if dtype is None else dtype,
            **places(device, device_map, quantised=quantised),
        )
        if is_adapter:
            from peft import PeftModel

            # PEFT keeps adapters in float32 whatever the base is: rounding one moves the function that was trained.
            names = adapter_key_mapping(model.config.model_type)
            model = PeftModel.from_pretrained(model, str(root), key_mapping=names)
    disable_cpu_packing(model)
    if quantised and dtype is not None:
        cast_unquantised(model, dtype)
    return model.eval()


def load_quantised(
    folder: Path | str,
    how: str | Mapping[str, Any],
    *,
    rest: Any = None,
    device: str | None = None,
    device_map: str | None = None,
) -> Any:
    """A float checkpoint whose linear layers are quantised while it loads, in eval mode.

    transformers leaves the output head and tied weights alone. Pass no skip list of your own: it would replace
    that default.

    Args:
        folder: a checkpoint with float weights; each layer is quantised from the stored values.
        how: "nf4", "int8", or the arguments of `transformers.BitsAndBytesConfig`.
        rest: torch dtype of what is not quantised, and of 4-bit products; None keeps the stored one.
        device, device_map: as for `load_model`.
    """
    from transformers import BitsAndBytesConfig

    import_bitsandbytes()
    arguments = {"nf4": NF4, "int8": INT8}[how] if isinstance(how, str) else how
    with quiet(), said_if_too_large(folder):
        model = read_causal_lm(
            folder,
            dtype="auto",
            quantization_config=BitsAndBytesConfig(**arguments),
            **places(device, device_map, quantised=True),
        )
    disable_cpu_packing(model)
    cast_unquantised(model, rest or model.config.dtype)
    return model.eval()


def load_like(student: Path | str, package: Path, device: str | None = None) -> Any:
    """The student quantised here and now as the config.json of the bitsandbytes package `package` says."""
    config = json.loads((package / "config.json").read_text("utf-8"))
    how = dict(config["quantization_config"])
    how.pop("quant_method", None)
    return load_quantised(student, {k: v for k, v in how.items() if k[0] != "_"}, rest=config["dtype"], device=device)


def _base_of(adapter: Path) -> Path:
    """The base that an adapter names: a folder seen from the adapter, a folder seen from here, or one from the hub."""
    said = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    base = said.get("base_model_name_or_path")
    if not base:
        raise DataError(f"{adapter}/adapter_config.json names no base_model_name_or_path, so there is nothing to adapt")
    for candidate in (adapter / base, Path(base)):
        if (candidate / "config.json").is_file():
            return candidate
    return local_folder(base, said.get("revision"))


def _is_quantised(base: Path | str) -> bool:
    """Whether bitsandbytes may be needed; a hub id counts, as its config is not here. Importing it takes seconds."""
    file = Path(base) / "config.json"
    return not file.is_file() or "quantization_config" in json.loads(file.read_text("utf-8"))
