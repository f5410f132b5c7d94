"""The converted model computes what Megatron-LM's own forward computes from the files' tensors, in float64.

Nothing here goes through transformers' layout: the weights are random in Megatron's, and the forward below is its
definition of ParallelTransformerLayer with tensor parallelism: each rank its own heads, row-parallel outputs summed,
their bias added once; the vocabulary's rows side by side.
Source: megatron/model/transformer.py and megatron/mpu/layers.py of NVIDIA/Megatron-LM: `mixed_x_layer` is split into
three along its last dimension in version 0, seen as [heads, size, 3] in version 1.0, as [heads, 3 * size] since 2.0.
"""

import math
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from distill.megatron import convert

WIDTH, HEADS, DEPTH, POSITIONS, TOKENS = 48, 4, 2, 16, 250


def random_ranks(ranks, seed=0):
    """state[rank][name], as the files store them; replicated weights are the same tensors."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.3

    states = [{} for _ in range(ranks)]

    def everywhere(name, *shape):
        value = random(*shape)
        for state in states:
            state[name] = value

    def own(name, *shape):
        for state in states:
            state[name] = random(*shape)

    own("word_embeddings.weight", 256 // ranks * 2, WIDTH)
    everywhere("position_embeddings.weight", POSITIONS, WIDTH)
    for layer in range(DEPTH):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            everywhere(f"layers.{layer}.{norm}.weight", WIDTH)
            everywhere(f"layers.{layer}.{norm}.bias", WIDTH)
        own(f"layers.{layer}.attention.query_key_value.weight", 3 * WIDTH // ranks, WIDTH)
        own(f"layers.{layer}.attention.query_key_value.bias", 3 * WIDTH // ranks)
        own(f"layers.{layer}.attention.dense.weight", WIDTH, WIDTH // ranks)
        everywhere(f"layers.{layer}.attention.dense.bias", WIDTH)
        own(f"layers.{layer}.mlp.dense_h_to_4h.weight", 4 * WIDTH // ranks, WIDTH)
        own(f"layers.{layer}.mlp.dense_h_to_4h.bias", 4 * WIDTH // ranks)
        own(f"layers.{layer}.mlp.dense_4h_to_h.weight", WIDTH, 4 * WIDTH // ranks)
        everywhere(f"layers.{layer}.mlp.dense_4h_to_h.bias", WIDTH)
    everywhere("final_layernorm.weight", WIDTH)
    everywhere("final_layernorm.bias", WIDTH)
    return states


def norm(state, name, x):
    return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def split(mixed, version, heads):
    """q, k, v of `[tokens, 3 * heads * size]`, each `[tokens, heads, size]`."""
    size = mixed.shape[-1] // (3 * heads)
    if version == 0:
        return [part.view(-1, heads, size) for part in mixed.chunk(3, dim=-1)]
    if version == 1.0:
        return list(mixed.view(-1, heads, size, 3).unbind(-1))
    return list(mixed.view(-1, heads, 3 * size).chunk(3, dim=-1))


def attention(state, layer, x, version, ranks):
    prefix = f"layers.{layer}.attention"
    heads = HEADS // ranks
    mixed = F.linear(x, state[f"{prefix}.query_key_value.weight"], state[f"{prefix}.query_key_value.bias"])
    query, key, value = split(mixed, version, heads)
    context = []
    for head in range(heads):
        scores = query[:, head] @ key[:, head].T / math.sqrt(WIDTH // HEADS)
        future = torch.ones_like(scores).triu(1).bool()
        context.append(scores.masked_fill(future, -math.inf).softmax(-1) @ value[:, head])
    return F.linear(torch.cat(context, -1), state[f"{prefix}.dense.weight"])


def mlp(state, layer, x):
    prefix = f"layers.{layer}.mlp"
    inner = F.linear(x, state[f"{prefix}.dense_h_to_4h.weight"], state[f"{prefix}.dense_h_to_4h.bias"])
    return F.linear(F.gelu(inner, approximate="tanh"), state[f"{prefix}.dense_4h_to_h.weight"])


def megatron_logits(states, tokens, version):
    """`[tokens, TOKENS]`, float64."""
    first = states[0]
    table = torch.cat([state["word_embeddings.weight"] for state in states])
    x = table[tokens] + first["position_embeddings.weight"][: len(tokens)]
    for layer in range(DEPTH):
        normed = norm(first, f"layers.{layer}.input_layernorm", x)
        x = x + sum(attention(state, layer, normed, version, len(states)) for state in states)
        x = x + first[f"layers.{layer}.attention.dense.bias"]
        normed = norm(first, f"layers.{layer}.post_attention_layernorm", x)
        x = x + sum(mlp(state, layer, normed) for state in states) + first[f"layers.{layer}.mlp.dense_4h_to_h.bias"]
    x = norm(first, "final_layernorm", x)
    return torch.cat([x @ state["word_embeddings.weight"].T for state in states], -1)[:, :TOKENS]


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("version", [0, 1.0, 2.0, 3.0])
def test_it_computes_what_megatron_computes(version, ranks, tmp_path):
    states = random_ranks(ranks)
    for rank, state in enumerate(states):
        # the flat names of the first release
        model = {("" if "embeddings" in name else "transformer.") + name: value for name, value in state.items()}
        folder = tmp_path / f"release/mp_rank_{rank:02d}"
        folder.mkdir(parents=True)
        args = Namespace(num_attention_heads=HEADS, make_vocab_size_divisible_by=512 // ranks)
        torch.save({"checkpoint_version": version, "model": model, "args": args}, folder / "model_optim_rng.pt")
    convert(tmp_path, tmp_path / "out", num_tokens=TOKENS)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert converted.dtype == torch.float64
    tokens = torch.randint(TOKENS, (POSITIONS,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        said = converted(tokens[None]).logits[0]
    expected = megatron_logits(states, tokens, version)
    assert expected.std() > 0.5
    # eager attention takes its softmax in float64 here, so nothing but the order of sums differs
    torch.testing.assert_close(said, expected, rtol=1e-9, atol=1e-9)


def test_the_three_orders_are_three_models():
    states = random_ranks(1)
    tokens = torch.arange(POSITIONS)
    said = [megatron_logits(states, tokens, version) for version in (0, 1.0, 2.0)]
    assert min((said[a] - said[b]).abs().max() for a, b in [(0, 1), (0, 2), (1, 2)]) > 0.1
