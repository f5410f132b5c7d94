"""Lines: what is typed as the prompt that the recipe makes of a row. Dialogue: one model, asked again and again."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from distill.data import Local
from distill.errors import DataError, RecipeError
from distill.example import Prompt, messages_of
from distill.runtime.speaking import NUM_SEEDS, Sampling, Speaker

if TYPE_CHECKING:
    from distill.recipe import Recipe

Messages = tuple[Mapping[str, str], ...]


class Lines:
    """A line as a prompt: the same that `data=local` makes of a row with this text.

    A line that is a JSON object with the fields of the recipe's rows is such a row: it may hold several fields, line
    breaks, or a dialogue.
    """

    def __init__(self, recipe: "Recipe | None"):
        data = recipe.data if recipe is not None else None
        self.data = data if isinstance(data, Local) else Local(kind="local", path="standard input")
        self.has_recipe = recipe is not None
        self.is_text = self.data.text_field is not None
        """Whether the model has learnt plain text: what is typed is gone on with."""

    def prompt(self, line: str, where: str) -> Prompt:
        """The prompt, or the text to go on with. Raises DataError where a row's field is missing or no text."""
        examples = self.data.examples_of(self._row(line, where), where)
        if not examples:
            raise DataError(f"{where}: nobody asks anything in this dialogue.")
        return examples[-1].response or "" if self.is_text else examples[-1].prompt

    def _row(self, line: str, where: str) -> dict:
        fields = self.data.prompt_fields
        if line.startswith("{"):
            try:
                row = json.loads(line)
            except ValueError:
                row = {}
            except RecursionError:
                raise DataError(f"{where}: its brackets are nested too deep to be read.") from None
            # a row of a recipe that lacks its only field is refused by what reads rows
            if all(name in row for name in fields) or (row and self.has_recipe and len(fields) == 1):
                return row
        if len(fields) > 1:
            example = json.dumps(dict.fromkeys(fields, "…"), ensure_ascii=False)
            raise DataError(f"{where}: this recipe makes a prompt of {' and '.join(fields)}. Needed: {example}")
        if self.data.messages_field is not None:
            return {fields[0]: [{self.data.speaker_field: "user", self.data.content_field: line}]}
        return {fields[0]: line}


@dataclass
class Said:
    """One answer: its text and tokens so far, what cut it ("" where it ended by itself), and what had to be left out.

    `tokens_per_second` is of decoding, without the reading of the prompt; None where that cannot be told.
    """

    text: str = ""
    num_tokens: int = 0
    cut: str = ""
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    tokens_per_second: float | None = None


@dataclass
class Dialogue:
    """One model and what was said so far; every question alone unless `keeps`."""

    name: str
    speaker: Speaker
    sampling: Sampling
    lines: Lines
    system: str | None = None
    keeps: bool = False
    exchanges: list[Messages] = field(default_factory=list)
    num_asked: int = 0

    def __post_init__(self) -> None:
        chats = self.speaker.has_template or self.lines.data.messages_field is not None
        for flag, asked in (("--system", self.system is not None), ("--dialogue", self.keeps)):
            if asked and (self.lines.is_text or not chats):
                raise RecipeError(f"{flag}: {self.name} has no chat template; it answers single prompts.")

    def ask(self, prompt: Prompt, show: Callable[[str], None]) -> Said:
        """The answer, whose characters go to `show` as they come; Ctrl-C ends it.

        Raises:
            DataError: the prompt alone has no room.
            RecipeError: the chat template refuses it.
        """
        said, started, first = Said(), 0.0, 0

        def seen(text: str, num_tokens: int) -> None:
            nonlocal started, first
            now = time.perf_counter()
            if not said.num_tokens:
                started, first = now, num_tokens
                said.num_tokens = first
            elif num_tokens > said.num_tokens:
                said.num_tokens = num_tokens
                said.tokens_per_second = (num_tokens - first) / (now - started)
            said.text += text
            show(text)

        self.num_asked += 1
        try:
            ids, sampling = self._prepared(prompt, said)
            if self.speaker.answer(ids, sampling, seen):
                whole = sampling.max_new_tokens == self.sampling.max_new_tokens
                said.cut = "--max-new-tokens" if whole else f"its room for {self.speaker.max_positions} tokens is full"
        except KeyboardInterrupt:
            said.interrupted = True
        if self.keeps and said.text:
            self.exchanges.append((*messages_of(prompt), {"role": "assistant", "content": said.text}))
        return said

    def _prepared(self, prompt: Prompt, said: Said) -> tuple[list[int], Sampling]:
        """Token ids and sampling that fit the model; what is left out for that is noted."""
        # every answer another draw, and each the same again when the program is started again
        sampling = replace(self.sampling, seed=(self.sampling.seed + self.num_asked - 1) % NUM_SEEDS)
        positions = self.speaker.max_positions or 1 << 62
        kept = list(self.exchanges) if self.keeps else []
        ids = self._encoded(kept, prompt)
        while kept and len(ids) + sampling.max_new_tokens > positions:
            kept = kept[1:]
            ids = self._encoded(kept, prompt)
        room = positions - len(ids)
        if room < 1:
            raise DataError(f"{self.name} has room for {positions} tokens, and this prompt alone has {len(ids)}.")
        dropped = len(self.exchanges) - len(kept) if self.keeps else 0
        if dropped:
            self.exchanges = kept
            exchanges = "exchange was" if dropped == 1 else f"{dropped} exchanges were"
            said.notes.append(f"{self.name} has room for {positions} tokens: the oldest {exchanges} dropped")
        if room < sampling.max_new_tokens:
            sampling = replace(sampling, max_new_tokens=room)
        return ids, sampling

    def _encoded(self, exchanges: list[Messages], prompt: Prompt) -> list[int]:
        if self.lines.is_text and isinstance(prompt, str):
            return self.speaker.encode_text(prompt)
        system = ({"role": "system", "content": self.system},) if self.system is not None else ()
        before = (*system, *(message for exchange in exchanges for message in exchange))
        # a lone prompt as evaluation hands it over: without a template, text is not the same as a message with it
        return self.speaker.encode((*before, *messages_of(prompt)) if before else prompt)


def keeps_dialogue(recipe: "Recipe | None", lines: Lines, speaker: Speaker) -> bool:
    """Whether a model is asked with all that was said before, when nobody says so.

    A student from random weights that was taught single questions is asked single questions: the quickstart's, whose 11
    samples it answers as its teacher does 9 times, did so once after one other question.
    """
    if lines.is_text or (recipe is not None and recipe.data.kind == "local" and recipe.data.messages_field):
        return not lines.is_text
    return speaker.has_template and (recipe is None or recipe.student.kind != "scratch")
