"""Mistral 7B, Nemo 12B and Small 24B: grouped heads, a sliding window in 7B v0.1 only, [INST] turns.

7B has a SentencePiece of 32,000 tokens (v0.3: 32,768); Nemo and Small have Tekken, a byte-level BPE of 131,072. What
is said below is the tokenizer of most checkpoints, 7B's. From Small on a system prompt has marks of its own,
[SYSTEM_PROMPT]; the template below is 7B's, which puts it inside the first user turn. Small 3.1 and later read images
and are not here, nor are models under Mistral's research licence.
In 2024 the hub had 7B v0.1 and Instruct v0.2 gated (https://github.com/huggingface/alignment-handbook/issues/166,
https://github.com/PrimeIntellect-ai/prime-diloco/issues/108), so 7B and Nemo may be.
Source: Jiang et al. 2023, arXiv:2310.06825, table 1; config.json of each.
"""

from distill.family.facts import Family, Published

CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\\n\\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)

_SHAPES = {
    # parameters, tokens, width, inner width, layers; all have 32 heads of 128 and 8 key and value heads
    "7B": (7_241_732_096, 32_000, 4096, 14_336, 32),
    "7B v0.3": (7_248_023_552, 32_768, 4096, 14_336, 32),
    "12B": (12_247_782_400, 131_072, 5120, 14_336, 40),
    "24B": (23_572_403_200, 131_072, 5120, 32_768, 40),
}


def _published(
    shape: str,
    name: str,
    positions: int,
    rope_theta: float,
    revision: str | None = None,
    sliding_window: int | None = None,
) -> Published:
    parameters, tokens, width, inner, depth = _SHAPES[shape]
    return Published(
        size=name.replace("-", " "),
        model=f"mistralai/Mistral-{name}",
        revision=revision,
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": depth,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "hidden_act": "silu",
            "max_position_embeddings": positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
            "sliding_window": sliding_window,
            "rms_norm_eps": 1e-5,
            "vocab_size": tokens,
            "tie_word_embeddings": False,
        },
        parameters=parameters,
        stored_dtype="bfloat16",
        num_tokens=tokens,
        licence="apache-2.0",
        may_be_gated=not name.startswith("Small"),
        has_chat_template="Instruct" in name,
    )


FAMILY = Family(
    name="mistral",
    title="Mistral",
    model_type="mistral",
    published=(
        _published("7B", "7B-v0.1", 32_768, 1e4, "27d67f1b5f57dc0953326b2601d68371d40ea8da", 4096),
        _published("7B", "7B-Instruct-v0.1", 32_768, 1e4, "ec5deb64f2c6e6fa90c1abf74a91d5c93a9669ca", 4096),
        _published("7B", "7B-Instruct-v0.2", 32_768, 1e6, "63a8b081895390a26e140280378bc85ec8bce07a"),
        _published("7B v0.3", "7B-v0.3", 32_768, 1e6, "caa1feb0e54d415e2df31207e5f4e273e33509b1"),
        _published("7B v0.3", "7B-Instruct-v0.3", 32_768, 1e6, "c170c708c41dac9275d15a8fff4eca08d52bab71"),
        _published("12B", "Nemo-Base-2407", 128_000, 1e6),
        _published("12B", "Nemo-Instruct-2407", 131_072, 1e6, "04d8a90549d23fc6bd7f642064003592df51e9b3"),
        _published("24B", "Small-24B-Base-2501", 32_768, 1e8),
        _published("24B", "Small-24B-Instruct-2501", 32_768, 1e8, "9527884be6e5616bdd54de542f9ae13384489724"),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    attention=("eager", "sdpa", "flash_attention_2"),
    tokenizer="sentencepiece_bpe",
    special_tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    # plain text in the tokenizers of v0.1 and v0.2
    added_tokens=(
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    chat_template=CHAT_TEMPLATE,
    gguf="llama",
    vllm=True,
    tensor_parallel=True,
    tiny={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16},
    source="https://arxiv.org/abs/2310.06825",
)
