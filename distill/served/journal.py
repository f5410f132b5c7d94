"""Journal: every answer and its cost, written once as it arrives, whole or not at all.

One SQLite file in WAL mode. A transaction is in the file before `keep` returns, so SIGKILL at any moment loses only
requests in flight; after a power cut the last seconds may be missing, and nothing is half there. The primary key makes
a second answer to the same request impossible, and every row carries a checksum of its own.
Exclusive locking keeps the index of the WAL out of shared memory, which network file systems do not have.
"""

import contextlib
import hashlib
import json
import math
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.artifact import locked
from distill.errors import RecipeError, StageFailed

VERSION = 1
CHECKSUM_BYTES = 16
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, payload BLOB NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS requests (
    id INTEGER PRIMARY KEY, prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL, cost REAL NOT NULL,
    billed INTEGER NOT NULL
);
"""
FULL, CANNOT_OPEN, NOT_A_DATABASE = "full", "unable to open", "not a database"


@dataclass(frozen=True)
class Spent:
    """Tokens and money of all runs so far. `perhaps` is for requests whose reply was cut off, at their most."""

    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float = 0.0
    perhaps: float = 0.0


class Journal:
    """The answers in one file; open it in a `with` statement. One process at a time, a second one waits.

    Raises:
        RecipeError: the file is none of ours.
        StageFailed: the disk is full or the file cannot be written.
    """

    def __init__(self, path: Path, log: Callable[[str], None]) -> None:
        self.path, self._log = Path(path), log
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Journal":
        lock = self.path.with_name(self.path.name + ".lock")
        with contextlib.ExitStack() as opened:
            try:
                opened.enter_context(locked(lock, self._say_waiting))
            except OSError as error:
                raise StageFailed(f"{self.path} cannot be written: {error.strerror}.") from None
            with self._explained():
                self._database = sqlite3.connect(self.path, isolation_level=None)
                opened.callback(self._database.close)
                self._prepare()
                self._reserved = dict(self._database.execute("SELECT id, cost FROM requests WHERE NOT billed"))
                billed = self._database.execute(
                    "SELECT TOTAL(prompt_tokens), TOTAL(answer_tokens), TOTAL(cost) FROM requests WHERE billed"
                ).fetchone()
            self._spent = Spent(int(billed[0]), int(billed[1]), billed[2])
            self._open = opened.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    @property
    def spent(self) -> Spent:
        # Summed anew: differences of floats leave dust, and a limit must be exact.
        return replace(self._spent, perhaps=math.fsum(self._reserved.values()))

    def get(self, key: str) -> Mapping[str, Any] | None:
        """What was kept under `key`, or None; a row whose bytes have changed on the disk is named and taken out."""
        with self._explained():
            row = self._database.execute("SELECT payload, checksum FROM answers WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            if _checksum(key, row[0]) == row[1]:
                return json.loads(zlib.decompress(row[0]))
            self._database.execute("DELETE FROM answers WHERE key = ?", (key,))
        self._log(f"{self.path}: the answer {key[:8]} was damaged on the disk; it will be asked again")
        return None

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those keys that nothing is kept under, each once, in the caller's order."""
        with self._explained():
            has = self._database.execute
            return [
                key
                for key in dict.fromkeys(keys)
                if has("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone() is None
            ]

    def reserve(self, prompt_tokens: int, answer_tokens: int, cost: float) -> int:
        """Notes a request about to be sent, at its most; what a killed run leaves so counts as perhaps spent."""
        with self._explained():
            row = self._database.execute(
                "INSERT INTO requests (prompt_tokens, answer_tokens, cost, billed) VALUES (?, ?, ?, 0)",
                (prompt_tokens, answer_tokens, cost),
            )
        assert row.lastrowid is not None
        self._reserved[row.lastrowid] = cost
        return row.lastrowid

    def release(self, reservation: int) -> None:
        """Takes back a reservation whose request cost nothing."""
        with self._explained():
            self._database.execute("DELETE FROM requests WHERE id = ?", (reservation,))
        del self._reserved[reservation]

    def settle(
        self,
        reservation: int | None,
        prompt_tokens: int,
        answer_tokens: int,
        cost: float,
        *,
        keep: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Notes what a reply has cost and, in the same transaction, keeps the answer that it completes."""
        with self._explained(), self._transaction():
            self._database.execute("DELETE FROM requests WHERE id = ?", (reservation,))
            self._database.execute(
                "INSERT INTO requests (prompt_tokens, answer_tokens, cost, billed) VALUES (?, ?, ?, 1)",
                (prompt_tokens, answer_tokens, cost),
            )
            if keep is not None:
                self._keep(*keep)
        self._reserved.pop(reservation, None)
        old = self._spent
        self._spent = Spent(old.prompt_tokens + prompt_tokens, old.answer_tokens + answer_tokens, old.cost + cost)

    def keep(self, key: str, content: Mapping[str, Any]) -> None:
        """Keeps `content` under `key`; what is kept already stays."""
        with self._explained():
            self._keep(key, content)

    def _keep(self, key: str, content: Mapping[str, Any]) -> None:
        payload = zlib.compress(json.dumps(content, separators=(",", ":")).encode(), level=1)
        row = (key, payload, _checksum(key, payload))
        self._database.execute("INSERT OR IGNORE INTO answers (key, payload, checksum) VALUES (?, ?, ?)", row)

    def _say_waiting(self) -> None:
        self._log(f"{self.path} is in use by another process; waiting for it")

    def _prepare(self) -> None:
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        (tables,) = self._database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if version != VERSION and (version or tables):
            raise RecipeError(f"{self.path} is no journal of version {VERSION}; move it away to start a new one.")
        self._database.executescript(SCHEMA)
        self._database.execute(f"PRAGMA user_version = {VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._database.in_transaction:  # a full disk has rolled it back already
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            said = str(error)
        else:
            return
        if NOT_A_DATABASE in said:
            raise RecipeError(f"{self.path} is no journal of answers; name another file, or move it away.")
        if FULL in said:
            raise StageFailed(
                f"{self.path}: the disk is full. Every answer so far is kept; make room and run it again."
            )
        raise StageFailed(f"{self.path} cannot be {'opened' if CANNOT_OPEN in said else 'used'}: {said}.")


def _checksum(key: str, payload: bytes) -> bytes:
    return hashlib.sha256(key.encode() + payload).digest()[:CHECKSUM_BYTES]
