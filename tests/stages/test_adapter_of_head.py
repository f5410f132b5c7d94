"""A LoRA on the output head trains as PEFT's own forward with full logits and autograd does, without either."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill.errors import RecipeError, TargetMismatch
from distill.family.head import LowRank, hidden_states, output_head
from distill.loss.forward_kl import ForwardKl
from distill.loss.jsd import Jsd
from distill.loss.reverse_kl import ReverseKl
from distill.loss.text import Text
from distill.runtime.bnb import import_bitsandbytes
from distill.stages._batches import plan_batches
from distill.stages._checkpoints import load_last_checkpoint
from distill.stages._rows import collate
from distill.stages._step import Step
from distill.stages._trainer import train
from distill.targets.dense import DenseTargets
from distill.targets.frozen_head import FrozenHeadTargets
from distill.training import Training
from tests.distributed.training import DRAWS, llama, sampled_targets
from tests.loss import test_aligned as aligned_case
from tests.stages.small_training import K, V, random_rows, rows_of, stored, top_k_targets, trained

import_bitsandbytes()  # before peft, which imports it loudly
from peft import LoraConfig, get_peft_model  # noqa: E402

HARD, TARGETS = 0.2, ["q_proj", "down_proj", "lm_head"]
# stored targets, the loss; None: a live teacher
CASES = {
    "top_k": ("top_k", ForwardKl(kind="forward_kl", hard_weight=HARD)),
    "top_k_reverse": ("top_k", ReverseKl(kind="reverse_kl", hard_weight=HARD)),
    "sampled": ("sampled", ForwardKl(kind="forward_kl", hard_weight=HARD)),
    "dense": ("dense", Jsd(kind="jsd", hard_weight=HARD)),
    "text": ("top_k", Text(kind="text")),
    "live": (None, ReverseKl(kind="reverse_kl", hard_weight=HARD)),
}


def adapted(base=None, *, seed=0, targets=TARGETS, **more):
    """A tiny Llama whose head is its own, with LoRA; both factors random, so that all have gradients at once."""
    torch.manual_seed(seed)
    config = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=targets, **more)
    model = get_peft_model(llama(tied=False) if base is None else base, config)
    torch.manual_seed(seed + 1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    of = {
        "top_k": (top_k_targets, K),
        "sampled": (sampled_targets, DRAWS),
        "dense": (lambda logprobs, _: DenseTargets(logprobs.astype(np.float32)), 0),
    }
    return {
        kind: stored(folder / kind, random_rows(targets)[0], kind, kept=kept) for kind, (targets, kept) in of.items()
    }


def scene(name, stores):
    """(store, kind of targets or None, loss, live teacher or None) of a case."""
    kind, loss = CASES[name]
    teacher = llama(tied=True, seed=5).requires_grad_(False) if kind is None else None
    return stores[kind or "top_k"], None if loss.kind == "text" else kind, loss, teacher


def first_batch(store, kind, *, prompt_weight=0.3):
    vocab = V if kind else None
    return collate(rows_of(store)[:6], pad_id=0, prompt_weight=prompt_weight, target_vocab=vocab)


def divergence(kind, p, q):
    """float64, of probabilities `[..., V]`, from the definition."""
    kl = lambda a, b: torch.where(a > 0, a * (a.clamp(min=1e-300) / b).log(), 0.0).sum(-1)  # noqa: E731
    if kind == "jsd":
        return 0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2)
    return kl(p, q) if kind == "forward_kl" else kl(q, p)


def definition(model, batch, kind, loss, teacher):
    """Sum over the counted tokens, by the model's own forward: PEFT's layers, full logits, autograd."""
    counted = batch["labels"] != -100
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    q = model(**inputs).logits[counted].double().softmax(-1)
    each = -q.gather(-1, batch["labels"][counted][:, None])[:, 0].log()
    if loss.kind != "text":
        if kind == "sampled":
            ids, weights = batch["token_ids"][counted].long(), batch["values"][counted].double()
            drawn = weights * (ids >= 0) * q.gather(-1, ids.clamp(min=0)).log()
            soft = -drawn.sum(-1) - batch["entropy"][counted].double()
        elif kind == "top_k":
            kept = q.gather(-1, batch["token_ids"][counted].long())
            q_and_rest = torch.cat([kept, 1 - kept.sum(-1, keepdim=True)], dim=-1)
            soft = divergence(loss.kind, batch["values"][counted].double().exp(), q_and_rest)
        else:
            p = teacher(**inputs).logits.double().softmax(-1) if teacher else batch["logprobs"].double().softmax(-1)
            soft = divergence(loss.kind, p[counted], q)
        each = (1 - HARD) * soft + HARD * each
    return (each * batch["weights"][counted]).sum()


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_full_logits_in_float64(name, stores):
    store, kind, loss, teacher = scene(name, stores)
    batch = first_batch(store, kind)
    model, exact = adapted(), adapted().double()
    fused = Step(model, loss, teacher=teacher, stored=(kind, 1.0) if kind else None, bf16=False)(batch)
    expected = definition(exact, batch, kind, loss, teacher and teacher.double())
    torch.testing.assert_close(fused.double(), expected, rtol=2e-6, atol=0)
    fused.backward()
    expected.backward()
    ours, theirs = (dict(m.named_parameters()) for m in (model, exact))
    of_head = [n for n, weight in ours.items() if weight.requires_grad and "lm_head" in n]
    assert len(of_head) == 2
    for each, weight in ours.items():
        if weight.requires_grad:
            right = theirs[each].grad
            assert (weight.grad - right).norm() < 2e-6 * right.norm(), each  # full logits in float32: 4e-7
        else:
            assert weight.grad is None, each


def test_the_aligned_loss_of_an_update_is_that_of_the_merged_head():
    student, targets = aligned_case.case()
    V_, D_ = student.head_VD.shape
    A_RD, B_VR = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, D_), (V_, 3)))
    weight = student.head_VD.detach()
    updated = replace(student, head_VD=weight, low_rank=LowRank(A_RD, B_VR, 0.5))
    found = aligned_case.loss_of(3.0, 0.4)(updated, targets).total
    expected, _ = aligned_case.definition(replace(student, head_VD=weight + 0.5 * B_VR @ A_RD), targets, 3.0, 0.4)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    inputs = (student.hidden_BTD, A_RD, B_VR)
    for ours, right in zip(*(torch.autograd.grad(2 * loss, inputs) for loss in (found, expected)), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-7, atol=1e-9)


def by_hand(model, store, kind, loss, teacher, steps, learning_rate):
    """AdamW on `definition`, full logits and all; what the trainer should do, in a dozen lines."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    rows = rows_of(store)
    plan = plan_batches([row.length for row in rows], batch_size=8, seed=0, epochs=1, max_steps=steps)
    for step, numbers in enumerate(plan.batches):
        batch = collate([rows[n] for n in numbers], pad_id=0, prompt_weight=0.3, target_vocab=V if kind else None)
        tokens = (batch["weights"] * (batch["labels"] != -100)).sum()
        (definition(model, batch, kind, loss, teacher) / tokens).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("name", ["dense", "live", "text"])
def test_a_training_leaves_the_weights_of_full_logits_and_autograd(name, stores, tmp_path):
    store, kind, loss, teacher = scene(name, stores)
    model, _ = trained(store, tmp_path, model=adapted(), loss=loss, steps=6, live=teacher, warmup_steps=0)
    expected = by_hand(adapted(), store, kind, loss, teacher, 6, 1e-2)
    start = dict(adapted().named_parameters())
    for (key, mine), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=5e-6, msg=key)
        assert torch.equal(mine, start[key]) != mine.requires_grad, key


def test_a_training_never_calls_the_head(stores, tmp_path):
    model = adapted()
    layer = model.get_output_embeddings()
    called = []
    for part in (layer, layer.base_layer, layer.lora_A["default"], layer.lora_B["default"]):
        part.register_forward_pre_hook(lambda _, inputs: called.append(inputs[0].shape[:-1]))
    trained(stores["top_k"], tmp_path, model=model, steps=1)
    assert called == [(1, 5)] * 4, "once, before the training, to prove that it is all there is to the logits"


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(stores, tmp_path):
    rows = rows_of(stores["top_k"])
    training = Training(batch_size=8, learning_rate=1e-2, bf16=False, warmup_steps=0, save_steps=2, logging_steps=1)
    plan = plan_batches([row.length for row in rows], batch_size=8, seed=0, epochs=1, max_steps=6)
    loss = CASES["top_k"][1]
    run = partial(train, rows=rows, loss=loss, training=training, plan=plan, seed=0, pad_id=0, label="test")
    whole, cut, resumed = adapted(), adapted(), adapted()
    told = run(whole, folder=tmp_path / "whole").curve
    assert run(cut, folder=tmp_path / "cut", stop_after=3).resumed_from_step is None
    done = run(resumed, folder=tmp_path / "cut")
    assert done.resumed_from_step == 3
    assert [point["loss_nats"] for point in done.curve] == [point["loss_nats"] for point in told]
    read = adapted()
    load_last_checkpoint(read, tmp_path / "cut")
    for (name, a), b, c in zip(whole.named_parameters(), resumed.parameters(), read.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c), name


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that is made beside the weights of `model`."""

    def __init__(self, model):
        super().__init__()
        self.known = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if torch.is_tensor(part) and part.untyped_storage().data_ptr() not in self.known:
                self.elements = max(self.elements, part.numel())
        return result


@pytest.mark.parametrize("trains_head_itself", [False, True])
def test_nothing_of_the_heads_size_is_made(trains_head_itself):
    """1,500 tokens by 64: 40 rows of logits have 60,000 elements, the head's gradient 96,000."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=1500, max_position_embeddings=64, **shape))
    model = adapted(base, targets=["q_proj", "lm_head"])
    if trains_head_itself:
        model = base = LlamaForCausalLM(base.config)
        base.requires_grad_(False).lm_head.weight.requires_grad_(True)
    ids = torch.randint(0, 1500, (2, 21))
    labels = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    batch = {"input_ids": ids, "labels": labels, "weights": torch.ones(2, 21), "attention_mask": torch.ones_like(ids)}
    step = Step(model, Text(kind="text"), bf16=False)
    with Largest(model) as made:
        step(batch).backward()
    assert made.elements == (96_000 if trains_head_itself else 60_000)


def test_the_head_is_read_as_peft_computes_it():
    """Trained, switched off, merged; in 16 bits the product stays in float32."""
    ids = torch.arange(3, 23)[None]
    model = adapted().eval()
    with torch.no_grad():
        told = model(input_ids=ids).logits
        hidden_BTD = hidden_states(model, ids, None)
        torch.testing.assert_close(output_head(model).logits(hidden_BTD), told, rtol=1e-5, atol=1e-6)
        with model.disable_adapter():
            plain = model(input_ids=ids).logits
            hidden = hidden_states(model, ids, None)
            torch.testing.assert_close(output_head(model).logits(hidden), plain, rtol=1e-5, atol=1e-6)
        assert (told - plain).abs().max() > 0.05
        model.merge_adapter()
        hidden = hidden_states(model, ids, None)
        torch.testing.assert_close(output_head(model).logits(hidden), told, rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()
        half = output_head(adapted(llama(tied=False).bfloat16()))
    assert half.weight_VD.dtype == torch.bfloat16 and half.logits(hidden_BTD.bfloat16()).dtype == torch.float32


def test_why_a_tied_head_is_refused():
    """PEFT trains the update for the head alone, and merges it into the embeddings too: another student comes out."""
    ids = torch.arange(3, 23)[None]
    with pytest.warns(UserWarning, match="tie_word_embeddings=True"):
        model = adapted(llama(tied=True), targets=["lm_head"]).eval()
        with torch.no_grad():
            told = model(input_ids=ids).logits
            merged = model.merge_and_unload()(input_ids=ids).logits
    assert (told - merged).abs().max() > 0.5


@pytest.mark.parametrize(
    ("more", "word"),
    [({"lora_dropout": 0.1}, "dropout"), ({"use_dora": True}, "DoRA"), ({"lora_bias": True}, "bias of its own")],
)
def test_what_the_loss_would_not_compute_is_refused(more, word):
    with pytest.raises(RecipeError, match=rf"output head has .*{word}"):
        output_head(adapted(**more).train())


def test_dropout_of_an_adapter_counts_in_training_alone():
    assert output_head(adapted(lora_dropout=0.1).eval()).low_rank is not None


def test_a_quantised_head_is_refused():
    bnb = pytest.importorskip("bitsandbytes")
    base = llama(tied=False)
    base.lm_head = bnb.nn.Linear4bit(32, V, bias=False, quant_type="nf4").to("cpu")
    with pytest.raises(RecipeError, match="a weight that is quantised"):
        output_head(adapted(base, targets=["lm_head"]))


def test_frozen_head_targets_are_refused(tmp_path):
    nothing = lambda p, _: FrozenHeadTargets(np.zeros((len(p), 32), np.float32), np.zeros(len(p), np.float32))  # noqa: E731
    store = stored(tmp_path, random_rows(nothing)[0], "frozen_head", 32)
    with pytest.raises(TargetMismatch, match="head that is not trained"):
        trained(store, tmp_path / "a", model=adapted(), steps=1)


def test_a_live_teacher_with_an_adapter_on_its_head_is_refused(stores):
    step = Step(adapted(), CASES["live"][1], teacher=adapted(seed=3), bf16=False)
    with pytest.raises(RecipeError, match=r"not merged.*\n.*merge_and_unload"):
        step(first_batch(stores["top_k"], None))


def test_a_package_scores_tokens_in_float32_whatever_its_dtype():
    """An adapter's package on a base in 16 bits: the logits are the definition's, not rounded to 16 bits."""
    from distill.runtime.hf import Transformers

    model = adapted(llama(tied=False).bfloat16()).eval()
    tokenizer = SimpleNamespace(eos_token_id=0)
    rows = [list(range(3, 20)), list(range(9, 30))]
    scorer = Transformers("here", model=model, tokenizer=tokenizer)
    found = torch.tensor(scorer.logprobs(rows, [[4, 9], [2, 7]]))
    with torch.no_grad():
        states = [hidden_states(model, torch.tensor([row]), None)[0] for row in rows]
        picked = torch.stack([states[0][4], states[0][9], states[1][2], states[1][7]]).double()
        layer = model.get_output_embeddings()
        A, B = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        exact = picked @ layer.base_layer.weight.double().T + 5 / 3 * (picked @ A.T) @ B.T
    torch.testing.assert_close(found.double(), exact.log_softmax(-1), rtol=1e-4, atol=1e-4)


def test_a_package_with_another_adapter_on_its_head_scores_with_its_own_product():
    from distill.runtime.hf import Transformers

    model = adapted(llama(tied=False), use_dora=True).eval()
    row = list(range(3, 20))
    found = Transformers("here", model=model, tokenizer=SimpleNamespace(eos_token_id=0)).logprobs([row], [[4, 9]])
    with torch.no_grad():
        exact = model(input_ids=torch.tensor([row])).logits[0, [4, 9]].log_softmax(-1)
    torch.testing.assert_close(torch.tensor(found), exact, rtol=1e-5, atol=1e-5)
