"""A store is read back in any order, at no cost in memory; what it does not hold any more it says."""

import os
import random
import resource
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distill._shards import key_of, scan
from distill._store_writer import SHARD_BATCHES, StoreWriter
from distill.errors import TargetMismatch
from distill.responses import MAPPED_SHARDS, DamagedStore, Header, Row, TeacherResponses, shard_file
from distill.targets.dense import DenseTargets
from distill.targets.next_token import NextTokenTargets
from tests.small_store import HEADER, TEXTS, answer, assert_same, flip, plan

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def test_every_row_is_read_back_by_number_in_any_order(whole_store):
    responses = TeacherResponses(whole_store)
    assert len(responses) == HEADER.num_rows
    assert responses.header == HEADER
    numbers = list(range(HEADER.num_rows))
    for seed in range(2):
        random.Random(seed).shuffle(numbers)
        for number in numbers:
            assert_same(responses[number], answer(number))


def test_every_row_is_found_by_its_content_in_any_order(whole_store):
    responses = TeacherResponses(whole_store)
    first: dict[bytes, int] = {}
    for number in range(HEADER.num_rows):
        ids_T = answer(number).input_ids_T
        if ids_T is not None:
            first.setdefault(ids_T.tobytes(), number)
    for content in random.Random(5).sample(sorted(first), len(first)):
        found = responses.find(np.frombuffer(content, dtype=np.int32))
        assert found is not None
        assert_same(found, answer(first[content]))
    assert responses.find(np.array([1, 2, 3, 4, 5, 6, 7])) is None


@pytest.mark.parametrize("number", [-1, 300, 10**9])
def test_a_number_outside_the_store_is_an_index_error(whole_store, number):
    with pytest.raises(IndexError):
        TeacherResponses(whole_store)[number]


def test_of_rows_with_the_same_content_the_first_is_found(tmp_path):
    header = replace(HEADER, kind="tokens", kept=0, num_rows=6)
    writer = StoreWriter(tmp_path, header, [[5, 4, 3], [2, 1, 0]])
    for numbers in writer.missing():
        writer.write([Row(n, f"text {n}", "data", np.array([7, 8, n % 2], dtype=np.int32), 1) for n in numbers])
    writer.finish()
    responses = TeacherResponses(tmp_path)
    for odd in (0, 1):
        found = responses.find(np.array([7, 8, odd]))
        assert found is not None
        assert (found.number, found.text) == (odd, f"text {odd}")
    assert [responses[n].text for n in range(6)] == [f"text {n}" for n in range(6)]


def test_rows_whose_short_keys_collide_are_told_apart(tmp_path, monkeypatch):
    """The index sorts by 64 bits of the content's hash; two contents that share them must not be mixed up."""
    import distill._shards
    import distill.responses

    def weak_key(ids_T):
        return b"same 8 b" + bytes(np.asarray(ids_T, dtype=np.uint8)[:8]).ljust(8, b"\0")

    monkeypatch.setattr(distill._shards, "key_of", weak_key)
    monkeypatch.setattr(distill.responses, "key_of", weak_key)
    header = replace(HEADER, kind="tokens", kept=0, num_rows=4)
    writer = StoreWriter(tmp_path, header, [[3, 1], [0, 2]])
    for numbers in writer.missing():
        writer.write([Row(n, "", "data", np.array([n, n], dtype=np.int32), 1) for n in numbers])
    writer.finish()
    responses = TeacherResponses(tmp_path)
    for number in (2, 0, 3, 1):
        found = responses.find(np.array([number, number]))
        assert found is not None
        assert found.number == number
    assert responses.find(np.array([9, 9])) is None


def test_a_store_of_text_alone(tmp_path):
    header = Header(teacher="an API", engine="server", dtype="unknown", kind="text", num_rows=7)
    writer = StoreWriter(tmp_path, header, [[6, 0, 1, 2], [3, 4, 5]])
    for numbers in writer.missing():
        writer.write([Row(n, TEXTS[n % len(TEXTS)], "teacher") for n in numbers])
    assert writer.finish() == {"teacher": 7}
    responses = TeacherResponses(tmp_path)
    assert responses.layout is None
    assert [responses[n].text for n in range(7)] == [TEXTS[n % len(TEXTS)] for n in range(7)]
    assert responses[3].input_ids_T is None
    assert responses.summary["tokens"] == 0


@pytest.mark.parametrize("kind", ["dense", "next"])
def test_the_largest_and_the_smallest_vocabulary(tmp_path, kind):
    vocab_size = 2 if kind == "dense" else 1 << 20
    ids_T = np.array([0, vocab_size - 1, 1, vocab_size - 1], dtype=np.int32)
    targets = {
        "dense": DenseTargets(np.log(np.array([[0.5, 0.5], [0.25, 0.75]], dtype=np.float16)).astype(np.float32)),
        "next": NextTokenTargets(np.array([-1.5, -2.25], dtype=np.float32)),
    }[kind]
    header = Header(teacher="t", engine="e", dtype="d", kind=kind, vocab_size=vocab_size, num_rows=1)
    writer = StoreWriter(tmp_path, header, [[0]])
    for _ in writer.missing():
        writer.write([Row(0, "x", "teacher", ids_T, 1, targets)])
    writer.finish()
    assert_same(TeacherResponses(tmp_path)[0], Row(0, "x", "teacher", ids_T, 1, targets))


def test_a_store_for_another_tokenizer_or_template_names_both_sides():
    header = replace(HEADER, tokenizer_hash="aaa", template_hash="bbb")
    header.require(tokenizer_hash="aaa", template_hash="bbb", student="s", store=Path("store"))
    for theirs in (
        {"tokenizer_hash": "ccc", "template_hash": "bbb"},
        {"tokenizer_hash": "aaa", "template_hash": "ccc"},
    ):
        with pytest.raises(TargetMismatch, match=r"tiny .*(aaa|bbb).*little one.*ccc"):
            header.require(**theirs, student="little one", store=Path("store"))


def test_a_damaged_length_does_not_ask_for_gigabytes(copied_store):
    shard = shard_file(copied_store, 0)
    flip(shard, 3, bit=7)  # the highest bit of the first record's length: two GiB
    tracemalloc.start()
    assert list(scan(shard)) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 << 20


def test_an_emptied_or_shortened_shard_is_named(copied_store):
    for number, size in ((0, 0), (1, 100)):
        os.truncate(shard_file(copied_store, number), size)
        with pytest.raises(DamagedStore, match=shard_file(copied_store, number).name):
            TeacherResponses(copied_store)[plan(HEADER.num_rows)[(number + 1) * SHARD_BATCHES - 1][-1]]


def test_an_index_that_points_to_another_row_is_no_silent_mistake(copied_store):
    index = np.load(copied_store / "index.npy")
    index[[4, 9]] = index[[9, 4]]
    np.save(copied_store / "index.npy", index)
    for number in (4, 9):
        with pytest.raises(DamagedStore):
            TeacherResponses(copied_store)[number]


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """200,000 rows of two tokens in 196 shards."""
    folder = tmp_path_factory.mktemp("large")
    num_rows = 200_000
    header = replace(HEADER, kind="tokens", kept=0, vocab_size=1 << 20, num_rows=num_rows)
    batches = [range(start, min(start + 32, num_rows)) for start in range(0, num_rows, 32)]
    writer = StoreWriter(folder, header, batches)
    for numbers in writer.missing():
        writer.write([Row(n, "", "data", np.array([n, n + 1], dtype=np.int32), 1) for n in numbers])
    writer.finish()
    return folder


def test_opening_200_000_rows_costs_no_memory_and_any_of_them_is_read(large):
    TeacherResponses(large)[0]  # what is loaded once for any store does not count
    tracemalloc.start()
    before = _resident_bytes()
    responses = TeacherResponses(large)
    opened = tracemalloc.get_traced_memory()[0]
    resident = _resident_bytes() - before
    for number in np.random.default_rng(0).integers(0, 200_000, 300):
        row = responses[int(number)]
        assert row.input_ids_T is not None
        assert row.input_ids_T.tolist() == [number, number + 1]
        found = responses.find(row.input_ids_T)
        assert found is not None
        assert found.number == number
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the index alone has 6.4 MB
    assert opened < 100_000
    assert resident < 1_000_000
    assert peak < 500_000


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_more_shards_than_the_process_may_open_files(large):
    """Each mapped shard holds a file open; a store of a billion tokens has thousands of them."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(list(Path("/proc/self/fd").iterdir()))
    responses = TeacherResponses(large)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + MAPPED_SHARDS + 10, limit[1]))
        rows = [responses[number] for number in range(0, 200_000, 1024)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert len(rows) == 196
    assert all(row.input_ids_T is not None and row.input_ids_T[0] == row.number for row in rows)


def test_too_many_open_files_is_not_called_damage(whole_store):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    responses = TeacherResponses(whole_store)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limit[1]))
        with pytest.raises(OSError, match="open files"):
            responses[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert_same(responses[0], answer(0))


def test_the_key_is_of_the_token_ids_whatever_their_integer_type():
    ids = [5, 1 << 19, 0]
    keys = {key_of(np.array(ids, dtype=dtype)) for dtype in (np.int32, np.int64, np.uint32, ">i4")}
    assert len(keys) == 1
    assert keys != {key_of(np.array(ids[::-1]))}
