"""`evaluation=exact_match`: does the greedy answer equal the reference?"""

import re
from typing import Annotated, Literal
from unicodedata import normalize

from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.option import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExactMatch:
    """The share of evaluation prompts whose greedy answer equals the reference, and agreement with the teacher."""

    kind: Literal["exact_match"]
    compare: Literal["text", "final_answer"] = "text"
    """text: the whole answer, but for outer blanks and for Unicode's two ways of writing é; final_answer: what follows
    the last `####`, as in GSM8K."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    rows: Annotated[int, Field(ge=1)] | None = None
    """At most so many rows of each evaluation set; None: all."""
    positions: Annotated[int, Field(ge=1)] = 1000
    """At most so many response tokens on which likelihoods and the divergence from the teacher are measured."""
    samples: Annotated[int, Field(ge=0)] = 12
    """Answers shown side by side in the report."""
    speed: bool = True
    """Whether tokens per second are measured: some seconds for each model."""

    def correct(self, answer: str, reference: str) -> bool:
        """Whether `answer` equals `reference` in the recipe's sense."""
        if self.compare == "text":
            # a tokenizer that composes (Qwen's do) could not give back a reference that is written apart
            return normalize("NFC", answer).strip() == normalize("NFC", reference).strip()
        found = final_answer(answer)
        return found is not None and found == final_answer(reference)


def final_answer(text: str) -> str | None:
    """What follows the last `####`, without thousands separators, currency signs and a closing point; else None.

    GSM8K's own convention (Cobbe et al. 2021, arXiv:2110.14168), strict: a text without `####` has no answer.
    """
    marked = re.findall(r"####\s*(.+)", text)
    return re.sub(r"[,$]", "", marked[-1]).strip().rstrip(".") if marked else None
