"""A model hub on this machine: folders as repositories, over the part of the hub's interface that a download uses.

    with hub_of({"org/model": {"main": folder, "refs/pr/1": other}}) as (endpoint, asked): ...

`asked` are the names of the files that were downloaded. `gated` repositories answer 403 without a token.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@contextlib.contextmanager
def hub_of(
    repositories: Mapping[str, Mapping[str, Path]], gated: frozenset[str] = frozenset()
) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(with_body=False)

        def do_GET(self):
            self._answer(with_body=True)

        def log_message(self, *_):
            pass

        def _answer(self, with_body):
            path = unquote(urlsplit(self.path).path).strip("/")
            if path.startswith("api/models/"):
                is_tree = "/tree/" in path
                name, _, revision = path.removeprefix("api/models/").partition("/tree/" if is_tree else "/revision/")
                if is_tree and revision.endswith("/additional_chat_templates"):
                    self._refuse(404, "EntryNotFound")  # a folder that transformers asks for, and few have
                    return
                folder = self._folder(name, revision)
                if folder is not None:
                    files = [
                        {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"}
                        for f in sorted(folder.iterdir())
                    ]
                    about = files if is_tree else {"id": name, "sha": commit(folder)}
                    self._send(json.dumps(about).encode(), with_body)
                return
            name, _, rest = path.partition("/resolve/")
            of = repositories.get(name, {})
            revision = next((r for r in sorted([*of, *map(commit, of.values())]) if rest.startswith(f"{r}/")), "")
            folder = self._folder(name, revision)
            if folder is None:
                return
            file = folder / rest.removeprefix(f"{revision}/")
            if not file.is_file():
                self._refuse(404, "EntryNotFound")
                return
            if with_body:
                asked.append(file.name)
            self._send(file.read_bytes(), with_body, commit(folder))

        def _folder(self, name, revision):
            if name in gated and "Authorization" not in self.headers:
                return self._refuse(403, "GatedRepo")
            for known, folder in repositories.get(name, {}).items():
                if revision in (known, commit(folder)):
                    return folder
            return self._refuse(404, "RevisionNotFound" if name in repositories else "RepoNotFound")

        def _refuse(self, status, code):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, body, with_body, of_commit=None):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            if of_commit:
                self.send_header("X-Repo-Commit", of_commit)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def commit(folder: Path) -> str:
    """A full commit for each folder."""
    return hashlib.sha1(str(folder).encode()).hexdigest()
