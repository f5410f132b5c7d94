"""A proxy on loopback that does to requests what the internet does, by a schedule. Standard library only."""

import collections
import http.client
import json
import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BEFORE = ("429", "500", "503", "reset", "hang")
"""The server never sees these requests."""
AFTER = ("half", "invalid_json", "wrong_choices", "empty", "drip")
"""The server answers these; what arrives is spoilt, or with `drip` only slow."""
KINDS = (*BEFORE, *AFTER)
HARMLESS = "drip"
ECHO = "echo"
"""Not among them: an answer with the key at its end."""

Schedule = Callable[[int], str | None]


def seeded(seed: int, share: float, kinds: tuple[str, ...] = KINDS) -> Schedule:
    """Of the requests in order of arrival, `share` meet a fault; the same ones and the same faults for a seed."""
    generator, drawn, lock = random.Random(seed), [], threading.Lock()

    def schedule(number: int) -> str | None:
        with lock:
            while len(drawn) <= number:
                hit, kind = generator.random() < share, generator.choice(kinds)
                drawn.append(kind if hit else None)
            return drawn[number]

    return schedule


class FaultProxy:
    """Stands between a client and 127.0.0.1:`upstream_port`; use it in a `with` statement.

    Attributes:
        delivered: replies that reached the client whole, by the JSON of the request's body.
        asked: requests that arrived, by the same.
        met: faults that happened, by kind.
        headers: those of the last request.
    """

    def __init__(
        self, upstream_port: int, schedule: Schedule = lambda number: None, *, hang_seconds: float = 30.0
    ) -> None:
        self.upstream_port, self.schedule, self.hang_seconds = upstream_port, schedule, hang_seconds
        self.retry_after = "0.2"
        self.delivered: collections.Counter[str] = collections.Counter()
        self.asked: collections.Counter[str] = collections.Counter()
        self.met: collections.Counter[str] = collections.Counter()
        self.headers: dict[str, str] = {}
        self.arrivals: list[float] = []
        self.refuse_key: str | None = None
        """Every request is answered `refuse_status` with these words and the key that was sent."""
        self.refuse_status = 401
        self.in_flight = self.most_in_flight = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def arrived(self, body: bytes, headers: Any) -> str | None:
        """Counts a request; returns its fault."""
        with self.lock:
            self.headers = {name.lower(): value for name, value in headers.items()}
            fault = self.schedule(len(self.arrivals))
            self.arrivals.append(time.monotonic())
            self.asked[request_name(body)] += 1
            if fault is not None:
                self.met[fault] += 1
            return fault


class _Server(ThreadingHTTPServer):
    proxy: FaultProxy
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._pass_on("GET")

    def do_POST(self) -> None:
        proxy = self.server.proxy
        with proxy.lock:
            proxy.in_flight += 1
            proxy.most_in_flight = max(proxy.most_in_flight, proxy.in_flight)
        try:
            self._pass_on("POST")
        finally:
            with proxy.lock:
                proxy.in_flight -= 1

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _pass_on(self, method: str) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.arrived(body, self.headers)
        if proxy.refuse_key is not None:
            said = f"{proxy.refuse_key} {self.headers.get('Authorization')}"
            self._reply(
                proxy.refuse_status, json.dumps({"error": {"message": said, "code": "invalid_api_key"}}).encode()
            )
        elif fault in BEFORE:
            self._refuse(fault)
        else:
            status, content = self._ask_upstream(method, body)
            self._spoil(fault, status, content)
            if fault in (None, HARMLESS) and status == 200:
                with proxy.lock:
                    proxy.delivered[request_name(body)] += 1

    def _ask_upstream(self, method: str, body: bytes) -> tuple[int, bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.proxy.upstream_port, timeout=60)
        upstream.request(method, self.path, body or None, {"Content-Type": "application/json"})
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        return response.status, content

    def _refuse(self, fault: str) -> None:
        if fault == "hang":
            self.server.proxy.closing.wait(self.server.proxy.hang_seconds)
            self.close_connection = True
        elif fault == "reset":
            # Lingering for no time at all makes the kernel send RST instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        else:
            extra = {"Retry-After": self.server.proxy.retry_after} if fault == "429" else {}
            self._reply(int(fault), json.dumps({"error": {"message": f"injected {fault}"}}).encode(), extra)

    def _spoil(self, fault: str | None, status: int, content: bytes) -> None:
        if fault == "half":
            self._start(status, len(content))
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault == "drip":
            self._start(status, len(content))
            size = -(-len(content) // 8)
            for start in range(0, len(content), size):
                self.wfile.write(content[start : start + size])
                self.wfile.flush()
                time.sleep(0.02)
        elif fault == "invalid_json":
            self._reply(status, content[:-1])
        elif fault == "empty":
            self._reply(status, b"")
        elif fault == "echo":
            reply = json.loads(content)
            reply["choices"][0]["message"]["content"] += f" {self.headers.get('Authorization')}"
            self._reply(status, json.dumps(reply).encode())
        elif fault == "wrong_choices":
            reply = json.loads(content)
            reply["choices"] = [] if len(content) % 2 else [*reply.get("choices", []), *reply.get("choices", [])]
            self._reply(status, json.dumps(reply).encode())
        else:
            self._reply(status, content)

    def _reply(self, status: int, content: bytes, extra: dict[str, str] | None = None) -> None:
        self._start(status, len(content), extra)
        self.wfile.write(content)

    def _start(self, status: int, length: int, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()


def request_name(body: bytes) -> str:
    """The prompt of a request and its answer's limit: what tells the requests of the tests apart."""
    content = json.loads(body) if body else {}
    prompt = content.get("messages") or content.get("prompt")
    return json.dumps([prompt, content.get("max_tokens"), content.get("seed"), sorted(content.get("logit_bias") or {})])
