"""Megatron-LM's GPT-2 checkpoints, as Hugging Face GPT-2 folders after `python -m distill.megatron`.

NVIDIA published the weights of the 345M alone, in Megatron's own format on NGC (nvidia:megatron_lm_345m, version
v0.0); the larger ones are configurations that people train again. On disk the vocabulary is padded to a multiple of
128 times the tensor-parallel size (50304, 51200); converted, it is GPT-2's own 50257.
Source: Shoeybi et al. 2019, arXiv:1909.08053: table 1 (1.2B, 4.2B) and table 2 (355M, 2.5B, 8.3B). Table 1 gives the
8.3B 32 heads of 96 for its measurements of speed; the model that was trained, table 2, has 24 heads of 128.
"""

from distill.family.facts import Family, Published
from distill.family.gpt2 import FAMILY as GPT2


def _published(size: str, parameters: int, width: int, depth: int, heads: int) -> Published:
    return Published(
        size=size,
        model=f"checkpoints/megatron-gpt2-{size.lower()}",
        config={
            "n_embd": width,
            "n_layer": depth,
            "n_head": heads,
            "n_positions": 1024,
            "vocab_size": 50257,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-05,
            "tie_word_embeddings": True,
        },
        parameters=parameters,
        stored_dtype="float16",
        num_tokens=50257,
        licence="nvidia-megatron",
        on_hub=False,
    )


FAMILY = Family(
    name="megatron_gpt2",
    title="Megatron-LM GPT-2",
    model_type="gpt2",
    published=(
        _published("345M", 354_823_168, 1024, 24, 16),
        _published("1.2B", 1_212_031_488, 1536, 40, 16),
        _published("2.5B", 2_488_598_400, 1920, 54, 20),
        _published("4.2B", 4_196_936_448, 2304, 64, 24),
        _published("8.3B", 8_314_143_744, 3072, 72, 24),
    ),
    lora_targets=GPT2.lora_targets,
    attention=GPT2.attention,
    tokenizer=GPT2.tokenizer,
    special_tokens=GPT2.special_tokens,
    gguf=GPT2.gguf,
    vllm=GPT2.vllm,
    tensor_parallel=GPT2.tensor_parallel,
    tiny=GPT2.tiny,
    where_weights_are=(
        "train it with Megatron-LM, or take a checkpoint of it, and convert that into this folder:\n"
        "python -m distill.megatron CHECKPOINT_FOLDER checkpoints/megatron-gpt2-SIZE --tokenizer GPT2_TOKENIZER_FOLDER"
    ),
    source="https://arxiv.org/abs/1909.08053",
)
