"""evaluate: teacher, baselines, student and packages → scores, each with the runtime that it is for."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distill.artifact import write_whole
from distill.encoding import decode_response, encode_prompt, encode_response, load_tokenizer, tokenizer_hash
from distill.evaluation import Evaluation
from distill.example import Example
from distill.progress import bar

VERSION = 1
"""Part of the fingerprint: raise it when a model would be scored otherwise."""
# not needed to run a package: descriptions, and what other programs read
NOT_NEEDED = {"README.md", "Modelfile", "manifest.json", "settings.json", "export.json"}

# N positions, V vocabulary


def settings(evaluation: Evaluation) -> dict[str, Any]:
    """What decides a model's scores, beside its files and the evaluation rows."""
    return {"version": VERSION, **asdict(evaluation)}


def score_model(
    path: Path,
    runtime: str,
    evaluation: Evaluation,
    row_sets: Mapping[str, Sequence[Example]],
    folder: Path,
    *,
    teacher: Path | None,
    is_teacher: bool = False,
    tokenizer_from: Path | None = None,
    dtype: str | None = None,
) -> None:
    """Leaves `scores.json`, `answers.json` and, for the teacher, `logprobs.npy`, against which others are compared.

    Args:
        path: the checkpoint or package.
        tokenizer_from: where the tokenizer is when not beside the weights: a GGUF has its own, of which verify
            showed that it gives the same token ids.
        teacher: the folder in which the teacher's own scores lie, or None without a teacher.
        dtype: None for "as stored".
    """
    with open_runtime(path, runtime, dtype) as model:
        tokenizer = load_tokenizer(tokenizer_from or path)
        row_sets = {name: list(rows)[: evaluation.rows] for name, rows in row_sets.items()}
        answers = _answers(model, tokenizer, evaluation, row_sets)
        scores: dict[str, float] = {}
        if evaluation.kind == "exact_match":
            for name, rows in row_sets.items():
                right = [
                    evaluation.correct(a, r.response)
                    for a, r in zip(answers[name], rows, strict=True)
                    if r.response is not None
                ]
                if right:
                    scores[name] = sum(right) / len(right)
        main = row_sets["exact_match"]
        scores |= _likelihoods(model, tokenizer, evaluation, main, folder, teacher, is_teacher)
        speed = {"runtime": model.name, "device": model.device, **model.speed()}
        parameters = _parameters(model) if runtime == "transformers" else None
    facts = {"bytes": package_bytes(path), "parameters": parameters, "scores": scores, "speed": speed}
    write_whole(folder / "answers.json", json.dumps(answers))
    write_whole(folder / "scores.json", json.dumps(facts, indent=1))


def open_runtime(path: Path, runtime: str, dtype: str | None = None):
    """The model in the runtime that its users have."""
    if runtime == "llama.cpp":
        from distill.runtime.llama_cpp import LlamaCpp

        return LlamaCpp(path)
    from distill.runtime.hf import Transformers

    return Transformers(path, dtype=dtype)


def package_bytes(path: Path) -> int:
    """Bytes of every file that is needed to run the package; 0 for a checkpoint that is not on this disk."""
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file() and f.name not in NOT_NEEDED)


def _answers(model, tokenizer, evaluation: Evaluation, row_sets) -> dict[str, list[str]]:
    """Greedy answers to each set's prompts; a prompt that leaves no room for an answer gets an empty one."""
    if evaluation.kind == "bits_per_byte":
        row_sets = {name: rows[: evaluation.samples] for name, rows in row_sets.items()}
    answers = {}
    for name, rows in row_sets.items():
        prompts = [encode_prompt(tokenizer, row.prompt) for row in rows]
        room = (model.max_positions or 1 << 30) - evaluation.max_new_tokens
        fits = [n for n, prompt in enumerate(prompts) if len(prompt) <= room]
        with bar(f"answers {name}", len(fits)) as advance:
            said = model.generate([prompts[n] for n in fits], evaluation.max_new_tokens, progress=advance)
        texts = {n: decode_response(tokenizer, ids) for n, ids in zip(fits, said, strict=True)}
        answers[name] = [texts.get(n, "") for n in range(len(rows))]
    return answers


def _likelihoods(
    model, tokenizer, evaluation, rows, folder: Path, teacher: Path | None, is_teacher: bool
) -> dict[str, float]:
    """bits_per_byte of the references, and divergence and agreement with the teacher at the same positions.

    Bits per byte are taken over all tokens of a response, its end included, and over the response's UTF-8 bytes.
    """
    ids, positions, num_bytes, left = [], [], 0, evaluation.positions
    for row in rows:
        if row.response is None or left <= 0:
            continue
        prompt = encode_prompt(tokenizer, row.prompt)
        whole = prompt + encode_response(tokenizer, row.response)
        wanted = list(range(len(prompt) - 1, len(whole) - 1))
        if len(whole) > (model.max_positions or 1 << 30) or len(wanted) > left:
            continue
        ids.append(whole)
        positions.append(wanted)
        num_bytes += len(row.response.encode())
        left -= len(wanted)
    if not ids:
        return {}
    with bar("likelihoods", 1) as advance:
        logprobs_NV = model.logprobs(ids, positions)
        advance(1)
    next_N = np.array([row[p + 1] for row, wanted in zip(ids, positions, strict=True) for p in wanted])
    nats = -float(logprobs_NV[np.arange(len(next_N)), next_N].astype(np.float64).sum())
    scores = {"bits_per_byte": nats / math.log(2) / max(1, num_bytes)}
    where = {"tokenizer": tokenizer_hash(tokenizer), "positions": len(next_N)}
    if is_teacher:
        np.save(folder / "logprobs.npy", logprobs_NV)
        write_whole(folder / "where.json", json.dumps(where))
    elif teacher is not None and json.loads((teacher / "where.json").read_text()) == where:
        scores |= divergence(np.load(teacher / "logprobs.npy", mmap_mode="r"), logprobs_NV)
    return scores


def divergence(teacher_NV: np.ndarray, student_NV: np.ndarray) -> dict[str, float]:
    """Mean KL(teacher || student) in nats per token and top-1 agreement, over the shared vocabulary, in float64."""
    V = min(teacher_NV.shape[1], student_NV.shape[1])
    total, agree = 0.0, 0
    for start in range(0, len(teacher_NV), 256):
        p, q = (_normalised(x[start : start + 256, :V]) for x in (teacher_NV, student_NV))
        total += float((np.exp(p) * (p - q)).sum())
        agree += int((p.argmax(axis=1) == q.argmax(axis=1)).sum())
    return {"kl_to_teacher_nats": total / len(teacher_NV), "top1_agreement": agree / len(teacher_NV)}


def _normalised(logprobs_NV: np.ndarray) -> np.ndarray:
    x = logprobs_NV.astype(np.float64)
    top = x.max(axis=1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(axis=1, keepdims=True))


def _parameters(model) -> int:
    """Weights that the model stands for; a 4-bit layer counts its weights, not its bytes."""
    return int(model.model.num_parameters())
