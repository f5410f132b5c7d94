"""Writers of the published layouts, from their published descriptions; the readers are tested against them."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import yaml

# The order of bits and terms: arcee-ai/DistillKit, distillkit/compression/{bitpack,monotonic_logprobs,legacy}.py, and
# the columns: sample_common.py, compressed_logit_schema() and legacy_compressed_logit_schema().
FLOATS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
CAPTURE = {"d": 640, "k": 8, "exact_k": 8, "exact_dtype": "float32", "residual_bins": [], "delta_encoding": False}


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ours(said, k: int, *, top: bool = True) -> dict:
    ids, logprobs = said.top(k)
    entries = []
    for place, token in enumerate(said.response):
        t = said.prompt_length + place
        entry = {"id": token, "logprob": float(said.logprobs_TV[t, token])}
        if top:
            pairs = zip(ids[t - 1].tolist(), logprobs[t - 1].tolist(), strict=True)
            entry["top"] = [list(pair) for pair in pairs]
        entries.append(entry)
    return {"prompt": said.prompt, "response": said.text, "tokens": said.response, "logprobs": entries}


def axolotl(said, k: int) -> dict:
    """axolotl-ai-cloud/axolotl, tests of the KD plugin (offline_sample) and its chat_template.py."""
    ids, logprobs = said.top(k)
    rows = [
        [{"logprob": lp, "token": f"token_id:{token}"} for token, lp in zip(i, p, strict=True)]
        for i, p in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]
    turns = [{"role": "user", "content": said.prompt}, {"role": "assistant", "content": said.text}]
    # vLLM gives nothing for the first token of a prompt
    return {"messages": turns, "logprobs": [None, *rows]}


def axolotl_beside(said, k: int) -> dict:
    """The same with the ids in a field of their own (offline_v2_sample); rows for the answer alone."""
    ids, logprobs = said.top(k)
    turns = [{"role": "user", "content": said.prompt}, {"role": "assistant", "content": said.text}]
    first = said.prompt_length - 1
    return {"messages": turns, "logprobs": logprobs[first:].tolist(), "target_token_ids": ids[first:].tolist()}


def axolotl_prepared(said, k: int, *, legacy: bool = False) -> dict:
    """README.md of the KD plugin, "Target alignment": row j is of token j + 1, and was of token j before."""
    ids, logprobs = said.top(k)
    # kd_normalize_topk
    logprobs = logprobs - np.log(np.exp(logprobs).sum(axis=1, keepdims=True))
    padding_ids, padding = [list(range(k))], [[-math.inf if legacy else -1e9] * k]
    rows_ids, rows = ids.tolist(), logprobs.tolist()
    learnt = [t >= said.prompt_length for t in range(len(said.ids))]
    mask = [[int(flag)] * k for flag in (learnt if legacy else [*learnt[1:], False])]
    return {
        "input_ids": said.ids,
        "labels": [token if flag else -100 for token, flag in zip(said.ids, learnt, strict=True)],
        "target_token_ids": padding_ids + rows_ids if legacy else rows_ids + padding_ids,
        "target_logprobs": padding + rows if legacy else rows + padding,
        "target_mask": mask,
    }


def packed_bits(numbers_SE: np.ndarray, bits: int) -> np.ndarray:
    rows = []
    for row in numbers_SE.tolist():
        text = "".join(format(number, f"0{bits}b") for number in row)
        text += "0" * (-len(text) % 8)
        rows.append([int(text[i : i + 8], 2) for i in range(0, len(text), 8)])
    return np.array(rows, dtype=np.uint8)


def float_bytes(values_SE: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        import torch

        tensor = torch.tensor(values_SE).to(torch.bfloat16).contiguous()
        return tensor.view(torch.uint8).reshape(len(values_SE), -1).numpy()
    raw = np.ascontiguousarray(values_SE.astype(FLOATS[dtype]))
    return raw.view(np.uint8).reshape(len(values_SE), -1)


def compressed(logprobs_SK: np.ndarray, config: dict) -> np.ndarray:
    """DistillKit's compress_monotonic_logprobs, for these settings; the curve by numpy's least squares."""
    exact_k, k = config["exact_k"], config["k"]
    values = np.diff(logprobs_SK, axis=1, prepend=0.0) if config.get("delta_encoding", True) else logprobs_SK
    parts = [float_bytes(values[:, :exact_k], config.get("exact_dtype", "float32"))] if exact_k else []
    rest = values[:, exact_k:k]
    if config.get("polynomial_terms"):
        x = np.linspace(0, 1, k - exact_k) if config.get("normalize_t") else np.arange(k - exact_k, dtype=float)
        curves = np.array([x**t if isinstance(t, int) else getattr(np, t)(x) for t in config["polynomial_terms"]])
        fitted = np.linalg.lstsq(curves.T, rest.T, rcond=None)[0].T
        parts.append(float_bytes(fitted, config.get("term_dtype", "float32")))
        rest = rest - fitted.astype(FLOATS[config.get("term_dtype", "float32")]) @ curves
    first = 0
    for bin_ in config["residual_bins"]:
        part, bits = rest[:, first : first + bin_["num_elements"]], bin_["element_bits"]
        lowest, highest = (0, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        scale = np.abs(part).max(axis=1, keepdims=True) / max(1, 2 ** (bits - 1))
        scale = np.where(scale == 0, 1, scale).astype(FLOATS[bin_["scale_dtype"]])
        numbers = np.clip(np.round(part / scale), lowest, highest).astype(np.int64) - lowest
        parts += [float_bytes(scale, bin_["scale_dtype"]), packed_bits(numbers, bits)]
        first += bin_["num_elements"]
    return np.concatenate(parts, axis=1)


def distillkit_capture(folder: Path, answers, config: dict, *, pad: int, packed: bool = False) -> Path:
    """What sample_logits_vllm.py writes: one padding token appended, and a row for every token but the first."""
    folder.mkdir(exist_ok=True)
    rows = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": []}
    for said in answers:
        ids, logprobs = said.top(config["k"])
        last = slice(-1, None)
        extra = (ids[last], logprobs[last]) if said.ids[-1] != pad else (ids[:0], logprobs[:0])
        if packed:  # as many rows as tokens; the last one is of a token outside
            extra = (np.concatenate([extra[0], ids[last]]), np.concatenate([extra[1], logprobs[last]]))
        ids, logprobs = np.concatenate([ids, extra[0]]), np.concatenate([logprobs, extra[1]])
        rows["input_ids"].append([*said.ids, pad] if said.ids[-1] != pad else said.ids)
        rows["compressed_logprobs"].append(compressed(logprobs, config).tolist())
        rows["bytepacked_indices"].append(packed_bits(ids, math.ceil(math.log2(config["d"]))).tolist())
    byte_rows = pyarrow.list_(pyarrow.list_(pyarrow.uint8()))
    schema = pyarrow.schema(
        [
            ("input_ids", pyarrow.list_(pyarrow.uint64())),
            ("compressed_logprobs", byte_rows),
            ("bytepacked_indices", byte_rows),
        ]
    )
    parquet.write_table(pyarrow.table(rows, schema=schema), folder / "data_0.parquet")
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    return folder


def distillkit_legacy(folder: Path, answers, config: dict) -> Path:
    """legacy.py: logits around their mean, exact_values in float16, ids in 64-bit words, the first lowest."""
    folder.mkdir(exist_ok=True)
    bits, k, exact_k = math.ceil(math.log2(config["vocab_size"])), config["k"], config["exact_k"]
    rows = {"input_ids": [], "packed_indices": [], "exact_values": [], "coeffs": []}
    x = np.arange(k - exact_k, dtype=float) + 1
    sign = -1 if config.get("invert_polynomial", True) else 1
    curves = [x ** (sign * power) for power in range(config["polynomial_degree"] + 1)]
    curves = np.array([*curves, np.sqrt(x)] if config.get("with_sqrt_term") else curves)
    for said in answers:
        ids, logprobs = said.top(k)
        logits = logprobs - said.logprobs_TV[1:].mean(axis=1, keepdims=True)
        in_word = 64 // bits
        words = []
        for row in ids.tolist():
            chunks = [row[i : i + in_word] for i in range(0, k, in_word)]
            words.append([sum(token << (bits * place) for place, token in enumerate(chunk)) for chunk in chunks])
        rows["input_ids"].append(said.ids)
        rows["packed_indices"].append(words)
        rows["exact_values"].append(logits[:, :exact_k].astype(np.float16).astype(np.float32).tolist())
        fitted = np.linalg.lstsq(curves.T, logits[:, exact_k:].T, rcond=None)[0].T
        rows["coeffs"].append(fitted.astype(np.float32).tolist())
    floats = pyarrow.list_(pyarrow.list_(pyarrow.float32()))
    schema = pyarrow.schema(
        [
            ("input_ids", pyarrow.list_(pyarrow.uint64())),
            ("packed_indices", pyarrow.list_(pyarrow.list_(pyarrow.uint64()))),
            ("exact_values", floats),
            ("coeffs", floats),
        ]
    )
    parquet.write_table(pyarrow.table(rows, schema=schema), folder / "data_0.parquet")
    (folder / "compression_config.yaml").write_text(yaml.safe_dump({"legacy_logit_compression": config}))
    return folder
