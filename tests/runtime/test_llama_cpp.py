"""The llama.cpp runtime, on a random Llama with a byte tokenizer, against transformers and against itself."""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.errors import DataError, StageFailed
from distill.runtime._gguf_head import GgufHead
from distill.runtime.llama_cpp import LlamaCpp
from tests.small_models import byte_tokenizer

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

END = 257
"""The end token; 0 to 255 are single bytes."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(GGUF package, transformers model) with a vocabulary of 300, of which 259 have a text, and 600 positions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from distill.compression.gguf_q8_0 import GgufQ8_0

    folder = tmp_path_factory.mktemp("student")
    tokenizer = byte_tokenizer("<|end|>", "<s>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<s>").save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    # The server is told to add <s>; it must not do so to prompts of token ids.
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=600,
        tie_word_embeddings=False,
        bos_token_id=258,
        eos_token_id=END,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    made = tmp_path_factory.mktemp("package")
    GgufQ8_0(kind="gguf_q8_0").make(folder, made)
    return made, model


@pytest.fixture(scope="module")
def runtime(package: tuple[Path, Any]) -> Iterator[LlamaCpp]:
    with LlamaCpp(package[0], num_threads=1) as opened:
        yield opened


def test_knows_its_sizes(runtime: LlamaCpp) -> None:
    assert (runtime.name, runtime.device) == ("llama.cpp", "cpu")
    assert (runtime.vocab_size, runtime.max_positions) == (300, 600)


def test_tokenize_adds_nothing_and_sees_special_tokens(runtime: LlamaCpp) -> None:
    found = runtime.tokenize(["a b", "", "x<|end|>", "é"])
    assert [len(ids) for ids in found] == [3, 0, 2, 2]
    assert found[2][1] == END
    assert runtime.tokenize([]) == []


def test_logprobs_are_those_of_the_student(runtime: LlamaCpp, package: tuple[Path, Any]) -> None:
    import torch

    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 300, size=length).tolist() for length in (1, 5, 100)]
    positions: list[list[int]] = [[0], [], [99, 0, 50, 51]]  # any order, rows without any
    found = runtime.logprobs(rows, positions)
    with torch.no_grad():
        all_logprobs = [package[1](torch.tensor([row])).logits[0].double().log_softmax(-1).numpy() for row in rows]
    truth = np.concatenate([logprobs[wanted] for logprobs, wanted in zip(all_logprobs, positions, strict=True)])
    assert found.shape == (5, 300) and found.dtype == np.float32
    assert np.abs(np.exp(found.astype(np.float64)).sum(axis=1) - 1).max() < 1e-5
    assert truth.std() > 1  # a permuted or shifted answer could not pass below
    kl = (np.exp(truth) * (truth - found)).sum(axis=1)
    assert kl.mean() < 1e-3
    assert np.corrcoef(truth.ravel(), found.ravel())[0, 1] > 0.999
    assert runtime.logprobs([], []).shape == (0, 300)


def test_generate_follows_its_own_argmax(runtime: LlamaCpp) -> None:
    """Also where the tokens are halves of characters, which is what a random model over bytes says."""
    prompt = [40, 41, 42]
    (answer,) = runtime.generate([prompt], 12)
    row = [*prompt, *answer]
    best = runtime.logprobs([row], [list(range(2, len(row) - 1))]).argmax(axis=1)
    assert len(answer) == 12 and END not in answer
    assert answer == best.tolist()


def test_generate_in_slots_equals_one_by_one(runtime: LlamaCpp, package: tuple[Path, Any]) -> None:
    generator = np.random.default_rng(1)
    prompts = [generator.integers(0, 256, size=length).tolist() for length in (1, 30, 2, 17, 5, 60, 3, 4, 9)]
    finished: list[int] = []
    together = runtime.generate(prompts, 20, progress=finished.append)
    with LlamaCpp(package[0], num_threads=1, num_slots=1) as single:
        alone = single.generate(prompts, 20)
    assert together == alone and sum(finished) == len(prompts)
    assert runtime.generate(prompts[:2], 0) == [[], []]


def test_generate_stops_before_the_end_token(package: tuple[Path, Any], tmp_path: Path) -> None:
    """A model whose second-likeliest habit becomes its end token stops exactly where it would have said it."""
    from gguf import GGUFReader

    with LlamaCpp(package[0], num_threads=1) as runtime:
        (answer,) = runtime.generate([[7, 8]], 30)
    stop = answer[9]
    changed = tmp_path / "model.gguf"
    changed.write_bytes((package[0] / "model-q8_0.gguf").read_bytes())
    reader = GGUFReader(changed, "r+")
    field = reader.get_field("tokenizer.ggml.eos_token_id")
    assert field is not None
    field.parts[field.data[0]][0] = stop
    reader.data.flush()
    del reader
    with LlamaCpp(changed, num_threads=1) as runtime:
        assert runtime.generate([[7, 8]], 30) == [answer[: answer.index(stop)]]


def test_what_does_not_fit_is_refused(runtime: LlamaCpp) -> None:
    assert len(runtime.generate([[1] * 588], 12)[0]) <= 12
    with pytest.raises(DataError, match="601 tokens"):
        runtime.generate([[1] * 589], 12)
    with pytest.raises(DataError, match="empty"):
        runtime.generate([[1], []], 12)
    with pytest.raises(DataError, match="position 3"):
        runtime.logprobs([[1, 2, 3]], [[3]])
    assert runtime.logprobs([[1] * 600], [[598]]).shape == (1, 300)
    with pytest.raises(DataError, match="larger context"):
        runtime.logprobs([[1] * 600], [[599]])


def test_context_is_rounded_up_to_256(package: tuple[Path, Any]) -> None:
    with LlamaCpp(package[0], context=64, num_threads=1) as small:
        assert small.max_positions == 256
        with pytest.raises(DataError, match="runs with 256"):
            small.generate([[1] * 250], 7)


def test_speed_is_measured(runtime: LlamaCpp) -> None:
    found = runtime.speed(prompt_tokens=64, new_tokens=16)
    assert set(found) == {"prefill_tokens_per_second", "decode_tokens_per_second"}
    assert all(10 < value < 1e7 for value in found.values())
    assert runtime.speed(10_000, 10_000)["decode_tokens_per_second"] > 10  # cut to the context


def test_what_cannot_be_loaded_is_said_in_llama_cpps_words(tmp_path: Path, package: tuple[Path, Any]) -> None:
    with pytest.raises(StageFailed, match=r"0 \.gguf files"):
        LlamaCpp(tmp_path)
    data = (package[0] / "model-q8_0.gguf").read_bytes()
    (tmp_path / "half.gguf").write_bytes(data[: len(data) // 2])
    with pytest.raises(StageFailed, match=r"half\.gguf.*(error|failed|corrupt)"):
        LlamaCpp(tmp_path)


def test_missing_wheel_names_the_extra(package: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.runtime.llama_cpp.find_spec", lambda name: None)
    with pytest.raises(StageFailed, match=r"pip install 'distill\[gguf\]'"):
        LlamaCpp(package[0])


def test_a_dead_server_is_a_failed_stage(package: tuple[Path, Any]) -> None:
    with LlamaCpp(package[0], num_threads=1) as runtime:
        runtime._process.kill()
        runtime._process.wait()
        with pytest.raises(StageFailed, match="stopped while running"):
            runtime.tokenize(["a"])


SCRIPT = """
import sys
from pathlib import Path
from distill.runtime.llama_cpp import LlamaCpp
runtime = LlamaCpp(Path(sys.argv[1]), num_threads=1)
print(len(runtime.generate([[1, 2]], 3)[0]), runtime._process.pid, "torch" in sys.modules, flush=True)
if sys.argv[2] == "wait":
    sys.stdin.read()
"""


def started(package: Path, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(package), mode]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


def test_nothing_is_printed_and_nothing_stays_without_close(package: tuple[Path, Any]) -> None:
    process = started(package[0], "leave")
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == ""
    count, pid, torch_was_there = output.split()
    assert int(count) <= 3 and torch_was_there == "False"
    assert not alive(int(pid))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_the_server_ends_with_a_parent_that_was_killed(package: tuple[Path, Any]) -> None:
    process = started(package[0], "wait")
    assert process.stdout is not None
    pid = int(process.stdout.readline().split()[1])
    assert alive(pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits to be collected does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_ctrl_c_waits_for_no_answer_under_way():
    model, ended = object.__new__(LlamaCpp), threading.Event()
    model._num_slots, model._stop = 1, ended.set  # type: ignore[assignment]
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), model._pool() as pool:
        pool.submit(ended.wait, 5)  # an answer that the server's end stops
        raise KeyboardInterrupt
    assert ended.is_set() and time.monotonic() - started < 4
    with model._pool() as pool:  # nothing went wrong: the server is left alone
        ended.clear()
    assert not ended.is_set()


def test_a_key_is_not_found_inside_another_one(tmp_path):
    def written(key: str) -> Path:
        # as the GGUF specification has it: uint64 length, then the characters
        (tmp_path / "file").write_bytes(b"GGUF" + struct.pack("<Q", len(key)) + key.encode() + b"\x08\0\0\0")
        return tmp_path / "file"

    assert GgufHead(written("tokenizer.chat_template")).has("tokenizer.chat_template")
    for longer in ("my.tokenizer.chat_template", "tokenizer.chat_template.tool_use"):
        assert not GgufHead(written(longer)).has("tokenizer.chat_template")
