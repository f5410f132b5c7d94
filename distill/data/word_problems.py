"""WordProblems: arithmetic word problems with worked steps, written by a seeded generator. No file, no network.

A prompt is a story of 10 to 40 words that ends with a question; a response is one equation a line, then the answer
after four hashes, as in GSM8K:

    Ada has 7 boxes with 4 pens in each and 15 loose pens. How many pens is that in all?

    7*4=28
    28+15=43
    #### 43

Whether a problem is for training or for evaluation is decided by a hash of its text, so no evaluation problem can
occur in training, whatever the seed, the number of rows or the recipe.
"""

import operator
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from random import Random
from typing import Annotated, Literal, TypeVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.data._templates import BOXES, DISTRACTORS, LARGEST_NUMBER, NAMES, NEW, THINGS, TRAINED, Template
from distill.errors import DataError
from distill.example import Example, Examples
from distill.option import STRICT

EVALUATION_SHARE = 10
"""One text in so many belongs to evaluation."""

Item = TypeVar("Item")

_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WordProblems:
    """Arithmetic word problems with worked steps; generated, so free of licences and of overlap with any benchmark."""

    kind: Literal["word_problems"]
    num_rows: Annotated[int, Field(ge=1)] = 6000
    """Training problems. Fewer of the same seed are the first ones of more."""
    evaluation_rows: Annotated[int, Field(ge=1)] = 500
    """New problems of the trained templates, the same for every recipe: the metric `exact_match`."""
    new_template_rows: Annotated[int, Field(ge=0)] = 200
    """Problems of templates that are never trained: the metric `exact_match_new_templates`; 0 leaves it out."""
    problem_seed: int = 0
    """Which training problems. Evaluation does not depend on it."""
    labelled_rows: Annotated[int, Field(ge=0)] | None = None
    """The first so many training rows have a worked solution of their own; without it all have."""

    def load(self) -> Examples:
        """Training rows in a fixed order and the two evaluation sets; no text occurs twice in any of them.

        Raises:
            DataError: more rows than there are problems.
        """
        labelled = self.num_rows if self.labelled_rows is None else self.labelled_rows
        training = _take(_problems(TRAINED, f"training {self.problem_seed}", evaluation=False), self.num_rows)
        evaluation = {
            "exact_match": _take(_problems(TRAINED, "evaluation", evaluation=True), self.evaluation_rows),
            "exact_match_new_templates": _take(_problems(NEW, "new", evaluation=True), self.new_template_rows),
        }
        return Examples(
            train=[
                Example(prompt, response if row < labelled else None)
                for row, (_, prompt, response) in enumerate(training)
            ],
            evaluation={
                metric: [Example(prompt, response) for _, prompt, response in problems]
                for metric, problems in evaluation.items()
                if problems
            },
        )


def is_for_evaluation(prompt: str) -> bool:
    """Whether this text belongs to evaluation, for every seed and for ever."""
    return int.from_bytes(blake2b(prompt.encode(), digest_size=8).digest(), "big") % EVALUATION_SHARE == 0


def _problems(templates: Sequence[Template], seed: str, *, evaluation: bool) -> Iterator[tuple[str, str, str]]:
    """(template name, prompt, response) of one side of the split, no prompt twice; ends when new ones get rare."""
    # A string, not an int: Random(-1) and Random(1) give the same sequence.
    rng = Random(seed)
    seen = set()
    misses = 0
    while misses < 1_000:
        template = _choose(rng, templates)
        prompt, response = _write(rng, template)
        misses += 1
        if prompt not in seen and is_for_evaluation(prompt) == evaluation:
            seen.add(prompt)
            misses = 0
            yield template.name, prompt, response


def _write(rng: Random, template: Template) -> tuple[str, str]:
    """One problem of this template: its prompt and its worked response."""
    numbers, equations, answer = _solve(rng, template)
    thing, things = _choose(rng, THINGS)
    box, boxes = _choose(rng, BOXES)
    name = _choose(rng, NAMES)
    words = {
        "name": name,
        "other": _choose(rng, [person for person in NAMES if person != name]),
        "thing": thing,
        "things": things,
        "extra": _choose(rng, [plural for _, plural in THINGS if plural != things]),
        "box": box,
        "boxes": boxes,
    }
    prompt = _choose(rng, template.phrasings)
    if _integer(rng, 1, 6) == 1:
        # before the question where the story has several sentences, else before the story
        story, dot, question = prompt.rpartition(". ")
        prompt = f"{story}{dot}{_choose(rng, DISTRACTORS)} {question}"
        numbers["distractor"] = _integer(rng, 2, 40)
    return prompt.format(**words, **numbers), "\n".join([*equations, f"#### {answer}"])


def _solve(rng: Random, template: Template) -> tuple[dict[str, int], list[str], int]:
    """The numbers of one problem by name, the equations of its solution and the answer."""
    for _ in range(10_000):
        numbers = {name: _integer(rng, low, high) for name, (low, high) in template.numbers.items()}
        if _calculate(numbers, template.derived) is not None and max(numbers.values()) <= LARGEST_NUMBER:
            equations = _calculate(numbers, template.steps)
            if equations is not None:
                return numbers, equations, numbers[template.steps[-1].split()[0]]
    raise AssertionError(f"no numbers satisfy the template {template.name}")


def _calculate(numbers: dict[str, int], steps: Sequence[str]) -> list[str] | None:
    """The equations of "result = left operator right", each result added to `numbers`.

    None as soon as a division is not exact or a result lies outside 1 ... LARGEST_NUMBER: draw again.
    """
    equations = []
    for step in steps:
        result, _, left_name, sign, right_name = step.split()
        left = numbers[left_name]
        right = int(right_name) if right_name.isdecimal() else numbers[right_name]
        if sign == "/" and left % right:
            return None
        value = _OPERATORS[sign](left, right)
        if not 1 <= value <= LARGEST_NUMBER:
            return None
        numbers[result] = value
        equations.append(f"{left}{sign}{right}={value}")
    return equations


def _integer(rng: Random, low: int, high: int) -> int:
    # random() is the one method whose sequence Python promises to keep; randint and choice may change.
    return low + int(rng.random() * (high - low + 1))


def _choose(rng: Random, items: Sequence[Item]) -> Item:
    return items[_integer(rng, 0, len(items) - 1)]


def _take(problems: Iterator[tuple[str, str, str]], count: int) -> list[tuple[str, str, str]]:
    taken = list(islice(problems, count))
    if len(taken) < count:
        raise DataError(
            f"data asks for {count} different word problems, but the generator found only {len(taken)}. "
            f"Set data.num_rows, data.evaluation_rows or data.new_template_rows to {len(taken)} or less."
        )
    return taken
