"""Each default of max_kl_nats lies between what its type costs real models and what the next coarser type costs."""

import pytest

from distill.recipe import options_of

# Mean KL divergence in nats per token: llama.cpp, tools/perplexity/README.md, tables of revision f364eb6f.
LLAMA_3_8B = {"q8_0": 0.001355, "q6_K": 0.005452, "q4_K_M": 0.031273, "q4_0": 0.071940, "q3_K_M": 0.101913}
LLAMA_3_8B |= {"q3_K_S": 0.228217, "f16 of bf16": 0.00002515}
LLAMA_2_7B = {"q8_0": 0.000369, "q4_K_M": 0.012686}


@pytest.mark.parametrize(
    ("kind", "its_own", "coarser"),
    [
        ("bf16", "f16 of bf16", "q6_K"),
        ("lora", "f16 of bf16", "q6_K"),
        ("bnb_int8", "q8_0", "q6_K"),
        ("gguf_q8_0", "q8_0", "q6_K"),
        ("gguf_q4_k_m", "q4_K_M", "q3_K_M"),
        ("bnb_nf4", "q4_0", "q3_K_S"),
    ],
)
def test_a_sound_package_passes_and_a_coarser_one_does_not(kind, its_own, coarser):
    bar = options_of("compression")[kind](kind=kind).max_kl_nats
    worst = max(table.get(its_own, 0.0) for table in (LLAMA_3_8B, LLAMA_2_7B))
    assert 2 * worst < bar < LLAMA_3_8B[coarser]


def test_sound_packages_of_a_real_model_pass_on_text_that_is_hard_for_it(stories260k, tmp_path):
    """A Llama that has read children's stories alone, on WikiText: above 1e-3, which was the bar of all of these."""
    from distill.example import Example
    from distill.stages.verify import verify_packages

    pytest.importorskip("bitsandbytes")
    lines = (stories260k.parent / "wikitext2" / "valid.txt").read_text("utf-8").splitlines()
    rows = [Example(prompt="", response=line[:500]) for line in lines if len(line) > 200][:12]
    packages = {}
    for kind in ("bf16", "bnb_int8"):
        option = options_of("compression")[kind](kind=kind)
        option.make(stories260k, tmp_path / kind)
        packages[kind] = (tmp_path / kind, option)
    for proof in verify_packages("transformers", stories260k, packages, rows, tmp_path / "proof", 4).values():
        assert proof["verified"] and proof["kl_to_student_nats"] > 1e-3, proof
