"""What a pass keeps, against what real tensors keep, and against the definition of checkpointing."""

import pytest

from distill.planning.activations import Pass, of_reading, of_training

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 5, "n_head": 4, "vocab_size": 300, "n_positions": 128}


def really_kept(config, how):
    """Bytes of all tensors that a real forward pass saves, each storage once, weights aside."""
    import torch
    from transformers import AutoModelForCausalLM

    from distill.family.head import transformers_config

    made = transformers_config(config)
    model = AutoModelForCausalLM.from_config(made, attn_implementation=how.attention).train()
    weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids_BT = torch.zeros(how.rows, how.length, dtype=torch.long)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, -8:] = 0  # as in nearly every batch; without padding, transformers needs no mask
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=how.bf16),
    ):
        model.base_model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_is_counted_is_what_real_tensors_keep(config, bf16, attention):
    how = Pass(6, 96, bf16=bf16, attention=attention)
    counted = of_training(config, 5, how).forward
    # masks, positions and the last hidden states live too, without being saved
    assert 0.99 * really_kept(config, how) <= counted <= 1.05 * really_kept(config, how)


def test_with_checkpointing_a_block_keeps_its_input_alone():
    how = Pass(6, 96, checkpointing=True)
    more = of_training(LLAMA, 41, how).forward - of_training(LLAMA, 40, how).forward
    assert more == 6 * 96 * 64 * 4
    whole = of_training(LLAMA, 41, Pass(6, 96)).forward - of_training(LLAMA, 40, Pass(6, 96)).forward
    assert whole > 10 * more


def test_memory_grows_by_the_same_for_every_block_and_with_the_rows():
    one, two = (of_training(LLAMA, layers, Pass(6, 96)).backward for layers in (10, 20))
    three = of_training(LLAMA, 30, Pass(6, 96)).backward
    assert three - two == two - one > 0
    assert of_training(LLAMA, 30, Pass(12, 96)).backward > 1.9 * three


def test_adapters_keep_no_inputs_of_frozen_layers_and_qlora_no_copies_of_weights():
    full, lora, qlora = (
        of_training(LLAMA, 5, Pass(2, 16, bf16=True, adapter=kind, rank=4)).forward
        for kind in ("none", "lora", "qlora")
    )
    assert qlora < lora
    assert lora < 1.1 * full


def test_reading_keeps_nothing_from_block_to_block():
    import json

    reading = of_reading(json.dumps(LLAMA), Pass(6, 96))
    assert 0 < reading < of_training(LLAMA, 5, Pass(6, 96)).forward / 3
