"""student=pretrained: what is left of a checkpoint when some of its layers are kept, in every family."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from distill.data.word_problems import WordProblems
from distill.family.head import described_by
from distill.family.known import FAMILIES
from distill.family.tiny import tiny_config
from distill.family.tiny_tokenizer import train_like
from distill.runtime.hf import Transformers
from distill.student.pretrained import Pretrained, config_with_layers

KEPT = [1, 3]
LONGER_THAN_A_WINDOW = 300
"""GPT-Neo's local layers see 256 tokens."""


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def checkpoint(request, tmp_path):
    """A family's tiny checkpoint of at least four layers, its tokenizer and its config.json."""
    family = request.param
    rows = WordProblems(kind="word_problems", num_rows=60).load().train
    tokenizer = train_like(family, [text for row in rows for text in (row.prompt, row.response)], 420)
    config = tiny_config({"model_type": family.model_type, **family.published[-1].config}, len(tokenizer), 4)
    torch.manual_seed(0)
    values = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values))
    model.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    return tmp_path / "whole", tokenizer, config


def test_kept_layers_are_a_model_of_their_own(checkpoint, tmp_path):
    """What it says with a cache, before it is saved, is what it says without one after it was loaded again."""
    folder, tokenizer, config = checkpoint
    model = Pretrained(kind="pretrained", model=str(folder), layers=KEPT).build(tokenizer, 0).eval()
    assert model.config.num_hidden_layers == len(KEPT)
    model.save_pretrained(tmp_path / "few")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "few", dtype=torch.float32).eval()

    row = torch.randint(5, 200, (1, LONGER_THAN_A_WINDOW), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(model(row).logits, again(row).logits, rtol=0, atol=1e-5)
        prompt, expected = row[:, :12], []
        for _ in range(6):
            token = again(torch.cat([prompt, torch.tensor([expected], dtype=torch.long)], dim=1)).logits[0, -1].argmax()
            expected.append(int(token))
    student = Transformers("student", model=model, tokenizer=tokenizer)
    student.eos_token_ids = frozenset()
    assert student.generate([prompt[0].tolist()], 6) == [expected]
    # what is asked of config.json before anything is loaded is of the same shape
    shape = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    described = described_by(config_with_layers(config, KEPT))
    assert {name: tuple(weight.shape) for name, weight in described.named_parameters()} == shape


def test_a_layer_is_kept_once():
    with pytest.raises(ValueError, match=r"layers=\[0, 1, 1\].*share"):
        Pretrained(kind="pretrained", model="org/name", layers=[0, 1, 1])
