"""What one process, or one of two, trains in rounds of its own answers: `python on_policy.py TEACHER CASES`.

CASES is a JSON list of `folder` and options of `in_rounds`; with `kill_at`, that round's scoring kills its process.
Each process leaves `asked-RANK.json`, the rows that it had its teacher score, and the leader `curve.json`.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from distill import distributed
from tests.distributed.processes import end_together
from tests.stages.test_on_policy import in_rounds, off_policy, other_than, rows_in


def train_case(teacher: str, folder: str, kill_at: int | None = None, **options: Any) -> None:
    """Trains in `folder`, or goes on there."""
    world, there, asked = distributed.world(), Path(folder), []
    student = other_than(teacher)
    if world.leads and not there.exists():
        there.mkdir()
        off_policy(student[1], there / "base")
    world.wait()

    def note(rows: Any) -> None:
        if kill_at is not None and len(list(there.glob("round-*-scored/summary.json"))) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        asked.append([row.text for row in rows])

    done, *_ = in_rounds(student, rows_in(there / "base"), teacher, there, together=world, on_scored=note, **options)
    (there / f"asked-{world.rank}.json").write_text(json.dumps(asked))
    if world.leads:
        (there / "curve.json").write_text(json.dumps([point["loss_nats"] for point in done.curve]))
    world.wait()


def cases(_: distributed.World) -> None:
    for each in json.loads(sys.argv[2]):
        train_case(sys.argv[1], **each)


if __name__ == "__main__":
    end_together(cases)
