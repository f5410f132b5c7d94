"""Teachers: whom a recipe asks, about which rows, and what they said; each of them has a store of its own."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from distill.artifact import Artifact
from distill.errors import StageFailed
from distill.example import Example, fingerprint_of
from distill.recipe import Recipe
from distill.responses import INDEX, SUMMARY, DamagedStore, TeacherResponses
from distill.stages import teach
from distill.stages._open_teacher import open_teacher
from distill.stages._rows import Said
from distill.stages.teach import Engine, Wanted
from distill.teacher import SERVED
from distill.workspace import Workspace


class Teachers:
    """The recipe's teacher or teachers. `answers`: what each said, under the name of the stage that asked it."""

    def __init__(self, recipe: Recipe, rows: Sequence[Example], workspace: Workspace):
        self.recipe, self.workspace = recipe, workspace
        self.wanted = Wanted(
            kind=recipe.target_kind,
            prompt_targets=recipe.training.prompt_weight > 0,
            temperature=getattr(recipe.loss, "temperature", 1.0),
            seed=recipe.seed,
            # another tokenizer counts other tokens, and text alone is cut by who reads it
            max_length=None if recipe.target_kind in {None, "next"} else recipe.training.max_length,
        )
        self.answers: dict[str, Artifact] = {}
        teacher = recipe.teacher
        self._asked: dict[str, tuple[Any, Sequence[Example]]] = {"teach": (teacher, rows)}
        if teacher.kind == "routed":
            # by name: the order in which a recipe writes them must not decide the order of the rows
            of = {name: [row for row in rows if row.teacher == name] for name in sorted(teacher.teachers)}
            self._asked = {f"teach {name}": (teacher.teachers[name], rows) for name, rows in of.items() if rows}

    def ask(self) -> None:
        """prompts + teacher → responses, for every teacher"""
        for stage, (teacher, rows) in self._asked.items():
            settings = teach.settings(teacher, self.wanted)
            inputs = {"data": fingerprint_of(rows), **self._identity(teacher)}
            make = partial(self._make, teacher, rows, settings, inputs)
            made = self.workspace.produce("responses", stage, settings=settings, inputs=inputs, make=make)
            self.workspace.note_again(made.path / "notes.json")
            self.answers[stage] = made

    def said(self) -> list[Said]:
        """What the teachers said, opened for reading."""
        return [Said(self._asked[stage][1], TeacherResponses(made.path)) for stage, made in self.answers.items()]

    def inputs(self) -> dict[str, str]:
        """The identity of everything that they said."""
        return {stage.replace("teach", "responses"): made.fingerprint for stage, made in self.answers.items()}

    def open_scorer(self, folder: Path) -> AbstractContextManager[Engine]:
        """The teacher, to score what the student wrote."""
        return open_teacher(self.recipe.teacher, self.recipe, self.wanted, (), folder, self.workspace.note)

    def set_aside(self, damaged: DamagedStore) -> StageFailed:
        """Opens the damaged store again and takes out the shard, so that the same command asks its rows again."""
        sealed = next((made for made in self.answers.values() if made.path == damaged.shard.parent), None)
        # what is not sealed is a round of on-policy training, beside its checkpoints
        store = self.workspace.reopen(sealed) if sealed else damaged.shard.parent
        # the shard stays: whoever goes on with the store keeps its rows up to the first that is damaged
        for file in (SUMMARY, INDEX):
            (store / file).unlink(missing_ok=True)
        return StageFailed(
            f"{damaged} Its rows from there on were taken out of the store; all other shards stay.\n"
            "The same command asks the teacher for these rows again, and goes on."
        )

    def _make(
        self,
        teacher: Any,
        rows: Sequence[Example],
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        scratch: Path,
    ) -> Mapping[str, Any] | None:
        if teacher.kind == "none":
            return teach.copy_texts(rows, scratch)
        engine = open_teacher(teacher, self.recipe, self.wanted, rows, scratch, self.workspace.note)
        earlier = self._same_answers(teacher, settings, inputs)
        return teach.ask(teacher, engine, rows, scratch, earlier, self.wanted.max_length)

    def _same_answers(
        self, teacher: Any, settings: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> TeacherResponses | None:
        """A sealed store of the same answers with other targets: what was generated once is not generated again."""
        if teacher.kind != "hf" or teacher.responses == "data":
            return None

        def same(others: Mapping[str, Any], of: Mapping[str, str]) -> bool:
            alike = all(of.get(name) == inputs[name] for name in ("data", "teacher"))
            return alike and teach.same_answers(settings, others)

        found = self.workspace.find("responses", same)
        if found is None:
            return None
        more = "only its distributions are asked for" if self.wanted.kind else "it is not asked again"
        self.workspace.note(f"The teacher's answers are those of {found.name}; {more}.")
        return TeacherResponses(found)

    def _identity(self, teacher: Any) -> dict[str, str]:
        """Of everything that a teacher's responses come from, beside the data."""
        if teacher.kind == "file":
            from distill.answer_file import content_hash

            # what a file's log-probabilities are good for depends on the loss, and is judged when they are read
            return {"teacher": content_hash(teacher), "loss": self.recipe.loss.kind}
        if teacher.kind in SERVED:
            from distill.stages._served_teacher import identity

            # a checkpoint that vLLM serves from a folder is known by its content, one on the hub by its name
            is_folder = teacher.kind == "vllm" and Path(teacher.model).is_dir()
            return identity(teacher, self.wanted.kind) | (self.workspace.weights(teacher=teacher) if is_folder else {})
        inputs = self.workspace.weights(teacher=teacher) if teacher.kind == "hf" else {}
        averages_the_head = self.wanted.kind == "frozen_head"
        return inputs | (self.workspace.weights(student=self.recipe.student) if averages_the_head else {})
