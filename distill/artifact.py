"""Artifacts: what a stage made, under a fingerprint of everything it read. Standard library only.

An artifact is a folder. It exists if and only if its `manifest.json` exists: that is written last, after
every other file has reached the disk, inside a scratch folder that is then renamed into place.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.errors import StageFailed
from distill.papers import is_paper

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A sealed folder: its kind, where it lies, the fingerprint it was made under and those of its inputs."""

    kind: str
    path: Path
    fingerprint: str
    inputs: Mapping[str, str] = field(default_factory=dict)


def fingerprint(*, settings: Any, inputs: Mapping[str, str]) -> str:
    """SHA-256 (first 20 hex digits) of the settings and of the inputs' fingerprints, in canonical JSON."""
    text = json.dumps({"settings": settings, "inputs": dict(inputs)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def hash_file(path: Path) -> str:
    """SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_folder(path: Path) -> str:
    """SHA-256 over the names and bytes of a checkpoint folder's own files.

    Manifests, model cards and licence papers aside: they decide no weight, and may be added later.
    """
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        aside = file.name in {MANIFEST, "README.md"} or file.name.startswith(".") or is_paper(file.name)
        if not aside:
            digest.update(f"{file.relative_to(path)}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


def open_artifact(path: Path) -> Artifact | None:
    """The artifact at `path`, or None when nothing sealed is there."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        return None
    return Artifact(manifest["kind"], path, manifest["fingerprint"], manifest["inputs"])


def seal(scratch: Path, artifact: Artifact) -> Artifact:
    """Makes the finished folder `scratch` the artifact: files to disk, manifest last, then one rename."""
    (scratch / MANIFEST).unlink(missing_ok=True)  # of an artifact that was opened again
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    for file in files:
        file.chmod(0o644)  # safetensors writes files that only their owner can read; packages are for others
        _to_disk(file)
    manifest = {
        "kind": artifact.kind,
        "fingerprint": artifact.fingerprint,
        "inputs": dict(artifact.inputs),
        "files": {str(f.relative_to(scratch)): f.stat().st_size for f in files},
    }
    write_whole(scratch / MANIFEST, json.dumps(manifest, indent=1))
    artifact.path.parent.mkdir(parents=True, exist_ok=True)
    scratch.rename(artifact.path)
    _to_disk(artifact.path.parent)
    return artifact


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that a crash leaves either the old content or the new, never a part."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    _to_disk(part)
    part.replace(path)
    _to_disk(path.parent)


@contextlib.contextmanager
def locked(path: Path, on_wait=lambda: None) -> Iterator[None]:
    """Holds the lock file `path`; a second process that wants it calls `on_wait` once and then waits.

    The kernel frees the lock when its holder dies, so a killed run never blocks the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise StageFailed(f"{path}: cannot be locked ({error.strerror}).") from None
        yield


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
