"""distill/option.py: a name that is no file here is a path by its looks, or the id of something on the hub."""

import pytest

from distill.data.known import DATA_SETS
from distill.errors import DataError
from distill.family.known import FAMILIES
from distill.option import is_meant_as_path

PUBLISHED = [one for family in FAMILIES for one in family.published if one.on_hub]


def test_no_id_of_the_hub_that_we_know_is_taken_for_a_path():
    ids = [known.hub_id for known in DATA_SETS] + [name for one in PUBLISHED for name in (one.model, *one.aliases)]
    assert len(ids) > 90
    assert [name for name in ids if is_meant_as_path(name)] == []


@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.CSV", "data/rows.jsonl.gz", "./rows", "~/rows", "a/b/c"])
def test_what_looks_like_a_path_is_no_id(name):
    assert is_meant_as_path(name)


def test_the_hub_is_asked_for_a_data_set_with_a_dot_in_its_id(monkeypatch):
    import datasets

    from distill.data._rows import read_rows

    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, split))
        raise OSError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="the hub gave no split 'train_sft'"):
        next(read_rows("HuggingFaceTB/everyday-conversations-llama3.1-2k", "train_sft"))
    assert asked == [("HuggingFaceTB/everyday-conversations-llama3.1-2k", "train_sft")]
