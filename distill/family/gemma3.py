"""Gemma 3, text: five layers with a sliding window to each full one, norms before and after, tied embeddings.

Only 270M and 1B are text models (gemma3_text). 4B, 12B and 27B read images too: transformers builds them with their
vision tower (gemma3), so they are not here; a server can be their teacher. The end of sequence below is the
tokenizer's; chat models end a turn with <end_of_turn>, and stop at either.
Source: Gemma team 2025, arXiv:2503.19786, table 1; config.json of each.
"""

from distill.family.facts import Family, Published

# the assistant is called "model", and a system prompt stands inside the first user turn
CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\\n\\n' %}{% else %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' + ns.system"
    " + message['content'] | trim + '<end_of_turn>\\n' }}{% set ns.system = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


_SHAPES = {
    # parameters, width, inner width, layers; both have 4 heads of 256 and one key and value head
    "270M": (268_098_176, 640, 2048, 18),
    "1B": (999_885_952, 1152, 6912, 26),
}


def _published(size: str, model: str, revision: str) -> Published:
    parameters, width, inner, depth = _SHAPES[size]
    chat = model.endswith("-it")
    return Published(
        size=f"{size} IT" if chat else size,
        model=f"google/{model}",
        revision=revision,
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": depth,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "attention_bias": False,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 32_768,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            "sliding_window": 512,
            "layer_types": ["sliding_attention" if layer % 6 else "full_attention" for layer in range(1, depth + 1)],
            "rms_norm_eps": 1e-6,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "vocab_size": 262_144,
            "tie_word_embeddings": True,
        },
        parameters=parameters,
        stored_dtype="bfloat16",
        # its tokenizer also names an image mark, 262,144, that has no row in the text models
        num_tokens=262_144,
        licence="gemma",
        gated=True,
        has_chat_template=chat,
    )


FAMILY = Family(
    name="gemma3",
    title="Gemma 3",
    model_type="gemma3_text",
    published=(
        _published("270M", "gemma-3-270m", "9b0cfec892e2bc2afd938c98eabe4e4a7b1e0ca1"),
        _published("270M", "gemma-3-270m-it", "ac82b4e820549b854eebf28ce6dedaf9fdfa17b3"),
        _published("1B", "gemma-3-1b-pt", "fcf18a2a879aab110ca39f8bffbccd5d49d8eb29"),
        _published("1B", "gemma-3-1b-it", "dcc83ea841ab6100d6b47a070329e1ba4cf78752"),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    attention=("eager", "sdpa", "flash_attention_2"),
    tokenizer="sentencepiece_bpe",
    special_tokens={"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
    added_tokens=("<start_of_turn>", "<end_of_turn>"),
    chat_template=CHAT_TEMPLATE,
    gguf="gemma3",
    vllm=True,
    tensor_parallel=True,
    # a layer of each kind, and a window that short rows leave
    tiny={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    source="https://arxiv.org/abs/2503.19786",
)
