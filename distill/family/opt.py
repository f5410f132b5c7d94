"""OPT: learned positions with an offset of two, ReLU; the 350M normalises after each block and narrows its embeddings.

175B was given to researchers on request, as shards of Meta's own training code; recipes expect it converted, in
checkpoints/opt-175b. The tokenizer is GPT-2's with other special tokens, and it puts </s> before every text.
Source: Zhang et al. 2022, arXiv:2205.01068, table 1, and the checkpoints' config.json. The hub's main branches hold
float16 in pytorch_model.bin and no safetensors.
"""

from typing import Any

from distill.family.facts import Family, Published


def _published(
    size: str,
    model: str,
    revision: str | None,
    parameters: int,
    width: int,
    depth: int,
    heads: int,
    **different: Any,
) -> Published:
    return Published(
        size=size,
        model=model,
        revision=revision,
        config={
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "ffn_dim": 4 * width,
            "word_embed_proj_dim": width,
            "max_position_embeddings": 2048,
            "vocab_size": 50272,
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "activation_function": "relu",
            "dropout": 0.1,
            "bos_token_id": 2,
            "eos_token_id": 2,
            "pad_token_id": 1,
            "tie_word_embeddings": True,
            **different,
        },
        parameters=parameters,
        stored_dtype="float16",
        num_tokens=50265,
        licence="opt-175b",
        on_hub=revision is not None,
        as_bin=revision is not None,
    )


_HUB = "facebook/opt"
_350M = {"word_embed_proj_dim": 512, "do_layer_norm_before": False}

FAMILY = Family(
    name="opt",
    title="OPT",
    model_type="opt",
    published=(
        _published("125M", f"{_HUB}-125m", "27dcfa74d334bc871f3234de431e71c6eeba5dd6", 125_239_296, 768, 12, 12),
        _published(
            "350M", f"{_HUB}-350m", "08ab08cc4b72ff5593870b5d527cf4230323703c", 331_196_416, 1024, 24, 16, **_350M
        ),
        _published("1.3B", f"{_HUB}-1.3b", "3f5c25d0bc631cb57ac65913f76e22c2dfb61d62", 1_315_758_080, 2048, 24, 32),
        _published("2.7B", f"{_HUB}-2.7b", "905a4b602cda5c501f1b3a2650a4152680238254", 2_651_596_800, 2560, 32, 32),
        _published("6.7B", f"{_HUB}-6.7b", "a45aa65bbeb77c1558bc99bedc6779195462dab0", 6_658_473_984, 4096, 32, 32),
        _published("13B", f"{_HUB}-13b", "e515202d1e7750da62d245fbccb2723b9c1790f5", 12_853_473_280, 5120, 40, 40),
        _published("30B", f"{_HUB}-30b", "ceea0a90ac0f6fae7c2c34bcb40477438c152546", 29_974_540_288, 7168, 48, 56),
        _published("66B", f"{_HUB}-66b", "7259969061237fe940036d22bea0fd349e4485e9", 65_719_701_504, 9216, 64, 72),
        _published("175B", "checkpoints/opt-175b", None, 174_604_468_224, 12288, 96, 96),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    attention=("eager", "sdpa", "flash_attention_2"),
    tokenizer="byte_level_bpe",
    special_tokens={"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"},
    gguf=None,
    vllm=True,
    tensor_parallel=False,
    tiny={
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 128,
        "word_embed_proj_dim": 64,
    },
    where_weights_are="Meta gives them on request; convert them to transformers' format into that folder.",
    source="https://huggingface.co/facebook/opt-66b",
)
