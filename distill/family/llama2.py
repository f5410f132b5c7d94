"""Llama 2: LLaMA with 4096 positions; the 70B groups its key and value heads; chat models with [INST] turns.

Source: Touvron et al. 2023, arXiv:2307.09288, table 1; parameter counts as the hub's safetensors metadata.
"""

from distill.family.facts import Family, Published

# The system prompt stands inside the first user turn; every pair of turns is a sequence of its own.
CHAT_TEMPLATE = (
    "{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% set ns.system = '<<SYS>>\\n' + message['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + ns.system + message['content'] | trim + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)

_SHAPES = {
    # parameters, width, inner width, layers, heads, key and value heads
    "7B": (6_738_415_616, 4096, 11_008, 32, 32, 32),
    "13B": (13_015_864_320, 5120, 13_824, 40, 40, 40),
    "70B": (68_976_648_192, 8192, 28_672, 80, 64, 8),
}


def _published(size: str, revision: str | None = None, chat: bool = False) -> Published:
    parameters, width, inner, depth, heads, key_value_heads = _SHAPES[size]
    return Published(
        size=f"{size} Chat" if chat else size,
        model=f"meta-llama/Llama-2-{size.lower()}{'-chat' if chat else ''}-hf",
        revision=revision,
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "hidden_act": "silu",
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            "rms_norm_eps": 1e-5,
            "vocab_size": 32_000,
            "tie_word_embeddings": False,
        },
        parameters=parameters,
        stored_dtype="float16",
        num_tokens=32_000,
        licence="llama2",
        gated=True,
        has_chat_template=chat,
    )


FAMILY = Family(
    name="llama2",
    title="Llama 2",
    model_type="llama",
    published=(
        _published("7B", "01c7f73d771dfac7d292323805ebc428287df4f9"),
        _published("7B", "f5db02db724555f92da89c216ac04704f23d4590", chat=True),
        _published("13B", "5c31dfb671ce7cfe2d7bb7c04375e44c55e815b1"),
        _published("13B", "a2cb7a712bb6e5e736ca7f8cd98167f81a0b5bd8", chat=True),
        _published("70B", "3aba440b59558f995867ba6e1f58f21d0336b5bb"),
        _published("70B", "e9149a12809580e8602995856f8098ce973d1080", chat=True),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    attention=("eager", "sdpa", "flash_attention_2"),
    tokenizer="sentencepiece_bpe",
    special_tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    chat_template=CHAT_TEMPLATE,
    gguf="llama",
    vllm=True,
    tensor_parallel=True,
    tiny={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    source="https://arxiv.org/abs/2307.09288",
)
