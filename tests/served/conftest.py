"""A real llama.cpp server with the quickstart's own teacher, and what the tests ask it."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distill.runtime.llama_cpp import LlamaCpp
from distill.served.answer import Request
from distill.served.client import Served
from distill.served.endpoint import Endpoint
from tests.conftest import ROOT

TEACHER = ROOT / "distill" / "bundled" / "quickstart_teacher"
MAX_TOKENS = 64


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    """llama.cpp serving the teacher; its OpenAI endpoints are under test, its native one is the reference."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from distill.compression.gguf_q8_0 import GgufQ8_0

    folder = tmp_path_factory.mktemp("teacher")
    GgufQ8_0(kind="gguf_q8_0").make(TEACHER, folder)
    with LlamaCpp(folder, num_threads=1, num_slots=4) as server:
        yield server


@pytest.fixture(scope="session")
def port(llama_cpp: LlamaCpp) -> int:
    return llama_cpp._port


@pytest.fixture(scope="session")
def model(llama_cpp: LlamaCpp) -> str:
    return str(llama_cpp.file)


@pytest.fixture(scope="session")
def questions() -> list[str]:
    """48 different questions."""
    from distill.data.word_problems import WordProblems

    return list(dict.fromkeys(str(e.prompt) for e in WordProblems(kind="word_problems", num_rows=60).load().train))[:48]


@pytest.fixture(scope="session")
def prompt_ids(questions: list[str]) -> list[tuple[int, ...]]:
    """The questions as the teacher's own tokens."""
    from distill.encoding import encode_prompt, load_tokenizer

    tokenizer = load_tokenizer(TEACHER)
    return [tuple(encode_prompt(tokenizer, question)) for question in questions]


@pytest.fixture(scope="session")
def chats(questions: list[str]) -> list[Request]:
    return [Request(messages=({"role": "user", "content": question},), max_tokens=MAX_TOKENS) for question in questions]


@pytest.fixture(scope="session")
def greedy(llama_cpp: LlamaCpp, prompt_ids: list[tuple[int, ...]]) -> list[list[int]]:
    """llama.cpp's own greedy answers by its native endpoint, as token ids without the end token."""
    return llama_cpp.generate(prompt_ids, MAX_TOKENS)


@pytest.fixture(scope="session")
def texts(greedy: list[list[int]]) -> list[str]:
    from distill.encoding import load_tokenizer

    tokenizer = load_tokenizer(TEACHER)
    return [str(tokenizer.decode(ids)) for ids in greedy]


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def serve(port: int, model: str, tmp_path: Path, log: list[str]) -> Callable[..., Served]:
    """(address, settings) → a client with a journal in `tmp_path`; the server itself when no address is given."""

    def open(
        base_url: str = f"http://127.0.0.1:{port}/v1", *, journal: str = "answers.sqlite", **settings: Any
    ) -> Served:
        settings = {"model": model, "concurrency": 4, "timeout_seconds": 30.0, **settings}
        return Served(Endpoint(base_url=base_url, **settings), tmp_path / journal, log.append)

    return open


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off starts at 20 ms instead of 500."""
    monkeypatch.setattr("distill.served._asker.FIRST_WAIT_SECONDS", 0.02)


@pytest.fixture(scope="session")
def token_logprobs(llama_cpp: LlamaCpp) -> Callable[..., Any]:
    """(prompt, answer) → float32 [N, V], the native log-probabilities at each token of the answer."""

    @functools.cache
    def compute(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Any:
        row = [*prompt, *answer]
        return llama_cpp.logprobs([row], [range(len(prompt) - 1, len(row) - 1)])

    return compute
