"""distill/_new_run.py: no two starts share a folder."""

import datetime
from concurrent.futures import ThreadPoolExecutor

from distill._new_run import new_run_folder


def test_starts_in_the_same_second_get_different_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder(tmp_path / "x"), range(40)))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() and folder.parent == tmp_path / "x" for folder in folders)


def test_the_name_is_the_local_time(tmp_path):
    before = datetime.datetime.now().replace(microsecond=0)
    name = new_run_folder(tmp_path).name.split("_")
    started = datetime.datetime.strptime("_".join(name[:2]), "%Y-%m-%d_%H-%M-%S")
    assert before <= started <= datetime.datetime.now()
    assert len(name) == 2
