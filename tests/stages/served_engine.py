"""How the tests of served teachers ask for an engine."""

from pathlib import Path
from typing import Any

import numpy as np

from distill._shards import Row
from distill.encoding import encode_prompt, encode_response, load_tokenizer
from distill.responses import TeacherResponses
from distill.stages.teach import Question, Wanted, ask
from distill.teacher.server import Server
from tests.served.serving import QUICKSTART, Serving

TEXT, TOP_K = Wanted(None, False, 1.0, 0), Wanted("top_k", False, 1.0, 0)
NAMELESS = range(5)
"""Special tokens, which llama.cpp gives no bytes for, and another one is half a character."""
NEXT, WITH_PROMPTS = Wanted("next", False, 1.0, 0), Wanted("top_k", True, 1.0, 0)


def option(server: Any, **settings: Any) -> Server:
    """`teacher=server` for one of the servers here, or for an address."""
    base_url = server if isinstance(server, str) else server.base_url
    named = {
        "model": server.model if isinstance(server, Serving) else "teacher",
        "tokenizer": str(QUICKSTART),
        "max_new_tokens": 64,
        "concurrency": 4,
        "timeout_seconds": 30.0,
        "batch_size": 8,
    }
    return Server(kind="server", base_url=base_url, **{**named, **settings})


def questions(rows, tokenizer=None) -> list[Question]:
    tokenizer = tokenizer or load_tokenizer(QUICKSTART)
    return [Question(n, row, encode_prompt(tokenizer, row.prompt)) for n, row in enumerate(rows)]


def filled(opened, server, wanted, rows, folder: Path, **settings) -> TeacherResponses:
    folder.mkdir()
    ask(option(server, **settings), opened(server, wanted, rows, **settings), rows, folder)
    return TeacherResponses(folder)


def given_row(ids_T: np.ndarray, prompt_length: int, number: int = 0) -> Row:
    return Row(number, "", "data", ids_T, prompt_length)


def own_rows(rows) -> list[Row]:
    tokenizer = load_tokenizer(QUICKSTART)
    prompts = [encode_prompt(tokenizer, row.prompt) for row in rows]
    return [
        given_row(np.array([*p, *encode_response(tokenizer, row.response)], dtype=np.int32), len(p), n)
        for n, (p, row) in enumerate(zip(prompts, rows, strict=True))
    ]
