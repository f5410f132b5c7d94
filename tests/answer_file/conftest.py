"""A real teacher's answers to a few prompts, to be written in every layout: what it said, and every log-probability."""

from dataclasses import dataclass

import numpy as np
import pytest

from distill.checkpoint import BUNDLED
from distill.encoding import encode_prompt, load_tokenizer
from distill.example import Example

TEACHER = BUNDLED / "quickstart_teacher"
PROMPTS = ["Tom has 3 apples and buys 4 more. How many apples has he?", "What is 2 + 2?", "Ann had 9 pens and lost 5."]
NUM_NEW = 24


@dataclass(frozen=True)
class Said:
    """`logprobs_TV`: row t is of token t, given the ones before it; NaN for t = 0, which nothing precedes."""

    prompt: str
    text: str
    ids: list[int]
    prompt_length: int
    logprobs_TV: np.ndarray

    @property
    def response(self) -> list[int]:
        return self.ids[self.prompt_length :]

    def top(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest ids and their log-probabilities for tokens 1, 2, …"""
        rows = self.logprobs_TV[1:]
        ids = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        return ids, np.take_along_axis(rows, ids, axis=1)


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(TEACHER)


@pytest.fixture(scope="session")
def said(tokenizer) -> list[Said]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    answers = []
    for prompt in PROMPTS:
        start = encode_prompt(tokenizer, prompt)
        with torch.inference_mode():
            ids = list(start)
            # by hand: the likeliest token each time, up to the end of the sequence
            for _ in range(NUM_NEW):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
                if ids[-1] == tokenizer.eos_token_id:
                    break
            else:
                ids.append(tokenizer.eos_token_id)
            logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1).numpy()
        of_token = np.concatenate([np.full((1, logprobs.shape[1]), np.nan), logprobs[:-1]])
        text = tokenizer.decode(ids[len(start) : -1])
        answers.append(Said(prompt, text, ids, len(start), of_token))
    return answers


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    return [Example(prompt=prompt) for prompt in PROMPTS]
