"""Writes a checkpoint as one GGUF file, one tensor in memory at a time.

What a model type's tensors are called and in which order llama.cpp has their rows is known by the modules beside this
one, and which type each gets by `_gguf_mixture`. torch is not needed: safetensors files are read as bytes.

Source: the GGUF specification (ggml, docs/gguf.md).
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.compression import _ggml, _gguf_bloom, _gguf_gpt2, _gguf_llama
from distill.compression._about import About, write_about
from distill.compression._gguf_mixture import Mixture, Outline, is_matrix
from distill.compression._gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from distill.errors import StageFailed

_LAYOUTS: tuple[Any, ...] = (_gguf_llama, _gguf_gpt2, _gguf_bloom)
"""One module per way of naming and ordering a model's tensors, each with the same functions and tables."""
ARCHITECTURES: dict[str, str] = {name: arch for layout in _LAYOUTS for name, arch in layout.MODEL_TYPES.items()}
"""transformers' model_type → llama.cpp's architecture."""


def layout_of(model_type: str) -> Any:
    """The module that knows the tensors of a model type."""
    return next(layout for layout in _LAYOUTS if model_type in layout.MODEL_TYPES)


@dataclass(frozen=True)
class Planned:
    """A tensor of the file before its numbers are read. `source`: its name in the checkpoint; None: it is computed."""

    name: str
    source: str | None
    shape: tuple[int, ...]
    kind: str
    """Its type, as `gguf.GGMLQuantizationType` names it."""

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return self.size // block * block_bytes


def planned(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], mixture: Mixture) -> list[Planned]:
    """All tensors of the file, in its order.

    Args:
        config: the student's config.json.
        shapes: name in the checkpoint → `[out, in]` as in torch.

    Raises:
        StageFailed: a tensor is unknown.
    """
    layout = layout_of(config["model_type"])
    found = [(name, None, array.shape) for name, array in layout.computed(config).items()]
    found += [
        (name, source, _shape(layout, source, shapes[source], config))
        for name, source in _names(layout, config, set(shapes))
    ]
    outline = Outline.of([name for name, _, _ in found], config)
    return [Planned(name, source, shape, mixture.type_of(name, shape, outline)) for name, source, shape in found]


def write_gguf(
    student: Path,
    file: Path,
    mixture: Mixture,
    importance: Mapping[str, np.ndarray] | None = None,
    about: About | None = None,
) -> tuple[GgufTokenizer, list[Planned]]:
    """Write `file` from the checkpoint folder `student`; returns the tokenizer and the tensors that went into it.

    Args:
        importance: name of each linear layer in blocks → how much an error in each of its inputs matters.
        about: what the file says of the model; None: the folder's name.

    Raises:
        NotExpressible: llama.cpp cannot express the tokenizer.
        StageFailed: a tensor is missing, unknown, or not finite.
    """
    from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType

    config = json.loads((student / "config.json").read_text("utf-8"))
    layout = layout_of(config["model_type"])
    tokenizer = gguf_tokenizer(student, config["vocab_size"])
    checkpoint = _Checkpoint(student)
    writer = GGUFWriter(path=None, arch=layout.MODEL_TYPES[config["model_type"]])
    num_parameters = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    write_about(writer, about or About(name=student.resolve().name), num_parameters, student)
    writer.add_file_type(LlamaFileType[mixture.file_type])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    layout.add_model(writer, config)
    _add_tokenizer(writer, tokenizer)

    made = layout.computed(config)
    plan = planned(config, checkpoint.shapes, mixture)
    for one in plan:  # the header has every tensor's place, before its numbers exist
        kind = GGMLQuantizationType[one.kind]
        writer.add_tensor_info(one.name, one.shape, np.dtype(np.float32), one.size_bytes, raw_dtype=kind)
    writer.write_header_to_file(path=file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for one in plan:
        weights = None
        if one.source is None:
            array = made[one.name]
        else:
            array = layout.rearranged(checkpoint.float32(one.source), one.source, config)
            if importance and one.name.startswith("blk.") and is_matrix(one.name, one.shape):
                weights = importance[one.source.removesuffix(".weight")]
        if array.shape != one.shape or not np.isfinite(array).all():
            raise StageFailed(f"{student}: {one.name} has shape {array.shape} or is not finite; needed: {one.shape}.")
        writer.write_tensor_data(_encoded(np.ascontiguousarray(array), one.kind, weights))
    writer.close()
    return tokenizer, plan


def _add_tokenizer(writer: Any, tokenizer: GgufTokenizer) -> None:
    from gguf import Keys

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
    # not all at once: the gguf package lists the names in the order of a set, another in every process
    named = {re.sub(r"[^A-Za-z0-9]", "_", name): text for name, text in tokenizer.chat_templates.items()}
    named.pop("default", None)
    for name, text in named.items():
        writer.add_string(Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name), text)
    if named:
        writer.add_array(Keys.Tokenizer.CHAT_TEMPLATES, list(named))


def _names(layout: Any, config: Mapping[str, Any], sources: set[str]) -> Iterator[tuple[str, str]]:
    """(GGUF name, name in the checkpoint) of every tensor that is taken from there."""
    if config.get("tie_word_embeddings") or "lm_head.weight" not in sources:
        # llama.cpp takes the embedding as the output where there is no output tensor.
        sources = sources - {"lm_head.weight"}
    for source in sorted(sources):
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


def _shape(layout: Any, source: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tensor's shape in the file, before its numbers are read."""
    return layout.rearranged(np.broadcast_to(np.float32(0), shape), source, config).shape


def _encoded(array: np.ndarray, kind: str, importance_C: np.ndarray | None) -> np.ndarray:
    """The numbers as they stand in the file; numpy rounds where rounding is all there is to it."""
    from gguf import GGMLQuantizationType, quants

    if kind == "F32":
        return array
    if kind in ("F16", "Q8_0"):
        return quants.quantize(array, GGMLQuantizationType[kind])
    return _ggml.quantise(array, kind, importance_C)


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
        self.shapes = {name: tuple(entry["shape"]) for name, (_, _, entry) in self._where.items()}

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
        return np.asarray(array, dtype=np.float32).reshape(self.shapes[name])
