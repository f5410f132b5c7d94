"""Packed rows see themselves alone: loss and gradients are those of the padded batch, whatever shares a sequence."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from distill._shape_checks import check_packing
from distill.errors import RecipeError
from distill.family.head import transformers_config
from distill.family.known import FAMILIES
from distill.family.tiny import tiny_config
from distill.loss.forward_kl import ForwardKl
from distill.responses import TeacherResponses
from distill.stages._packing import first_fit, pack
from distill.stages._proofs import require_separate_rows
from distill.stages._rows import collate
from distill.stages._step import Step
from tests.distributed.training import sampled_targets
from tests.stages.small_training import K, V, random_rows, rows_of, stored, top_k_targets

PACKABLE = [family for family in FAMILIES if family.model_type not in {"bloom", "opt"}]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    stored(folder / "top_k", random_rows(top_k_targets)[0], "top_k", K)
    stored(folder / "sampled", random_rows(sampled_targets)[0], "sampled", 4)
    return folder


def loss_and_gradients(model, batch, kind):
    model.zero_grad()
    step = Step(model, ForwardKl(kind="forward_kl", hard_weight=0.2), stored=(kind, 1.0), bf16=False)
    loss = step(batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def tiny(family, attention):
    config = tiny_config({"model_type": family.model_type, **family.published[-1].config}, V)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(transformers_config(config), attn_implementation=attention)
    return model.float().eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", PACKABLE, ids=lambda family: family.name)
def test_packed_rows_learn_what_padded_rows_learn(family, attention, stores):
    if attention not in family.attention:
        pytest.skip(f"{family.name} has no {attention}")
    model = tiny(family, attention)
    require_separate_rows(model)
    kind = "sampled" if attention == "eager" else "top_k"
    rows = rows_of(TeacherResponses(stores / kind))[:7]
    how = {"pad_id": 0, "prompt_weight": 0.3, "target_vocab": V}
    padded, packed = collate(rows, **how), collate(rows, **how, pack_to=40)
    assert packed["input_ids"].shape[0] < len(rows) and "attention_mask" not in packed
    expected, right = loss_and_gradients(model, padded, kind)
    found, gradients = loss_and_gradients(model, packed, kind)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert gradients.keys() == right.keys()
    for name, gradient in right.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=2e-5, msg=name)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_every_row_stands_in_one_sequence_and_none_is_too_long(lengths):
    sequences = first_fit(lengths, 40)
    assert sorted(row for rows in sequences for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= 40 for rows in sequences)
    # two sequences that are not even half full would have been one
    assert sum(2 * sum(lengths[row] for row in rows) <= 40 for rows in sequences) <= 1


def test_what_is_laid_out_by_hand():
    batch = {
        "input_ids": np.array([[5, 6, 0], [7, 8, 9], [4, 0, 0]]),
        "attention_mask": np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]]),
        "labels": np.array([[6, -100, -100], [8, 9, -100], [-100, -100, -100]]),
        "token_ids": np.arange(18, dtype=np.int32).reshape(3, 3, 2),
        "rows": np.array([3, 1, 2]),
    }
    packed = pack(batch, [2, 3, 1], 4, pad_to=4)
    assert packed["input_ids"].tolist() == [[7, 8, 9, 4], [5, 6, 0, 0]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0], [0, 1, 0, 1]]
    assert packed["labels"].tolist() == [[8, 9, -100, -100], [6, -100, -100, -100]]
    assert packed["token_ids"].tolist() == [
        [[6, 7], [8, 9], [10, 11], [12, 13]],
        [[0, 1], [2, 3], [-1, -1], [-1, -1]],
    ]
    assert packed["rows"].tolist() == [3, 1, 2]
    # padded to the capacity and no further
    assert pack(batch, [2, 3, 1], 3, pad_to=4)["input_ids"].tolist() == [[7, 8, 9], [5, 6, 4]]


@pytest.mark.parametrize("model_type", ["bloom", "opt"])
def test_architectures_whose_rows_see_each_other_are_refused(model_type, packing_recipe):
    check_packing(packing_recipe, {"model_type": "llama"})
    with pytest.raises(RecipeError, match=f"{model_type} .* Leave packing out"):
        check_packing(packing_recipe, {"model_type": model_type})


def test_training_finds_out_by_itself():
    """Of an architecture that nobody wrote down: OPT takes positions and does not separate rows by them."""
    opt = next(family for family in FAMILIES if family.model_type == "opt")
    with pytest.raises(RecipeError, match=r"OPTForCausalLM lets rows in one sequence see each other"):
        require_separate_rows(tiny(opt, "eager"))


@pytest.fixture
def packing_recipe():
    from distill import _hydra
    from distill.recipe import parse

    return parse(_hydra.compose(["training.packing=true"]).config)
