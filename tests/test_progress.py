"""What is said in a terminal breaks between words."""

import subprocess
import sys

import pytest

from distill.progress import wrapped
from tests.conftest import cli_environment


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


def test_a_hub_that_does_not_answer_is_one_line():
    """The hub's own client, at a port where nobody listens, in a process of its own."""
    asks = (
        "from distill.progress import quiet_libraries; quiet_libraries()\n"
        "from huggingface_hub.utils import http_backoff\n"
        "http_backoff('GET', 'http://127.0.0.1:9/', max_retries=3, base_wait_time=0.01)\n"
    )
    online = cli_environment(HF_HUB_OFFLINE="0")
    ran = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, env=online)
    lines = ran.stderr.splitlines()
    assert lines[:2] == ["The hub does not answer; trying for half a minute.", "Traceback (most recent call last):"]
    assert "ConnectError" in lines[-1]
