"""The run, readable top to bottom: six stages, each turning sealed artifacts into the next one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.artifact import Artifact, write_whole
from distill.checks import check
from distill.encoding import prompt_text
from distill.errors import VerificationFailed
from distill.example import Examples
from distill.recipe import STAGES, Recipe
from distill.record import RunRecord
from distill.stages import compress, evaluate, teach, train, verify
from distill.workspace import Workspace, copy_linked, store_folder


@dataclass
class Made:
    """What a run has so far, in the order in which the table shows it."""

    responses: Artifact | None = None
    models: dict[str, Artifact] = field(default_factory=dict)
    packages: dict[str, Artifact] = field(default_factory=dict)
    proofs: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, Artifact] = field(default_factory=dict)


def run(recipe: Recipe, folder: Path, notes: Sequence[str] = ()) -> None:
    """Runs the recipe up to `recipe.until` and leaves the run folder of design.md §7.

    Raises:
        DistillError: a stage stopped. What was sealed stays; the same command goes on.
    """
    examples = check(recipe)
    record = RunRecord(folder, recipe=recipe.name, seed=recipe.seed)
    workspace = Workspace(record, store_folder())
    for note in (*notes, *examples.notes):
        workspace.note(note)

    made = Made()
    for stage in STAGES[: STAGES.index(recipe.until) + 1]:
        _STAGES[stage](recipe, examples, workspace, made, folder)


def _teach(recipe: Recipe, examples: Examples, workspace: Workspace, made: Made, folder: Path) -> None:
    teacher = recipe.teacher
    targets = teacher.kind == "hf" and not teacher.live and recipe.loss.kind != "text"
    chosen = {"targets": targets, "prompt_targets": recipe.training.prompt_weight > 0, "seed": recipe.seed}

    def make(scratch: Path) -> Mapping[str, Any] | None:
        if teacher.kind == "none":
            return teach.copy_texts(examples.train, scratch)
        return teach.ask(teacher, examples.train, scratch, **chosen)

    made.responses = workspace.produce(
        "responses",
        "teach",
        settings=teach.settings(teacher, **chosen),
        inputs={"data": examples.fingerprint, **_weights(workspace, "teacher", teacher)},
        make=make,
    )


def _train(recipe: Recipe, examples: Examples, workspace: Workspace, made: Made, folder: Path) -> None:
    inputs = {"responses": made.responses.fingerprint, **_weights(workspace, "student", recipe.student)}
    for name in (*recipe.baselines, "student"):

        def make(scratch: Path, name: str = name) -> Mapping[str, Any]:
            from distill.responses import TeacherResponses

            return train.train_student(recipe, name, examples.train, TeacherResponses(made.responses.path), scratch)

        made.models[name] = workspace.produce(
            "student", f"train {name}", settings=train.settings(recipe, name), inputs=inputs, make=make
        )
        for note in json.loads((made.models[name].path / "training.json").read_text())["notes"]:
            workspace.note(note)


def _compress(recipe: Recipe, examples: Examples, workspace: Workspace, made: Made, folder: Path) -> None:
    student = made.models["student"]
    for name, compression in recipe.compression.items():

        def make(scratch: Path, compression=compression) -> Mapping[str, Any]:
            from distill.responses import TeacherResponses

            responses = TeacherResponses(made.responses.path) if compression.heals else None
            checkpoint = student.path / "checkpoint"
            return compress.make_package(recipe, compression, checkpoint, examples.train, responses, scratch)

        inputs = {"student": student.fingerprint}
        if compression.heals:
            inputs["responses"] = made.responses.fingerprint
        made.packages[name] = workspace.produce(
            "package", f"compress {name}", settings=compress.settings(recipe, compression), inputs=inputs, make=make
        )
        target = folder / "packages" / name
        copy_linked(made.packages[name].path / "package", target)


def _verify(recipe: Recipe, examples: Examples, workspace: Workspace, made: Made, folder: Path) -> None:
    student = made.models["student"]
    by_runtime: dict[str, list[str]] = {}
    for name, compression in recipe.compression.items():
        by_runtime.setdefault(compression.runtime, []).append(name)
    for runtime, names in by_runtime.items():

        def make(scratch: Path, runtime: str = runtime, names: list[str] = names) -> None:
            packages = {n: (made.packages[n].path / "package", recipe.compression[n]) for n in names}
            rows = examples.evaluation["exact_match"]
            proofs = verify.verify_packages(runtime, student.path / "checkpoint", packages, rows, scratch)
            failed = {n: proof["detail"] for n, proof in proofs.items() if not proof["verified"]}
            if failed:  # not sealed: a failed proof is never reused
                made.proofs |= proofs
                _write_proofs(made, folder)
                said = "; ".join(f"{n}: {why}" for n, why in failed.items())
                raise VerificationFailed(f"Verification failed. {said}\nAll proofs: {folder / 'verification.json'}")

        inputs = {"data": examples.fingerprint, "student": student.fingerprint}
        proof = workspace.produce(
            "proof",
            f"verify {runtime}",
            settings={n: verify.settings(recipe.compression[n]) for n in names},
            inputs=inputs | {n: made.packages[n].fingerprint for n in names},
            make=make,
        )
        made.proofs |= json.loads((proof.path / "proofs.json").read_text())
    made.proofs = {name: made.proofs[name] for name in recipe.compression}
    _write_proofs(made, folder)


def _evaluate(recipe: Recipe, examples: Examples, workspace: Workspace, made: Made, folder: Path) -> None:
    teacher_dtype = None
    if recipe.teacher.kind == "hf":
        teacher_dtype = teach.teacher_dtype(recipe.teacher)
        weights = _weights(workspace, "model", recipe.teacher)
        score(
            recipe,
            examples,
            workspace,
            made,
            "teacher",
            Path(recipe.teacher.model),
            weights,
            "transformers",
            teacher_dtype,
        )
    for name, model in made.models.items():
        inputs = {"model": model.fingerprint}
        score(recipe, examples, workspace, made, name, model.path / "checkpoint", inputs, "transformers")
    for name, package in made.packages.items():
        inputs = {"model": package.fingerprint}
        score(
            recipe, examples, workspace, made, name, package.path / "package", inputs, recipe.compression[name].runtime
        )
    _write_scores(recipe, made, folder)


def score(
    recipe, examples, workspace, made: Made, name: str, path: Path, inputs: dict[str, str], runtime: str, dtype=None
) -> None:
    """One model's scores, against the teacher's when there is one."""
    teacher = made.scores.get("teacher")
    if teacher:
        inputs = {**inputs, "teacher": teacher.fingerprint}

    def make(scratch: Path) -> None:
        evaluate.score_model(
            path,
            runtime,
            recipe.evaluation,
            examples.evaluation,
            scratch,
            teacher=teacher.path if teacher else None,
            is_teacher=name == "teacher",
            tokenizer_from=made.models["student"].path / "checkpoint" if name in made.packages else None,
            dtype=dtype,
        )

    made.scores[name] = workspace.produce(
        "scores",
        f"evaluate {name}",
        settings={**evaluate.settings(recipe.evaluation), "runtime": runtime, "dtype": dtype},
        inputs={"data": examples.fingerprint, **inputs},
        make=make,
    )


def _report(recipe: Recipe, examples: Examples, workspace: Workspace, made: Made, folder: Path) -> None:
    from distill.stages.report import print_table, write_card, write_report

    _write_curves(made, folder)
    _write_samples(recipe, examples, made, folder)
    report = write_report(folder)
    for name in made.packages:
        write_card(folder / "packages" / name, run=folder, name=name)
    tracked = recipe.tracking.log_run(folder)
    if tracked:
        workspace.note(tracked)
    print_table(json.loads((folder / "scores.json").read_text()))
    workspace.say("report", str(report))


_STAGES = {
    "teach": _teach,
    "train": _train,
    "compress": _compress,
    "verify": _verify,
    "evaluate": _evaluate,
    "report": _report,
}


def _weights(workspace: Workspace, name: str, option: Any) -> dict[str, str]:
    """The identity of a checkpoint that is read: its content, or its hub id and revision."""
    model = getattr(option, "model", None)
    if model is None:
        return {}
    if Path(model).is_dir():
        return {name: workspace.hash_of(Path(model))}
    return {name: f"{model}@{option.revision or 'main'}"}


def _write_proofs(made: Made, folder: Path) -> None:
    lines = [{"package": name, **proof} for name, proof in made.proofs.items()]
    write_whole(folder / "verification.json", json.dumps(lines, indent=1))


def _write_scores(recipe: Recipe, made: Made, folder: Path) -> None:
    """scores.json as in design.md §7: teacher, baselines, student, packages."""
    order = ["teacher", *recipe.baselines, "student", *recipe.compression]
    student = json.loads((made.scores["student"].path / "scores.json").read_text())
    models = []
    for name in (name for name in order if name in made.scores):
        facts = json.loads((made.scores[name].path / "scores.json").read_text())
        if name in made.packages:
            kind, path = "package", f"packages/{name}"
            # quantised layers hold the same weights in fewer bytes
            facts["parameters"] = student["parameters"]
        else:
            kind = "teacher" if name == "teacher" else "baseline" if name in recipe.baselines else "student"
            path = recipe.teacher.model if name == "teacher" else str(made.models[name].path / "checkpoint")
        verified = {"verified": made.proofs[name]["verified"]} if name in made.proofs else {}
        models.append({"name": name, "kind": kind, "path": path, **facts, **verified})
    scores = {
        "recipe": recipe.name,
        "run": folder.name,
        "seed": recipe.seed,
        "task": recipe.evaluation.kind,
        "models": models,
    }
    write_whole(folder / "scores.json", json.dumps(scores, indent=1))


def _write_curves(made: Made, folder: Path) -> None:
    lines = []
    for name, artifact in {**made.models, **made.packages}.items():
        curve = artifact.path / "curve.jsonl"
        for line in curve.read_text().splitlines() if curve.exists() else ():
            lines.append(json.dumps({"model": name, **json.loads(line)}))
    write_whole(folder / "metrics.jsonl", "".join(f"{line}\n" for line in lines))


def _write_samples(recipe: Recipe, examples: Examples, made: Made, folder: Path) -> None:
    """Some evaluation prompts with everybody's answers; rows on which the models disagree come first."""
    answers = {
        name: json.loads((a.path / "answers.json").read_text())["exact_match"] for name, a in made.scores.items()
    }
    rows = list(examples.evaluation["exact_match"])
    num_answered = min((len(said) for said in answers.values()), default=0)
    samples = []
    for number in range(num_answered):
        row = rows[number]
        said = {name: texts[number] for name, texts in answers.items()}
        correct = {}
        if recipe.evaluation.kind == "exact_match" and row.response is not None:
            correct = {name: recipe.evaluation.correct(text, row.response) for name, text in said.items()}
        samples.append({"prompt": prompt_text(row), "reference": row.response, "answers": said, "correct": correct})
    disagree = [s for s in samples if len(set(s["correct"].values())) > 1]
    agree = [s for s in samples if len(set(s["correct"].values())) <= 1]
    half = recipe.evaluation.samples // 2
    chosen = disagree[:half]
    chosen += agree[: recipe.evaluation.samples - len(chosen)]
    write_whole(folder / "samples.json", json.dumps(chosen, indent=1))
