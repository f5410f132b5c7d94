"""A real llama.cpp with the quickstart's teacher, and the engine in front of it."""

from collections.abc import Callable
from typing import Any

import pytest

from distill.example import Example
from distill.stages._served_teacher import open_server
from distill.stages.teach import Wanted
from tests.served.serving import QUICKSTART, float32_file, serving
from tests.stages.served_engine import option


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    with serving(QUICKSTART, tmp_path_factory.mktemp("gguf") / "quickstart.gguf", 192) as server:
        yield server


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """The same teacher behind our own runtime, which the dialects speak for."""
    pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")
    from distill.runtime.llama_cpp import LlamaCpp

    file = float32_file(QUICKSTART, tmp_path_factory.mktemp("gguf") / "quickstart.gguf")
    with LlamaCpp(file, num_threads=1, context=192) as server:
        yield server


@pytest.fixture(scope="session")
def problems() -> list[Example]:
    from distill.data.word_problems import WordProblems

    return list(WordProblems(kind="word_problems", num_rows=40).load().train)


@pytest.fixture
def no_long_waits(monkeypatch):
    monkeypatch.setattr("distill.served._asker.FIRST_WAIT_SECONDS", 0.02)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def opened(tmp_path, notes, no_long_waits) -> Callable[..., Any]:
    """(server, wanted, examples, settings) → the engine in a `with` statement."""

    def open(server: Any, wanted: Wanted, rows=(), *, on_policy: bool = False, **settings: Any):
        return open_server(option(server, **settings), wanted, rows, tmp_path, notes.append, on_policy=on_policy)

    return open
