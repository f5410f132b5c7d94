"""Other servers' ways of saying the same numbers: vLLM, legacy completions with echo, and a chat API without ids.

These servers are not installed here. What they say is computed by the real llama.cpp; only the words are theirs, after
vLLM's and OpenAI's published schemas.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from distill.runtime.llama_cpp import LlamaCpp


class Dialect:
    """A server on loopback: `reply(path, body)` gives (status, JSON); use it in a `with` statement."""

    key: str | None = None
    """What must be sent, where a server wants one."""

    def __init__(self, runtime: LlamaCpp, port: int = 0) -> None:
        self.runtime = runtime
        self.bodies: list[dict[str, Any]] = []
        dialect = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: Any) -> None:
                if body is not None:
                    dialect.bodies.append(body)
                if self.path == "/health":
                    status, reply = 200, {}
                elif dialect.key in (None, (self.headers.get("Authorization") or "").removeprefix("Bearer ")):
                    status, reply = dialect.reply(self.path, body)
                else:
                    status, reply = refusal("Unauthorized", 401)
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "Dialect":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, path: str, body: Any) -> tuple[int, Any]:
        raise NotImplementedError

    def native(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        """llama.cpp's own reply with `number` log-probabilities, or without."""
        asked = {
            name: body[name] for name in ("prompt", "messages", "max_tokens", "temperature", "seed") if name in body
        }
        if "max_completion_tokens" in body:
            asked["max_tokens"] = body["max_completion_tokens"]
        if "messages" in body:
            return self.runtime._ask(
                "POST", "/v1/chat/completions", {**asked, "logprobs": True, "top_logprobs": number}
            )
        return self.runtime._ask("POST", "/v1/completions", {**asked, "logprobs": number})

    def tops(self, row: list[int], number: int) -> list[list[tuple[int, float]]]:
        """For each token of the row but the first the likeliest (id, logprob) in its place and, last, its own."""
        logprobs = self.runtime.logprobs([row], [range(len(row) - 1)])
        best = np.argsort(-logprobs, axis=1, kind="stable")[:, :number]
        return [
            [*((int(i), float(line[i])) for i in ids), (token, float(line[token]))]
            for line, ids, token in zip(logprobs, best, row[1:], strict=True)
        ]


def refusal(message: str, status: int = 400) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "invalid_request_error"}}


class Vllm(Dialect):
    """vLLM: ids on demand, at most 20 log-probabilities, prompt_logprobs beside the choice, echo ignored here."""

    def reply(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {"data": [{"id": "teacher", "owned_by": "vllm", "max_model_len": 192}]}
        number = (body.get("top_logprobs") if body.get("logprobs") is True else body.get("logprobs")) or 0
        for name, wanted in (("sample", number), ("prompt", body.get("prompt_logprobs") or 0)):
            if wanted > 20:
                return refusal(f"Requested {name} logprobs of {wanted}, which is greater than max allowed: 20")
        reply = self.native(body, max(1, number))
        choice = reply["choices"][0]
        entries = choice["logprobs"]["content"] if choice["logprobs"] else []
        by_id = body.get("return_tokens_as_token_ids")
        choice["logprobs"] = None
        if number and "messages" in body:
            choice["logprobs"] = {"content": [_without_id(entry, by_id) for entry in entries]}
        elif number:
            tops = [{_name(top, by_id): top["logprob"] for top in entry["top_logprobs"]} for entry in entries]
            choice["logprobs"] = {
                "tokens": [_name(entry, by_id) for entry in entries],
                "token_logprobs": [entry["logprob"] for entry in entries],
                "top_logprobs": tops,
                "text_offset": [0] * len(entries),
            }
        if body.get("prompt_logprobs"):
            positions = self.tops(body["prompt"], body["prompt_logprobs"])
            choice["prompt_logprobs"] = [
                None,
                *({str(i): {"logprob": lp, "rank": 1, "decoded_token": "?"} for i, lp in tops} for tops in positions),
            ]
        return 200, reply


class Echo(Dialect):
    """Legacy completions with echo, as llama-cpp-python: tokens as text, five alternatives, no chat, no extensions."""

    def reply(self, path: str, body: Any) -> tuple[int, Any]:
        if path != "/v1/completions":
            return refusal("Not Found", 404)
        if "return_tokens_as_token_ids" in body:
            return refusal("extra fields not permitted", 422)
        number = min(5, body.get("logprobs") or 0)
        reply = self.native(body, max(1, number))
        choice = reply["choices"][0]
        entries = choice["logprobs"]["content"] if choice["logprobs"] else []
        choice["logprobs"] = None
        if number:
            tokens = [(entry["token"], entry["logprob"], entry["top_logprobs"]) for entry in entries]
            if body.get("echo"):
                tokens = [*self._echoed(body["prompt"], number), *tokens]
            choice["logprobs"] = {
                "tokens": [token for token, _, _ in tokens],
                "token_logprobs": [logprob for _, logprob, _ in tokens],
                "top_logprobs": [top and {t["token"]: t["logprob"] for t in top} for _, _, top in tokens],
                "text_offset": [0] * len(tokens),
            }
        return 200, reply

    def _echoed(self, row: list[int], number: int) -> list[tuple[str, float | None, Any]]:
        words = {
            i: self.runtime._ask("POST", "/detokenize", {"tokens": [i]})["content"] for i in self._ids(row, number)
        }
        echoed: list[tuple[str, float | None, Any]] = [(words[row[0]], None, None)]
        for tops in self.tops(row, number):
            token, logprob = tops[-1]
            echoed.append((words[token], logprob, [{"token": words[i], "logprob": lp} for i, lp in tops[:-1]]))
        return echoed

    def _ids(self, row: list[int], number: int) -> set[int]:
        return {*row, *(i for tops in self.tops(row, number) for i, _ in tops)}


class ChatOnly(Dialect):
    """A chat API as OpenAI's newest: another name for the limit, `logprobs` many log-probabilities or none, no ids."""

    def __init__(self, runtime: LlamaCpp, most: int) -> None:
        super().__init__(runtime)
        self.most = most

    def reply(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/completions":
            return refusal("This is a chat model and not supported in the v1/completions endpoint.", 404)
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": "teacher"}, {"id": "other"}]}
        unknown = set(body) - {
            *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed"),
            *("logprobs", "top_logprobs"),
        }
        if unknown:
            return refusal(f"Unrecognized request argument supplied: {sorted(unknown)[0]}")
        if "max_tokens" in body:
            return refusal("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if body.get("logprobs") and body.get("top_logprobs", 0) > self.most:
            return refusal("You are not allowed to request logprobs from this model" if not self.most else "too many")
        reply = self.native(body, body.get("top_logprobs") or 1)
        choice = reply["choices"][0]
        if not body.get("logprobs"):
            choice["logprobs"] = None
        else:  # the end token is not told
            entries = [entry for entry in choice["logprobs"]["content"] if entry["bytes"]]
            choice["logprobs"] = {"content": [_without_id(entry, False) for entry in entries]}
        return 200, reply


def _name(entry: dict[str, Any], by_id: Any) -> str:
    return f"token_id:{entry['id']}" if by_id else entry["token"]


def _without_id(entry: dict[str, Any], by_id: Any) -> dict[str, Any]:
    name = _name(entry, by_id)
    kept = {"token": name, "logprob": entry["logprob"], "bytes": list(name.encode()) if by_id else entry["bytes"]}
    if "top_logprobs" in entry:
        kept["top_logprobs"] = [_without_id(top, by_id) for top in entry["top_logprobs"]]
    return kept
