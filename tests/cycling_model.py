"""A model without randomness that says one text again and again, so that every character of its answer is known."""

from pathlib import Path

from tests.small_models import byte_tokenizer

TEXT = "a😀b\x1b[31mé\n"
"""What it says. All bytes differ; characters of one, two and four of them, and one that would colour a terminal red."""
POSITIONS = 65536
END = "<|end|>"


def make_cycling_model(folder: Path, num_layers: int = 1) -> Path:
    """A Llama checkpoint that continues a byte of TEXT with the byte after it; tokens are bytes, and no answer ends.

    Its layers add nothing: a byte's embedding is the axis on which the next byte's row of the head lies. Each takes
    time, though: a model of 8 says a few hundred tokens a second.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = byte_tokenizer(END)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=64 if num_layers == 1 else 4096,
        num_hidden_layers=num_layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    said = [fast(TEXT, add_special_tokens=False)["input_ids"][n] for n in range(len(TEXT.encode()))]
    with torch.no_grad():
        model.lm_head.weight.zero_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.model.embed_tokens.weight.zero_()
        embedding[:, len(said) - 1] = 1  # whatever else comes is followed by the first byte
        for number, token in enumerate(said):
            embedding[token] = torch.eye(64)[number]
            model.lm_head.weight[said[(number + 1) % len(said)], number] = 1
    model.save_pretrained(folder)
    return folder
