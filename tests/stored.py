"""Stores and artifacts for the tests of `python -m distill.store`, and the command itself."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distill._store_writer import StoreWriter
from distill.artifact import Artifact, seal
from distill.responses import Header, Row
from distill.store.__main__ import main
from distill.targets.dense import DenseTargets
from distill.targets.frozen_head import FrozenHeadTargets
from distill.targets.next_token import NextTokenTargets
from distill.targets.sampled import SampledTargets
from distill.targets.top_k import TopKTargets
from tests.conftest import typed_in

VOCAB = 8
HEADER = Header(
    teacher="tiny",
    revision="main",
    engine="test 1",
    dtype="float32",
    kind="sampled",
    tokenizer_hash="of no folder",
    template_hash="t",
    vocab_size=VOCAB,
    kept=4,
    seed=3,
    num_rows=40,
)
# one position each; the row [1, 2, 3] has a prompt of two tokens, so the targets are those of token 3
PROBABILITIES = np.array([[0.0625, 0.125, 0.5, 0.25, 0.0625, 1e-9, 1e-9, 1e-9]], dtype=np.float32)
TARGETS = {
    "sampled": SampledTargets.of_draws(np.array([[2, 2, 2, 3]]), np.array([0.75])),
    "top_k": TopKTargets(
        np.array([[2, 3]], dtype=np.int32),
        np.log(PROBABILITIES[:, 2:4]),
        np.log(np.array([0.25], dtype=np.float32)),
        np.log(np.array([0.25], dtype=np.float32)),
        np.array([5.0], dtype=np.float32),
    ),
    "dense": DenseTargets(np.log(PROBABILITIES)),
    "next": NextTokenTargets(np.log(np.array([0.25], dtype=np.float32))),
    "frozen_head": FrozenHeadTargets(np.array([[3.0, 4.0]], dtype=np.float32), np.array([0.5], dtype=np.float32)),
}
KEPT = {"sampled": 4, "top_k": 2, "frozen_head": 2}


def write(folder: Path, header: Header = HEADER, text: str = "answer") -> Path:
    """A store of rows [1, 2, 3]; the last two numbers differ from row to row where there are no targets to fit."""
    folder.mkdir(parents=True)
    numbers = range(header.num_rows)
    writer = StoreWriter(folder, header, [numbers[i : i + 1] for i in numbers])
    for batch in writer.missing():
        ids = None if header.kind == "text" else np.array([1, 2, 3], dtype=np.int32)
        writer.write(
            [
                Row(n, f"{text} {n}", "teacher", ids, 2 if ids is not None else 0, TARGETS.get(header.kind))
                for n in batch
            ]
        )
    writer.finish()
    return folder


def fingerprint(name: int) -> str:
    return f"{name:020x}"


def add_artifact(all_artifacts: Path, kind: str, name: int) -> Path:
    """A sealed artifact; of kind "responses", a store."""
    path = all_artifacts / kind / fingerprint(name)
    scratch = path.with_suffix(".scratch")
    if kind == "responses":
        write(scratch)
    else:
        scratch.mkdir(parents=True)
        (scratch / "weights").write_bytes(b"1234")
    path.with_suffix(".lock").touch()
    return seal(scratch, Artifact(kind, path, path.name)).path


def command_in(folder: Path, capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.delenv("DISTILL_STORE", raising=False)
    # thousands of small batches would each wait for the disk
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return typed_in(main, folder, capsys, monkeypatch, columns=200)
