"""Megatron-LM GPT-2 checkpoints, written from Megatron's own definition of what a rank holds, not from the converter.

A model is described by whole matrices q, k, v, … for each head; a rank takes the heads, rows or columns that are its
own. No tensor is reordered by views: rows are taken one by one, by the number of head, part and dimension.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

WIDTH, DEPTH, HEADS, POSITIONS, TOKENS = 32, 4, 8, 24, 201
SIZE = WIDTH // HEADS
LAYER = "layers.{}."


@pytest.fixture(scope="session")
def original() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=TOKENS,
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=HEADS,
        n_positions=POSITIONS,
        n_inner=None,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too: ones and zeros would hide a mistake
            parameter.normal_(std=0.3)
    return model


def qkv_rows(version: float, heads: list[int]) -> list[int]:
    """For each row of a rank's query_key_value: its row in transformers' `[3, all heads, size]`."""

    def row(part: int, head: int, dimension: int) -> int:
        return part * WIDTH + head * SIZE + dimension

    if version == 0:
        return [row(part, head, i) for part in range(3) for head in heads for i in range(SIZE)]
    if version == 1.0:
        return [row(part, head, i) for head in heads for i in range(SIZE) for part in range(3)]
    return [row(part, head, i) for head in heads for part in range(3) for i in range(SIZE)]


def rank_state(model: GPT2LMHeadModel, version: float, rank: int, ranks: int, layers: range) -> dict[str, Any]:
    """`model` of one rank's file, for the layers of its pipeline stage."""
    theirs = {name: value.detach() for name, value in model.state_dict().items()}
    heads = list(range(rank * HEADS // ranks, (rank + 1) * HEADS // ranks))
    inner = range(rank * 4 * WIDTH // ranks, (rank + 1) * 4 * WIDTH // ranks)
    own_inputs = [head * SIZE + i for head in heads for i in range(SIZE)]
    encoder: dict[str, torch.Tensor] = {}
    attention = "attention" if version < 2 else "self_attention"
    for number, layer in enumerate(layers):
        block = {n.removeprefix(f"transformer.h.{layer}."): v for n, v in theirs.items() if f".h.{layer}." in n}
        rows = qkv_rows(version, heads)
        made = {
            "input_layernorm.weight": block["ln_1.weight"],
            "input_layernorm.bias": block["ln_1.bias"],
            f"{attention}.query_key_value.weight": torch.stack([block["attn.c_attn.weight"][:, r] for r in rows]),
            f"{attention}.query_key_value.bias": torch.stack([block["attn.c_attn.bias"][r] for r in rows]),
            f"{attention}.dense.weight": block["attn.c_proj.weight"][own_inputs].t().clone(),
            f"{attention}.dense.bias": block["attn.c_proj.bias"],
            "post_attention_layernorm.weight": block["ln_2.weight"],
            "post_attention_layernorm.bias": block["ln_2.bias"],
            "mlp.dense_h_to_4h.weight": torch.stack([block["mlp.c_fc.weight"][:, r] for r in inner]),
            "mlp.dense_h_to_4h.bias": torch.stack([block["mlp.c_fc.bias"][r] for r in inner]),
            "mlp.dense_4h_to_h.weight": block["mlp.c_proj.weight"][list(inner)].t().clone(),
            "mlp.dense_4h_to_h.bias": block["mlp.c_proj.bias"],
        }
        encoder |= {LAYER.format(number) + name: value for name, value in made.items()}
    state: dict[str, Any] = {("transformer" if version < 2 else "encoder"): encoder}
    padded = -(-TOKENS // (128 * ranks)) * 128 * ranks
    table = torch.full((padded, WIDTH), 7.0)  # Megatron trains the padding's rows too; they are never zero
    table[:TOKENS] = theirs["transformer.wte.weight"]
    rows = slice(rank * padded // ranks, (rank + 1) * padded // ranks)
    if layers.start == 0:
        state["embedding"] = {
            "word_embeddings": {"weight": table[rows].clone()},
            "position_embeddings": {"weight": theirs["transformer.wpe.weight"]},
        }
    whole: dict[str, Any] = {"language_model": state}
    if layers.stop == DEPTH:
        encoder["final_layernorm.weight"] = theirs["transformer.ln_f.weight"]
        encoder["final_layernorm.bias"] = theirs["transformer.ln_f.bias"]
        if layers.start > 0:
            whole["word_embeddings_for_head"] = {"weight": table[rows].clone()}
    return whole


def arguments(ranks: int, stages: int = 1, **more: Any) -> Namespace:
    """As a training of Megatron-LM leaves them, cut down to what tells of the model, and some that does not."""
    known = {
        "num_layers": DEPTH,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "make_vocab_size_divisible_by": 128,
        "tensor_model_parallel_size": ranks,
        "pipeline_model_parallel_size": stages,
        "layernorm_epsilon": 1e-5,
        "openai_gelu": False,
        "bias_gelu_fusion": True,
        "params_dtype": torch.float16,
        "save": "somewhere",
    }
    return Namespace(**(known | more))


@pytest.fixture
def written(original, tmp_path):
    """(version, ranks, stages=1, …) → the folder that Megatron would have saved to."""

    def write(version: float, ranks: int = 1, stages: int = 1, *, iteration: str = "iter_0000500", **more: Any) -> Path:
        save = tmp_path / f"megatron-{version}-{ranks}-{stages}"
        per_stage = DEPTH // stages
        for stage in range(stages):
            for rank in range(ranks):
                layers = range(stage * per_stage, (stage + 1) * per_stage)
                content: dict[str, Any] = {
                    "iteration": 500,
                    "model": rank_state(original, version, rank, ranks, layers),
                    "optimizer": {"step": 500, "exp_avg": [torch.zeros(10)]},
                }
                if version > 0:  # the first versions stored neither
                    content |= {"checkpoint_version": version, "args": arguments(ranks, stages, **more)}
                name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
                (save / iteration / name).mkdir(parents=True)
                torch.save(content, save / iteration / name / "model_optim_rng.pt")
        said = iteration.removeprefix("iter_").lstrip("0")
        (save / "latest_checkpointed_iteration.txt").write_text(said)
        return save

    return write


@pytest.fixture(scope="session")
def tiny_gpt2_tokenizer(tmp_path_factory) -> Path:
    """Byte-level BPE of TOKENS entries; the last is <|endoftext|>, as in GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"t{i}": i for i in range(TOKENS - 1)} | {"<|endoftext|>": TOKENS - 1}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    return folder
