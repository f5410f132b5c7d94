"""GPT-2: learned positions, a fused qkv projection stored transposed (Conv1D), tied embeddings. And DistilGPT2.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2; the paper's 117M and 345M
count 124,439,808 and 354,823,168 parameters. Modified MIT licence. Keys of config.json that are absent here (dropout
0.1, gelu_new, epsilon 1e-5) are transformers' defaults for this model type. DistilGPT2 is the 117M with
half of its layers, distilled from it (Sanh et al. 2019, arXiv:1910.01108; its card says Apache-2.0). The hub's first
models had no owner in their ids; it still takes those.
"""

from distill.family.facts import Family, Published


def _published(
    size: str,
    model: str,
    revision: str,
    parameters: int,
    width: int,
    depth: int,
    heads: int,
    licence: str = "mit-modified",
) -> Published:
    return Published(
        size=size,
        model=model,
        revision=revision,
        aliases=(model.partition("/")[2],),
        config={
            "n_embd": width,
            "n_layer": depth,
            "n_head": heads,
            "n_positions": 1024,
            "vocab_size": 50257,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-05,
            "tie_word_embeddings": True,
        },
        parameters=parameters,
        stored_dtype="float32",
        num_tokens=50257,
        licence=licence,
    )


_HUB = "openai-community/gpt2"
_DISTIL = ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa")

FAMILY = Family(
    name="gpt2",
    title="GPT-2",
    model_type="gpt2",
    published=(
        _published("82M", *_DISTIL, 81_912_576, 768, 6, 12, "apache-2.0"),
        _published("117M", _HUB, "607a30d783dfa663caf39e06633721c8d4cfcd7e", 124_439_808, 768, 12, 12),
        _published("345M", f"{_HUB}-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da", 354_823_168, 1024, 24, 16),
        _published("774M", f"{_HUB}-large", "32b71b12589c2f8d625668d2335a01cac3249519", 774_030_080, 1280, 36, 20),
        _published("1.5B", f"{_HUB}-xl", "15ea56dee5df4983c59b2538573817e1667135e2", 1_557_611_200, 1600, 48, 25),
    ),
    lora_targets=("c_attn", "c_proj", "c_fc"),
    attention=("eager", "sdpa", "flash_attention_2"),
    tokenizer="byte_level_bpe",
    special_tokens={"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    gguf="gpt2",
    vllm=True,
    tensor_parallel=False,
    tiny={"n_embd": 64, "n_layer": 2, "n_head": 4},
    source="https://huggingface.co/openai-community/gpt2",
)
