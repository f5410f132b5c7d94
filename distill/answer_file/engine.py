"""open_file: answers that exist, behind the same door as teachers that are asked."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distill._shards import Row
from distill.answer_file.layout import targets_layout, vocab_size_of
from distill.answer_file.matching import match
from distill.answer_file.reading import read_answers
from distill.answer_file.row import to_row
from distill.checkpoint import tokenizer_folder
from distill.encoding import load_tokenizer, template_hash, tokenizer_hash
from distill.errors import RecipeError, TargetMismatch
from distill.example import Example
from distill.responses import Header
from distill.teacher.file import File

if TYPE_CHECKING:
    from distill.stages.teach import Question, Wanted


@contextmanager
def open_file(
    teacher: File, wanted: "Wanted", loss: str, examples: Sequence[Example], note: Callable[[str], None]
) -> "Iterator[FileTeacher]":
    """The file, read and joined to the examples. `loss` is the recipe's, which decides what its targets must be.

    Raises:
        DataError: the file cannot be read, does not fit the data, or has not what the loss needs.
        RecipeError: the loss needs targets, and no tokenizer is named.
        TargetMismatch: the log-probabilities are at another temperature, or the loss needs a tail that they lost.
    """
    yield FileTeacher(teacher, wanted, loss, examples, note)


class FileTeacher:
    """See `distill.stages.teach.Engine`. Holds the answers that are to be learnt, as the file gives them, in memory."""

    def __init__(
        self, teacher: File, wanted: "Wanted", loss: str, examples: Sequence[Example], note: Callable[[str], None]
    ):
        self.teacher, self.wanted = teacher, wanted
        self.name = teacher.name or (Path(teacher.path).stem if Path(teacher.path).exists() else teacher.path)
        self.tokenizer = load_tokenizer(tokenizer_folder(*teacher.tokenizer_from)) if teacher.tokenizer_from else None
        if wanted.kind is not None and self.tokenizer is None:
            raise RecipeError(
                "teacher=file: this loss compares the student with log-probabilities, which are of token ids. Name the "
                "tokenizer that they are of with teacher.tokenizer, or use loss=text."
            )
        self.vocab_size = None
        if teacher.tokenizer_from and self.tokenizer:
            self.vocab_size = vocab_size_of(teacher.tokenizer_from, self.tokenizer)
        self.context = 1 << 30
        matched = match(read_answers(teacher), examples, self.tokenizer)
        self.answers = matched.answers
        if matched.note:
            note(f"{self.name}: {matched.note}")
        self.layout = None
        if wanted.kind is not None:
            assert self.vocab_size is not None
            self.layout = targets_layout(self.answers, teacher, self.vocab_size, only_next=wanted.kind == "next")
            self._check(loss, note)

    def _check(self, loss: str, note: Callable[[str], None]) -> None:
        """Raises TargetMismatch when the loss cannot be had from these log-probabilities."""
        assert self.layout is not None
        if self.layout.kind == "next" and loss != "aligned":
            raise TargetMismatch(
                f"{self.name} holds the log-probability of the text's own tokens alone; loss={loss} needs those of "
                "other tokens too. Use loss=aligned or loss=text."
            )
        temperature = self.teacher.logprob_temperature
        if self.layout.kind == "next" and temperature != 1.0:
            raise TargetMismatch(
                f"{self.name} holds log-probabilities at temperature {temperature} (teacher.logprob_temperature); the "
                "probability of a text is at temperature 1. Use loss=text, or another loss."
            )
        if self.layout.kind == "top_k" and self.wanted.temperature != temperature:
            raise TargetMismatch(
                f"{self.name} holds log-probabilities at temperature {temperature} (teacher.logprob_temperature); what "
                f"was not kept cannot be re-tempered to {self.wanted.temperature}. Use loss.temperature={temperature}."
            )
        if not any(answer is not None and answer.values == "renormalised" for answer in self.answers):
            return
        if loss != "forward_kl":
            raise TargetMismatch(
                f"{self.name} holds log-probabilities renormalised over the {self.layout.kept} kept: how much the "
                f"other tokens had is lost, and loss={loss} needs it. Use loss=forward_kl or loss=text."
            )
        note(
            f"{self.name}: log-probabilities renormalised over the {self.layout.kept} kept; the student is told that "
            "no other token is possible, which is not what the teacher said."
        )

    def header(self, num_rows: int) -> Header:
        """Of the store that its responses make."""
        return Header(
            teacher=self.name,
            revision=self.teacher.revision,
            engine="file",
            dtype="unknown",
            kind=self.layout.kind if self.layout else "tokens" if self.tokenizer else "text",
            tokenizer_hash=tokenizer_hash(self.tokenizer) if self.tokenizer else None,
            template_hash=template_hash(self.tokenizer) if self.tokenizer else None,
            vocab_size=self.vocab_size,
            kept=self.layout.kept if self.layout else 0,
            target_temperature=self.teacher.logprob_temperature if self.layout else 1.0,
            num_rows=num_rows,
        )

    def answer(self, questions: "Sequence[Question]") -> list[Row]:
        """One row for each question, with its targets."""
        return [self._row(question) for question in questions]

    def with_targets(self, rows: Sequence[Row]) -> list[Row]:
        """The rows as they are: what the file has came with the answers."""
        return list(rows)

    def _row(self, question: "Question") -> Row:
        return to_row(
            self.answers[question.number],
            question.number,
            question.example,
            self.tokenizer,
            self.layout,
            self.context,
            prompt_targets=self.wanted.prompt_targets,
        )
