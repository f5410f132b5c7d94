"""rehearsal.md says what ran, and claims nothing of what did not."""

import pytest

from distill import _hydra
from distill.recipe import parse
from distill.rehearsal import _summary


def section(text, title):
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_what_lies_behind_until_is_not_proven(rehearse_here, chat_recipe):
    text = (rehearse_here(*chat_recipe, "until=train") / "rehearsal.md").read_text()
    assert text.startswith("# Rehearsal of customer_service: passed, up to until=train\n")
    assert "* train student: " in section(text, "Proven") and "compress" not in section(text, "Proven")
    unproven = section(text, "Not proven")
    assert "* compress, verify, evaluate, report: until=train ends before them" in unproven
    assert "report.html" not in unproven and "max_kl_nats" not in unproven


def test_without_a_teacher_to_ask_there_is_a_plan_all_the_same(rehearse_here):
    text = (rehearse_here("recipe=quickstart_teacher", "until=teach") / "rehearsal.md").read_text()
    assert "passed, up to until=teach" in text and "train" not in section(text, "Proven")
    assert "* train, compress, verify, evaluate, report: until=teach ends before them" in section(text, "Not proven")
    assert "nothing to load" in section(text, "Plan")


def test_a_fault_of_the_plan_takes_nothing_from_a_rehearsal(rehearse_here, monkeypatch):
    def breaks(recipe):
        raise ValueError("max() arg is an empty sequence")

    monkeypatch.setattr(_summary, "plan", breaks)
    text = (rehearse_here("recipe=quickstart_teacher", "until=teach") / "rehearsal.md").read_text()
    assert "no plan: ValueError: max() arg is an empty sequence. This is a fault of distill" in section(text, "Plan")


@pytest.mark.parametrize(("hardware", "said"), [("8xh100-80gb", True), ("1xh100-80gb", False), ("h100", False)])
def test_several_devices_ask_for_several_processes(hardware, said):
    recipe = parse(_hydra.compose(["recipe=gpt2xl_to_gpt2", f"hardware={hardware}"]).config)
    assert bool(_summary._alone(recipe)) is said
