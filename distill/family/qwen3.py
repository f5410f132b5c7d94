"""Qwen3, the dense ones: q and k are normalised per head, heads 128 wide whatever the width, answers that may think.

Up to 4B embeddings are tied. The models without a suffix are chat models, "-Base" are not; 32B has no base model on
the hub. The end of sequence below is that of the chat models; base ones end with <|endoftext|>, 151,643
(https://github.com/unslothai/unsloth/issues/2945). Thinking of earlier turns is dropped by their own
template; ours leaves messages as they are. The stored files of 0.6B and 1.7B hold the tied head a second time.
Source: Qwen team 2025, arXiv:2505.09388, table 1; config.json of each.
"""

from distill.family.facts import Family, Published

# enable_thinking=false is said by an empty thought
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% endif %}"
)

_SHAPES = {
    # parameters, width, inner width, layers, heads; all have 8 key and value heads
    "0.6B": (596_049_920, 1024, 3072, 28, 16),
    "1.7B": (1_720_574_976, 2048, 6144, 28, 16),
    "4B": (4_022_468_096, 2560, 9728, 36, 32),
    "8B": (8_190_735_360, 4096, 12_288, 36, 32),
    "14B": (14_768_307_200, 5120, 17_408, 40, 40),
    "32B": (32_762_123_264, 5120, 25_600, 64, 64),
}


def _published(size: str, revision: str | None = None, base: bool = False) -> Published:
    parameters, width, inner, depth, heads = _SHAPES[size]
    return Published(
        size=f"{size} Base" if base else size,
        model=f"Qwen/Qwen3-{size}{'-Base' if base else ''}",
        revision=revision,
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "attention_bias": False,
            "hidden_act": "silu",
            "max_position_embeddings": 32_768 if base else 40_960,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "use_sliding_window": False,
            "rms_norm_eps": 1e-6,
            "vocab_size": 151_936,
            "tie_word_embeddings": size in ("0.6B", "1.7B", "4B"),
        },
        parameters=parameters,
        stored_dtype="bfloat16",
        num_tokens=151_669,
        licence="apache-2.0",
        has_chat_template=True,
        eos_token="<|endoftext|>" if base else None,
    )


FAMILY = Family(
    name="qwen3",
    title="Qwen3",
    model_type="qwen3",
    published=(
        _published("0.6B", "da87bfb608c14b7cf20ba1ce41287e8de496c0cd", base=True),
        _published("0.6B", "c1899de289a04d12100db370d81485cdf75e47ca"),
        _published("1.7B", "ea980cb0a6c2ae4b936e82123acc929f1cec04c1", base=True),
        _published("1.7B", "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e"),
        _published("4B", "906bfd4b4dc7f14ee4320094d8b41684abff8539", base=True),
        _published("4B", "1cfa9a7208912126459214e8b04321603b3df60c"),
        _published("8B", "49e3418fbbbca6ecbdf9608b4d22e5a407081db4", base=True),
        _published("8B", "b968826d9c46dd6066d109eabc6255188de91218"),
        _published("14B", base=True),
        _published("14B", "40c069824f4251a91eefaf281ebe4c544efd3e18"),
        _published("32B", "9216db5781bf21249d130ec9da846c4624c16137"),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    attention=("eager", "sdpa", "flash_attention_2"),
    tokenizer="byte_level_bpe",
    special_tokens={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    added_tokens=(
        "<|im_start|>",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
        "<think>",
        "</think>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|fim_pad|>",
    ),
    chat_template=CHAT_TEMPLATE,
    gguf="qwen3",
    vllm=True,
    tensor_parallel=True,
    # 4 heads of 32 on a width of 64: the heads together are wider than the model, as in 0.6B, 4B and 32B
    tiny={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32},
    source="https://arxiv.org/abs/2505.09388",
)
