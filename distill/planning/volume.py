"""Volume: how many rows a recipe learns from, and how long they are; counted where the data lies here, else assumed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from distill.data._prompt import fields_of
from distill.data.known import DataSet, data_set
from distill.data.local import num_held_out, parse_slice
from distill.errors import DataError
from distill.example import Example
from distill.option import is_meant_as_path
from distill.planning.answers import answers_of
from distill.recipe import Recipe

CHARACTERS_PER_TOKEN = 4.0
"""Of English text, for vocabularies of 32,000 to 128,000."""
SAMPLE = 400
"""Rows that are tokenised; the longest row is taken from all rows by its characters."""
ROWS_UNKNOWN, EVALUATION_UNKNOWN = 10_000, 500
LONG_TEXT = 20_000
"""Characters of a text that are tokenised: enough to say how many make a token."""
LEAST_LONGEST = 2048
"""Tokens of the longest row of a data set that is not read, where training.max_length is not more."""
LARGEST_FILE = 500_000_000
PAD_TO = 8
NO_PROMPT = 1
"""Plain text is asked nothing: the token that begins a text, at most."""
TEMPLATE = 40
"""Tokens that a chat template adds to a prompt, a system's turn included."""


@dataclass(frozen=True)
class Volume:
    """Rows, and tokens of one: means for time and money, the longest for memory."""

    rows: int
    prompt: float
    answer: float
    longest_prompt: int
    longest_answer: int
    evaluation_rows: int
    labelled: float = 1.0
    """Share of rows with an answer of their own."""
    notes: tuple[str, ...] = ()
    longest_row: int = 1 << 30
    """Of prompt and answer together, where that is known."""

    def length(self, limit: int) -> float:
        """Mean tokens of a row that is cut at `limit`."""
        return min(self.prompt + self.answer, limit)

    def longest(self, limit: int) -> int:
        """Tokens that the longest row is padded to."""
        return math.ceil(min(self.whole, limit) / PAD_TO) * PAD_TO

    @property
    def whole(self) -> int:
        """Tokens of the longest row, not cut."""
        return min(self.longest_prompt + self.longest_answer, self.longest_row)


def volume_of(recipe: Recipe) -> Volume:
    """Of the recipe's training rows as the teacher leaves them.

    Raises:
        DataError: a data file is missing, or has not the fields that the recipe names.
    """
    data = recipe.data
    path = getattr(data, "path", None)
    if path is None or (Path(path).is_file() and Path(path).stat().st_size < LARGEST_FILE):
        found = _counted(recipe)
    else:
        known, subset = data_set(path), getattr(data, "subset", None)
        if known is None and not Path(path).exists() and is_meant_as_path(path):
            raise DataError(f"data.path={path}: no such file. It takes a file, or a data set's id on the hub.")
        if known is not None and known.is_of(subset):
            found = _of_known(recipe, known)
        else:
            found = _unknown(recipe, f"{path} ({subset})" if subset else path)
    return _as_answered(recipe, found)


def _counted(recipe: Recipe) -> Volume:
    """Rows that can be read here."""
    data, notes = recipe.data, []
    if data.kind == "word_problems":  # a generator: fewer of the same seed are the first ones of more
        rows = data.num_rows
        examples = replace(data, num_rows=min(rows, 5 * SAMPLE), evaluation_rows=1, new_template_rows=0).load()
        evaluation = data.evaluation_rows + data.new_template_rows
    else:
        examples = data.load()
        rows, evaluation = len(examples.train), sum(map(len, examples.evaluation.values()))
    tokenizer = _tokenizer(recipe)
    if tokenizer is None:
        notes.append(f"data: {CHARACTERS_PER_TOKEN:g} characters are taken for a token; no tokenizer is on this disk.")
    if recipe.is_plain_text:
        return _texts(examples.train, tokenizer, recipe.training.max_length, evaluation, notes)
    answered = [row for row in examples.train if row.response is not None]
    prompts = _tokens(tokenizer, examples.train, "prompt")
    answers = _tokens(tokenizer, answered, "answer") if answered else (0.0, 0)
    both = _tokens(tokenizer, answered, None)[1] if answered else 0
    labelled = getattr(data, "labelled_rows", None)
    share = len(answered) / len(examples.train) if labelled is None else min(labelled, rows) / rows
    return Volume(
        rows, prompts[0], answers[0], prompts[1], answers[1], evaluation, share, tuple(notes), both or 1 << 30
    )


def _texts(rows: Sequence[Example], tokenizer: Any, limit: int, evaluation: int, notes: list[str]) -> Volume:
    """Of plain texts, each in as many rows of `limit` tokens as it takes. All are measured by their characters, of
    which some say how many make a token."""
    per_token = CHARACTERS_PER_TOKEN
    if tokenizer:
        chosen = [(row.response or "")[:LONG_TEXT] for row in rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]]
        per_token = sum(map(len, chosen)) / max(1, sum(len(tokenizer(text)["input_ids"]) for text in chosen))
    tokens = [len(row.response or "") / per_token + 1 for row in rows]
    made = sum(math.ceil(each / (limit - NO_PROMPT)) for each in tokens)
    notes.append(_in_rows(len(rows), made, limit))
    return _of_texts(made, sum(tokens), math.ceil(max(tokens)), limit, evaluation, notes)


def _of_texts(rows: int, tokens: float, longest: int, limit: int, evaluation: int, notes: Sequence[str]) -> Volume:
    """Of `rows` rows that are learnt of texts with so many tokens in all and in the longest."""
    longest = min(longest, limit - NO_PROMPT)
    return Volume(
        rows,
        NO_PROMPT,
        tokens / rows,
        NO_PROMPT,
        longest,
        evaluation,
        notes=tuple(notes),
        longest_row=NO_PROMPT + longest,
    )


def _in_rows(texts: int, rows: int, limit: int) -> str:
    return f"data: {texts:,} texts are about {rows:,} rows of training.max_length={limit} tokens at most."


def _tokens(tokenizer: Any, rows: Sequence[Example], part: Literal["prompt", "answer"] | None) -> tuple[float, int]:
    """(mean, longest) of a part of the rows, or of the whole; the longest is that of the row with most characters."""

    def count(row: Example) -> int:
        return (part != "answer") * _prompt(tokenizer, row) + (part != "prompt") * _answer(tokenizer, row)

    chosen = rows[:: max(1, len(rows) // SAMPLE)][:SAMPLE]
    plain = sorted(rows, key=lambda row: _characters_of(row, part))[-20:]
    return sum(map(count, chosen)) / len(chosen), max(map(count, plain))


def _prompt(tokenizer: Any, row: Example) -> int:
    from distill.encoding import encode_prompt

    return len(encode_prompt(tokenizer, row.prompt)) if tokenizer else _about(_characters_of(row, "prompt"))


def _answer(tokenizer: Any, row: Example) -> int:
    from distill.encoding import encode_response

    return len(encode_response(tokenizer, row.response or "")) if tokenizer else _about(len(row.response or ""))


def _about(characters: int) -> int:
    return math.ceil(characters / CHARACTERS_PER_TOKEN) + 1


def _characters_of(row: Example, part: str | None) -> int:
    prompt = len(row.prompt) if isinstance(row.prompt, str) else sum(len(turn["content"]) for turn in row.prompt)
    return (part != "answer") * prompt + (part != "prompt") * len(row.response or "")


def _tokenizer(recipe: Recipe) -> Any:
    """The student's, where it lies on this disk."""
    from distill.encoding import load_tokenizer

    teachers = recipe.teacher.tokenizer_from
    folder = recipe.student.model if recipe.student.kind == "pretrained" else teachers[0] if teachers else None
    return load_tokenizer(folder) if folder and (Path(folder) / "tokenizer_config.json").is_file() else None


def _of_known(recipe: Recipe, known: DataSet) -> Volume:
    """From what is known of a data set on the hub."""
    data: Any = recipe.data
    rows = known.splits.get(data.split, max(known.splits.values()))
    evaluation, left = num_held_out(rows), data.rows_left(rows)
    if data.eval_path:
        of = data_set(data.eval_path)
        evaluation = of.splits.get(data.eval_split, ROWS_UNKNOWN) if of else EVALUATION_UNKNOWN
    prompt, answer = _characters(data, known)
    exact = known.lengths if known.characters_per_row else "guessed from a sample of ours"
    limit = max(recipe.training.max_length, LEAST_LONGEST)
    longest = _longest(data, known, limit)
    note = (
        f"data: {left:,} rows of {known.hub_id} [{data.split}], lengths {exact}, "
        f"{CHARACTERS_PER_TOKEN:g} characters for a token, the longest row of {min(sum(longest), limit)}."
    )
    labelled = 1.0 if data.labelled_rows is None else min(1.0, data.labelled_rows / max(left, 1))
    tokens = [characters / CHARACTERS_PER_TOKEN for characters in (prompt, answer)]
    evaluation = min(evaluation, data.evaluation_rows or evaluation)
    if recipe.is_plain_text and answer:
        most, each = recipe.training.max_length, tokens[1] + 1
        # lengths that fall off exponentially, as far as a mean tells: so many rows does a text take on average
        rows = round(left / -math.expm1(-(most - NO_PROMPT) / each))
        said = f"data: {known.hub_id} [{data.split}], lengths {exact}, {CHARACTERS_PER_TOKEN:g} characters for a token."
        return _of_texts(rows, left * each, most, most, evaluation, (said, _in_rows(left, rows, most)))
    share = labelled if answer else 0.0
    return Volume(left, tokens[0], tokens[1], *longest, evaluation, share, (note,), longest_row=limit)


def _longest(data: Any, known: DataSet, limit: int) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest answer; `limit` where nothing is known."""
    named = fields_of(data.prompt_template) if data.prompt_template else [data.prompt_field]
    most = [known.longest_characters.get(column) for column in named]
    if data.messages_field or not all(most):
        prompt = limit
    else:
        prompt = min(limit, _about(len(data.prompt_template or "") + sum(size or 0 for size in most)) + TEMPLATE)
    answer = known.longest_characters.get(data.response_field)
    return prompt, min(limit, _about(answer)) if answer and not data.messages_field else limit


def _characters(data: Any, known: DataSet) -> tuple[float, float]:
    """Mean characters of prompt and answer."""
    columns = known.columns
    if data.text_field:
        return 0.0, known.characters(data.text_field) if data.text_field in columns else 0.0
    if data.messages_field:
        whole = known.characters(data.messages_field) if data.messages_field in columns else 0.0
        return whole * 2 / 3, whole / 3
    if data.prompt_template:
        named = [c for c in columns if "{" + c + "}" in data.prompt_template]
        prompt = len(data.prompt_template) + sum(known.characters(c) - len(c) - 2 for c in named)
    else:
        prompt = known.characters(data.prompt_field) if data.prompt_field in columns else 0.0
    return prompt, known.characters(data.response_field) if data.response_field in columns else 0.0


def _unknown(recipe: Recipe, path: str) -> Volume:
    """A data set of which nothing is known here: every row as long as it may be."""
    chosen, training = parse_slice(getattr(recipe.data, "rows", None)), recipe.training
    rows = len(range(chosen.stop if chosen.stop and chosen.stop > 0 else ROWS_UNKNOWN + (chosen.start or 0))[chosen])
    limit = training.max_length
    longest = max(limit, LEAST_LONGEST)
    note = (
        f"data: {path} is not read by a plan; {rows:,} rows of training.max_length={limit} tokens are assumed "
        "(data.rows and training.max_steps say how much is learnt)."
    )
    answer = min(limit / 2, getattr(recipe.teacher, "max_new_tokens", limit))
    evaluation = getattr(recipe.data, "evaluation_rows", None) or EVALUATION_UNKNOWN
    return Volume(rows, limit - answer, answer, longest, longest, evaluation, notes=(note,))


def _as_answered(recipe: Recipe, found: Volume) -> Volume:
    """With the teacher's answers in the place of the data's own, as far as it is asked for them."""
    teacher: Any = recipe.teacher
    if recipe.is_plain_text or teacher.kind in {"none", "file"} or teacher.responses == "data":
        return found
    asked = teacher.teachers.values() if teacher.kind == "routed" else [teacher]
    most = max(getattr(one, "max_new_tokens", found.longest_answer) for one in asked)
    answers = answers_of(recipe, found.answer)
    said = answers.said if answers else f"teacher: every answer is taken to reach teacher.max_new_tokens={most}."
    notes = (*found.notes, said)
    mean = answers.tokens if answers else most
    return replace(found, answer=mean, longest_answer=most, longest_row=1 << 30, notes=notes)
