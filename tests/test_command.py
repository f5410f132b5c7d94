"""What the commands print of files and answers."""

import unicodedata

from distill._command import visible, visible_lines


def test_nothing_that_steers_a_terminal_is_left():
    assert visible_lines("\x1b[2J\x07\r\b\x00") == r"\x1b[2J\x07\r\x08\x00"
    assert visible_lines("\x9b31m\x7f\u202eevil\u2066") == r"\x9b31m\x7f\u202eevil\u2066"
    kept = "Zeile\n\tzwei — Ωμέγα می‌خواهم 👨‍👩‍👧 全角　空白 é"
    assert visible_lines(kept) == kept
    every = "".join(map(chr, range(0x110000)))
    left = {letter for letter in visible_lines(every) if unicodedata.category(letter) in ("Cc", "Cs")}
    assert left == {"\n", "\t"}
    assert visible(every) == visible_lines(every).replace("\n", r"\n").replace("\t", r"\t")
