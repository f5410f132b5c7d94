"""A file behind the door of teachers: into a store and out again."""

from dataclasses import dataclass

import numpy as np
import pytest

from distill.answer_file import content_hash, open_file
from distill.encoding import template_hash, tokenizer_hash
from distill.errors import RecipeError, TargetMismatch
from distill.teacher.file import File
from tests.answer_file import layouts
from tests.answer_file.conftest import TEACHER


@dataclass(frozen=True)
class Wanted:
    kind: str | None = "top_k"
    prompt_targets: bool = False
    temperature: float = 1.0
    seed: int = 0


def opened(file, examples, wanted=None, loss="forward_kl", notes=None, **settings):
    teacher = File(kind="file", path=str(file), tokenizer=str(TEACHER), **settings)
    return open_file(teacher, wanted or Wanted(), loss, examples, (notes if notes is not None else []).append)


@pytest.fixture
def file(said, tmp_path):
    return layouts.write_lines(tmp_path / "answers.jsonl", [layouts.ours(one, 8) for one in said])


def test_into_a_store_and_out_again(file, said, examples, tokenizer, tmp_path):
    from distill.responses import TeacherResponses
    from distill.stages import teach

    teacher = File(kind="file", path=str(file), tokenizer=str(TEACHER))
    store = tmp_path / "store"
    store.mkdir()
    teach.ask(teacher, opened(file, examples), examples, store)
    read = TeacherResponses(store)
    header = read.header
    assert (header.teacher, header.engine, header.kind, header.kept) == ("answers", "file", "top_k", 8)
    assert header.tokenizer_hash == tokenizer_hash(tokenizer) and header.template_hash == template_hash(tokenizer)
    for number, true in enumerate(said):
        row = read[number]
        assert row.input_ids_T.tolist() == true.ids and row.text == true.text
        full = true.logprobs_TV[true.prompt_length :]
        np.testing.assert_allclose(
            row.targets.next_S, [full[s, token] for s, token in enumerate(true.response)], atol=2e-6
        )


def test_text_alone_needs_no_tokenizer(said, examples, tmp_path):
    rows = [{"prompt": one.prompt, "response": one.text} for one in said]
    file = layouts.write_lines(tmp_path / "a.jsonl", rows)
    with open_file(File(kind="file", path=str(file), name="Ann"), Wanted(kind=None), "text", examples, print) as engine:
        assert (engine.name, engine.tokenizer, engine.header(3).kind) == ("Ann", None, "text")
    with (
        pytest.raises(RecipeError, match=r"teacher\.tokenizer, or use loss=text"),
        open_file(File(kind="file", path=str(file)), Wanted(), "forward_kl", examples, print),
    ):
        pass


def test_another_temperature_is_refused(file, examples):
    with (
        pytest.raises(TargetMismatch, match=r"at temperature 2\.0.*Use loss\.temperature=2\.0"),
        opened(file, examples, logprob_temperature=2.0),
    ):
        pass
    with opened(file, examples, Wanted(temperature=2.0), logprob_temperature=2.0) as engine:
        assert engine.header(3).target_temperature == 2.0


def test_spans_of_text_get_the_next_tokens_own(file, examples):
    with opened(file, examples, Wanted(kind="next"), "aligned") as engine:
        assert engine.layout.kind == "next"


def test_a_lost_tail_is_for_forward_kl_alone(said, examples, tmp_path):
    file = layouts.write_lines(tmp_path / "a.jsonl", [layouts.axolotl_prepared(one, 8) for one in said])
    notes = []
    with opened(file, examples, notes=notes):
        assert "renormalised over the 8 kept" in notes[0]
    for loss in ("reverse_kl", "jsd"):
        with pytest.raises(TargetMismatch, match=f"lost, and loss={loss} needs it"), opened(file, examples, loss=loss):
            pass


def test_the_content_hash_follows_the_content(file, tmp_path):
    teacher = File(kind="file", path=str(file))
    before = content_hash(teacher)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    assert content_hash(File(kind="file", path=str(copy))) == before
    file.write_text(file.read_text() + "\n")
    assert content_hash(teacher) != before
    assert content_hash(File(kind="file", path="org/set")) != content_hash(File(kind="file", path="org/other"))
