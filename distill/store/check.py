"""Whether a store is whole: every row's checksum and content, and that index, keys and summary say the same."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distill._shards import ANSWERED, Row, scan
from distill.errors import StageFailed
from distill.progress import bar
from distill.responses import INDEX, KEYS, NUMBERS, SUMMARY, DamagedStore, TeacherResponses, shard_file
from distill.store.listing import open_store

NAMED_ROWS = 8
"""Of a shard's damaged rows, so many are named."""

# N rows of the store


def check(store: Path, out) -> int:
    """Prints what is wrong with `store`; 0 when nothing is, else 1."""
    faults = list(faults_of(store))
    if not faults:
        out.print(f"{store}: every row is whole.", markup=False)
        return 0
    out.print(f"{store} is damaged:", markup=False, style="red")
    for fault in faults:
        out.print(f"  {fault}", markup=False)
    out.print("The next run that reads a damaged shard asks its rows again.", markup=False)
    return 1


def faults_of(store: Path) -> Iterator[str]:
    """One line for each fault: the file, the rows, and what is wrong."""
    try:
        responses = open_store(store)
    except StageFailed as error:
        if not (store / SUMMARY).exists():
            raise  # unfinished, not damaged
        yield str(error)
        return
    index_N, keys_N, numbers_N = (np.load(store / name) for name in (INDEX, KEYS, NUMBERS))
    N = len(responses)
    for name, array in ((INDEX, index_N), (KEYS, keys_N), (NUMBERS, numbers_N)):
        if len(array) != N:
            yield f"{name}: {len(array)} rows instead of {N}"
            return
    if (keys_N[1:] < keys_N[:-1]).any():
        yield f"{KEYS}: not in order, so that rows are not found by their content"
    if (np.sort(numbers_N) != np.arange(N)).any():
        yield f"{NUMBERS}: not each row once"
        return
    key_of_N = np.empty_like(keys_N)
    key_of_N[numbers_N] = keys_N
    yield from _faults_of_rows(responses, index_N, key_of_N)
    yield from _faults_of_space(store, index_N)


def _faults_of_rows(responses: TeacherResponses, index_N: np.ndarray, key_of_N: np.ndarray) -> Iterator[str]:
    damaged: dict[int, list[int]] = defaultdict(list)
    told_wrong: dict[str, list[int]] = defaultdict(list)
    counted: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    with bar("rows", len(responses)) as advance:
        for number in map(int, np.lexsort((index_N["offset"], index_N["shard"]))):
            advance(1)
            try:
                row = responses[number]
            except DamagedStore as found:
                if found.shard.name == INDEX:
                    told_wrong[f"{INDEX}: another length or source than that of"].append(number)
                else:
                    damaged[int(index_N[number]["shard"])].append(number)
                continue
            sources[row.source] += 1
            counted.update(_counts(row))
            if int.from_bytes(row.key[:8], "little") != key_of_N[number]:
                told_wrong[f"{KEYS}: another content hash than that of"].append(number)
            if not _agrees(row, index_N[number]):
                told_wrong[f"{INDEX}: another length or source than that of"].append(number)
    for shard, numbers in sorted(damaged.items()):
        yield from _explained(responses.path, shard, numbers)
    yield from (f"{what} {_named(numbers)}" for what, numbers in told_wrong.items())
    if damaged:
        return
    summary = responses.summary
    counted.update(rows=len(responses), bytes=int(index_N["length"].sum(dtype=np.int64)))
    for name, found in counted.items():
        if summary.get(name) != found:
            yield f"{SUMMARY}: {summary.get(name)} {name}, but there are {found}"
    if summary.get("sources") != dict(sources):
        yield f"{SUMMARY}: sources {summary.get('sources')}, but there are {dict(sources)}"


def _counts(row: Row) -> dict[str, int]:
    tokens = 0 if row.input_ids_T is None else len(row.input_ids_T)
    return {"tokens": tokens, "targets": 0 if row.targets is None else len(row.targets)}


def _agrees(row: Row, entry: np.void) -> bool:
    """Whether what the index says for a batch plan is what the row says."""
    said = (int(entry["tokens"]), int(entry["prompt"]), bool(entry["usable"]))
    return said == (_counts(row)["tokens"], row.prompt_length, row.source in ANSWERED)


def _explained(store: Path, shard: int, numbers: list[int]) -> Iterator[str]:
    """Why these rows could not be read: the shard's fault, or the index's."""
    file = shard_file(store, shard)
    searched = [file] if file.exists() else sorted(store.glob("shard-*.bin"))
    whole = {record.number for each in searched for record in scan(each)}
    lost, misplaced = [n for n in numbers if n not in whole], [n for n in numbers if n in whole]
    if lost:
        yield f"{file.name}: {'damaged in' if file.exists() else 'missing, with'} {_named(lost)}"
    if misplaced:
        yield f"{INDEX}: points to the wrong place for {_named(misplaced)}"


def _faults_of_space(store: Path, index_N: np.ndarray) -> Iterator[str]:
    """Shards hold the rows of the index one after another, and nothing else."""
    shards = {int(shard) for shard in np.unique(index_N["shard"])}
    for shard in sorted(shards):
        file = shard_file(store, shard)
        entries = np.sort(index_N[index_N["shard"] == shard], order="offset")
        ends = entries["offset"] + entries["length"]
        if file.exists() and (entries["offset"] != np.r_[0, ends[:-1]]).any():
            yield f"{file.name}: its rows in {INDEX} overlap, or leave bytes between them"
        if file.exists() and file.stat().st_size != ends[-1]:
            yield f"{file.name}: {file.stat().st_size:,} bytes, but its rows end at {int(ends[-1]):,}"
    for file in sorted(set(store.glob("shard-*.bin")) - {shard_file(store, shard) for shard in shards}):
        if file.stat().st_size:
            yield f"{file.name}: no row of the index lies in it"


def _named(numbers: list[int]) -> str:
    numbers = sorted(numbers)
    shown = ", ".join(map(str, numbers[:NAMED_ROWS])) + (", …" if len(numbers) > NAMED_ROWS else "")
    return f"row {shown}" if len(numbers) == 1 else f"{len(numbers)} rows: {shown}"
