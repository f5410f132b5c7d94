"""A teacher in this process, asked about a few prompts: what the tests of answers and of targets share."""

import json
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from distill.example import Example
from distill.responses import TeacherResponses
from distill.stages import teach
from distill.stages._local_teacher import open_local
from distill.stages.teach import Wanted
from distill.teacher.hf import Hf

DRAWS, KEPT = 20, 6
EXAMPLES = [
    Example("How much is 3 + 4?", "3 + 4 = 7. #### 7"),
    Example("Tom has 12 apples and gives 5 of them to Ann. How many does he keep?", "#### 7"),
    Example("", "plain text, of which nothing is a prompt"),
    Example(({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 * 2?"}), "#### 4"),
    Example("π ≤ 4?", "größer 🦉"),
]


def another(checkpoint: Path, folder: Path, *, seed: int = 7, **shape) -> Path:
    """A random Llama with the same tokenizer as `checkpoint`, of another seed and shape."""
    config = LlamaConfig.from_pretrained(checkpoint)
    config.update({"num_hidden_layers": 1, **shape})
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    return folder


def wanted(kind="top_k", *, prompt_targets=False, temperature=1.0, seed=0):
    return Wanted(kind, prompt_targets, temperature, seed)


@contextmanager
def engine_of(checkpoint, folder, want, *, head=None, **options):
    folder.mkdir(parents=True, exist_ok=True)
    options = {"draws": DRAWS, "top_k": KEPT, "batch_size": 3, "max_new_tokens": 6, **options}
    teacher = Hf(kind="hf", model=str(checkpoint), **options)
    with open_local(teacher, want, folder, head) as engine:
        yield engine


def asked(checkpoint, folder, want, examples=EXAMPLES, *, head=None, **options):
    """The store that `teach.ask` leaves."""
    with engine_of(checkpoint, folder, want, head=head, **options) as engine:
        teach.ask(engine.teacher, just(engine), examples, folder)
    return TeacherResponses(folder)


@contextmanager
def just(engine):
    yield engine


def notes_of(store):
    return json.loads((store.path / "notes.json").read_text())
