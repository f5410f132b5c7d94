"""Every layout gives the teacher's own log-probabilities, at the right tokens."""

import numpy as np
import pytest

from distill.answer_file import match, read_answers, targets_layout, to_row
from distill.encoding import load_tokenizer
from distill.errors import DataError
from distill.targets import Layout
from distill.teacher.file import File
from tests.answer_file import layouts
from tests.answer_file.conftest import TEACHER

V, K = 640, 8


def option(path, **settings) -> File:
    return File(kind="file", path=str(path), tokenizer=str(TEACHER), **settings)


def rows_of(teacher: File, examples, tokenizer, *, prompt_targets=False, layout=None):
    matched = match(read_answers(teacher), examples, tokenizer)
    layout = layout or targets_layout(matched.answers, teacher, V)
    rows = [
        to_row(answer, number, example, tokenizer, layout, None, prompt_targets=prompt_targets)
        for number, (answer, example) in enumerate(zip(matched.answers, examples, strict=True))
    ]
    return rows, layout


def assert_true(rows, said, *, bound, prompt_targets=False):
    """Ids, log-probabilities, tail and the next token's, against the model's full distribution."""
    for row, true in zip(rows, said, strict=True):
        assert row.input_ids_T.tolist() == true.ids and row.prompt_length == true.prompt_length
        assert (row.text, row.source) == (true.text, "teacher")
        first = 1 if prompt_targets else true.prompt_length
        full_SV = true.logprobs_TV[first:]
        targets = row.targets
        assert len(targets) == len(true.ids) - first
        for position, (ids, logprobs) in enumerate(zip(targets.token_ids_SK, targets.logprobs_SK, strict=True)):
            assert len(set(ids.tolist())) == len(ids)
            np.testing.assert_allclose(logprobs, full_SV[position, ids], atol=bound)
            assert np.exp(targets.tail_S[position]) == pytest.approx(
                1 - np.exp(full_SV[position, ids]).sum(), abs=max(bound, 1e-6)
            )
            token = true.ids[first + position]
            assert token in ids
            assert targets.next_S[position] == pytest.approx(full_SV[position, token], abs=bound)


def test_our_own_layout(said, examples, tokenizer, tmp_path):
    file = layouts.write_lines(tmp_path / "a.jsonl", [layouts.ours(one, K) for one in said])
    rows, layout = rows_of(option(file), examples, tokenizer)
    assert layout == Layout("top_k", V, K)
    assert_true(rows, said, bound=2e-6)


def test_fewer_kept_than_given(said, examples, tokenizer, tmp_path):
    file = layouts.write_lines(tmp_path / "a.jsonl", [layouts.ours(one, K) for one in said])
    rows, layout = rows_of(option(file, top_k=3), examples, tokenizer)
    assert layout.kept == 3
    assert_true(rows, said, bound=2e-6)


def test_the_next_tokens_own_logprobs_alone(said, examples, tokenizer, tmp_path):
    file = layouts.write_lines(tmp_path / "a.jsonl", [layouts.ours(one, K, top=False) for one in said])
    rows, layout = rows_of(option(file), examples, tokenizer)
    assert layout == Layout("next", V)
    for row, true in zip(rows, said, strict=True):
        expected = [true.logprobs_TV[t, true.ids[t]] for t in range(true.prompt_length, len(true.ids))]
        np.testing.assert_allclose(row.targets.logprobs_S, expected, atol=2e-6)


@pytest.mark.parametrize("write", [layouts.axolotl, layouts.axolotl_beside])
def test_axolotl(said, examples, tokenizer, tmp_path, write):
    file = layouts.write_lines(tmp_path / "a.jsonl", [write(one, K) for one in said])
    rows, layout = rows_of(option(file), examples, tokenizer)
    assert layout == Layout("top_k", V, K)
    assert_true(rows, said, bound=2e-6)


def test_axolotl_scored_the_prompt_as_well(said, examples, tokenizer, tmp_path):
    file = layouts.write_lines(tmp_path / "a.jsonl", [layouts.axolotl(one, K) for one in said])
    rows, _ = rows_of(option(file), examples, tokenizer, prompt_targets=True)
    # on the prompt the text's next token is often outside the top 8; those are compared with their share elsewhere
    for row, true in zip(rows, said, strict=True):
        assert len(row.targets) == len(true.ids) - 1
        part = row.targets.part(true.prompt_length - 1, len(row.targets))
        np.testing.assert_allclose(
            part.next_S, [true.logprobs_TV[t, true.ids[t]] for t in range(true.prompt_length, len(true.ids))], atol=2e-6
        )


@pytest.mark.parametrize("legacy", [False, True])
def test_axolotl_prepared(said, examples, tokenizer, tmp_path, legacy):
    file = layouts.write_lines(tmp_path / "a.jsonl", [layouts.axolotl_prepared(one, K, legacy=legacy) for one in said])
    teacher = option(file, layout="axolotl_prepared_legacy" if legacy else "auto")
    rows, layout = rows_of(teacher, examples, tokenizer)
    assert layout == Layout("top_k", V, K)
    for row, true in zip(rows, said, strict=True):
        full_SV = true.logprobs_TV[true.prompt_length :]
        kept = np.take_along_axis(full_SV, row.targets.token_ids_SK.astype(int), axis=1)
        # by definition: the model's own, divided by what the eight have together
        np.testing.assert_allclose(
            np.exp(row.targets.logprobs_SK), np.exp(kept) / np.exp(kept).sum(axis=1, keepdims=True), atol=2e-6
        )
        assert (np.exp(row.targets.tail_S) < 1e-6).all()


def test_legacy_rows_taken_for_current_ones_are_refused(said, examples, tokenizer, tmp_path):
    file = layouts.write_lines(tmp_path / "a.jsonl", [layouts.axolotl_prepared(one, K, legacy=True) for one in said])
    with pytest.raises(DataError, match=r"one position off.*axolotl_prepared_legacy"):
        rows_of(option(file), examples, tokenizer)


CURVE = {**layouts.CAPTURE, "k": 40, "exact_k": 4, "polynomial_terms": [0, 1, 2, "sqrt"], "delta_encoding": False}
BINS = [
    {"scale_dtype": "float16", "element_bits": 7, "num_elements": 20},
    {"scale_dtype": "float32", "element_bits": 1, "num_elements": 16},
]


@pytest.mark.parametrize("packed", [False, True], ids=["one row fewer", "as many rows"])
@pytest.mark.parametrize(
    ("config", "bound"),
    [
        (layouts.CAPTURE, 2e-6),
        ({**layouts.CAPTURE, "delta_encoding": True}, 2e-5),
        ({**layouts.CAPTURE, "exact_dtype": "bfloat16"}, 0.08),  # 2^-9 of values down to -20
    ],
    ids=["float32", "delta", "bfloat16"],
)
def test_distillkit_kept_as_floats(said, examples, tokenizer, tmp_path, config, bound, packed):
    folder = layouts.distillkit_capture(tmp_path / "d", said, config, pad=tokenizer.pad_token_id, packed=packed)
    rows, layout = rows_of(option(folder), examples, tokenizer)
    assert layout == Layout("top_k", V, K)
    assert_true(rows, said, bound=bound)


@pytest.mark.parametrize(
    "settings", [{}, {"normalize_t": True, "polynomial_terms": [0, 1, "exp"]}, {"residual_bins": BINS}]
)
@pytest.mark.parametrize("delta", [False, True])
def test_distillkit_curves_and_bins_are_what_was_fitted(said, settings, delta):
    """Against the definition: floats, then the fitted curve, then the bins' numbers times their scale."""
    from pydantic import TypeAdapter

    from distill.answer_file.distillkit_codec import Compression

    config = {**CURVE, **settings, "delta_encoding": delta}
    ids, logprobs = said[0].top(config["k"])
    codec = TypeAdapter(Compression).validate_python({**config, "described_by": "c"})
    found_ids, found = codec.decode(layouts.compressed(logprobs, config), layouts.packed_bits(ids, 10))
    assert (found_ids == ids).all()
    values = np.diff(logprobs, axis=1, prepend=0.0) if delta else logprobs
    x = np.linspace(0, 1, 36) if config.get("normalize_t") else np.arange(36.0)
    curves = np.array([x**t if isinstance(t, int) else getattr(np, t)(x) for t in config["polynomial_terms"]])
    fit = np.linalg.lstsq(curves.T, values[:, 4:].T, rcond=None)[0].T @ curves
    bound = 1e-3
    if config["residual_bins"]:
        residual = values[:, 4:] - fit
        scale = np.abs(residual[:, :20]).max(axis=1, keepdims=True) / 64
        # half a step of 7 bits; one bit says only which side
        steps = np.abs(np.diff(found, axis=1, prepend=0.0) if delta else found)[:, 4:24] - np.abs(values[:, 4:24])
        assert (np.abs(steps) <= 1.01 * scale + 1e-3).all()
        return
    expected = np.concatenate([values[:, :4], fit], axis=1)
    np.testing.assert_allclose(found, expected.cumsum(axis=1) if delta else expected, atol=bound)


def test_distillkit_curves_as_targets(said, examples, tokenizer, tmp_path):
    folder = layouts.distillkit_capture(tmp_path / "d", said, CURVE, pad=tokenizer.pad_token_id)
    rows, layout = rows_of(option(folder, top_k=4), examples, tokenizer)
    assert layout.kept == 4
    # what was kept as floats is the model's own unless the curve behind it adds up to more than is left
    for row, true in zip(rows, said, strict=True):
        full = np.take_along_axis(true.logprobs_TV[true.prompt_length :], row.targets.token_ids_SK.astype(int), axis=1)
        assert (np.exp(row.targets.logprobs_SK).sum(axis=1) <= 1 + 1e-6).all()
        assert np.median(np.abs(row.targets.logprobs_SK - full)[full > -5]) < 1e-3


@pytest.mark.parametrize("settings", [{}, {"invert_polynomial": False}, {"with_sqrt_term": True}])
def test_distillkit_old_captures(said, examples, tokenizer, tmp_path, settings):
    config = {"vocab_size": V, "k": 16, "exact_k": 8, "polynomial_degree": 3, **settings}
    folder = layouts.distillkit_legacy(tmp_path / "d", said, config)
    rows, layout = rows_of(option(folder), examples, tokenizer)
    assert layout == Layout("top_k", V, 16)
    for row, true in zip(rows, said, strict=True):
        full = np.take_along_axis(true.logprobs_TV[true.prompt_length :], row.targets.token_ids_SK.astype(int), axis=1)
        # renormalised over the sixteen; float16 logits up to 30, and a curve for what is unlikely
        own = np.exp(full[:, :8]) / np.exp(full).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(np.exp(row.targets.logprobs_SK[:, :8]), own, atol=0.02)


def test_text_alone(examples, tokenizer, said, tmp_path):
    rows = [{"prompt": one.prompt, "response": one.text} for one in said]
    file = layouts.write_lines(tmp_path / "a.jsonl", rows)
    found = match(read_answers(option(file)), examples)
    made = [to_row(a, n, e, None, None, None) for n, (a, e) in enumerate(zip(found.answers, examples, strict=True))]
    assert [(row.text, row.source, row.input_ids_T) for row in made] == [(one.text, "teacher", None) for one in said]
    with_ids = [
        to_row(a, n, e, tokenizer, None, None) for n, (a, e) in enumerate(zip(found.answers, examples, strict=True))
    ]
    assert [row.input_ids_T.tolist()[: one.prompt_length] for row, one in zip(with_ids, said, strict=True)] == [
        one.ids[: one.prompt_length] for one in said
    ]
    with pytest.raises(DataError, match=r"log-probabilities.*loss=text"):
        targets_layout(found.answers, option(file), V)


def test_chat_messages_whose_last_turn_is_the_answer(examples, said, tmp_path):
    turns = [{"role": "user", "content": said[0].prompt}, {"role": "assistant", "content": "7"}]
    file = layouts.write_lines(tmp_path / "a.jsonl", [{"messages": turns}])
    found = match(read_answers(option(file)), examples[:1])
    assert found.answers[0].text == "7" and found.note is None


def test_parquet_and_csv(examples, said, tmp_path):
    import pandas

    frame = pandas.DataFrame([{"prompt": one.prompt, "response": one.text} for one in said])
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    for name in ("a.parquet", "a.csv"):
        found = match(read_answers(option(tmp_path / name)), examples)
        assert [answer.text for answer in found.answers] == [one.text for one in said]


def test_save_to_disk(examples, said, tokenizer, tmp_path):
    import datasets

    rows = [layouts.axolotl_prepared(one, K) for one in said]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "set"))
    made, _ = rows_of(option(tmp_path / "set"), examples, tokenizer)
    assert [row.input_ids_T.tolist() for row in made] == [one.ids for one in said]


def test_what_a_chat_template_puts_after_the_answer_is_left_out(said, examples, tmp_path):
    """Many templates end a turn with a line break after its end-of-sequence token; captures score that as well."""
    own = load_tokenizer(TEACHER)
    own.chat_template = own.chat_template.replace("'<|end|>'", "'<|end|>\n'")
    break_ids = own("\n", add_special_tokens=False)["input_ids"]
    rows = [layouts.axolotl(one, K) for one in said]
    for row in rows:
        row["logprobs"] += [[{"token": f"token_id:{token}", "logprob": -0.5}] for token in break_ids]
    teacher = option(layouts.write_lines(tmp_path / "a.jsonl", rows))
    made, _ = rows_of(teacher, examples, own)
    assert_true(made, said, bound=2e-6)
