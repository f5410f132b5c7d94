"""All stores of responses below a folder of artifacts, one line each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.errors import RecipeError, StageFailed
from distill.responses import HEADER, SUMMARY, TeacherResponses


@dataclass(frozen=True)
class Facts:
    """What a store says about itself without its rows being read; counts are None while it is being written."""

    teacher: str
    kind: str
    rows: int
    tokens: int | None
    size_bytes: int
    target_bytes: int | None

    @classmethod
    def read(cls, store: Path) -> "Facts | None":
        """None when `store` is no store that this version can read."""
        try:
            header = json.loads((store / HEADER).read_text())
            summary = json.loads((store / SUMMARY).read_text()) if (store / SUMMARY).exists() else {}
            size_bytes = sum(file.stat().st_size for file in store.iterdir() if file.is_file())
            counts = (summary.get("tokens"), size_bytes, summary.get("target_bytes"))
            return cls(header["teacher"], header["kind"], header["num_rows"], *counts)
        except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):
            return None

    @property
    def bytes_per_token(self) -> float | None:
        """All files of the store by its tokens; None for text alone."""
        return self.size_bytes / self.tokens if self.tokens else None


def is_store(folder: Path) -> bool:
    """Whether `folder` is one store of responses, finished or not."""
    return (folder / HEADER).is_file()


def open_store(store: Path) -> TeacherResponses:
    """The store, opened. Raises StageFailed when it is unfinished, or one of the files that describe it is damaged."""
    try:
        return TeacherResponses(store)
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, FileNotFoundError) as error:
        raise StageFailed(f"{store} cannot be opened: {error}.") from None


def stores_below(folder: Path) -> Iterator[Path]:
    """The stores of responses among all artifacts, unfinished ones included.

    Raises:
        RecipeError: there is nothing that distill made.
    """
    if not any(folder.glob("*/*/manifest.json")) and not any(folder.glob("*/*.scratch")):
        raise RecipeError(
            f"{folder} is neither a store of responses nor the folder of all artifacts. "
            "That one is outputs/store where you ran distill, or what DISTILL_STORE names."
        )
    for pattern in ("*/*", "*/*/*"):  # a run with several teachers keeps one store for each
        yield from (header.parent for header in sorted(folder.glob(f"{pattern}/{HEADER}")))


def print_list(folder: Path, out) -> None:
    """Prints teacher, kind, rows, tokens, bytes per token and fingerprint of every store below `folder`."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("teacher", "kind", "rows", "tokens", "bytes/token", "fingerprint"):
        is_number = name in {"rows", "tokens", "bytes/token"}
        table.add_column(name, no_wrap=True, overflow="fold", justify="right" if is_number else "left")
    stores = list(stores_below(folder))
    for store in stores:
        facts = Facts.read(store)
        name = str(Path(*store.relative_to(folder).parts[1:]))
        if facts is None:
            cells = ("?", "unreadable", "", "", "", name)
        elif facts.tokens is None:
            state = "unfinished" if ".scratch" in name else "older distill"
            cells = (facts.teacher, facts.kind, f"{facts.rows:,}", state, "", name)
        else:
            per_token = "–" if facts.bytes_per_token is None else f"{facts.bytes_per_token:.2f}"
            cells = (facts.teacher, facts.kind, f"{facts.rows:,}", f"{facts.tokens:,}", per_token, name)
        table.add_row(*(Text(cell) for cell in cells))
    if not stores:
        out.print(f"{folder} holds no store of responses.", markup=False)
        return
    out.print(table)
    out.print(f"\npython -m distill.store {stores[0]} shows the first of them.", markup=False, style="dim")
