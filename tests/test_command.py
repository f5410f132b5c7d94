"""What the commands share: their help, and what they print of files and answers."""

import subprocess
import sys
import time
import unicodedata

import pytest

from distill._command import visible, visible_lines
from tests.conftest import cli_environment


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("chat", "--package NAME"),
        ("compare", "RUN_OR_FOLDER"),
        ("megatron.__main__", "CHECKPOINT_FOLDER"),
        ("plan", "price_per_gpu_hour"),
        ("recipes", "hydra.searchpath"),
        ("store.__main__", "--verify"),
    ],
)
def test_help_is_fast_and_loads_nothing_heavy(name, words):
    code = f"import sys, distill.{name} as it\ntry:\n    it.main(['--help'])\nfinally:\n    print(*sys.modules)"
    started = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=cli_environment())
    assert time.monotonic() - started < 5
    assert ran.returncode == 0, ran.stderr
    assert words in ran.stdout
    assert not {"torch", "transformers", "numpy", "hydra"} & set(ran.stdout.splitlines()[-1].split())


def test_nothing_that_steers_a_terminal_is_left():
    assert visible_lines("\x1b[2J\x07\r\b\x00") == r"\x1b[2J\x07\r\x08\x00"
    assert visible_lines("\x9b31m\x7f\u202eevil\u2066") == r"\x9b31m\x7f\u202eevil\u2066"
    kept = "Zeile\n\tzwei — Ωμέγα می‌خواهم 👨‍👩‍👧 全角　空白 é"
    assert visible_lines(kept) == kept
    every = "".join(map(chr, range(0x110000)))
    left = {letter for letter in visible_lines(every) if unicodedata.category(letter) in ("Cc", "Cs")}
    assert left == {"\n", "\t"}
    assert visible(every) == visible_lines(every).replace("\n", r"\n").replace("\t", r"\t")
