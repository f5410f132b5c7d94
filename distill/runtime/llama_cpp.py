"""llama.cpp: runs a GGUF package on the CPU, through the server that users run.

The server lives in a child process, because llama.cpp prints to the terminal and aborts where Python would raise.
It is spoken to over HTTP on 127.0.0.1 and ends with us, however we end.
"""

import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from distill.errors import DataError, StageFailed
from distill.hardware import num_cores
from distill.runtime._gguf_head import GgufHead

DEFAULT_CONTEXT = 2048
"""Tokens per slot when nobody says otherwise: memory for keys and values is taken at once."""

BYTES_PER_THREAD = 32 * 2**20
"""Threads meet several times per layer; below this a token takes less time than they spend on waiting."""

# llama.cpp reports -3.4e38 where a probability underflows float32; this is the log of the smallest number above zero.
SMALLEST_LOGPROB = -103.28

_TIME_AND_LEVEL = re.compile(r"^[\d.]+ E \S*\s*")


class LlamaCpp:
    """A GGUF model behind llama.cpp's server; use it in a `with` statement, or call `close()`.

    Prompts are token ids and are taken as they are: no beginning-of-sequence token is added.

    Args:
        package: a folder with one .gguf file, or the file.
        num_threads: CPU threads; None takes one for every 32 MiB of the file, at most the cores of this process.
        context: most tokens of prompt and answer together, for each of the `num_slots` that `generate` decodes at once.
            llama.cpp rounds it up to a multiple of 256 and down to what the model was trained for: `max_positions`.

    Raises:
        StageFailed: xllamacpp is not installed, there is no single .gguf, or llama.cpp refuses the file.
    """

    name = "llama.cpp"
    device = "cpu"

    def __init__(
        self, package: Path, *, num_threads: int | None = None, context: int | None = None, num_slots: int = 4
    ) -> None:
        if find_spec("xllamacpp") is None:
            raise StageFailed(f"{package} needs llama.cpp, which is not installed: pip install 'distill[gguf]'")
        self.file = _gguf_file(Path(package))
        options = {
            "file": str(self.file),
            "num_threads": num_threads or min(num_cores(), 1 + self.file.stat().st_size // BYTES_PER_THREAD),
            "context": context or DEFAULT_CONTEXT,
            "num_slots": num_slots,
        }
        self._num_slots = num_slots
        self._local = threading.local()
        self._process, self._log, self._port = _start(options, self.file)
        self._stop = weakref.finalize(self, _end, self._process, self._log)
        meta = self._ask("GET", "/v1/models")["data"][0]["meta"]
        self.vocab_size: int = meta["n_vocab"]
        self.max_positions: int = meta["n_ctx"]
        self.is_sentencepiece: bool = meta["vocab_type"] == 1
        self._plain_token = self.tokenize(["a"])[0][-1]

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the server; the object cannot be used afterwards."""
        self._stop()

    def tokenize(self, texts: Sequence[str], *, add_special: bool = False) -> list[list[int]]:
        """Token ids of each text as llama.cpp splits it: special tokens recognised.

        None are added, but with `add_special` what the GGUF says, which is what llama.cpp does to a whole prompt.
        """
        return [
            self._ask("POST", "/tokenize", {"content": text, "add_special": add_special, "parse_special": True})[
                "tokens"
            ]
            for text in texts
        ]

    def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The dialogue as llama.cpp's own chat endpoint writes it, up to where the answer begins.

        Without the beginning-of-sequence token that `tokenize(add_special=True)` adds. Where the GGUF has no chat
        template, llama.cpp takes one of its own.
        """
        return self._ask("POST", "/apply-template", {"messages": [dict(message) for message in messages]})["prompt"]

    def template(self) -> tuple[str | None, dict[str, str]]:
        """(the GGUF's chat template or None, the special tokens that it may name: `bos_token`, `eos_token`)."""
        props, head = self._ask("GET", "/props"), GgufHead(self.file)
        # where there is none, llama.cpp names some other template, or some other token
        special = {
            f"{r}_token": props[f"{r}_token"] for r in ("bos", "eos") if head.has(f"tokenizer.ggml.{r}_token_id")
        }
        return props["chat_template"] if head.has("tokenizer.chat_template") else None, special

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """The greedy continuation of every prompt, in the caller's order, without prompt and without end token.

        A row stops at any end token that the GGUF names, or after `max_new_tokens`. Slots are decoded together;
        that changes the order of float sums at most, as with any batch.

        Raises:
            DataError: a prompt is empty, or does not fit the context together with `max_new_tokens`.
        """
        for row, tokens in enumerate(prompts):
            self._check(row, tokens, len(tokens) + max_new_tokens)
        if max_new_tokens == 0:
            return [[] for _ in prompts]

        def answer(prompt: Sequence[int]) -> list[int]:
            reply = self._complete(prompt, max_new_tokens, return_tokens=True, cache_prompt=False)
            tokens = reply["tokens"]
            return tokens[:-1] if reply["stop_type"] == "eos" else tokens

        answers = []
        with self._pool() as pool:
            for tokens in pool.map(answer, prompts):
                answers.append(tokens)
                if progress is not None:
                    progress(1)
        return answers

    def stream(
        self, prompt: Sequence[int], max_new_tokens: int, *, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[dict[str, Any]]:
        """llama.cpp's own events of one answer, greedy at temperature 0: as `generate` gives it, token by token.

        Each has `content`, whole characters only, and `tokens_predicted`, how many tokens there are so far; the last
        has `stop` and `stop_type`, "eos" or "limit". Whoever stops listening stops the answer.

        Raises:
            DataError: as `generate`.
        """
        self._check(0, prompt, len(prompt) + max_new_tokens)
        body = self._request(prompt, max_new_tokens, stream=True, cache_prompt=False, temperature=temperature)
        # a connection of its own: what is left unread of an answer must not meet the next request
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request("POST", "/completion", json.dumps(body | {"seed": seed}))
            response = connection.getresponse()
            if response.status != 200:
                self._refused("/completion", response.read())
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        except (http.client.HTTPException, OSError) as problem:
            raise StageFailed(f"llama.cpp stopped while running {self.file}: {_tail(self._log)}") from problem
        finally:
            connection.close()

    def logprobs(self, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> np.ndarray:
        """log q(next token | row[: p + 1]) for every position p of every row, in nats.

        llama.cpp answers for one position at a time, as JSON over the whole vocabulary: 20 ms for 2,048 tokens, 0.4 s
        for 32,000, 3 s for 152,000 on a busy desktop core. Score hundreds of positions, not millions.

        Args:
            rows: token ids.
            positions: for each row the positions to score, each in [0, len(row)); ascending order is fastest, because
                only the tokens since the last position are computed anew.

        Returns:
            float32 `[N, V]`: the positions of the first row, then those of the second, and so on; each line is
            normalised by llama.cpp in float32, before any sampling rule. Probabilities below 1e-45 are given as that.

        Raises:
            DataError: a position lies outside its row, or reaches the end of the context.
        """
        result = np.empty((sum(map(len, positions)), self.vocab_size), dtype=np.float32)
        line = 0
        for row, (tokens, wanted) in enumerate(zip(rows, positions, strict=True)):
            for position in wanted:
                if not 0 <= position < len(tokens):
                    raise DataError(f"row {row} has {len(tokens)} tokens, but position {position} was asked for")
                self._check(row, tokens, position + 2)
                entries = self._next_token_logprobs(tokens[: position + 1])
                result[line] = np.nan
                result[line, [entry["id"] for entry in entries]] = [entry["logprob"] for entry in entries]
                line += 1
        if np.isnan(result).any():
            raise StageFailed(f"llama.cpp gave no log-probability for some tokens of {self.file}.")
        return np.maximum(result, SMALLEST_LOGPROB, out=result)

    def speed(self, prompt_tokens: int = 128, new_tokens: int = 64) -> dict[str, float]:
        """Tokens per second of one user at a time: `prefill_tokens_per_second`, `decode_tokens_per_second`.

        By the server's own clock, so without HTTP. The median of three runs after a warm-up; the prompt is arbitrary
        and decoding never stops early.
        """
        if prompt_tokens + new_tokens > self.max_positions:
            prompt_tokens, new_tokens = self.max_positions * 2 // 3, self.max_positions // 3
        prompt = [number % self.vocab_size for number in range(prompt_tokens)]
        runs = [
            self._complete(prompt, new_tokens, ignore_eos=True, cache_prompt=False, id_slot=0)["timings"]
            for _ in range(4)
        ][1:]
        # The first new token falls out of the prompt's pass; the clock of decoding starts after it.
        return {
            "prefill_tokens_per_second": statistics.median(1000 * t["prompt_n"] / t["prompt_ms"] for t in runs),
            "decode_tokens_per_second": statistics.median(
                1000 * (t["predicted_n"] - 1) / t["predicted_ms"] for t in runs
            ),
        }

    def _next_token_logprobs(self, prompt: Sequence[int]) -> list[dict[str, Any]]:
        # The server drops the log-probabilities of an end token and of a token that is half a character. So the choice,
        # which is thrown away, is pushed to the letter a; what is reported are the logits before any push.
        reply = self._complete(
            prompt, 1, n_probs=self.vocab_size, cache_prompt=True, id_slot=0, logit_bias=[[self._plain_token, 1e9]]
        )
        return reply["completion_probabilities"][0]["top_logprobs"]

    def _check(self, row: int, tokens: Sequence[int], needed: int) -> None:
        if not tokens:
            raise DataError(f"row {row} is empty: a causal model needs at least one token to start from")
        if needed > self.max_positions:
            raise DataError(
                f"row {row} needs room for {needed} tokens, but {self.file.name} runs with {self.max_positions}. "
                f"Shorten the rows, ask for fewer new tokens, or open it with a larger context."
            )

    def _complete(self, prompt: Sequence[int], max_new_tokens: int, **options: Any) -> dict[str, Any]:
        return self._ask("POST", "/completion", self._request(prompt, max_new_tokens, **options))

    def _request(self, prompt: Sequence[int], max_new_tokens: int, **options: Any) -> dict[str, Any]:
        # Temperature 0 is the argmax; naming it as the only sampler keeps penalties and cut-offs out of the way.
        greedy = {"temperature": 0.0, "samplers": ["temperature"]}
        return {"prompt": [int(token) for token in prompt], "n_predict": max_new_tokens, **greedy, **options}

    @contextlib.contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(self._num_slots, thread_name_prefix="llama_cpp")
        try:
            yield pool
        except KeyboardInterrupt:
            # Nobody waits for the answers under way either, and only the server's end stops them.
            self.close()
            raise
        finally:
            # After an error nobody waits for the rest.
            pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One request on this thread's connection; a connection that the server has closed is opened once more."""
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(2):
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self._port)
            try:
                connection.request(method, path, data, {"Content-Type": "application/json"})
                response = connection.getresponse()
                content = response.read()
                break
            except (http.client.HTTPException, OSError) as problem:
                connection.close()
                if attempt or self._process.poll() is not None:
                    raise StageFailed(f"llama.cpp stopped while running {self.file}: {_tail(self._log)}") from problem
        if response.status != 200:
            self._refused(path, content)
        return json.loads(content)

    def _refused(self, path: str, content: bytes) -> NoReturn:
        raise StageFailed(f"llama.cpp refused {path} for {self.file}: {content.decode(errors='replace')[:500]}")


def _gguf_file(package: Path) -> Path:
    files = [package] if package.is_file() else sorted(package.glob("*.gguf"))
    if len(files) != 1:
        raise StageFailed(f"{package} holds {len(files)} .gguf files; needed: one.")
    return files[0].resolve()


def _start(options: Mapping[str, Any], file: Path) -> tuple[subprocess.Popen[str], IO[str], int]:
    log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (closed by _end)
    script = Path(__file__).with_name("_llama_cpp_server.py")
    # -P: the script's folder holds modules of ours, and must not shadow anybody's.
    process = subprocess.Popen(
        [sys.executable, "-P", str(script), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        # Threads that wait by spinning bring a busy machine to a halt: 3 instead of 100 tokens per second were seen.
        env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        process.wait()
        message = _tail(log)
        _end(process, log)
        raise StageFailed(f"llama.cpp cannot load {file}: {message}")
    return process, log, int(json.loads(line)["address"].rpartition(":")[2])


def _end(process: subprocess.Popen[str], log: IO[str]) -> None:
    """Close the pipe, at which the child ends; kill it if it is stuck."""
    with contextlib.suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    log.close()


def _tail(log: IO[str]) -> str:
    """The first lines of llama.cpp's log that name a problem, since the cause comes first; else its last lines."""
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()]
    problems = [_TIME_AND_LEVEL.sub("", line) for line in lines if " E " in line or "abort" in line.lower()]
    return " | ".join(problems[:2] or lines[-2:])[:800] or "it said nothing"
