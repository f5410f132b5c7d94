"""What is said in a terminal breaks between words."""

import pytest

from distill.progress import wrapped


@pytest.mark.parametrize("width", [40, 80])
def test_lines_break_between_words_and_nothing_is_lost(width):
    text = "# Head\n\n* " + "several words of a sentence " * 6 + "\n  deeper " + "and deeper " * 9 + "\nend\n"
    lines = wrapped(text, width).splitlines()
    assert max(map(len, lines)) <= width and " ".join(lines).split() == text.split()
    bullet = lines.index("# Head") + 2
    assert lines[bullet].startswith("* several ") and lines[bullet + 1].startswith("  ")
    assert lines[-1] == "end"


def test_what_fits_and_what_is_there_to_be_copied_stays():
    command = "The same command goes on: python -m distill recipe=" + "x" * 90
    path = "/" + "deep/" * 30
    for text in ("short\n", command, path):
        assert wrapped(text, 80) == text
