"""Whatever kills the writer, fills the disk or flips a bit: the store ends with the same bytes."""

import json
import os
import random
import resource
import signal
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest

from distill._shards import scan
from distill._store_writer import SHARD_BATCHES, StoreWriter
from distill.errors import StageFailed
from distill.responses import DamagedStore, Row, TeacherResponses, shard_file
from tests.small_store import HEADER, answer, assert_same, contents, fill, flip, plan

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def killed_at(event: int, folder: Path) -> bool:
    """A process fills the store and is killed at the given event: a write of at most 64 bytes, or waiting for the disk.

    Returns whether it was killed; otherwise it has finished before.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = event

    def count(*_) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    class InPieces:
        """A shard that takes a few bytes at a time."""

        def __init__(self, file):
            self.file = file

        def write(self, data: memoryview) -> int:
            count()
            return self.file.write(data[:64])

        def __getattr__(self, name):
            return getattr(self.file, name)

    code = 1
    try:
        os.fsync = count
        writer = StoreWriter(folder, HEADER, plan(HEADER.num_rows))
        for numbers in writer.missing():
            writer._open = InPieces(writer._open)  # type: ignore[assignment]
            writer.write([answer(number) for number in numbers])
        writer.finish()
        code = 0
    finally:
        os._exit(code)


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment_and_resumed_ends_with_the_same_bytes(whole_store, tmp_path, seed):
    """SIGKILL again and again until it is done; most kills fall inside a batch, some inside the header or summary."""
    moments = random.Random(seed)
    kills = halves = done = 0
    while killed_at(moments.randrange(1, 150), tmp_path):
        assert kills < 100, "it never ends"
        kills += 1
        halves += _has_half_a_record(tmp_path)
        before, done = done, sum(len(list(scan(file))) // 3 for file in tmp_path.glob("shard-*.bin"))
        assert done >= before, "what was whole has been lost"
    assert contents(tmp_path) == contents(whole_store)
    assert kills >= 5
    assert halves >= 1, "no kill fell inside a record: nothing has been shown"


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("shard-*.bin"))


def _has_half_a_record(folder: Path) -> bool:
    return any(file.stat().st_size > sum(r.length for r in scan(file)) for file in folder.glob("shard-*.bin"))


def test_killed_between_the_files_of_the_index(whole_store, tmp_path):
    """What finish() leaves when it dies between any two files, or inside one, is written anew."""
    wanted = contents(whole_store)
    shards = {name: content for name, content in wanted.items() if name.startswith("shard") or name == "header.json"}
    index = ["index.npy", "keys.npy", "numbers.npy", "summary.json.part"]
    for last in range(len(index)):
        folder = tmp_path / str(last)
        folder.mkdir()
        for name in index[:last]:
            shards[name] = wanted[name.removesuffix(".part")]
        shards[index[last]] = wanted[index[last].removesuffix(".part")][:40]
        for name, content in shards.items():
            (folder / name).write_bytes(content)
        with pytest.raises(StageFailed, match="no finished store"):
            TeacherResponses(folder)
        assert fill(folder) == []
        assert contents(folder) == wanted


def test_half_a_record_at_the_end_is_cut_and_its_batch_asked_again(copied_store, whole_store):
    last = shard_file(copied_store, 3)
    wanted = contents(whole_store)
    records = list(scan(last))
    batches = plan(HEADER.num_rows)
    for cut in (1, 7, 8, 9, records[-1].length - 1):  # inside the frame, at its end, inside the head, one byte short
        last.write_bytes(wanted[last.name][: records[-1].offset + cut])
        assert fill(copied_store) == batches[-1:], f"cut {cut} bytes into the last record"
        assert contents(copied_store) == wanted


def test_a_batch_that_is_half_on_disk_is_asked_again(copied_store, whole_store):
    last = shard_file(copied_store, 3)
    records = list(scan(last))
    batches = plan(HEADER.num_rows)
    last.write_bytes(last.read_bytes()[: records[-4].offset])  # the first row of the last but one is gone, and on
    writer = StoreWriter(copied_store, HEADER, batches)
    assert writer.num_missing() == 2 * 3 - 2 + 2
    assert fill(copied_store) == batches[-2:]
    assert contents(copied_store) == contents(whole_store)


def _places_of_every_part() -> list[tuple[str, int]]:
    """(part of a record, byte within it); what is random is drawn from a fixed seed."""
    moments = random.Random(3)
    parts = [("frame", place) for place in range(8)] + [("head", place) for place in range(8, 8 + 42, 3)]
    return parts + [("anywhere", moments.randrange(10**9)) for _ in range(60)]


@pytest.mark.parametrize(("part", "place"), _places_of_every_part())
def test_a_flipped_bit_is_named_by_the_reader_and_asked_again_by_the_writer(copied_store, whole_store, part, place):
    number = place % 4
    shard = shard_file(copied_store, number)
    records = list(scan(shard))
    if part == "anywhere":
        place %= shard.stat().st_size
    else:
        place += records[place % len(records)].offset
    flip(shard, place, bit=place % 8)
    hit = next(r for r in records if r.offset <= place < r.offset + r.length)

    responses = TeacherResponses(copied_store)
    with pytest.raises(DamagedStore, match=shard.name) as caught:
        responses[hit.number]
    assert caught.value.shard == shard
    for record in records:
        if record.number != hit.number:
            assert_same(responses[record.number], answer(record.number))

    batches = plan(HEADER.num_rows)
    in_shard = batches[number * SHARD_BATCHES : (number + 1) * SHARD_BATCHES]
    damaged = next(i for i, batch in enumerate(in_shard) if hit.number in batch)
    # a shard is appended to, so what stands behind the damage is asked again too; other shards are left alone
    writer = StoreWriter(copied_store, HEADER, batches)
    assert writer.num_missing() == sum(map(len, in_shard[damaged:]))
    assert fill(copied_store) == in_shard[damaged:]
    assert contents(copied_store) == contents(whole_store)


@pytest.mark.parametrize("gone", [0, 2, 3])
def test_a_deleted_shard_is_named_and_its_batches_alone_are_asked_again(copied_store, whole_store, gone):
    shard_file(copied_store, gone).unlink()
    responses = TeacherResponses(copied_store)
    batches = plan(HEADER.num_rows)
    lost = batches[gone * SHARD_BATCHES : (gone + 1) * SHARD_BATCHES]
    with pytest.raises(DamagedStore, match=shard_file(copied_store, gone).name):
        responses[lost[0][0]]
    kept = next(n for n in range(HEADER.num_rows) if all(n not in batch for batch in lost))
    assert_same(responses[kept], answer(kept))
    assert fill(copied_store) == lost
    assert contents(copied_store) == contents(whole_store)


@pytest.mark.parametrize("change", [{"engine": "test 2"}, {"seed": 1}, {"teacher": "another"}, {"kept": 13}])
def test_a_store_that_another_engine_or_teacher_began_is_not_gone_on_with_nor_lost(tmp_path, change):
    folder = tmp_path / "store"
    folder.mkdir()
    began = StoreWriter(folder, replace(HEADER, **change), plan(HEADER.num_rows))
    for count, numbers in enumerate(began.missing()):
        began.write([Row(n, "of another", "teacher") for n in numbers])
        if count == SHARD_BATCHES + 2:
            break
    before = contents(folder)
    (name,) = change
    with pytest.raises(StageFailed, match=rf"begun by .*{name} {change[name]}.*now it is .*delete the folder"):
        fill(folder)
    assert contents(folder) == before


def test_shards_of_a_plan_with_smaller_batches_do_not_stay(tmp_path):
    rows = HEADER.num_rows
    began = StoreWriter(tmp_path, HEADER, [[n] for n in range(rows)])
    for numbers in began.missing():
        began.write([answer(n) for n in numbers])
    assert fill(tmp_path) and len(list(tmp_path.glob("shard-*.bin"))) == -(-len(plan(rows)) // SHARD_BATCHES)


def test_an_index_that_tells_another_length_is_found_out(tmp_path):
    fill(tmp_path)
    index = np.load(tmp_path / "index.npy")
    index[5]["tokens"] ^= 1
    np.save(tmp_path / "index.npy", index)
    with pytest.raises(DamagedStore, match=r"index\.npy is damaged"):
        TeacherResponses(tmp_path)[5]
    assert TeacherResponses(tmp_path)[4].number == 4


def test_a_written_batch_has_reached_the_disk(tmp_path, monkeypatch):
    synced = []
    writer = StoreWriter(tmp_path, HEADER, plan(HEADER.num_rows))
    numbers = next(missing := writer.missing())
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    writer.write([answer(number) for number in numbers])
    assert synced == [shard_file(tmp_path, 0).stat().st_size]
    assert synced[0] > 0
    missing.close()


def test_a_store_is_not_finished_while_rows_are_missing(tmp_path):
    writer = StoreWriter(tmp_path, HEADER, plan(HEADER.num_rows))
    for count, numbers in enumerate(writer.missing()):
        writer.write([answer(n) for n in numbers])
        if count == 4:
            break
    with pytest.raises(StageFailed, match="285 rows were not written, the first is row"):
        writer.finish()
    with pytest.raises(StageFailed, match="no finished store"):
        TeacherResponses(tmp_path)


def test_a_full_disk_loses_the_batch_in_flight_alone(tmp_path, whole_store):
    """A limit on the size of files stands for the full disk: the write fails half-way."""
    batches = plan(HEADER.num_rows)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = StoreWriter(tmp_path, HEADER, batches)
    written = 0
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
        with pytest.raises(OSError):
            for numbers in writer.missing():
                writer.write([answer(n) for n in numbers])
                written += 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert written > 3
    assert fill(tmp_path) == batches[written:]
    assert contents(tmp_path) == contents(whole_store)


def test_a_token_that_does_not_fit_the_vocabulary_is_never_cut_down_to_another_one(tmp_path):
    header = replace(HEADER, kind="tokens", kept=0, num_rows=1)
    writer = StoreWriter(tmp_path, header, [[0]])
    for wrong in (512, -1):
        with pytest.raises(AssertionError):
            for _ in writer.missing():
                writer.write([Row(0, "x", "teacher", np.array([1, wrong], dtype=np.int32), 1)])


def test_the_summary_counts_what_is_there(whole_store):
    summary = json.loads((whole_store / "summary.json").read_text())
    rows = [answer(number) for number in range(HEADER.num_rows)]
    assert summary["rows"] == 300
    assert summary["tokens"] == sum(len(row.input_ids_T) for row in rows if row.input_ids_T is not None)
    assert summary["targets"] == sum(len(row.targets) for row in rows if row.targets is not None)
    assert summary["bytes"] == _size(whole_store)
    # by the definition of the format: two bytes a position, and 9 + 4 bits for each distinct id
    assert summary["target_bytes"] == sum(
        2 * len(row.targets) + -(-len(row.targets.token_ids_E) * 13 // 8) for row in rows if row.targets is not None
    )
    assert summary["sources"] == {source: sum(r.source == source for r in rows) for source in {r.source for r in rows}}


@pytest.mark.parametrize("shard_batches", [1, SHARD_BATCHES])
def test_parts_that_several_write_in_turn_make_the_store_of_one(tmp_path, shard_batches):
    stores = tmp_path / "one", tmp_path / "three"
    batches = plan(HEADER.num_rows)
    for store, parts in zip(stores, (1, 3), strict=True):
        store.mkdir()
        writers = [StoreWriter(store, HEADER, batches, shard_batches=shard_batches) for _ in range(parts)]
        missing = [writer.missing(part, parts) for part, writer in enumerate(writers)]
        assert sum(writer.num_missing(part, parts) for part, writer in enumerate(writers)) == HEADER.num_rows
        for turn in zip_longest(*missing):
            for writer, numbers in zip(writers, turn, strict=True):
                if numbers is not None:
                    writer.write([answer(number) for number in numbers])
        assert [writer.num_missing() for writer in writers] == [0] * parts
        writers[0].finish()
    assert contents(stores[1]) == contents(stores[0])
    for number in range(0, HEADER.num_rows, 7):
        assert_same(TeacherResponses(stores[1])[number], answer(number))
