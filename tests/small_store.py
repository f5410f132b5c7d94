"""A small store of 300 rows of every sort, the same whoever writes it, for the tests of writing and of reading."""

import random
from pathlib import Path

import numpy as np

from distill._store_writer import StoreWriter
from distill.responses import Header, Row
from distill.targets.sampled import SampledTargets

VOCAB, DRAWS = 384, 12
HEADER = Header(
    teacher="tiny", engine="test 1", dtype="float32", kind="sampled", vocab_size=VOCAB, kept=DRAWS, seed=0, num_rows=300
)
TEXTS = ["plain", "", "größer als π ≤ 4\n\n", "🦉\u2028\x00\ufeff", "日本語 " * 9]


def answer(number: int) -> Row:
    """Row `number` as a teacher would give it, whoever asks and whenever: some without targets, some without ids."""
    random_numbers = np.random.default_rng(number)
    text = TEXTS[number % len(TEXTS)]
    if number % 11 == 3:
        return Row(number, "", "too long")
    ids_T = random_numbers.integers(0, VOCAB, random_numbers.integers(2, 40)).astype(np.int32)
    prompt_length = int(random_numbers.integers(1, len(ids_T)))
    if number % 11 == 4:
        return Row(number, text, "teacher, cut", ids_T, prompt_length)
    S = len(ids_T) - prompt_length
    drawn_SD = np.sort(random_numbers.integers(0, VOCAB, (S, DRAWS)), axis=1)
    entropy_S = random_numbers.random(S).astype(np.float16)
    return Row(number, text, "teacher", ids_T, prompt_length, SampledTargets.of_draws(drawn_SD, entropy_S))


def plan(num_rows: int, size: int = 3) -> list[list[int]]:
    """Batches in an order that is not that of the numbers, as by length."""
    numbers = list(range(num_rows))
    random.Random(1).shuffle(numbers)
    return [numbers[start : start + size] for start in range(0, num_rows, size)]


def fill(folder: Path, header: Header = HEADER, size: int = 3) -> list[list[int]]:
    """Writes what is missing and returns the batches that were asked."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(folder, header, plan(header.num_rows, size))
    asked = []
    for numbers in writer.missing():
        asked.append(list(numbers))
        writer.write([answer(number) for number in numbers])
    writer.finish()
    return asked


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def assert_same(found: Row, wanted: Row) -> None:
    assert (found.number, found.text, found.source) == (wanted.number, wanted.text, wanted.source)
    assert found.prompt_length == wanted.prompt_length
    if wanted.input_ids_T is None:
        assert found.input_ids_T is None and found.targets is None
        return
    assert found.input_ids_T is not None
    assert found.input_ids_T.dtype == np.int32
    np.testing.assert_array_equal(found.input_ids_T, wanted.input_ids_T)
    if wanted.targets is None:
        assert len(found.targets or ()) == 0
        return
    for name, value in vars(wanted.targets).items():
        np.testing.assert_array_equal(vars(found.targets)[name], value, err_msg=name)


def flip(file: Path, place: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)
