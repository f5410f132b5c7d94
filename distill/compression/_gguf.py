"""Writes a Llama-like checkpoint as one GGUF file with Q8_0 matrices, one tensor in memory at a time.

Names and the order of rows follow llama.cpp: its `llama` architecture rotates neighbouring pairs of a head where
transformers rotates the two halves, so the rows of the query and key projections change places. Its `qwen2` and `qwen3`
rotate halves and take the rows as they are. torch is not needed: safetensors files are read as bytes.

Source: the GGUF specification (ggml, docs/gguf.md); RoPE layouts as in llama.cpp's LLAMA_ROPE_TYPE_NORM and _NEOX.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distill.compression._gguf_tokenizer import GgufTokenizer, gguf_tokenizer
from distill.errors import StageFailed

BLOCK = 32
"""Numbers that share one scale in Q8_0."""

# transformers' model_type -> llama.cpp's architecture
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_q8_0(student: Path, file: Path) -> GgufTokenizer:
    """Write `file` from the checkpoint folder `student`; returns the tokenizer that went into it.

    Matrices become Q8_0 (8.5 bits per weight: 32 int8 and one float16 scale). Those whose rows are no multiple of 32
    stay in float16, as in llama.cpp's own converter. Norms, biases and RoPE factors stay in float32.

    Raises:
        NotExpressible: llama.cpp cannot express the tokenizer.
        StageFailed: a tensor is missing, unknown, or not finite.
    """
    from gguf import GGUFWriter

    config = json.loads((student / "config.json").read_text("utf-8"))
    tokenizer = gguf_tokenizer(student, config["vocab_size"])
    tensors = _Checkpoint(student)
    writer = GGUFWriter(path=None, arch=ARCHITECTURES[config["model_type"]])
    _add_model(writer, config, name=student.resolve().name)
    _add_tokenizer(writer, tokenizer)

    plan = list(_plan(config, tensors))
    for name, source, shape in plan:
        _announce(writer, name, shape, source)
    writer.write_header_to_file(path=file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, source, shape in plan:
        array = rope_factors(config) if source is None else _rearranged(tensors.float32(source), source, config)
        if array.shape != shape or not np.isfinite(array).all():
            raise StageFailed(f"{student}: {name} has shape {array.shape} or is not finite; needed: finite, {shape}.")
        writer.write_tensor_data(_encoded(array, _storage(shape)))
    writer.close()
    return tokenizer


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE settings in one dict, from transformers 5's `rope_parameters` or the older `rope_theta` + `rope_scaling`."""
    old = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    found = {**old, **(config.get("rope_parameters") or {})}
    return {**found, "rope_type": found.get("rope_type", found.get("type", "default"))}


def head_size(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_factors(config: Mapping[str, Any]) -> np.ndarray:
    """Llama 3's RoPE scaling as divisors of each frequency, float32 `[head_dim / 2]`.

    High frequencies stay (1), low ones are stretched by `factor`, those between are blended.
    Source: Llama 3.1's reference code, as described in transformers' `rope_type: llama3`.
    """
    rope = rope_parameters(config)
    frequency = rope["rope_theta"] ** (-np.arange(0, head_size(config), 2, dtype=np.float64) / head_size(config))
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / (kept + (1.0 - kept) / factor)).astype(np.float32)


def _add_model(writer: Any, config: Mapping[str, Any], name: str) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType, RopeScalingType

    writer.add_name(name)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads") or config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_rope_dimension_count(head_size(config))
    rope = rope_parameters(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


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


def _plan(config: Mapping[str, Any], tensors: "_Checkpoint") -> Iterator[tuple[str, str | None, tuple[int, ...]]]:
    """(GGUF name, name in the checkpoint or None when computed, shape) of every tensor of the file."""
    if config.get("tie_word_embeddings") or "lm_head.weight" not in tensors.names:
        # llama.cpp takes the embedding as the output where there is no output tensor.
        tensors.names.discard("lm_head.weight")
    if rope_parameters(config)["rope_type"] == "llama3":
        yield "rope_freqs.weight", None, (head_size(config) // 2,)
    for source in sorted(tensors.names):
        if source.endswith("rotary_emb.inv_freq"):  # checkpoints of 2023 carry it; it follows from the config
            continue
        yield _gguf_name(source), source, tensors.shape(source)


def _gguf_name(source: str) -> str:
    module, _, kind = source.rpartition(".")
    if module in _TOP_NAMES:
        return f"{_TOP_NAMES[module]}.{kind}"
    if module.startswith("model.layers."):
        number, _, part = module.removeprefix("model.layers.").partition(".")
        if part in _LAYER_NAMES:
            return f"blk.{number}.{_LAYER_NAMES[part]}.{kind}"
    raise StageFailed(f"The checkpoint holds {source}, which this exporter does not know; needed: a plain checkpoint.")


def _rearranged(array: np.ndarray, source: str, config: Mapping[str, Any]) -> np.ndarray:
    """Rows of the query and key projections in the order of llama.cpp's `llama`; everything else as it is."""
    is_query, is_key = ".self_attn.q_proj." in source, ".self_attn.k_proj." in source
    if ARCHITECTURES[config["model_type"]] != "llama" or not (is_query or is_key):
        return array
    # One head is [first half, second half] in transformers and [pair, pair, ...] in llama.cpp.
    halves = array.reshape(-1, 2, head_size(config) // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _storage(shape: tuple[int, ...]) -> Any:
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    return GGMLQuantizationType.F16 if shape[-1] % BLOCK else GGMLQuantizationType.Q8_0


def _announce(writer: Any, name: str, shape: tuple[int, ...], source: str | None) -> None:
    """Tell the writer a tensor's place in the file before its numbers exist."""
    from gguf import GGML_QUANT_SIZES

    kind = _storage(shape)
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
