"""Files of the run folder that gather what several artifacts hold: scores, proofs, curves, samples (design.md §7)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.artifact import Artifact, write_whole
from distill.checkpoint import local_folder, weight_bytes
from distill.encoding import opening, prompt_text
from distill.evaluation import Evaluation
from distill.example import Example
from distill.recipe import Recipe


def write_proofs(proofs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """verification.json: one entry a package."""
    lines = [{"package": name, **proof} for name, proof in proofs.items()]
    write_whole(folder / "verification.json", json.dumps(lines, indent=1))


def write_scores(
    recipe: Recipe,
    models: Mapping[str, Artifact],
    proofs: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Artifact],
    evaluation_rows: str,
    folder: Path,
) -> None:
    """scores.json: teacher, baselines, student, packages, in this order.

    `evaluation_rows` is the hash of the rows that they were judged on: only what has the same can be compared.
    """
    student = json.loads((scores["student"].path / "scores.json").read_text())
    entries = []
    for name in ("teacher", *recipe.baselines, "student", *recipe.compression):
        if name in scores:
            facts = json.loads((scores[name].path / "scores.json").read_text())
        elif name in proofs:  # a package that does not load
            facts = {"bytes": None, "parameters": None, "scores": {}, "speed": {}}
        else:
            continue
        entry: dict[str, Any] = {"name": name, **_place(recipe, models, name), **facts}
        if name in proofs:
            # quantised layers hold the same weights in fewer bytes
            entry |= {"parameters": student["parameters"], "verified": proofs[name]["verified"]}
        if name == "lora":  # an adapter is not run by itself
            assert recipe.student.kind == "pretrained"
            entry["base_bytes"] = weight_bytes(local_folder(recipe.student.model, recipe.student.revision))
        entries.append(entry)
    whole = {
        "recipe": recipe.name,
        "run": folder.name,
        "seed": recipe.seed,
        "task": recipe.evaluation.kind,
        "evaluation_rows": evaluation_rows,
        "models": entries,
    }
    write_whole(folder / "scores.json", json.dumps(whole, indent=1))


def _place(recipe: Recipe, models: Mapping[str, Artifact], name: str) -> dict[str, str]:
    if name == "teacher":
        assert recipe.teacher.kind == "hf"
        return {"kind": "teacher", "path": recipe.teacher.model}
    if name in models:
        kind = "student" if name == "student" else "baseline"
        return {"kind": kind, "path": str(models[name].path / "checkpoint")}
    return {"kind": "package", "path": f"packages/{name}"}


def write_curves(made: Mapping[str, Artifact], folder: Path) -> None:
    """metrics.jsonl: the loss curves of everything that was trained."""
    lines = []
    for name, artifact in made.items():
        curve = artifact.path / "curve.jsonl"
        for line in curve.read_text().splitlines() if curve.exists() else ():
            lines.append(json.dumps({"model": name, **json.loads(line)}))
    write_whole(folder / "metrics.jsonl", "".join(f"{line}\n" for line in lines))


def write_samples(
    evaluation: Evaluation, rows: Sequence[Example], scores: Mapping[str, Artifact], folder: Path
) -> None:
    """samples.json: evaluation prompts with everybody's answers; rows on which the models disagree come first."""
    answers = {name: json.loads((a.path / "answers.json").read_text())["exact_match"] for name, a in scores.items()}
    samples = []
    for number in range(min((len(said) for said in answers.values()), default=0)):
        row = rows[number]
        said = {name: texts[number] for name, texts in answers.items()}
        correct = {}
        if evaluation.kind == "exact_match" and row.response is not None:
            correct = {name: evaluation.correct(text, row.response) for name, text in said.items()}
        prompt, reference = prompt_text(row.prompt), row.response
        if not prompt and reference:  # a plain text, of which the models were to go on with the first words
            prompt = opening(reference)
            reference = reference[len(prompt) :]
        samples.append({"prompt": prompt, "reference": reference, "answers": said, "correct": correct})
    disagree = [sample for sample in samples if len(set(sample["correct"].values())) > 1]
    agree = [sample for sample in samples if len(set(sample["correct"].values())) <= 1]
    chosen = disagree[: evaluation.samples // 2]
    chosen += agree[: evaluation.samples - len(chosen)]
    write_whole(folder / "samples.json", json.dumps(chosen, indent=1))
