"""LLaMA, the first: full heads, rotary positions to 2048 tokens, SentencePiece of 32,000 tokens; no chat models.

Meta gave the weights out on request only; on the hub there are community conversions. The paper's 33B is "30b" there.
Source: Touvron et al. 2023, arXiv:2302.13971, table 2. Non-commercial research licence.
"""

from distill.family.facts import Family, Published


def _published(
    size: str, revision: str, parameters: int, width: int, inner: int, depth: int, heads: int, epsilon: float
) -> Published:
    return Published(
        size=size,
        model=f"huggyllama/llama-{size.lower()}",
        revision=revision,
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "rms_norm_eps": epsilon,
            "vocab_size": 32_000,
            "tie_word_embeddings": False,
        },
        parameters=parameters,
        stored_dtype="float16",
        num_tokens=32_000,
        licence="llama-1",
    )


FAMILY = Family(
    name="llama",
    title="LLaMA",
    model_type="llama",
    published=(
        _published("7B", "8416d3fefb0cb3ff5775a7b13c1692d10ff1aa16", 6_738_415_616, 4096, 11_008, 32, 32, 1e-6),
        _published("13B", "bf57045473f207bb1de1ed035ace226f4d9f9bba", 13_015_864_320, 5120, 13_824, 40, 40, 1e-6),
        _published("30B", "2b1edcdb3c7ced7bce6c1aa75c94545777c3118b", 32_528_943_616, 6656, 17_920, 60, 52, 1e-6),
        # the only size with the larger epsilon
        _published("65B", "49707c5313d34d1c5a846e29cf2a2a650c22c8ee", 65_285_660_672, 8192, 22_016, 80, 64, 1e-5),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    attention=("eager", "sdpa", "flash_attention_2"),
    tokenizer="sentencepiece_bpe",
    special_tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    gguf="llama",
    vllm=True,
    tensor_parallel=True,
    tiny={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    source="https://arxiv.org/abs/2302.13971",
)
