"""The adapter package: loads on the base it names, and says what the merged student says."""

import pytest
import torch

from distill.compression.lora import LoraAdapter
from distill.errors import StageFailed

OPTION = LoraAdapter(kind="lora")


@pytest.fixture(scope="module")
def trained(student, tmp_path_factory):
    """A student folder as the train stage leaves it: the merged checkpoint, and the adapter beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(student)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", base_model_name_or_path=str(student))
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "adapter")
    model.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(student).save_pretrained(folder)
    return folder


def test_adapter_on_its_base_is_the_merged_student(student, trained, tmp_path, logprobs, mean_kl):
    OPTION.make(trained, tmp_path)
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "model.safetensors").exists()
    merged = logprobs(trained)
    assert mean_kl(merged, logprobs(tmp_path)) < OPTION.max_kl_nats
    assert mean_kl(merged, logprobs(student)) > 0.01


def test_a_student_without_an_adapter_is_refused(student, tmp_path):
    with pytest.raises(StageFailed, match=r"adapter_config\.json does not exist.*adapter=lora"):
        OPTION.make(student, tmp_path)
