"""GPT-Neo: GPT-2 with plain linear layers, unscaled attention scores, and every second layer blind beyond 256 tokens.

Neither transformers (no SDPA) nor vLLM nor llama.cpp has more than the plain implementation of it. The checkpoints'
dropouts are 0, as transformers' defaults are.
Source: Black et al. 2021, https://doi.org/10.5281/zenodo.5297715, and the checkpoints' config.json.
"""

from distill.family.facts import Family, Published


def _published(size: str, model: str, revision: str, parameters: int, width: int, depth: int, heads: int) -> Published:
    return Published(
        size=size,
        model=model,
        revision=revision,
        config={
            "hidden_size": width,
            "num_layers": depth,
            "num_heads": heads,
            "attention_types": [[["global", "local"], depth // 2]],
            "window_size": 256,
            "intermediate_size": None,
            "max_position_embeddings": 2048,
            "vocab_size": 50257,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-05,
            "tie_word_embeddings": True,
        },
        parameters=parameters,
        stored_dtype="float32",
        num_tokens=50257,
        licence="mit",
    )


_HUB = "EleutherAI/gpt-neo"

FAMILY = Family(
    name="gpt_neo",
    title="GPT-Neo",
    model_type="gpt_neo",
    published=(
        _published("125M", f"{_HUB}-125m", "21def0189f5705e2521767faed922f1f15e7d7db", 125_198_592, 768, 12, 12),
        _published("1.3B", f"{_HUB}-1.3B", "dbe59a7f4a88d01d1ba9798d78dbe3fe038792c8", 1_315_575_808, 2048, 24, 16),
        _published("2.7B", f"{_HUB}-2.7B", "e24fa291132763e59f4a5422741b424fb5d59056", 2_651_307_520, 2560, 32, 20),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"),
    attention=("eager", "flash_attention_2"),
    tokenizer="byte_level_bpe",
    special_tokens={"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    gguf=None,
    vllm=False,
    tensor_parallel=False,
    tiny={"hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    source="https://huggingface.co/EleutherAI/gpt-neo-2.7B",
)
