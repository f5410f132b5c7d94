"""Qwen2.5: grouped heads with a bias on q, k and v, byte-level BPE of 151,665 tokens in two paddings, ChatML.

Up to 3B embeddings are tied and rows padded to 151,936; from 7B on untied and 152,064: teacher and student of one
family differ in vocabulary size. The end of sequence below is that of the Instruct models; base ones end with
<|endoftext|> (https://github.com/meta-pytorch/torchtune/issues/2587; on the day of their release their tokenizers said
<|im_end|>, against their config.json: https://github.com/QwenLM/Qwen3/issues/927). Their own templates put a default
system prompt where there is none, another one in base models; ours does not.
Source: Qwen team 2024, arXiv:2412.15115, table 1; config.json of each. 3B and 72B have licences of their own.
"""

from distill.family.facts import Family, Published

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_SHAPES = {
    # parameters, width, inner width, layers, heads, key and value heads
    "0.5B": (494_032_768, 896, 4864, 24, 14, 2),
    "1.5B": (1_543_714_304, 1536, 8960, 28, 12, 2),
    "3B": (3_085_938_688, 2048, 11_008, 36, 16, 2),
    "7B": (7_615_616_512, 3584, 18_944, 28, 28, 4),
    "14B": (14_770_033_664, 5120, 13_824, 48, 40, 8),
    "32B": (32_763_876_352, 5120, 27_648, 64, 40, 8),
    "72B": (72_706_203_648, 8192, 29_568, 80, 64, 8),
}
_SMALL = ("0.5B", "1.5B", "3B")


def _published(size: str, revision: str | None = None, instruct: bool = False) -> Published:
    parameters, width, inner, depth, heads, key_value_heads = _SHAPES[size]
    return Published(
        size=f"{size} Instruct" if instruct else size,
        model=f"Qwen/Qwen2.5-{size}{'-Instruct' if instruct else ''}",
        revision=revision,
        config={
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": key_value_heads,
            "hidden_act": "silu",
            "max_position_embeddings": 32_768 if instruct or size in ("0.5B", "3B") else 131_072,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "use_sliding_window": False,
            # the base models of 14B and more say 1e-5, their Instruct models 1e-6
            "rms_norm_eps": 1e-5 if not instruct and size in ("14B", "32B", "72B") else 1e-6,
            "vocab_size": 151_936 if size in _SMALL else 152_064,
            "tie_word_embeddings": size in _SMALL,
        },
        parameters=parameters,
        stored_dtype="bfloat16",
        num_tokens=151_665,
        licence={"3B": "qwen-research", "72B": "qwen"}.get(size, "apache-2.0"),
        has_chat_template=True,
        eos_token=None if instruct else "<|endoftext|>",
    )


FAMILY = Family(
    name="qwen2_5",
    title="Qwen2.5",
    model_type="qwen2",
    published=(
        _published("0.5B", "060db6499f32faf8b98477b0a26969ef7d8b9987"),
        _published("0.5B", "7ae557604adf67be50417f59c2c2f167def9a775", instruct=True),
        _published("1.5B", "8faed761d45a263340a0528343f099c05c9a4323"),
        _published("1.5B", "989aa7980e4cf806f80c7fef2b1adb7bc71aa306", instruct=True),
        _published("3B", "3aab1f1954e9cc14eb9509a215f9e5ca08227a9b"),
        _published("3B", "aa8e72537993ba99e69dfaafa59ed015b17504d1", instruct=True),
        _published("7B", "d149729398750b98c0af14eb82c78cfe92750796"),
        _published("7B", "a09a35458c702b33eeacc393d103063234e8bc28", instruct=True),
        _published("14B", "97e1e76335b7017d8f67c08a19d103c0504298c9"),
        _published("14B", "cf98f3b3bbb457ad9e2bb7baf9a0125b6b88caa8", instruct=True),
        _published("32B", "1818d35814b8319459f4bd55ed1ac8709630f003"),
        _published("32B", "5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd", instruct=True),
        _published("72B", "587cc4061cf6a7cc0d429d05c109447e5cf063af"),
        _published("72B", "495f39366efef23836d0cfae4fbe635880d2be31", instruct=True),
    ),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    attention=("eager", "sdpa", "flash_attention_2"),
    tokenizer="byte_level_bpe",
    special_tokens={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    added_tokens=(
        "<|im_start|>",
        "<tool_call>",
        "</tool_call>",
        "<|fim_prefix|>",
        "<|fim_middle|>",
        "<|fim_suffix|>",
        "<|fim_pad|>",
    ),
    chat_template=CHAT_TEMPLATE,
    gguf="qwen2",
    vllm=True,
    tensor_parallel=True,
    tiny={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    source="https://arxiv.org/abs/2412.15115",
)
