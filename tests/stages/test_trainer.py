"""The trainer's rules, each a bug that somebody shipped (design.md §9)."""

import numpy as np
import pytest
import torch

from distill.errors import StageFailed, TargetMismatch
from distill.loss._divergence import IGNORED
from distill.loss.forward_kl import ForwardKl
from distill.loss.reverse_kl import ReverseKl
from distill.loss.text import Text
from distill.stages._batches import BatchPlan, plan_batches
from distill.stages._rows import Said, TokenRow, collate, token_rows
from distill.stages._trainer import train
from distill.targets.dense import DenseTargets
from distill.targets.frozen_head import FrozenHeadTargets
from distill.targets.sampled import SampledTargets
from distill.targets.sampling import systematic_draws
from distill.training import Training
from tests.stages.small_training import (
    TOKENIZER,
    K,
    V,
    random_rows,
    rows_of,
    small_llama,
    stored,
    top_k_targets,
    trained,
)


@pytest.fixture
def store(tmp_path):
    """24 rows of random tokens with the log-probabilities of a random teacher's six likeliest tokens."""
    return stored(tmp_path / "store", random_rows(top_k_targets)[0], "top_k", K)


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
            ids = torch.tensor(np.array(row.targets.token_ids_SK[t])).long()
            logp = torch.tensor(np.array(row.targets.logprobs_SK[t])).double()
            tail_p, tail_q = 1 - logp.exp().sum(), 1 - logq[t, ids].exp().sum()
            kl = (logp.exp() * (logp - logq[t, ids])).sum() + tail_p * (tail_p / tail_q).log()
            ce = -logq[t, int(row.input_ids_T[t + 1])]
            total += w * ((1 - hard_weight) * kl + hard_weight * ce).item()
            weight += w
    return total / weight


def test_the_loss_is_the_definition_divided_once_by_the_tokens_weights(store, tmp_path):
    _, losses = trained(store, tmp_path / "a", steps=1)
    rows = rows_of(store)
    plan = plan_batches([r.length for r in rows], batch_size=8, seed=0, epochs=1, max_steps=1)
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
        length = row.length
        for name in ("input_ids", "labels", "weights", "token_ids", "values"):
            assert torch.equal(batch[name][b, : length - 1], alone[name][0, : length - 1]), name
        assert (batch["labels"][b, length - 1 :] == IGNORED).all()


@pytest.mark.parametrize("packing", [False, True])
def test_padding_asks_for_no_position_that_the_student_does_not_have(tmp_path, packing):
    """GPT-Neo has as many positions as it has, and its rows may fill them: 18 is no multiple of 8."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    kinds = {"attention_types": [[["global"], 1]], "num_layers": 1, "num_heads": 2}
    config = GPTNeoConfig(vocab_size=V, max_position_embeddings=18, hidden_size=32, **kinds)
    ids = np.random.default_rng(0).integers(0, V, (8, 18)).astype(np.int32)
    rows = [TokenRow(number, 18, 4, given_T=row) for number, row in enumerate(ids)]
    plan = plan_batches([18] * 8, batch_size=8, seed=0, epochs=1, max_steps=1)
    training = Training(batch_size=8, bf16=False, max_length=18, packing=packing)
    how = {"seed": 0, "pad_id": 0, "folder": tmp_path, "label": "test"}
    curve = train(GPTNeoForCausalLM(config), rows, Text(kind="text"), training, plan, **how).curve
    assert 0 < curve[0]["loss_nats"] < 10


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
    assert labels[first] == store[0].input_ids_T[row.prompt_length]
    assert torch.equal(batch["token_ids"][0, first], torch.tensor(store[0].targets.token_ids_SK[first]))


def test_targets_of_response_positions_alone_stay_in_place(store, tmp_path):
    """A store without prompt targets holds the last S positions; they must not slide to the front."""
    part = stored(tmp_path, random_rows(top_k_targets, prompt_targets=False)[0], "top_k", K)
    short, whole = (collate([rows_of(of)[3]], pad_id=0, prompt_weight=0.0, target_vocab=V) for of in (part, store))
    counted = short["labels"][0] != IGNORED
    assert torch.equal(short["token_ids"][0][counted], whole["token_ids"][0][counted])
    assert (short["token_ids"][0][~counted] == -1).any() and not (whole["token_ids"][0][counted] == -1).any()


def definition(dense, ids_of, rows, model, *, temperature=1.0, hard_weight=0.0, prompt_weight=0.3):
    """Weighted mean of (1 - w) T^2 KL(p_T || q_T) + w CE in float64, from full logits, row by row."""
    model, total, weight = model.double(), 0.0, 0.0
    for number in rows:
        ids = torch.tensor(np.array(ids_of(int(number)).input_ids_T)).long()
        logits = model(ids[None]).logits[0, :-1].detach()
        p = torch.log_softmax(torch.tensor(dense[int(number)]) / temperature, dim=-1)
        q = torch.log_softmax(logits / temperature, dim=-1)
        kl = (p.exp() * (p - q)).sum(dim=1) * temperature**2
        ce = -torch.log_softmax(logits, dim=-1)[torch.arange(len(ids) - 1), ids[1:]]
        w = torch.where(torch.arange(1, len(ids)) >= ids_of(int(number)).prompt_length, 1.0, prompt_weight).double()
        total += float((w * ((1 - hard_weight) * kl + hard_weight * ce)).sum())
        weight += float(w.sum())
    return total / weight


def first_batch(store):
    rows = rows_of(store)
    return plan_batches([r.length for r in rows], batch_size=8, seed=0, epochs=1, max_steps=1).batches[0]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dense_targets_give_the_full_divergence_at_any_temperature(tmp_path, temperature):
    rows, dense = random_rows(lambda logprobs, _: DenseTargets(logprobs.astype(np.float32)))
    store = stored(tmp_path, rows, "dense")
    loss = ForwardKl(kind="forward_kl", temperature=temperature, hard_weight=0.2)
    _, losses = trained(store, tmp_path / "a", loss=loss, steps=1)
    expected = definition(
        dense, store.__getitem__, first_batch(store), small_llama(), temperature=temperature, hard_weight=0.2
    )
    assert losses[0] == pytest.approx(expected, rel=1e-4)  # kept in float16


def test_sampled_targets_give_the_divergence_on_average(tmp_path):
    """Over the whole range of the one uniform number, not over luck: the mean of an even grid of it."""
    grid, losses = 12, []
    for step in range(grid):

        def sampled(logprobs, _, step=step):
            uniform = torch.full((len(logprobs),), (step + 0.5) / grid, dtype=torch.float64)
            drawn = systematic_draws(torch.tensor(logprobs).exp(), uniform, 4)
            entropy = -(np.exp(logprobs) * logprobs).sum(axis=1)
            return SampledTargets.of_draws(drawn.numpy(), entropy)

        rows, dense = random_rows(sampled)
        store = stored(tmp_path / str(step), rows, "sampled", 4)
        _, first = trained(store, tmp_path / f"{step}-run", steps=1)
        losses.append(first[0])
    expected = definition(dense, store.__getitem__, first_batch(store), small_llama(), hard_weight=0.2)
    assert np.mean(losses) == pytest.approx(expected, rel=1e-3)
    assert max(abs(np.array(losses) / expected - 1)) > 2e-3  # one draw alone is not that close


def test_frozen_head_targets_give_the_full_divergence_and_its_gradient(tmp_path):
    head = small_llama().lm_head.weight.detach().double().numpy()

    def averaged(logprobs, _):
        p = np.exp(logprobs)
        return FrozenHeadTargets((p @ head).astype(np.float32), -(p * logprobs).sum(axis=1).astype(np.float32))

    rows, dense = random_rows(averaged)
    vectors = stored(tmp_path / "vectors", rows, "frozen_head", head.shape[1])
    whole = stored(
        tmp_path / "dense", random_rows(lambda logprobs, _: DenseTargets(logprobs.astype(np.float32)))[0], "dense"
    )
    models = [small_llama(), small_llama()]
    for model in models:
        model.lm_head.weight.requires_grad_(False)
    curves = [
        trained(store, tmp_path / name, model=model, steps=3)[1]
        for store, name, model in ((vectors, "a", models[0]), (whole, "b", models[1]))
    ]
    expected = definition(dense, vectors.__getitem__, first_batch(vectors), small_llama(), hard_weight=0.2)
    assert curves[0][0] == pytest.approx(expected, rel=1e-3)
    assert curves[0] == pytest.approx(curves[1], rel=2e-3)


def test_a_head_that_is_trained_refuses_frozen_head_targets(tmp_path):
    rows, _ = random_rows(
        lambda p, _: FrozenHeadTargets(np.zeros((len(p), 32), np.float32), np.zeros(len(p), np.float32))
    )
    store = stored(tmp_path, rows, "frozen_head", 32)
    with pytest.raises(TargetMismatch, match="head that is not trained"):
        trained(store, tmp_path / "a", steps=1)


def test_sampled_targets_are_refused_where_they_would_be_biased(tmp_path):
    rows, _ = random_rows(
        lambda p, _: SampledTargets.of_draws(np.zeros((len(p), 4), np.int32), np.zeros(len(p), np.float32))
    )
    store = stored(tmp_path, rows, "sampled", 4)
    with pytest.raises(TargetMismatch, match=r"reverse_kl is not linear.*top_k"):
        trained(store, tmp_path / "a", loss=ReverseKl(kind="reverse_kl"), steps=1)


def test_top_k_targets_cannot_be_tempered_again(store, tmp_path):
    with pytest.raises(TargetMismatch, match=r"at temperature 1\.0.*2\.0"):
        trained(store, tmp_path / "a", loss=ForwardKl(kind="forward_kl", temperature=2.0), steps=1)


def test_checkpointing_is_asked_for_by_the_name_that_transformers_has(store, tmp_path, recwarn):
    model, plain = small_llama(), small_llama()
    trained(store, tmp_path / "plain", model=plain)
    trained(store, tmp_path / "checkpointing", model=model, gradient_checkpointing=True)
    assert not [str(warning.message) for warning in recwarn if issubclass(warning.category, FutureWarning)]
    assert model.is_activation_checkpointing and not plain.is_activation_checkpointing
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_the_head_is_never_called_and_a_frozen_one_gets_no_gradient(store, tmp_path):
    model = small_llama()
    called = []
    model.lm_head.register_forward_pre_hook(lambda _, inputs: called.append(inputs[0].shape[:-1]))
    model.get_input_embeddings().weight.requires_grad_(False)  # tied: the head is frozen too
    before = model.lm_head.weight.clone()
    trained(store, tmp_path / "a", model=model, steps=2)
    assert called == [(1, 5)], "once, before the training, to prove that it is all there is to the logits"
    assert torch.equal(before, model.lm_head.weight) and model.lm_head.weight.grad is None


def test_a_live_teacher_gives_the_loss_of_its_full_distribution(store, tmp_path):
    teacher = small_llama(seed=5).requires_grad_(False)
    _, losses = trained(store, tmp_path / "a", loss=ForwardKl(kind="forward_kl"), live=teacher, steps=1)
    rows = rows_of(store)
    plan = plan_batches([r.length for r in rows], batch_size=8, seed=0, epochs=1, max_steps=1)
    student, teacher, total, weight = small_llama().double(), teacher.double(), 0.0, 0.0
    for number in plan.batches[0]:
        row = store[int(number)]
        ids = torch.tensor(np.array(row.input_ids_T))[None].long()
        p, q = (torch.log_softmax(m(ids).logits[0, :-1], dim=-1) for m in (teacher, student))
        w = torch.where(torch.arange(1, ids.shape[1]) >= row.prompt_length, 1.0, 0.3)
        total += float((w * (p.exp() * (p - q)).sum(dim=1)).sum())
        weight += float(w.sum())
    assert losses[0] == pytest.approx(total / weight, rel=2e-6)


@pytest.mark.parametrize(("dropout", "logging_steps"), [(0.0, 1), (0.2, 1), (0.0, 3)])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(store, tmp_path, monkeypatch, dropout, logging_steps):
    options = {"steps": 6, "save_steps": 2, "dropout": dropout, "logging_steps": logging_steps}
    whole, losses = trained(store, tmp_path / "whole", **options)

    class Killed(BaseException):
        pass

    calls = {"n": 0}
    from distill.stages import _trainer

    real = _trainer.DistillTrainer.compute_loss

    def dies_in_step_5(self, *args, **kwargs):
        calls["n"] += 1
        if calls["n"] == 5:
            raise Killed
        return real(self, *args, **kwargs)

    monkeypatch.setattr(_trainer.DistillTrainer, "compute_loss", dies_in_step_5)
    with pytest.raises(Killed):
        trained(store, tmp_path / "cut", **options)
    monkeypatch.setattr(_trainer.DistillTrainer, "compute_loss", real)
    (tmp_path / "cut" / "checkpoint-5").mkdir()  # one that was being written when the process died
    resumed, resumed_losses = trained(store, tmp_path / "cut", **options)
    assert resumed_losses == losses
    # killed after its last step, before anything was made of it
    again, losses_again = trained(store, tmp_path / "cut", **options)
    assert losses_again == losses
    for a, b, c in zip(whole.parameters(), resumed.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_a_loss_that_is_not_finite_names_step_rows_and_checkpoint(store, tmp_path, monkeypatch):
    from distill.stages import _step

    real = _step.hidden_states
    calls = {"n": 0}

    def breaks_in_step_4(*args):
        calls["n"] += 1
        hidden = real(*args)
        return hidden * float("nan") if calls["n"] == 4 else hidden

    monkeypatch.setattr(_step, "hidden_states", breaks_in_step_4)
    with pytest.raises(StageFailed) as stopped:
        trained(store, tmp_path / "a", steps=6, save_steps=2)
    message = str(stopped.value)
    rows = rows_of(store)
    plan = plan_batches([r.length for r in rows], batch_size=8, seed=0, epochs=1, max_steps=6)
    assert "step 4 of 6" in message and "nan" in message
    assert ", ".join(map(str, sorted(plan.batches[3].tolist()))) in message
    assert "checkpoint-2" in message


def test_long_rows_are_cut_or_left_out_and_counted(store):
    from distill.example import Example

    examples = [Example("p", "r")] * len(store)
    longest = max(len(store[n].input_ids_T) for n in range(24))
    made = token_rows([Said(examples, store)], TOKENIZER, max_length=10)
    too_long = sum(len(store[n].input_ids_T) > 10 for n in range(24))
    assert made.cut_responses == too_long > 0 and made.left_out == 0 and longest > 10
    assert f"{too_long} responses were cut at 10 tokens" in made.notes(10)[0]
    made = token_rows([Said(examples, store)], TOKENIZER, max_length=4)
    assert made.left_out == sum(store[n].prompt_length >= 4 for n in range(24)) > 0


def test_the_plan_is_what_is_trained(store, tmp_path, monkeypatch):
    from distill.stages import _trainer

    seen = []
    real = _trainer.DistillTrainer.compute_loss

    def remember(self, model, inputs, *args, **kwargs):
        seen.append(inputs["rows"].tolist())
        return real(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(_trainer.DistillTrainer, "compute_loss", remember)
    rows = rows_of(store)
    plan = plan_batches([r.length for r in rows], batch_size=8, seed=0, epochs=1, max_steps=4)
    trained(store, tmp_path / "a", steps=4, gradient_accumulation_steps=2)
    assert isinstance(plan, BatchPlan)
    assert [a + b for a, b in zip(seen[::2], seen[1::2], strict=True)] == plan.batches.tolist()
