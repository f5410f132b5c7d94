"""Shared by all tests: real data where it is there, a tiny teacher, runs in processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Two test processes, or a test and a subprocess, share two cores: threads that spin would halve both.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A shell starts what it runs in the background with SIGINT ignored, and so would be every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("DISTILL_SHARED_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (DISTILL_SHARED_DATA names another place)")
    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """A random Llama of 64 × 2 with a byte-level BPE trained on word problems: right in form, wrong in every answer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from distill.data.word_problems import WordProblems
    from distill.encoding import train_tokenizer

    examples = WordProblems(kind="word_problems", num_rows=300).load().train
    tokenizer = train_tokenizer((text for e in examples for text in (e.prompt, e.response)), 384)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=192,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.15,
    )
    folder = tmp_path_factory.mktemp("teacher") / "tiny_teacher"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run_cli(tmp_path):
    """Runs `python -m distill …` in an empty folder and returns the finished process."""

    def run(*arguments: str, timeout: float = 300, cwd: Path = tmp_path, **environment: str):
        return subprocess.run(
            [sys.executable, "-m", "distill", *arguments],
            cwd=cwd,
            env=cli_environment(**environment),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture(scope="module")
def no_waiting_for_the_disk():
    """A killed process loses nothing that it wrote; only a power cut would, and waiting for the disk is slow."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory, no_waiting_for_the_disk) -> Path:
    """A finished store of `small_store`'s rows, to be read only."""
    from tests.small_store import HEADER, fill, plan

    folder = tmp_path_factory.mktemp("store")
    assert fill(folder) == plan(HEADER.num_rows)
    return folder


@pytest.fixture
def copied_store(whole_store, tmp_path) -> Path:
    """The same, to be damaged."""
    for file in whole_store.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def typed_in(
    main: Callable[[list[str]], None], folder: Path, capsys, monkeypatch, *, columns: int
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command `main` in `folder` and in this process: arguments → (exit code, standard output and error)."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", str(columns))

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return ended.value.code, said.out, said.err  # type: ignore[return-value]

    return run


def cli_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DISTILL_")}
    return {**kept, "COLUMNS": "160", **more}


@pytest.fixture(scope="session")
def tiny_run_arguments(tiny_teacher) -> list[str]:
    """The quickstart recipe cut down to seconds: every stage is real, nothing is learnt."""
    return [
        "recipe=quickstart",
        f"teacher.model={tiny_teacher}",
        "teacher.max_new_tokens=8",
        "teacher.batch_size=8",
        "data.num_rows=40",
        "data.labelled_rows=24",
        "data.evaluation_rows=6",
        "data.new_template_rows=4",
        "student.hidden_size=64",
        "student.num_hidden_layers=1",
        "student.num_attention_heads=1",
        "training.max_steps=12",
        "training.batch_size=8",
        "training.save_steps=2",
        "training.logging_steps=2",
        "evaluation.max_new_tokens=4",
        "evaluation.positions=60",
    ]
