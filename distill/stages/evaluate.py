"""evaluate: teacher, baselines, student and packages → scores, each with the runtime that it is for."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from distill.artifact import fingerprint, write_whole
from distill.checkpoint import positions_of, read_config
from distill.encoding import decode_response, encode_asked, encode_prompt, load_tokenizer, tokenizer_hash
from distill.evaluation import Evaluation
from distill.evaluation.exact_match import ExactMatch
from distill.example import Example
from distill.family.text_part import text_part
from distill.progress import bar
from distill.recipe import Recipe
from distill.stages._passages import answer_ids

VERSION = 3
"""Part of the fingerprint: raise it when a model would be scored otherwise."""
# not needed to run a package: descriptions, and what other programs read
NOT_NEEDED = {"README.md", "Modelfile", "manifest.json", "settings.json", "export.json"}

# N positions, V vocabulary


def settings(evaluation: Evaluation) -> dict[str, Any]:
    """What decides a model's scores, beside its files and the evaluation rows."""
    return {"version": VERSION, **asdict(evaluation)}


def longest_row(recipe: Recipe) -> int:
    """Tokens of a row on which likelihoods are measured at most: as many as the student is trained on, and the teacher,
    which may be made for fewer, can read."""
    teacher, longest = recipe.teacher, recipe.training.max_length
    if teacher.kind != "hf":
        return longest
    config = text_part(read_config(teacher.model, teacher.revision, "teacher.model"))
    return min(longest, positions_of(config) or longest)


def unanswered(evaluation: Evaluation, row_sets: Mapping[str, Sequence[Example]]) -> list[str]:
    """A line for each set with rows that nothing can be compared with."""
    lines = []
    for name, rows in row_sets.items():
        judged = rows[: evaluation.rows]
        answered = sum(bool(row.response) for row in judged)
        if answered < len(judged):
            lines.append(
                f"{len(judged) - answered} of {len(judged)} evaluation rows ({name}) have no answer to compare with; "
                f"scores are over the other {answered}."
            )
    return lines


def score_model(
    path: Path,
    runtime: str,
    evaluation: Evaluation,
    row_sets: Mapping[str, Sequence[Example]],
    folder: Path,
    *,
    scored: Sequence[Example],
    max_length: int,
    teacher: Path | None,
    is_teacher: bool = False,
    tokenizer_from: Path | None = None,
    how: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Leaves `scores.json`, `answers.json` and, for the teacher, `logprobs.npy`, against which others are compared.

    Args:
        path: the checkpoint or package.
        scored: the passages on which likelihoods are measured, the same for all models.
        max_length: more tokens than any of them has, its prompt included.
        tokenizer_from: where the tokenizer is when not beside the weights: a GGUF has its own, of which verify
            showed that it gives the same token ids.
        teacher: the folder in which the teacher's own scores lie, or None without a teacher.
        how: how transformers loads it, where not as stored: see `distill.runtime.hf.Transformers`.
    """
    with open_runtime(path, runtime, how, context=max_length + evaluation.max_new_tokens) as model:
        tokenizer = load_tokenizer(tokenizer_from or path)
        row_sets = {name: list(rows)[: evaluation.rows] for name, rows in row_sets.items()}
        answers, no_room = _answers(model, tokenizer, evaluation, row_sets)
        right = _right(evaluation, answers, row_sets) if evaluation.kind == "exact_match" else {}
        scores = {name: sum(each) / len(each) for name, each in right.items()}
        scored_rows = {name: len(each) for name, each in right.items()}
        likelihoods = _likelihoods(model, tokenizer, scored, folder, teacher, is_teacher)
        scores, scored_rows = scores | likelihoods, scored_rows | dict.fromkeys(likelihoods, len(scored))
        speed = {"runtime": model.name, "device": model.device}
        speed |= model.speed() if evaluation.speed else {}
        parameters = _parameters(model) if runtime == "transformers" else None
    facts = {
        "bytes": package_bytes(path),
        "parameters": parameters,
        "scores": scores,
        "scored_rows": scored_rows,
        "speed": speed,
    }
    notes = [f"{no_room} prompts leave no room for an answer; they count as wrong."] if no_room else []
    write_whole(folder / "notes.json", json.dumps(notes))
    write_whole(folder / "answers.json", json.dumps(answers))
    write_whole(folder / "scores.json", json.dumps(facts, indent=1))


def open_runtime(path: Path, runtime: str, how: Mapping[str, Any], *, context: int):
    """The model in the runtime that its users have, with room for `context` tokens where that must be said."""
    if runtime == "llama.cpp":
        from distill.runtime.llama_cpp import LlamaCpp

        return LlamaCpp(path, context=context)
    from distill.runtime.hf import Transformers

    return Transformers(path, **how)


def package_bytes(path: Path) -> int:
    """Bytes of every file that is needed to run the package."""
    # what lies in folders, such as the adapter that a student's weights were merged with, is not
    return sum(f.stat().st_size for f in path.iterdir() if f.is_file() and f.name not in NOT_NEEDED)


def _answers(model, tokenizer, evaluation: Evaluation, row_sets) -> tuple[dict[str, list[str]], int]:
    """How each set's prompts are answered and plain texts gone on with, greedily; how many left no room and got ""."""
    if evaluation.kind == "bits_per_byte":
        row_sets = {name: rows[: evaluation.samples] for name, rows in row_sets.items()}
    answers, no_room = {}, 0
    for name, rows in row_sets.items():
        prompts = [encode_asked(tokenizer, row.prompt, row.response) for row in rows]
        room = (model.max_positions or 1 << 30) - evaluation.max_new_tokens
        fits = [n for n, prompt in enumerate(prompts) if len(prompt) <= room]
        with bar(f"answers {name}", len(fits)) as advance:
            said = model.generate([prompts[n] for n in fits], evaluation.max_new_tokens, progress=advance)
        texts = {n: decode_response(tokenizer, ids) for n, ids in zip(fits, said, strict=True)}
        answers[name] = [texts.get(n, "") for n in range(len(rows))]
        no_room += len(rows) - len(fits)
    return answers, no_room


def _right(evaluation: ExactMatch, answers: Mapping[str, Sequence[str]], row_sets) -> dict[str, list[bool]]:
    """Of each set with any, whether the answers are right, to the rows that have one to compare with."""
    right = {
        name: [
            evaluation.correct(a, r.response)
            for a, r in zip(answers[name], rows, strict=True)
            if r.response is not None
        ]
        for name, rows in row_sets.items()
    }
    return {name: each for name, each in right.items() if each}


def _likelihoods(
    model, tokenizer, scored: Sequence[Example], folder: Path, teacher: Path | None, is_teacher: bool
) -> dict[str, float]:
    """bits_per_byte of the passages, and divergence and agreement with the teacher at the same positions.

    Bits per byte are taken over all tokens of a passage's answer, its end included, and over the answer's UTF-8 bytes.
    """
    if not scored:
        return {}
    prompts = [encode_prompt(tokenizer, passage.prompt) for passage in scored]
    ids = [prompt + answer_ids(tokenizer, passage) for prompt, passage in zip(prompts, scored, strict=True)]
    positions = [list(range(len(prompt) - 1, len(row) - 1)) for prompt, row in zip(prompts, ids, strict=True)]
    num_bytes = sum(len((passage.response or "").encode()) for passage in scored)
    with bar("likelihoods", 1) as advance:
        logprobs_NV = model.logprobs(ids, positions)
        advance(1)
    next_N = np.array([row[p + 1] for row, wanted in zip(ids, positions, strict=True) for p in wanted])
    nats = -float(logprobs_NV[np.arange(len(next_N)), next_N].astype(np.float64).sum())
    scores = {"bits_per_byte": nats / math.log(2) / num_bytes}
    where = fingerprint(settings=[tokenizer_hash(tokenizer), ids, positions], inputs={})
    if is_teacher:
        np.save(folder / "logprobs.npy", logprobs_NV)
        write_whole(folder / "where", where)
    elif teacher is not None and (teacher / "where").exists() and (teacher / "where").read_text() == where:
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
