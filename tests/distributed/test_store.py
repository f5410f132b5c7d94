"""The store of responses is mapped into every process, and copied into none."""

import json
import sys
from pathlib import Path

import pytest

from distill._store_writer import StoreWriter
from distill.responses import Header, Row
from tests.distributed.processes import ended, pair

READING = str(Path(__file__).with_name("reading.py"))
ROWS, LETTERS = 96, 1_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process has mapped")
def test_two_processes_share_one_mapping(tmp_path):
    """96 MB of text: each process has all of it mapped, and its own memory grows by less than a tenth of it."""
    header = Header(teacher="t", engine="e", dtype="float32", kind="text", num_rows=ROWS)
    folder = tmp_path / "store"
    folder.mkdir()
    writer = StoreWriter(folder, header, [range(start, start + 8) for start in range(0, ROWS, 8)])
    for numbers in writer.missing():
        writer.write([Row(number, chr(97 + number % 26) * LETTERS, "data") for number in numbers])
    writer.finish()

    codes, (said, _) = ended(pair([READING, str(folder)], tmp_path))
    assert codes == [0, 0], said
    processes = json.loads(said.splitlines()[-1])
    assert len(processes) == 2
    for found in processes:
        assert found["letters"] == ROWS * LETTERS
        assert found["mapped"] >= found["present"] > 0.9 * ROWS * LETTERS
        assert found["copied"] == 0
        assert found["grown"] < 0.1 * ROWS * LETTERS
