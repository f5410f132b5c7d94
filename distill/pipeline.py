"""The run, readable top to bottom: six stages, each turning sealed artifacts into the next one."""

import json
import secrets
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill import results
from distill._licences import notes as licence_notes
from distill._teachers import Teachers
from distill.artifact import Artifact, write_whole
from distill.checkpoint import local_folder
from distill.checks import check, load
from distill.distributed import world
from distill.encoding import load_tokenizer
from distill.errors import RecipeError, StageFailed, VerificationFailed
from distill.example import Example, Examples, fingerprint_of
from distill.recipe import Recipe
from distill.record import RunRecord, gpu_name
from distill.responses import DamagedStore
from distill.run_folder import RunFolder
from distill.stages import compress, evaluate, train, verify
from distill.stages._local_teacher import how_to_load
from distill.stages._papers import add_papers
from distill.stages._passages import passages
from distill.workspace import Following, Workspace, notes_in, store_folder

TOGETHER = ("teach", "train", "compress")
"""The stages of which every process of a run needs the results: what it trains on, and what it trains."""


def run(recipe: Recipe, folder: Path, notes: Sequence[str] = ()) -> None:
    """Runs the recipe up to `recipe.until` and leaves the run folder of design.md §7.

    Of several processes, the leader does; the others call this too, and train with it.

    Raises:
        DistillError: a stage stopped. What was sealed stays; the same command goes on.
        VerificationFailed: all stages ran, and a package did not say what its student says.
    """
    examples = check(recipe)
    if not world().leads:
        return _follow(recipe, examples, folder)
    record = RunRecord(folder, recipe=recipe.name, seed=recipe.seed)
    workspace = Workspace(record, store_folder())
    _same_disk()
    for note in (*notes, *licence_notes(recipe), *examples.notes, *_seen_in_training(recipe)):
        workspace.note(note)
    this = Run(recipe, examples, workspace, Teachers(recipe, examples.train, workspace), folder)
    for stage in recipe.stages:
        try:
            getattr(this, stage)()
        except DamagedStore as damaged:
            raise this.teachers.set_aside(damaged) from None
        except RecipeError as error:  # 2 says that nothing was written, which is no longer so
            raise StageFailed(str(error)) from error
    if this.failed:
        said = "; ".join(f"{name}: {why}" for name, why in this.failed.items())
        raise VerificationFailed(f"Verification failed. {said}\nAll proofs: {folder / 'verification.json'}")


def _seen_in_training(recipe: Recipe) -> list[str]:
    """A line where evaluation rows are training rows too. A rehearsal's sample is too small to be without repeats."""
    examples = load(recipe.data)  # plain texts whole, not as the rows that are learnt of them
    trained = set() if recipe.rehearse else {_asked(row) for row in examples.train}
    judged = examples.evaluation["exact_match"]
    seen = sum(_asked(row) in trained for row in judged)
    if not seen:
        return []
    return [
        f"{seen} of {len(judged)} evaluation rows ask what training rows ask: scores on them show what was memorised. "
        "data.eval_path=… gives others."
    ]


def _asked(row: Example) -> Hashable:
    """The prompt, which is what a student learns to answer; plain text has none."""
    if not row.prompt:
        return row.prompt, row.response
    return row.prompt if isinstance(row.prompt, str) else (json.dumps(row.prompt),)


def _same_disk() -> None:
    """Raises StageFailed where processes see different stores: what the first one makes, the others must read."""
    processes, file = world(), store_folder() / ".seen-by-all"
    if processes.size == 1:
        return
    if processes.leads:
        write_whole(file, secrets.token_hex(8))
    token = processes.share(file.read_text() if processes.leads else None)
    sees = processes.gather(file.is_file() and file.read_text() == token)
    if not all(sees):
        blind = ", ".join(str(rank) for rank, saw in enumerate(sees) if not saw)
        raise StageFailed(
            f"Processes {blind} do not see the store {store_folder()} of the first one. Several machines need a disk "
            "that all of them share: set DISTILL_STORE to a folder there."
        )


def _follow(recipe: Recipe, examples: Examples, folder: Path) -> None:
    """What a process does that does not lead. Raises like `run`, for the leader to say."""
    workspace = Following(store_folder())
    _same_disk()
    this = Run(recipe, examples, workspace, Teachers(recipe, examples.train, workspace), folder)
    for stage in recipe.stages:
        if stage in TOGETHER:
            try:
                getattr(this, stage)()
            except DamagedStore as damaged:
                raise this.teachers.set_aside(damaged) from None


@dataclass
class Run:
    """What a run has so far; every mapping is in the order in which the table shows it."""

    recipe: Recipe
    examples: Examples
    workspace: Workspace
    teachers: Teachers
    folder: Path
    models: dict[str, Artifact] = field(default_factory=dict)
    packages: dict[str, Artifact] = field(default_factory=dict)
    proofs: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    scores: dict[str, Artifact] = field(default_factory=dict)

    def teach(self) -> None:
        """prompts + teacher → responses"""
        self.teachers.ask()

    def train(self) -> None:
        """responses + student → student, and its baselines"""
        inputs = {**self.teachers.inputs(), **self.workspace.weights(student=self.recipe.student)}
        for name in (*self.recipe.baselines, "student"):

            def make(scratch: Path, name: str = name) -> Mapping[str, Any]:
                said = self.teachers.said()
                return train.train_student(
                    self.recipe, name, self.examples.train, said, scratch, self.teachers.open_scorer
                )

            settings = train.settings(self.recipe, name)
            made = self.workspace.produce(
                "student", f"train {name}", settings=settings, inputs=inputs, make=make, together=True
            )
            self.workspace.note_again(made.path / "notes.json")
            self.models[name] = made

    def compress(self) -> None:
        """student (+ responses) → packages"""
        student, missing = self.models["student"], dict[str, None]()
        for name, compression in self.recipe.compression.items():

            def make(scratch: Path, compression=compression) -> Mapping[str, Any]:
                said = self.teachers.said() if compress.reads_responses(compression) else []
                return compress.make_package(self.recipe, compression, student.path / "checkpoint", said, scratch)

            inputs = {"student": student.fingerprint}
            inputs |= self.teachers.inputs() if compress.reads_responses(compression) else {}
            settings = compress.settings(self.recipe, compression)
            made = self.workspace.produce(
                "package", f"compress {name}", settings=settings, inputs=inputs, make=make, together=compression.heals
            )
            self.workspace.note_again(made.path / "notes.json")
            self.packages[name] = made
            self.workspace.hand_out(made.path / "package", self.folder / "packages" / name)
            if world().leads:
                missing |= dict.fromkeys(add_papers(self.recipe, self.folder / "packages" / name))
        for words in missing:
            self.workspace.note(words)

    def verify(self) -> None:
        """packages, each runtime in a fresh process → proofs. A failure is reported, and fails the run at its end."""
        by_runtime: dict[str, list[str]] = {}
        for name, compression in self.recipe.compression.items():
            by_runtime.setdefault(compression.runtime, []).append(name)
        for runtime, names in by_runtime.items():
            self._verify_runtime(runtime, names)
        self.proofs = {name: self.proofs[name] for name in self.recipe.compression}
        results.write_proofs(self.proofs, self.folder)

    def evaluate(self) -> None:
        """packages, teacher, baselines → scores"""
        for note in evaluate.unanswered(self.recipe.evaluation, self.examples.evaluation):
            self.workspace.note(note)
        teacher, checkpoints = self.recipe.teacher, [model.path / "checkpoint" for model in self.models.values()]
        path = local_folder(teacher.model, teacher.revision) if teacher.kind == "hf" else None
        scored = passages(
            self.examples.evaluation["exact_match"][: self.recipe.evaluation.rows],
            [load_tokenizer(folder) for folder in (path, *checkpoints) if folder],
            max_length=evaluate.longest_row(self.recipe),
            positions=self.recipe.evaluation.positions,
        )
        if teacher.kind == "hf" and path:
            how = how_to_load(teacher, path)
            self._score("teacher", path, self.workspace.weights(model=teacher), "transformers", scored, how)
        for name, model in self.models.items():
            self._score(name, model.path / "checkpoint", {"model": model.fingerprint}, "transformers", scored)
        for name, package in self.packages.items():
            if "kl_to_student_nats" in self.proofs[name]:  # else it does not even load
                runtime = self.recipe.compression[name].runtime
                self._score(name, package.path / "package", {"model": package.fingerprint}, runtime, scored)
        judged_on = self.examples.evaluation_fingerprint
        results.write_scores(self.recipe, self.models, self.proofs, self.scores, judged_on, self.folder)

    def report(self) -> None:
        """scores → report.html, model cards, W&B, one table"""
        from distill.stages.report import print_table, write_card, write_report

        results.write_curves({**self.models, **self.packages}, self.folder)
        results.write_samples(self.recipe.evaluation, self.examples.evaluation["exact_match"], self.scores, self.folder)
        write_report(self.folder)
        for name, made in self.packages.items():
            notes = notes_in(made.path / "notes.json")
            write_card(self.folder / "packages" / name, run=self.folder, name=name, notes=notes)
        tracked = self.recipe.tracking.log_run(self.folder)
        if tracked:
            self.workspace.note(tracked)
        made = RunFolder.read(self.folder)
        print_table({**made.scores, "models": made.models})
        self.workspace.say("report", "report.html, scores.json, model cards")

    def _verify_runtime(self, runtime: str, names: list[str]) -> None:
        student = self.models["student"]

        def make(scratch: Path) -> None:
            packages = {n: (self.packages[n].path / "package", self.recipe.compression[n]) for n in names}
            rows = self.examples.evaluation["exact_match"]
            tokens = self.recipe.evaluation.max_new_tokens
            proofs = verify.verify_packages(runtime, student.path / "checkpoint", packages, rows, scratch, tokens)
            failed = {n: proof["detail"] for n, proof in proofs.items() if not proof["verified"]}
            if failed:  # not sealed: a failed proof is never reused
                self.proofs |= proofs
                self.failed |= failed
                raise VerificationFailed(runtime)

        try:
            proof = self.workspace.produce(
                "proof",
                f"verify {runtime}",
                settings={n: verify.settings(self.recipe.compression[n]) for n in names},
                inputs={
                    "data": self.examples.evaluation_fingerprint,
                    "student": student.fingerprint,
                    **{n: self.packages[n].fingerprint for n in names},
                },
                make=make,
            )
        except VerificationFailed:
            for name in names:
                if name in self.failed:
                    self.workspace.say(f"verify {runtime}", f"FAILED {name}: {self.failed[name]}")
        else:
            self.proofs |= json.loads((proof.path / "proofs.json").read_text())

    def _score(
        self,
        name: str,
        path: Path,
        inputs: Mapping[str, str],
        runtime: str,
        scored: Sequence[Example],
        how: Mapping[str, Any] | None = None,
    ) -> None:
        teacher, longest = self.scores.get("teacher"), evaluate.longest_row(self.recipe)

        def make(scratch: Path) -> None:
            evaluate.score_model(
                path,
                runtime,
                self.recipe.evaluation,
                self.examples.evaluation,
                scratch,
                scored=scored,
                max_length=longest,
                teacher=teacher.path if teacher else None,
                is_teacher=name == "teacher",
                tokenizer_from=self.models["student"].path / "checkpoint" if name in self.packages else None,
                how=how or {},
            )

        device = {"runtime": runtime, **(how or {}), "gpu": gpu_name()}
        of_text = {"max_length": longest, "passages": fingerprint_of(scored)}
        self.scores[name] = self.workspace.produce(
            "scores",
            f"evaluate {name}",
            settings={**evaluate.settings(self.recipe.evaluation), **device, **of_text},
            inputs={
                "data": self.examples.evaluation_fingerprint,
                **inputs,
                **({"teacher": teacher.fingerprint} if teacher else {}),
            },
            make=make,
        )
        self.workspace.note_again(self.scores[name].path / "notes.json")
