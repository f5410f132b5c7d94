"""On-policy distillation: the student writes, the teacher scores what it wrote, the student learns from that.

The training is cut into rounds of equal length. At the start of a round the student answers the prompts of the round
(`written`), then the teacher gives its distributions along these answers by prefill alone (`scored`), then the round is
trained; so one device never holds both models. Both stores lie beside the training's checkpoints and are filled batch
by batch: a crash repeats nothing that was written or scored. Of several processes each holds the whole student, and
writes and scores its share of the batches.
Source: generalised knowledge distillation, Agarwal et al. 2023, arXiv:2306.13649, algorithm 1; the rounds are ours.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill._shards import Row
from distill._store_writer import StoreWriter
from distill.distributed import ALONE, World
from distill.encoding import template_hash, tokenizer_hash
from distill.progress import bar
from distill.responses import SUMMARY, Header, TeacherResponses
from distill.runtime._placement import default_device
from distill.stages._batches import BatchPlan
from distill.stages._checkpoints import load_last_checkpoint
from distill.stages._local_teacher import among, answered_row, likeliest, num_ids, sampler
from distill.stages._rows import TokenRow
from distill.stages._trainer import Trained
from distill.stages.teach import Engine
from distill.training import Training

BATCH = 128

OpenTeacher = Callable[[Path], AbstractContextManager[Engine]]


def train_in_rounds(
    model: Any,
    tokenizer: Any,
    rows: Sequence[TokenRow],
    training: Training,
    plan: BatchPlan,
    *,
    seed: int,
    folder: Path,
    open_teacher: OpenTeacher | None,
    train: Callable[..., Trained],
    each_scores: bool = True,
    together: World = ALONE,
) -> Trained:
    """Trains `model` in place; of each batch, the share `training.on_policy` of its rows is the student's own answers.

    Args:
        rows, plan: the training as it would be off-policy; the plan says which prompts a batch has.
        open_teacher: opens what scores (it is closed before training goes on); None for a teacher that stays in memory.
        train: `(rows, plan, stop_after)`, what trains up to a step and leaves its checkpoint in `folder / "trainer"`.
        each_scores: whether every process opens the teacher for its share, or the leader alone for all.
    """
    known, batches, trained, resumed = list(rows), plan.batches.copy(), None, None
    ends = [round(plan.steps * (number + 1) / training.on_policy_rounds) for number in range(training.on_policy_rounds)]
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start == end:
            continue
        steps = slice(start, end)
        chosen = _chosen(plan.batches[steps], training.on_policy, [seed, number])
        asked = sorted({int(row) for row in plan.batches[steps][chosen]})
        written, scored = (folder / f"round-{number:03d}-{what}" for what in ("written", "scored"))
        if together.share((scored / SUMMARY).exists()):
            answers = TeacherResponses(scored)
        else:
            load_last_checkpoint(model, folder / "trainer", together)
            answers = _write(model, tokenizer, [rows[row] for row in asked], training, seed, number, written, together)
            if open_teacher is not None:
                answers = _score(model, answers, open_teacher, scored, together, each_scores)
        batches[steps] = _replaced(plan.batches[steps], chosen, asked, answers, known, training.max_length)
        lengths = np.array([row.length for row in known], dtype=np.int64)
        now = BatchPlan(batches, lengths[batches].sum(axis=1).cumsum())
        trained = train(known, now, end if end < plan.steps else None)
        # a round goes on from where it starts by design, and from another step after a crash
        if resumed is None and trained.resumed_from_step not in {None, start}:
            resumed = trained.resumed_from_step
    assert trained is not None
    return replace(trained, resumed_from_step=resumed)


def _chosen(batches: np.ndarray, share: float, seed: Sequence[int]) -> np.ndarray:
    """Which places of each batch the student writes, as a mask: the same number in every batch, drawn by the seed."""
    rng = np.random.default_rng([*seed, 0x0B0])
    rank = rng.random(batches.shape).argsort(axis=1).argsort(axis=1)
    return rank < round(share * batches.shape[1])


def _write(
    model: Any,
    tokenizer: Any,
    rows: Sequence[TokenRow],
    training: Training,
    seed: int,
    number: int,
    store: Path,
    together: World,
) -> TeacherResponses:
    """The student's own answers to the rows' prompts, with its weights of this moment."""
    import torch

    from distill.runtime.hf import Transformers

    store.mkdir(exist_ok=True)
    prompts = [[int(token) for token in row.read()[0][: row.prompt_length]] for row in rows]
    order = sorted(range(len(rows)), key=lambda row: len(prompts[row]))
    writer = _writer(store, _header(model, tokenizer, len(rows)), order, together)
    _to_where_it_runs(model)
    student, known = Transformers("the student", model=model.eval(), tokenizer=tokenizer), num_ids(tokenizer)
    missing = writer.num_missing(together.rank, together.size)
    with torch.inference_mode(), bar(f"student answers, round {number + 1}", missing) as advance:
        for batch in writer.missing(together.rank, together.size):
            answers: dict[int, Row] = {}
            for room, alike in _by_room(batch, prompts, training).items():
                choose = likeliest
                if training.on_policy_temperature:
                    # every round draws anew, and an answer does not depend on what was drawn before a crash
                    keys = [(number + 1 << 32) + row for row in alike]
                    choose = sampler(training.on_policy_temperature, seed, keys)
                asked = [prompts[row] for row in alike]
                said = student.generate(asked, room, batch_size=len(asked), choose=among(known, choose))
                for row, ids in zip(alike, said, strict=True):
                    cut, most = len(ids) == room, training.max_length
                    written = answered_row(tokenizer, row, prompts[row], ids, cut=cut, context=most)
                    answers[row] = replace(written, source="student")
            writer.write([answers[row] for row in batch])
            advance(len(batch))
    return _finished(writer, store, together)


def _by_room(batch: Sequence[int], prompts: Sequence[Sequence[int]], training: Training) -> dict[int, list[int]]:
    """Tokens that an answer may have → rows; a long prompt has less room, and must not take its batch mates' too."""
    rows: dict[int, list[int]] = {}
    for row in batch:
        left = training.max_length - len(prompts[row])
        rows.setdefault(max(1, min(training.on_policy_max_new_tokens, left)), []).append(row)
    return rows


def _to_where_it_runs(model: Any) -> None:
    """Before the first round no trainer has moved it yet, and its answers would be written on the CPU."""
    device = default_device()
    if next(model.parameters()).device.type != device:
        model.to(device)


def _score(
    model: Any,
    answers: TeacherResponses,
    open_teacher: OpenTeacher,
    store: Path,
    together: World,
    each_scores: bool,
) -> TeacherResponses:
    """The answers with the teacher's targets."""
    import torch

    store.mkdir(exist_ok=True)
    device = next(model.parameters()).device
    model.cpu()  # its place on the device is the teacher's now
    gc.collect()  # the last round's trainer and its Adam averages refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()
    together.wait()  # a teacher that the leader starts may lie on the devices of all
    writer, scoring = None, together if each_scores else ALONE
    if together.leads or each_scores:
        with open_teacher(store) as engine:
            header = replace(engine.header(len(answers)), samples=1)
            writer = _writer(store, header, range(len(answers)), scoring)
            with bar("teacher scores", writer.num_missing(scoring.rank, scoring.size)) as advance:
                for batch in writer.missing(scoring.rank, scoring.size):
                    writer.write(engine.with_targets([answers[number] for number in batch]))
                    advance(len(batch))
    scored = _finished(writer, store, together)
    model.to(device)
    return scored


def _writer(store: Path, header: Header, order: Sequence[int], together: World) -> StoreWriter:
    """What fills `store` with the rows in that order; the leader begins it before the others do."""
    size = min(BATCH, -(-len(order) // together.size))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if not together.leads:
        together.wait()
    writer = StoreWriter(store, header, batches, shard_batches=1)
    if together.leads:
        together.wait()
    return writer


def _finished(writer: StoreWriter | None, store: Path, together: World) -> TeacherResponses:
    """The store, once every process has written its part."""
    together.wait()
    if together.leads:
        assert writer is not None
        writer.finish()
    together.wait()
    return TeacherResponses(store)


def _replaced(
    batches: np.ndarray,
    chosen: np.ndarray,
    asked: Sequence[int],
    answers: TeacherResponses,
    known: list[TokenRow],
    max_length: int,
) -> np.ndarray:
    """The batches with the student's answers in the chosen places; they are appended to the `known` rows."""
    place = {}
    for position, row in enumerate(asked):
        lengths = answers.lengths(position)
        if lengths is not None and lengths[0] > lengths[1]:  # an empty answer cut at once has nothing to learn
            place[row] = len(known)
            known.append(TokenRow(position, min(lengths[0], max_length), lengths[1], answers))
    mapped = np.array([[place.get(int(row), int(row)) for row in batch] for batch in batches])
    return np.where(chosen, mapped, batches)


def _header(model: Any, tokenizer: Any, num_rows: int) -> Header:
    return Header(
        teacher="the student itself",
        engine="transformers",
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        kind="tokens",
        tokenizer_hash=tokenizer_hash(tokenizer),
        template_hash=template_hash(tokenizer),
        vocab_size=model.config.vocab_size,
        num_rows=num_rows,
    )
