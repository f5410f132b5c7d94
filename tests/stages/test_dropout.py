"""A checkpoint's own dropout does not reach the training; the adapter's and the recipe's do."""

import pytest
import torch

from distill.family.known import FAMILIES
from distill.family.tiny import tiny_config
from distill.stages._dropout import without_own_dropout
from tests.stages.small_training import K, V, random_rows, stored, top_k_targets, trained

IDS = torch.arange(5, 29)[None]
IN_PRE_TRAINING = ("pdrop", "dropout", "layerdrop")


def model_with_dropout(family):
    """A tiny model of the family in which everything that can be dropped is, half of the time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = tiny_config({"model_type": family.model_type, **family.published[0].config}, 64)
    model_type = values.pop("model_type")
    all_keys = AutoConfig.for_model(model_type, **values).to_dict()
    values |= {key: 0.5 for key in all_keys if key.endswith(IN_PRE_TRAINING)}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **values)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_model_in_training_says_what_it_says_in_evaluation(family):
    model = model_with_dropout(family)
    config = model.config.to_dict()
    with torch.no_grad():
        quiet = model.eval()(IDS).logits
        noisy = model.train()(IDS).logits
        assert not torch.equal(noisy, quiet), "this family's dropout was not switched on, so the test shows nothing"
        with without_own_dropout(model):
            assert torch.equal(model(IDS).logits, quiet)
            assert model.training
        torch.manual_seed(5)
        again = model(IDS).logits
        assert not torch.equal(again, quiet)
    assert model.config.to_dict() == config


def test_an_adapters_dropout_stays():
    from peft import LoraConfig, get_peft_model

    gpt2 = model_with_dropout(next(family for family in FAMILIES if family.name == "gpt2"))
    settings = LoraConfig(
        r=4, lora_dropout=0.5, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    )
    model = get_peft_model(gpt2, settings)
    with torch.no_grad(), without_own_dropout(model):
        quiet, noisy = model.eval()(IDS).logits, model.train()(IDS).logits
    assert not torch.equal(quiet, noisy)


def test_a_training_is_the_same_whatever_dropout_the_checkpoint_came_with(tmp_path):
    """Two trainings of a GPT-2 that differ in config.json's dropouts alone: the same weights, bit for bit."""
    from transformers import GPT2Config, GPT2LMHeadModel

    store = stored(tmp_path / "store", random_rows(top_k_targets)[0], "top_k", K)
    ended = []
    for pdrop in (0.0, 0.1):
        torch.manual_seed(0)
        drops = {"resid_pdrop": pdrop, "embd_pdrop": pdrop, "attn_pdrop": pdrop}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=2, n_positions=32, **drops))
        trained_model, losses = trained(store, tmp_path / f"{pdrop}", model=model, steps=2)
        ended.append((losses, trained_model.state_dict()))
        assert trained_model.config.resid_pdrop == pdrop
    (quiet_losses, quiet), (losses, weights) = ended
    assert losses == quiet_losses
    assert all(torch.equal(weights[name], quiet[name]) for name in quiet)
