"""new_run_folder(): outputs/<recipe>/<date_time>[_n], made and empty, never shared by two starts."""

import datetime
import itertools
from pathlib import Path


def new_run_folder(parent: Path) -> Path:
    """A new, empty folder below `parent`, named by the local date and time, with _1, _2 … where that name is taken.

    Making the folder is what claims it, so starts in the same second (sweeps, two shells) get different ones.
    """
    parent.mkdir(parents=True, exist_ok=True)
    stem = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count():
        folder = parent / (stem if number == 0 else f"{stem}_{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue
    raise AssertionError("itertools.count ends")
