"""Llama 3, 3.1, 3.2 (text) and 3.3: grouped heads, byte-level BPE of 128,256 tokens, from 3.1 on a scaled rotary base.

1B and 3B tie their embeddings. The end of sequence below is that of the Instruct models, which their template ends
turns with; base models end with <|end_of_text|>, and have no template. 3.2's 11B and 90B read images and are not here.
Source: Llama team 2024, arXiv:2407.21783, table 3; the model cards of each version.
"""

from typing import Any

from distill.family.facts import Family, Published

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

_SHAPES = {
    # parameters, width, inner width, layers, heads, head width; all have 8 key and value heads
    "1B": (1_235_814_400, 2048, 8192, 16, 32, 64),
    "3B": (3_212_749_824, 3072, 8192, 28, 24, 128),
    "8B": (8_030_261_248, 4096, 14_336, 32, 32, 128),
    "70B": (70_553_706_496, 8192, 28_672, 80, 64, 128),
    "405B": (405_853_388_800, 16_384, 53_248, 126, 128, 128),
}
_HUB_NAME = {"3": "Meta-Llama-3", "3.1": "Llama-3.1", "3.2": "Llama-3.2", "3.3": "Llama-3.3"}


def _rope(version: str) -> dict[str, Any]:
    if version == "3":
        return {"rope_type": "default", "rope_theta": 500_000.0}
    return {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0 if version == "3.2" else 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _published(version: str, size: str, revision: str | None = None, instruct: bool = False) -> Published:
    parameters, width, inner, depth, heads, head_width = _SHAPES[size]
    return Published(
        size=f"{version} {size}{' Instruct' if instruct else ''}",
        model=f"meta-llama/{_HUB_NAME[version]}-{size}{'-Instruct' if instruct else ''}",
        revision=revision,
        # what Meta called it in its first months on the hub
        aliases=(f"meta-llama/Meta-Llama-3.1-{size}{'-Instruct' if instruct else ''}",) if version == "3.1" else (),
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": head_width,
            "hidden_act": "silu",
            "max_position_embeddings": 8192 if version == "3" else 131_072,
            "rope_parameters": _rope(version),
            "rms_norm_eps": 1e-5,
            "vocab_size": 128_256,
            "tie_word_embeddings": size in ("1B", "3B"),
        },
        parameters=parameters,
        stored_dtype="bfloat16",
        num_tokens=128_256,
        licence="llama3" if version == "3" else f"llama{version}",
        gated=True,
        has_chat_template=instruct,
        eos_token=None if instruct else "<|end_of_text|>",
    )


FAMILY = Family(
    name="llama3",
    title="Llama 3",
    model_type="llama",
    published=(
        _published("3.2", "1B", "4e20de362430cd3b72f300e6b0f18e50e7166e08"),
        _published("3.2", "1B", "9213176726f574b556790deb65791e0c5aa438b6", instruct=True),
        _published("3.2", "3B", "13afe5124825b4f3751f836b40dafda64c1ed062"),
        _published("3.2", "3B", "0cb88a4f764b7a12671c53f0838cd831a0843b95", instruct=True),
        _published("3", "8B", "8cde5ca8380496c9a6cc7ef3a8b46a0372a1d920"),
        _published("3", "8B", "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2", instruct=True),
        _published("3.1", "8B", "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b"),
        _published("3.1", "8B", "0e9e39f249a16976918f6564b8830bc894c89659", instruct=True),
        _published("3", "70B"),
        _published("3", "70B", instruct=True),
        _published("3.1", "70B", "349b2ddb53ce8f2849a6c168a81980ab25258dac"),
        _published("3.1", "70B", "1605565b47bb9346c5515c34102e054115b4f98b", instruct=True),
        _published("3.3", "70B", "6f6073b423013f6a7d4d9f39144961bfbfbc386b", instruct=True),
        _published("3.1", "405B", "b906e4dc842aa489c962f9db26554dcfdde901fe"),
        _published("3.1", "405B", "be673f326cab4cd22ccfef76109faf68e41aa5f1", instruct=True),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    attention=("eager", "sdpa", "flash_attention_2"),
    tokenizer="byte_level_bpe",
    special_tokens={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    added_tokens=(
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
        "<|finetune_right_pad_id|>",
    ),
    chat_template=CHAT_TEMPLATE,
    gguf="llama",
    vllm=True,
    tensor_parallel=True,
    tiny={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16},
    source="https://arxiv.org/abs/2407.21783",
)
