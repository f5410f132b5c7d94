"""What a store's targets weigh, whether they come back, and how fast one core reads and writes them.

    OMP_NUM_THREADS=1 python benchmarks/store.py

needs `distill` installed, and 300 MB in the temporary folder (TMPDIR). The teacher is made up: Zipf distributions over
256 of 151,936 tokens, some sure and some not, that 50 systematic draws meet at about as many distinct ids as a real
one's. Reading is timed in seconds of the processor from a store that the operating system has in memory, so that other
jobs and the disk do not count; writing in seconds of the clock, until each batch is on the disk. Two minutes.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from distill._shards import Row, decode, encode
from distill._store_writer import StoreWriter
from distill.responses import Header, TeacherResponses
from distill.targets import KINDS, Layout, Places
from distill.targets.sampled import SampledTargets
from distill.targets.top_k import TopKTargets, logprob_bound

# S positions of a row, C tokens that a made-up teacher has in mind, D draws, K token ids kept

VOCAB_SIZE = 151_936
DRAWS = 50
CANDIDATES = 256
BATCH_ROWS = 16
NUM_TOKENS = 1 << 20


def main() -> None:
    """Prints the table."""
    print("| what | target | measured |")
    print("|---|---|---|")
    lines = [*sizes("sampled", DRAWS), *sizes("top_k", 32), *sizes("top_k", 64)]
    with tempfile.TemporaryDirectory() as folder:
        for row_tokens in (256, 64):
            lines += speeds(Path(folder) / f"sampled-{row_tokens}", Layout("sampled", VOCAB_SIZE, DRAWS), row_tokens)
        lines += speeds(Path(folder) / "top_k", Layout("top_k", VOCAB_SIZE, 32), 256)
    for what, target, measured in lines:
        print(f"| {what} | {target} | {measured} |")


def sizes(kind: str, kept: int) -> Iterator[tuple[str, str, str]]:
    """Bytes per token of the encoded targets, and of the whole record; and what `decode` makes of it."""
    layout, id_bits = Layout(kind, VOCAB_SIZE, kept), Layout(kind, VOCAB_SIZE).id_bits  # type: ignore[arg-type]
    rows = [*made_up_rows(64, 256, layout)]
    num_tokens = sum(len(row.targets) for row in rows)
    size_bytes = sum(len(row.targets.to_bytes(layout)) for row in rows) / num_tokens
    records = [encode(row, layout, id_bits) for row in rows]
    whole_bytes = sum(map(len, records)) / num_tokens
    read = [decode(memoryview(record), layout, id_bits) for record in records]
    if kind == "sampled":
        distinct = sum(len(row.targets.token_ids_E) for row in rows) / num_tokens
        name, target = f"sampled, {kept} draws, {distinct:.2f} distinct ids", f"≤ {3.2 * distinct + 2:.1f}"
        came_back, promised = sampled_came_back(rows, read), "ids and counts exact"
    else:
        name, target = f"top {kept} + tail", f"≤ {kept * 26 // 8 + 10}"
        came_back, promised = top_k_came_back(rows, read), "ids exact, log-probabilities within the bound"
    yield f"{name}: bytes per token", target, f"{size_bytes:.2f}"
    yield f"{name}: the same with token ids, text, head and checksum", "", f"{whole_bytes:.2f}"
    yield f"{name}: decode(encode(x))", promised, came_back


def sampled_came_back(rows: list[Row], read: list[Row]) -> str:
    """Says so, after comparing everything."""
    off = 0.0
    for row, again in zip(rows, read, strict=True):
        assert_same(row, again, ("token_ids_E", "counts_E", "ends_S"))
        off = max(off, np.abs(row.targets.entropy_S - again.targets.entropy_S).max())
    return f"exact; entropy off by ≤ {off:.4f} nats"


def top_k_came_back(rows: list[Row], read: list[Row]) -> str:
    """The largest error, and the largest share of the bound that any position uses."""
    off, share = 0.0, 0.0
    for row, again in zip(rows, read, strict=True):
        assert_same(row, again, ("token_ids_SK", "next_S"))
        off_S = np.abs(row.targets.logprobs_SK - again.targets.logprobs_SK).max(axis=1)
        bound_S = logprob_bound(np.ptp(row.targets.logprobs_SK, axis=1))
        off, share = max(off, off_S.max()), max(share, (off_S / bound_S).max())
    assert share <= 1
    return f"ids exact; off by ≤ {off:.4f} nats, ≤ {share:.0%} of the bound"


def assert_same(row: Row, again: Row, names: Iterable[str]) -> None:
    """Stops the benchmark where a store does not hold what was written."""
    assert (row.number, row.text, row.source) == (again.number, again.text, again.source)
    assert np.array_equal(row.input_ids_T, again.input_ids_T)
    for name in names:
        assert np.array_equal(getattr(row.targets, name), getattr(again.targets, name)), name


def speeds(folder: Path, layout: Layout, row_tokens: int) -> Iterator[tuple[str, str, str]]:
    """Tokens per second of writing a store, reading it in order and in random order, and of making batches of it."""
    num_rows = NUM_TOKENS // row_tokens
    name = f"{layout.kind}, rows of {row_tokens} tokens"
    yield f"writing, {name}", "", write(folder, layout, row_tokens, num_rows)

    store = TeacherResponses(folder)
    in_order, shuffled = range(num_rows), np.random.default_rng(1).permutation(num_rows).tolist()
    for number in in_order:  # into memory
        assert len(store[number].targets) == row_tokens
    for what, target, numbers in (("in order", "≥ 2", in_order), ("in random order", "≥ 0.5", shuffled)):
        seconds = min(read_seconds(store, numbers) for _ in range(3))
        yield (
            f"reading {what}, {name}",
            f"{target} million tokens/s",
            f"{NUM_TOKENS / seconds / 1e6:.2f} million tokens/s",
        )
    seconds = min(batch_seconds(store, layout, shuffled, row_tokens) for _ in range(3))
    yield (
        f"reading in random order and batches of {BATCH_ROWS}, {name}",
        "",
        f"{NUM_TOKENS / seconds / 1e6:.2f} million tokens/s",
    )


def write(folder: Path, layout: Layout, row_tokens: int, num_rows: int) -> str:
    """Fills a store; the rows are there before the clock starts."""
    rows = [*made_up_rows(num_rows, row_tokens, layout)]
    folder.mkdir()
    header = Header(
        teacher="made up",
        engine="none",
        dtype="float32",
        kind=layout.kind,
        vocab_size=VOCAB_SIZE,
        kept=layout.kept,
        num_rows=num_rows,
    )
    batches = [range(first, first + BATCH_ROWS) for first in range(0, num_rows, BATCH_ROWS)]
    clock, processor = time.perf_counter(), time.process_time()
    writer = StoreWriter(folder, header, batches)
    for numbers in writer.missing():
        writer.write([rows[number] for number in numbers])
    writer.finish()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    million = NUM_TOKENS / 1e6
    return f"{million / clock:.2f} million tokens/s; {million / processor:.2f} without waiting for the disk"


def read_seconds(store: TeacherResponses, numbers: Iterable[int]) -> float:
    """Of the processor, for all these rows."""
    start = time.process_time()
    for number in numbers:
        _ = store[number]
    return time.process_time() - start


def batch_seconds(store: TeacherResponses, layout: Layout, numbers: list[int], row_tokens: int) -> float:
    """Of the processor, for all these rows as arrays that a loss takes."""
    places = Places((BATCH_ROWS, row_tokens), [0] * BATCH_ROWS, [row_tokens] * BATCH_ROWS)
    start = time.process_time()
    for first in range(0, len(numbers), BATCH_ROWS):
        rows = [store[number].targets for number in numbers[first : first + BATCH_ROWS]]
        KINDS[layout.kind].batch(rows, places, layout)
    return time.process_time() - start


def made_up_rows(num_rows: int, row_tokens: int, layout: Layout) -> Iterator[Row]:
    """Rows of different tokens and text; 64 different targets, in turn."""
    random = np.random.default_rng(0)
    targets = [made_up_targets(random, row_tokens, layout) for _ in range(min(64, num_rows))]
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz      ", dtype=np.uint8)
    for number in range(num_rows):
        ids_T = random.integers(VOCAB_SIZE, size=row_tokens + 1).astype(np.int32)
        text = random.choice(letters, size=4 * row_tokens).tobytes().decode()
        yield Row(number, text, "teacher", ids_T, 1, targets[number % len(targets)])


def made_up_targets(random: np.random.Generator, num_positions: int, layout: Layout) -> SampledTargets | TopKTargets:
    """Of Zipf distributions with exponents from 1 to 4 over ids anywhere in the vocabulary."""
    S, C = num_positions, CANDIDATES
    ids_SC = np.sort(random.integers(VOCAB_SIZE - C, size=(S, C)), axis=1) + np.arange(C)  # ascending, no id twice
    rank_SC = random.permuted(np.tile(np.arange(1, C + 1), (S, 1)), axis=1)
    p_SC = rank_SC ** -random.uniform(1, 4, size=(S, 1))
    p_SC /= p_SC.sum(axis=1, keepdims=True)
    if layout.kind == "sampled":
        points_SD = (random.random((S, 1)) + np.arange(layout.kept)) / layout.kept
        row_S1 = np.arange(S)[:, None]
        cumulative_SC = np.minimum(p_SC.cumsum(axis=1), 1) + row_S1
        found_SD = np.searchsorted(cumulative_SC.reshape(-1), points_SD + row_S1, side="right") - C * row_S1
        drawn_SD = np.take_along_axis(ids_SC, np.minimum(found_SD, C - 1), axis=1)
        return SampledTargets.of_draws(drawn_SD, -(p_SC * np.log(p_SC)).sum(axis=1))
    best_SK = np.argsort(-p_SC, axis=1)[:, : layout.kept]
    kept_SK = np.take_along_axis(p_SC, best_SK, axis=1)
    return TopKTargets(
        np.take_along_axis(ids_SC, best_SK, axis=1).astype(np.int32),
        np.log(kept_SK).astype(np.float32),
        np.log(1 - kept_SK.sum(axis=1)).astype(np.float32),
        np.log(kept_SK[:, 0]).astype(np.float32),
        random.normal(20, 5, size=S).astype(np.float32),
    )


if __name__ == "__main__":
    main()
