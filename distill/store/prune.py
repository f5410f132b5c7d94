"""Frees artifacts that no run names. A run names what it made or reused in its record.jsonl."""

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from distill.artifact import locked, open_artifact
from distill.errors import RecipeError
from distill.store.listing import is_store
from distill.workspace import RUNS

RECORD = "record.jsonl"
_FINGERPRINT = re.compile(rb"[0-9a-f]{20}")
_ANYWHERE = re.compile(rb"(?=([0-9a-f]{20}))")
PRUNED = ".pruned"


class _InUse(Exception):
    """Another process holds the artifact's lock."""


def prune(store: Path, more_runs: Sequence[Path], *, unfinished: bool, really: bool, out) -> int:
    """Prints what no run names, and deletes it if `really`. Returns 0.

    Scratch folders are what interrupted runs go on from, teachers' paid answers among it, and nothing says whose they
    are: they are freed with `unfinished` only.
    """
    if is_store(store) or open_artifact(store):
        raise RecipeError(f"--prune {store}: this is one artifact; name the folder of all of them.")
    folders = _run_folders(store, more_runs)
    records = _Records(folders)
    if not records.files():
        where = " or ".join(dict.fromkeys(map(str, folders)))
        raise RecipeError(f"--prune: no run is below {where}, so everything would go. Name one with --runs FOLDER.")
    named = records.names()
    artifacts = _artifacts(store)
    unused = [path for path in artifacts if path.name not in named]
    scratches, half_pruned = _begun(store, ".scratch"), _begun(store, PRUNED)
    freed_bytes = 0
    for path in (*unused, *(scratches if unfinished else ()), *half_pruned):
        try:
            size_bytes = _free(path, records, really)
        except _InUse:
            out.print(f"in use  {path.relative_to(store)}", markup=False)
            continue
        if size_bytes is not None:
            freed_bytes += size_bytes
            word = "freed " if really else "unused"
            out.print(f"{word}  {path.relative_to(store)}  {_mebibytes(size_bytes)}", markup=False)
    out.print(f"{len(records.files())} runs name {len(artifacts) - len(unused)} artifacts, which stay.")
    if scratches and not unfinished:
        out.print(f"{len(scratches)} unfinished ones stay too: their runs can go on. --unfinished frees them.")
    out.print(f"{_mebibytes(freed_bytes)} freed." if really else f"Dry run: --yes frees {_mebibytes(freed_bytes)}.")
    return 0


def _free(path: Path, records: "_Records", really: bool) -> int | None:
    """The bytes that deleting `path` frees; None when it is needed after all, or gone. Raises _InUse."""
    # runs make, look for and reuse an artifact under this lock: while it is held, nobody begins to use it
    with locked(path.with_suffix(".lock"), _refuse):
        if not path.exists() or (not path.suffix and path.name in records.names()):
            return None
        size_bytes = _size(path)
        if really:
            _delete(path)
        return size_bytes


def _refuse() -> None:
    raise _InUse


def _delete(path: Path) -> None:
    """Renamed first: a folder with a manifest is whole, also when the deletion is interrupted."""
    gone = path.with_suffix(PRUNED)
    if path != gone:
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
    shutil.rmtree(gone)


def _artifacts(store: Path) -> list[Path]:
    """Sealed folders that are what their names say; other people's folders are never touched."""
    found = []
    for manifest in sorted(store.glob("*/*/manifest.json")):
        artifact = open_artifact(manifest.parent)
        if artifact is not None and artifact.fingerprint == manifest.parent.name:
            found.append(manifest.parent)
    return found


def _begun(store: Path, suffix: str) -> list[Path]:
    """What lies beside the artifacts, on its way in or out."""
    return sorted(path for path in store.glob(f"*/*{suffix}") if _FINGERPRINT.fullmatch(path.stem.encode()))


def _run_folders(store: Path, more: Sequence[Path]) -> list[Path]:
    for folder in more:
        if not next(iter(_record_files([folder])), None):
            raise RecipeError(f"--runs {folder}: no {RECORD} is there. Name a run's folder, or a folder of such.")
    known = [Path(file.read_text()) for file in (store / RUNS).glob("*.txt")]
    return [store.resolve().parent, Path("outputs").resolve(), *known, *more]


def _record_files(folders: Iterable[Path]) -> set[Path]:
    patterns = (RECORD, f"*/{RECORD}", f"*/*/{RECORD}")
    return {file.resolve() for folder in folders for pattern in patterns for file in folder.glob(pattern)}


class _Records:
    """The records of all runs, read again where they have grown."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders
        self._read: dict[Path, int] = {}
        self._names: set[str] = set()

    def files(self) -> set[Path]:
        """All of them, as of now."""
        return _record_files(self.folders)

    def names(self) -> set[str]:
        """Everything in them that may be a fingerprint, also in a line that a crash cut in half."""
        for file in self.files():
            size = file.stat().st_size
            if self._read.get(file) != size:
                self._names |= {name.decode() for name in _ANYWHERE.findall(file.read_bytes())}
                self._read[file] = size
        return self._names


def _size(folder: Path) -> int:
    """Bytes that deleting the folder frees; a file that a run's package is linked to frees none."""
    stats = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum(stat.st_size for stat in stats if stat.st_nlink == 1)


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.2f} MiB"
