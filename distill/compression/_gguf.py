"""Writes a checkpoint as one GGUF file with Q8_0 matrices, one tensor in memory at a time.

What a model type's tensors are called and in which order llama.cpp has their rows is known by the modules beside this
one. torch is not needed: safetensors files are read as bytes.

Source: the GGUF specification (ggml, docs/gguf.md).
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.compression import _gguf_bloom, _gguf_gpt2, _gguf_llama
from distill.compression._gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from distill.errors import StageFailed

BLOCK = 32
"""Numbers that share one scale in Q8_0."""

_LAYOUTS: tuple[Any, ...] = (_gguf_llama, _gguf_gpt2, _gguf_bloom)
"""One module per way of naming and ordering a model's tensors, each with the same functions and tables."""
ARCHITECTURES: dict[str, str] = {name: arch for layout in _LAYOUTS for name, arch in layout.MODEL_TYPES.items()}
"""transformers' model_type → llama.cpp's architecture."""


def layout_of(model_type: str) -> Any:
    """The module that knows the tensors of a model type."""
    return next(layout for layout in _LAYOUTS if model_type in layout.MODEL_TYPES)


def write_q8_0(student: Path, file: Path) -> GgufTokenizer:
    """Write `file` from the checkpoint folder `student`; returns the tokenizer that went into it.

    Matrices become Q8_0 (8.5 bits per weight: 32 int8 and one float16 scale). Those whose rows are no multiple of 32
    stay in float16, as in llama.cpp's own converter. Norms, biases and RoPE factors stay in float32.

    Raises:
        NotExpressible: llama.cpp cannot express the tokenizer.
        StageFailed: a tensor is missing, unknown, or not finite.
    """
    from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType

    config = json.loads((student / "config.json").read_text("utf-8"))
    layout = layout_of(config["model_type"])
    tokenizer = gguf_tokenizer(student, config["vocab_size"])
    tensors = _Checkpoint(student)
    writer = GGUFWriter(path=None, arch=layout.MODEL_TYPES[config["model_type"]])
    writer.add_name(student.resolve().name)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    layout.add_model(writer, config)
    _add_tokenizer(writer, tokenizer)

    made = layout.computed(config)
    plan = [(name, name, array.shape) for name, array in made.items()]
    plan += [
        (name, source, _shape(layout, source, tensors, config)) for name, source in _names(layout, config, tensors)
    ]
    for name, _, shape in plan:
        _announce(writer, name, shape)
    writer.write_header_to_file(path=file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, source, shape in plan:
        array = made[name] if name in made else layout.rearranged(tensors.float32(source), source, config)
        if array.shape != shape or not np.isfinite(array).all():
            raise StageFailed(f"{student}: {name} has shape {array.shape} or is not finite; needed: finite, {shape}.")
        writer.write_tensor_data(_encoded(np.ascontiguousarray(array), _storage(name, shape)))
    writer.close()
    return tokenizer


def _add_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores)
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    for role, number in tokenizer.ids.items():
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    writer.add_add_space_prefix(tokenizer.add_space_prefix)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _names(layout: Any, config: Mapping[str, Any], tensors: "_Checkpoint") -> Iterator[tuple[str, str]]:
    """(GGUF name, name in the checkpoint) of every tensor that is taken from there."""
    if config.get("tie_word_embeddings") or "lm_head.weight" not in tensors.names:
        # llama.cpp takes the embedding as the output where there is no output tensor.
        tensors.names.discard("lm_head.weight")
    for source in sorted(tensors.names):
        if not source.endswith(layout.LEFT_OUT):
            yield _gguf_name(layout, source), source


def _gguf_name(layout: Any, source: str) -> str:
    module, _, kind = source.rpartition(".")
    if module in layout.TOP_NAMES:
        return f"{layout.TOP_NAMES[module]}.{kind}"
    if module.startswith(layout.LAYERS):
        number, _, part = module.removeprefix(layout.LAYERS).partition(".")
        if part in layout.LAYER_NAMES:
            return f"blk.{number}.{layout.LAYER_NAMES[part]}.{kind}"
    raise StageFailed(f"The checkpoint holds {source}, which this exporter does not know; needed: a plain checkpoint.")


def _shape(layout: Any, source: str, tensors: "_Checkpoint", config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tensor's shape in the file, before its numbers are read."""
    return layout.rearranged(np.broadcast_to(np.float32(0), tensors.shape(source)), source, config).shape


def _storage(name: str, shape: tuple[int, ...]) -> Any:
    from gguf import GGMLQuantizationType

    # learned positions are few, and are added to everything
    if len(shape) == 1 or name == "position_embd.weight":
        return GGMLQuantizationType.F32
    return GGMLQuantizationType.F16 if shape[-1] % BLOCK else GGMLQuantizationType.Q8_0


def _announce(writer: Any, name: str, shape: tuple[int, ...]) -> None:
    """Tell the writer a tensor's place in the file before its numbers exist."""
    from gguf import GGML_QUANT_SIZES

    kind = _storage(name, shape)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    num_bytes = math.prod(shape) // block * block_bytes
    writer.add_tensor_info(name, shape, np.dtype(np.float32), num_bytes, raw_dtype=kind)


def _encoded(array: np.ndarray, kind: Any) -> np.ndarray:
    from gguf import GGMLQuantizationType, quants

    return array if kind == GGMLQuantizationType.F32 else quants.quantize(array, kind)


class _Checkpoint:
    """The tensors of a safetensors checkpoint, in one file or in shards, mapped and not loaded.

    safetensors' numpy interface refuses bfloat16, which numpy has no type for; so the files are read by their
    specification: 8 bytes of header length, a JSON header, the numbers. Shapes are `[out, in]` as in torch.
    """

    def __init__(self, folder: Path) -> None:
        self._where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size))
            header.pop("__metadata__", None)
            self._where.update({name: (file, 8 + size, entry) for name, entry in header.items()})
        if not self._where:
            raise StageFailed(f"{folder} has no *.safetensors; save the student with save_pretrained first.")
        self.names = set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name][2]["shape"])

    def float32(self, name: str) -> np.ndarray:
        file, start, entry = self._where[name]
        kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
        if entry["dtype"] not in kinds:
            raise StageFailed(f"{file}: {name} is {entry['dtype']}; needed: one of {', '.join(kinds)}.")
        begin, end = entry["data_offsets"]
        flat = np.memmap(file, mode="r", dtype=np.uint8, offset=start + begin, shape=(end - begin,))
        array = flat.view(kinds[entry["dtype"]])
        if entry["dtype"] == "BF16":  # bfloat16 is the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(array, dtype=np.float32).reshape(self.shape(name))
