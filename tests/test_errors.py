"""distill/errors.py: what is quoted of an error of somebody else's."""

import pytest

from distill.data._rows import read_rows
from distill.errors import DataError, first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("\n no network \nand much more"), "no network "),
        (KeyError(), "KeyError"),
        (ValueError("  \n"), "ValueError"),
        (ValueError("x" * 900), "x" * 200),
    ],
)
def test_one_short_line_whatever_was_raised(error, said):
    assert first_line(error) == said


def test_a_hub_that_fails_without_a_word_is_a_data_error(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"the hub gave no split 'train' of it \(ConnectionError: ConnectionError\)"):
        next(read_rows("openai/gsm8k", "train", "main"))
