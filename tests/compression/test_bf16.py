"""The bf16 package: half the bytes, loads where users load it, next to no divergence."""

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from distill.compression.bf16 import Bf16


def test_every_weight_is_the_students_rounded_once(student, tmp_path):
    Bf16(kind="bf16").make(student, tmp_path)
    packed, original = load_file(tmp_path / "model.safetensors"), load_file(student / "model.safetensors")
    assert packed.keys() == original.keys()
    for name, weight in packed.items():
        assert torch.equal(weight, original[name].to(torch.bfloat16)), name
    assert not list(tmp_path.glob("*.bin"))


def test_is_the_student_within_its_own_bar(student, tmp_path, logprobs, mean_kl):
    option = Bf16(kind="bf16")
    option.make(student, tmp_path)
    divergence = mean_kl(logprobs(student), logprobs(tmp_path, dtype="float32"))
    assert 0 < divergence < option.max_kl_nats


def test_the_tokenizer_files_are_copied_as_they_are(stories260k, tmp_path):
    Bf16(kind="bf16").make(stories260k, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (stories260k / name).read_bytes()
    assert not (tmp_path / "PROVENANCE.md").exists()
    text = "Once upon a time, Lily  saw\na dog."
    ids = [AutoTokenizer.from_pretrained(folder)(text)["input_ids"] for folder in (stories260k, tmp_path)]
    assert ids[0] == ids[1]
