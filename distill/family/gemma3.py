"""Gemma 3: five layers with a sliding window to each full one, norms before and after, tied embeddings.

270M and 1B are text models (gemma3_text). 4B, 12B and 27B are published with a vision tower around the language model
(gemma3): here they are the language model, which is what a run loads, trains and saves (`text_part.py`). The end of
sequence below is the tokenizer's, of chat models too (https://github.com/huggingface/transformers/issues/38182); these
end a turn with <end_of_turn>, and stop at either.
Source: Gemma team 2025, arXiv:2503.19786, table 1; config.json of each. The hub counts 4,300,079,472, 12,187,325,040
and 27,432,406,640 parameters of the three, vision included, and so does transformers.
"""

from typing import Any

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
    # parameters of the language model, width, inner width, layers, heads, key and value heads, head width
    "270M": (268_098_176, 640, 2048, 18, 4, 1, 256),
    "1B": (999_885_952, 1152, 6912, 26, 4, 1, 256),
    "4B": (3_880_263_168, 2560, 10_240, 34, 8, 4, 256),
    "12B": (11_766_034_176, 3840, 15_360, 48, 16, 8, 256),
    "27B": (27_009_346_304, 5376, 21_504, 62, 32, 16, 128),
}
_VISION = {"4B": 419_816_304, "12B": 421_290_864, "27B": 423_060_336}
"""Parameters of SigLIP and of the projection from it: stored with the language model, and not loaded."""


def _published(size: str, model: str, revision: str) -> Published:
    parameters, width, inner, depth, heads, key_value_heads, head_width = _SHAPES[size]
    chat, reads_images = model.endswith("-it"), size in _VISION
    of_all: dict[str, Any] = {"rope_type": "linear", "factor": 8.0} if reads_images else {"rope_type": "default"}
    return Published(
        size=f"{size} IT" if chat else size,
        model=f"google/{model}",
        revision=revision,
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "head_dim": head_width,
            # scores are divided by its root: of the 27B the width of a head is another
            "query_pre_attn_scalar": 168 if size == "27B" else 256,
            "attention_bias": False,
            "hidden_activation": "gelu_pytorch_tanh",
            "max_position_embeddings": 131_072 if reads_images else 32_768,
            "rope_parameters": {
                "full_attention": {**of_all, "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
            "sliding_window": 1024 if reads_images else 512,
            "layer_types": ["sliding_attention" if layer % 6 else "full_attention" for layer in range(1, depth + 1)],
            "rms_norm_eps": 1e-6,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "vocab_size": 262_208 if reads_images else 262_144,
            "tie_word_embeddings": True,
        },
        parameters=parameters,
        not_loaded=_VISION.get(size, 0),
        stored_dtype="bfloat16",
        # its tokenizer also names an image mark, 262,144: no row of the text models, and none that text uses
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
        _published("4B", "gemma-3-4b-pt", "cc012e0a6d0787b4adcc0fa2c4da74402494554d"),
        _published("4B", "gemma-3-4b-it", "093f9f388b31de276ce2de164bdc2081324b9767"),
        _published("12B", "gemma-3-12b-pt", "295efb63d01a7017928f273a94ebb86105c9526f"),
        _published("12B", "gemma-3-12b-it", "96b6f1eccf38110c56df3a15bffe176da04bfd80"),
        _published("27B", "gemma-3-27b-pt", "9fe3c4ebc93fbadb14913801536d022054ef11cc"),
        _published("27B", "gemma-3-27b-it", "005ad3404e59d6023443cb575daa05336842228a"),
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
    # its embeddings are scaled by the root of the width, its norms after each block by more (transformers, issue 36822)
    fits_float16=False,
    # a layer of each kind, and a window that short rows leave; the scale of the scores stays
    tiny={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "head_dim": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    source="https://arxiv.org/abs/2503.19786",
)
