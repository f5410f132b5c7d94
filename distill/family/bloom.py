"""BLOOM: ALiBi instead of positions, a norm after the embedding, qkv interleaved per head, 46 languages.

transformers computes its attention eagerly only, because ALiBi is added to the scores. Dropouts are 0.
Source: BigScience 2022, arXiv:2211.05100, table 5 (the 176B: 70 layers, 112 heads, 14336 wide), and the checkpoints'
config.json, whose older key n_embed means hidden_size. The tokenizer has 250,680 tokens, the embedding 250,880 rows.
In their first weeks on the hub the ids of the smaller ones counted parameters without the embedding.
"""

from typing import Literal

from distill.family.facts import Family, Published


def _published(
    size: str,
    suffix: str,
    revision: str | None,
    parameters: int,
    width: int,
    depth: int,
    heads: int,
    stored_dtype: Literal["float16", "bfloat16"] = "float16",
    first_id: str = "",
) -> Published:
    return Published(
        size=size,
        model=f"bigscience/bloom{suffix}",
        revision=revision,
        aliases=(f"bigscience/bloom-{first_id}",) if first_id else (),
        config={
            "hidden_size": width,
            "n_layer": depth,
            "n_head": heads,
            "vocab_size": 250880,
            "layer_norm_epsilon": 1e-05,
            "apply_residual_connection_post_layernorm": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 3,
            "tie_word_embeddings": True,
        },
        parameters=parameters,
        stored_dtype=stored_dtype,
        num_tokens=250680,
        licence="bigscience-bloom-rail-1.0",
    )


FAMILY = Family(
    name="bloom",
    title="BLOOM",
    model_type="bloom",
    published=(
        _published(
            "560M", "-560m", "ac2ae5fab2ce3f9f40dc79b5ca9f637430d24971", 559_214_592, 1024, 24, 16, first_id="350m"
        ),
        _published("1.1B", "-1b1", None, 1_065_314_304, 1536, 24, 16, first_id="760m"),
        _published("1.7B", "-1b7", None, 1_722_408_960, 2048, 24, 16, first_id="1b3"),
        _published(
            "3B", "-3b", "52bc5b43010b4844513826b8be3f78c7344c37d7", 3_002_557_440, 2560, 30, 32, first_id="2b5"
        ),
        _published("7.1B", "-7b1", None, 7_069_016_064, 4096, 30, 32, first_id="6b3"),
        _published("176B", "", "053d9cd9fbe814e091294f67fcfedb3397b954bb", 176_247_271_424, 14336, 70, 112, "bfloat16"),
    ),
    lora_targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    attention=("eager",),
    tokenizer="byte_level_bpe",
    special_tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    gguf="bloom",
    vllm=True,
    tensor_parallel=False,
    tiny={"hidden_size": 64, "n_layer": 2, "n_head": 4},
    source="https://huggingface.co/bigscience/bloom",
)
