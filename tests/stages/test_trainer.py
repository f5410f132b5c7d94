"""The trainer's rules, each a bug that somebody shipped (design.md §9)."""

import json

import numpy as np
import pytest
import torch

from distill.errors import StageFailed
from distill.loss.forward_kl import ForwardKl
from distill.loss.reverse_kl import ReverseKl
from distill.loss.text import Text
from distill.responses import Header, Row, TeacherResponses, write_batch, write_header
from distill.stages._batches import BatchPlan, plan_batches
from distill.stages._rows import IGNORED, TokenRow, collate, token_rows
from distill.stages._trainer import train
from distill.training import Training

K, V = 6, 40


def small_llama(seed=0, **more):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=V, max_position_embeddings=64, tie_word_embeddings=True, **shape, **more)
    return LlamaForCausalLM(config).float()


@pytest.fixture
def store(tmp_path):
    """24 rows of random tokens with the log-probabilities of a random teacher's six likeliest tokens."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        length, prompt = int(rng.integers(8, 20)), int(rng.integers(2, 6))
        logits = rng.normal(size=(length - 1, V)) * 2
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        top = np.argsort(-logprobs, axis=1)[:, :K]
        ids = rng.integers(0, V, size=length).astype(np.int32)
        rows.append(
            Row(
                number,
                "text",
                "teacher",
                ids,
                prompt,
                top.astype(np.int32),
                np.take_along_axis(logprobs, top, axis=1).astype(np.float32),
            )
        )
    folder = tmp_path / "store"
    folder.mkdir()
    write_batch(folder / "batch-00000.safetensors", rows[:10])
    write_batch(folder / "batch-00001.safetensors", rows[10:])
    header = dict(teacher="t", revision=None, engine="e", dtype="float32", kind="top_k", tokenizer_hash="x")
    header |= dict(template_hash="y", vocab_size=V, top_k=K, target_temperature=1.0, num_rows=24)
    write_header(folder, Header(**header))
    return TeacherResponses(folder)


def rows_of(store):
    return [TokenRow(n, store[n].input_ids_T, store[n].prompt_length, store) for n in range(len(store))]


def trained(store, folder, *, model=None, loss=None, steps=4, live=None, **options):
    model = model or small_llama()
    options = {
        "batch_size": 8,
        "learning_rate": 1e-2,
        "bf16": False,
        "prompt_weight": 0.3,
        "logging_steps": 1,
        **options,
    }
    training = Training(**options)
    rows = rows_of(store)
    plan = plan_batches(
        [len(r.input_ids_T) for r in rows], batch_size=training.batch_size, seed=0, epochs=1, max_steps=steps
    )
    curve = train(
        model,
        rows,
        loss or ForwardKl(kind="forward_kl", hard_weight=0.2),
        training,
        plan,
        seed=0,
        pad_id=0,
        folder=folder,
        label="test",
        live_teacher=live,
    ).curve
    return model, [point["loss_nats"] for point in curve]


def expected_first_loss(store, rows, model, hard_weight, prompt_weight):
    """The definition in float64: one row at a time, no padding, the model's own full logits."""
    model = model.double()
    total, weight = 0.0, 0.0
    for number in rows:
        row = store[int(number)]
        logits = model(torch.tensor(row.input_ids_T)[None].long()).logits[0]
        logq = torch.log_softmax(logits, dim=-1)
        for t in range(len(row.input_ids_T) - 1):
            w = 1.0 if t + 1 >= row.prompt_length else prompt_weight
            ids = torch.tensor(np.array(row.token_ids_SK[t])).long()
            logp = torch.tensor(np.array(row.logprobs_SK[t])).double()
            tail_p, tail_q = 1 - logp.exp().sum(), 1 - logq[t, ids].exp().sum()
            kl = (logp.exp() * (logp - logq[t, ids])).sum() + tail_p * (tail_p / tail_q).log()
            ce = -logq[t, int(row.input_ids_T[t + 1])]
            total += w * float((1 - hard_weight) * kl + hard_weight * ce)
            weight += w
    return total / weight


def test_the_loss_is_the_definition_divided_once_by_the_tokens_weights(store, tmp_path):
    _, losses = trained(store, tmp_path / "a", steps=1)
    rows = rows_of(store)
    plan = plan_batches([len(r.input_ids_T) for r in rows], batch_size=8, seed=0, epochs=1, max_steps=1)
    expected = expected_first_loss(store, plan.batches[0], small_llama(), 0.2, 0.3)
    assert losses[0] == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("loss", [ForwardKl(kind="forward_kl"), ReverseKl(kind="reverse_kl"), Text(kind="text")])
def test_any_split_into_micro_batches_trains_the_same_student(store, tmp_path, loss):
    whole, losses = trained(store, tmp_path / "1", loss=loss)
    for accumulation in (2, 8):
        split, split_losses = trained(
            store, tmp_path / str(accumulation), loss=loss, gradient_accumulation_steps=accumulation
        )
        assert split_losses == pytest.approx(losses, rel=1e-6)
        for a, b in zip(whole.parameters(), split.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_padding_changes_nothing(store):
    rows = rows_of(store)[:3]
    batch = collate(rows, pad_id=0, prompt_weight=0.3, target_vocab=V)
    for b, row in enumerate(rows):
        alone = collate([row], pad_id=7, prompt_weight=0.3, target_vocab=V)
        length = len(row.input_ids_T)
        for name in ("input_ids", "labels", "weights", "token_ids", "logprobs"):
            assert torch.equal(batch[name][b, : length - 1], alone[name][0, : length - 1]), name
        assert (batch["labels"][b, length - 1 :] == IGNORED).all()


def test_targets_beyond_the_students_vocabulary_go_to_the_tail(store):
    row = rows_of(store)[0]
    whole, cut = (collate([row], pad_id=0, prompt_weight=1.0, target_vocab=v)["token_ids"] for v in (V, 20))
    assert (whole >= 20).any()
    assert torch.equal(cut, torch.where(whole >= 20, -1, whole))


def test_labels_and_weights_are_shifted_together(store):
    row = rows_of(store)[0]
    batch = collate([row], pad_id=0, prompt_weight=0.0, target_vocab=V)
    labels, first = batch["labels"][0], row.prompt_length - 1
    assert (labels[:first] == IGNORED).all()
    assert labels[first] == row.input_ids_T[row.prompt_length]
    assert torch.equal(batch["token_ids"][0, first], torch.tensor(np.array(store[0].token_ids_SK[first])))


def test_targets_of_response_positions_alone_stay_in_place(store, tmp_path):
    """A store without prompt targets holds the last S positions; they must not slide to the front."""
    full = store[3]
    kept = len(full.input_ids_T) - full.prompt_length
    part = Row(
        0, "t", "teacher", full.input_ids_T, full.prompt_length, full.token_ids_SK[-kept:], full.logprobs_SK[-kept:]
    )
    folder = tmp_path / "part"
    folder.mkdir()
    write_batch(folder / "batch-00000.safetensors", [part])
    header = json.loads((store.path / "header.json").read_text()) | {"num_rows": 1}
    write_header(folder, Header(**header))
    reopened = TeacherResponses(folder)
    row = TokenRow(0, reopened[0].input_ids_T, full.prompt_length, reopened)
    short, whole = (collate([r], pad_id=0, prompt_weight=0.0, target_vocab=V) for r in (row, rows_of(store)[3]))
    counted = short["labels"][0] != IGNORED
    assert torch.equal(short["token_ids"][0][counted], whole["token_ids"][0][counted])


def test_the_head_is_never_called_and_a_frozen_one_gets_no_gradient(store, tmp_path, monkeypatch):
    model = small_llama()
    model.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("the head was called"))
    model.get_input_embeddings().weight.requires_grad_(False)  # tied: the head is frozen too
    before = model.lm_head.weight.clone()
    trained(store, tmp_path / "a", model=model, steps=2)
    assert torch.equal(before, model.lm_head.weight) and model.lm_head.weight.grad is None


def test_a_live_teacher_gives_the_loss_of_its_full_distribution(store, tmp_path):
    teacher = small_llama(seed=5).requires_grad_(False)
    _, losses = trained(store, tmp_path / "a", loss=ForwardKl(kind="forward_kl"), live=teacher, steps=1)
    rows = rows_of(store)
    plan = plan_batches([len(r.input_ids_T) for r in rows], batch_size=8, seed=0, epochs=1, max_steps=1)
    student, teacher, total, weight = small_llama().double(), teacher.double(), 0.0, 0.0
    for number in plan.batches[0]:
        row = store[int(number)]
        ids = torch.tensor(np.array(row.input_ids_T))[None].long()
        p, q = (torch.log_softmax(m(ids).logits[0, :-1], dim=-1) for m in (teacher, student))
        w = torch.where(torch.arange(1, ids.shape[1]) >= row.prompt_length, 1.0, 0.3)
        total += float((w * (p.exp() * (p - q)).sum(dim=1)).sum())
        weight += float(w.sum())
    assert losses[0] == pytest.approx(total / weight, rel=2e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(store, tmp_path, monkeypatch, dropout):
    whole, losses = trained(store, tmp_path / "whole", steps=6, save_steps=2, dropout=dropout)

    class Killed(BaseException):
        pass

    calls = {"n": 0}
    from distill.stages import _trainer

    real = _trainer._DistillTrainer.compute_loss

    def dies_in_step_5(self, *args, **kwargs):
        calls["n"] += 1
        if calls["n"] == 5:
            raise Killed
        return real(self, *args, **kwargs)

    monkeypatch.setattr(_trainer._DistillTrainer, "compute_loss", dies_in_step_5)
    with pytest.raises(Killed):
        trained(store, tmp_path / "cut", steps=6, save_steps=2, dropout=dropout)
    monkeypatch.setattr(_trainer._DistillTrainer, "compute_loss", real)
    (tmp_path / "cut" / "checkpoint-5").mkdir()  # one that was being written when the process died
    resumed, resumed_losses = trained(store, tmp_path / "cut", steps=6, save_steps=2, dropout=dropout)
    assert resumed_losses == losses
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_names_step_rows_and_checkpoint(store, tmp_path, monkeypatch):
    from distill.stages import _trainer

    real = _trainer.hidden_states
    calls = {"n": 0}

    def breaks_in_step_4(*args):
        calls["n"] += 1
        hidden = real(*args)
        return hidden * float("nan") if calls["n"] == 4 else hidden

    monkeypatch.setattr(_trainer, "hidden_states", breaks_in_step_4)
    with pytest.raises(StageFailed) as stopped:
        trained(store, tmp_path / "a", steps=6, save_steps=2)
    message = str(stopped.value)
    rows = rows_of(store)
    plan = plan_batches([len(r.input_ids_T) for r in rows], batch_size=8, seed=0, epochs=1, max_steps=6)
    assert "step 4 of 6" in message and "nan" in message
    assert ", ".join(map(str, sorted(plan.batches[3].tolist()))) in message
    assert "checkpoint-2" in message


def test_long_rows_are_cut_or_left_out_and_counted(store):
    from distill.example import Example

    examples = [Example("p", "r")] * len(store)
    longest = max(len(store[n].input_ids_T) for n in range(24))
    made = token_rows(examples, store, None, max_length=10, same_tokenizer=True)
    too_long = sum(len(store[n].input_ids_T) > 10 for n in range(24))
    assert made.cut_responses == too_long > 0 and made.left_out == 0 and longest > 10
    assert f"{too_long} responses were cut at 10 tokens" in made.notes(10)[0]
    made = token_rows(examples, store, None, max_length=4, same_tokenizer=True)
    assert made.left_out == sum(store[n].prompt_length >= 4 for n in range(24)) > 0


def test_the_plan_is_what_is_trained(store, tmp_path, monkeypatch):
    from distill.stages import _trainer

    seen = []
    real = _trainer._DistillTrainer.compute_loss

    def remember(self, model, inputs, *args, **kwargs):
        seen.append(inputs["rows"].tolist())
        return real(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(_trainer._DistillTrainer, "compute_loss", remember)
    rows = rows_of(store)
    plan = plan_batches([len(r.input_ids_T) for r in rows], batch_size=8, seed=0, epochs=1, max_steps=4)
    trained(store, tmp_path / "a", steps=4, gradient_accumulation_steps=2)
    assert isinstance(plan, BatchPlan)
    assert [a + b for a, b in zip(seen[::2], seen[1::2], strict=True)] == plan.batches.tolist()
