"""Journal: once, whole, and through a crash at any place of a file."""

import multiprocessing
import sqlite3

import pytest

from distill.errors import StageFailed
from distill.served.answer import Alternative, Answer, Token, answer_from_json, answer_to_json
from distill.served.journal import Journal, Spent


def test_an_answer_comes_back_equal(tmp_path):
    top = (Alternative(4, b"\xc3", -0.1), Alternative(None, b" \n", -2.5), Alternative(7, None, -103.28))
    answer = Answer(
        "é", "length", (Token(4, b"\xc3", -0.1, top), Token(None, None, -0.30000000000000004, ())), 3, 2, "m", None
    )
    plain = Answer("", "stop", None, 3, 1, "m", "fp")
    with Journal(tmp_path / "j", print) as journal:
        journal.settle(None, 3, 2, 0.5, keep=("a", answer_to_json(answer)))
        journal.keep("b", answer_to_json(plain))
    with Journal(tmp_path / "j", print) as journal:
        assert [answer_from_json(journal.get(key) or {}) for key in "ab"] == [answer, plain]
        assert journal.missing(["c", "a", "d", "c", "b"]) == ["c", "d"] and journal.get("c") is None
        assert journal.spent == Spent(3, 2, 0.5, 0.0)


def test_the_first_answer_stays(tmp_path):
    with Journal(tmp_path / "j", print) as journal:
        journal.keep("a", {"n": 1})
        journal.keep("a", {"n": 2})
        assert journal.get("a") == {"n": 1}


def test_reservations_are_perhaps_spent_until_settled_or_released(tmp_path):
    with Journal(tmp_path / "j", print) as journal:
        one, two, _three = (journal.reserve(10, 20, cost) for cost in (1.0, 2.0, 4.0))
        assert journal.spent == Spent(0, 0, 0.0, 7.0)
        journal.settle(one, 5, 6, 0.25)
        journal.release(two)
        assert journal.spent == Spent(5, 6, 0.25, 4.0)
    with Journal(tmp_path / "j", print) as journal:  # the run was killed with the third in flight
        assert journal.spent == Spent(5, 6, 0.25, 4.0)


def test_a_flipped_bit_is_named_and_the_answer_is_missing(tmp_path):
    lines: list[str] = []
    with Journal(tmp_path / "j", lines.append) as journal:
        for name in "abc":
            journal.keep(name, {"text": f"the answer to {name}"})
    database = sqlite3.connect(tmp_path / "j")
    (payload,) = database.execute("SELECT payload FROM answers WHERE key = 'b'").fetchone()
    database.close()
    content = bytearray((tmp_path / "j").read_bytes())
    place = content.index(payload) + len(payload) // 2
    content[place] ^= 4
    (tmp_path / "j").write_bytes(content)
    with Journal(tmp_path / "j", lines.append) as journal:
        assert [journal.get(name) is None for name in "abc"] == [False, True, False]
        assert journal.missing("abc") == ["b"]
    assert len(lines) == 1 and "the answer b was damaged" in lines[0]


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path):
    with Journal(tmp_path / "j", print) as journal:
        journal.keep("a", {"n": 1})
        pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
        journal._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StageFailed, match=r"disk is full.*make room"):
            journal.settle(None, 1, 1, 1.0, keep=("b", {"n": [str(number) for number in range(100_000)]}))
        assert journal.get("a") == {"n": 1} and journal.missing(["a", "b"]) == ["b"]
        assert journal.spent == Spent()
    with Journal(tmp_path / "j", print) as journal:
        journal.settle(None, 1, 1, 1.0, keep=("b", {"n": 2}))
        assert journal.get("a") == {"n": 1} and journal.get("b") == {"n": 2} and journal.spent.cost == 1.0


def test_a_second_process_waits_and_says_so(tmp_path):
    context = multiprocessing.get_context("spawn")
    said, done = context.Queue(), context.Queue()
    with Journal(tmp_path / "j", print) as journal:
        other = context.Process(target=_read, args=(tmp_path / "j", said, done))
        other.start()
        assert "in use by another process" in said.get(timeout=30)
        assert done.empty()
        journal.keep("a", {"n": 1})
    assert done.get(timeout=30) == {"n": 1}
    other.join()


def _read(path, said, done):
    with Journal(path, said.put) as journal:
        done.put(journal.get("a"))
