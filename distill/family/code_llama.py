"""Code Llama: Llama 2 trained on code, rotary base 1,000,000; three kinds of each size: base, Python, Instruct.

7B and 13B, except their Python kind, fill in the middle: 16 more tokens, four of them the marks. The 34B has 32,000
tokens and cannot: its tokenizer on the hub counts the four marks as 32,000 to 32,003, for which the model has no rows
(https://github.com/huggingface/transformers/issues/26714). The first 32,000 tokens are the same in all of them. 70B
has 32,016 tokens, but its Python and Instruct kinds kept base 10,000 and 4096 positions, and its Instruct kind has a
turn shape of its own ("Source: user") that the template below does not show.
Source: Roziere et al. 2023, arXiv:2308.12950; https://github.com/meta-llama/codellama/issues/188 for the 70B.
"""

from distill.family.facts import Family, Published
from distill.family.llama2 import CHAT_TEMPLATE

_SHAPES = {
    # parameters at 32,000 tokens, width, inner width, layers, heads, key and value heads
    "7B": (6_738_415_616, 4096, 11_008, 32, 32, 32),
    "13B": (13_015_864_320, 5120, 13_824, 40, 40, 40),
    "34B": (33_743_970_304, 8192, 22_016, 48, 64, 8),
    "70B": (68_976_648_192, 8192, 28_672, 80, 64, 8),
}

_REVISIONS = {
    ("7B", ""): "6c284d1468fe6c413cf56183e69b194dcfa27fe6",
    ("7B", "Instruct"): "22cb240e0292b0b5ab4c17ccd97aa3a2f799cbed",
    ("34B", "Instruct"): "d4c1c474abcacd32d2a6eda45f9811d38c83e93d",
}


def _published(size: str, kind: str = "") -> Published:
    parameters, width, inner, depth, heads, key_value_heads = _SHAPES[size]
    tokens = 32_000 if size == "34B" or (kind == "Python" and size != "70B") else 32_016
    short = size == "70B" and kind != ""
    return Published(
        size=f"{size} {kind}".strip(),
        model=f"codellama/CodeLlama-{size.lower()}{'-' + kind if kind else ''}-hf",
        revision=_REVISIONS.get((size, kind)),
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "hidden_act": "silu",
            "max_position_embeddings": 4096 if short else 16_384,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0 if short else 1_000_000.0},
            "rms_norm_eps": 1e-5,
            "vocab_size": tokens,
            "tie_word_embeddings": False,
        },
        # embeddings and head grow with the vocabulary
        parameters=parameters + 2 * (tokens - 32_000) * width,
        stored_dtype="bfloat16",
        num_tokens=tokens,
        licence="llama2",
        has_chat_template=kind == "Instruct",
    )


FAMILY = Family(
    name="code_llama",
    title="Code Llama",
    model_type="llama",
    published=tuple(_published(size, kind) for size in _SHAPES for kind in ("", "Python", "Instruct")),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    attention=("eager", "sdpa", "flash_attention_2"),
    tokenizer="sentencepiece_bpe",
    special_tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    # what is before, what is after, then what belongs between, ended by EOT; the first sign is U+2581, no underscore
    added_tokens=("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
    chat_template=CHAT_TEMPLATE,
    gguf="llama",
    vllm=True,
    tensor_parallel=True,
    tiny={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    source="https://arxiv.org/abs/2308.12950",
)
