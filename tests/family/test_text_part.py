"""Gemma 3 of 4B and more, whose checkpoints read images too: its language model is read, trained and saved alone.

The reference is transformers' whole model, and the files are as the hub has them: transformers wrote their weights, and
config.json is in the words of google/gemma-3-4b-it's.
"""

import json
from pathlib import Path

import pytest

from distill.errors import DataError
from distill.family import gemma3
from distill.family.known import config_of, published
from distill.family.reading import read_stored
from distill.family.text_part import text_part
from distill.family.tiny_tokenizer import train_like
from tests.family.test_every_stage import (
    BF16,
    EVALUATION_ROWS,
    MAX_KL_NATS,
    ROWS,
    kind_of_targets,
    rows,
    run,
    with_an_adapter,
)
from tests.family.test_gemma3 import VISION, as_published

__all__ = ["rows"]  # a fixture

# vision_config and text_config of the published files, in full


def test_a_text_model_s_config_is_left_as_it_is():
    config = {"model_type": "llama", "vocab_size": 7}
    assert text_part(config) == config
    # a checkpoint that was quantised as a whole is quantised in its parts
    assert text_part({"model_type": "gemma3", "quantization_config": {"bits": 4}})["quantization_config"] == {"bits": 4}


TINY_VISION = VISION | {
    "hidden_size": 32,
    "image_size": 28,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
}
WINDOW = 8


def tiny_text(vocab_size):
    """Six layers, so that one is full by the pattern; grouped heads of their own width; a scale that is not theirs."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "query_pre_attn_scalar": 24,
        "sliding_window": WINDOW,
        "max_position_embeddings": 256,
        "initializer_range": 0.15,
    }


def write(folder: Path, tokenizer, seed: int, dtype: str = "float32"):
    """A tiny checkpoint as the hub's: weights in shards under the hub's names, config.json in its words. The model."""
    import torch
    from transformers import AutoConfig, Gemma3ForConditionalGeneration

    vocab_size = len(tokenizer) + 7
    config = as_published(tiny_text(vocab_size), TINY_VISION) | {
        "mm_tokens_per_image": 4,
        "image_token_index": vocab_size - 1,
        "boi_token_index": vocab_size - 3,
        "eoi_token_index": vocab_size - 2,
        "eos_token_id": [tokenizer.eos_token_id, vocab_size - 4],
        "torch_dtype": dtype,
    }
    values = {key: value for key, value in config.items() if key not in ("model_type", "torch_dtype")}
    torch.manual_seed(seed)
    model = Gemma3ForConditionalGeneration(AutoConfig.for_model("gemma3", **values)).to(getattr(torch, dtype)).eval()
    model.save_pretrained(folder, max_shard_size="300KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert "language_model.model.embed_tokens.weight" in index and len(set(index.values())) > 1
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def tokenizer(rows):
    return train_like(gemma3.FAMILY, [text for row in rows for text in row.values()], 420)


@pytest.fixture(scope="module")
def stored(tokenizer, tmp_path_factory):
    """(folder, the whole model)"""
    folder = tmp_path_factory.mktemp("gemma") / "checkpoint"
    return folder, write(folder, tokenizer, 0)


@pytest.fixture(scope="module")
def batch():
    """Rows longer than the window of five layers in six."""
    import torch

    ids_BT = torch.randint(5, 400, (2, 4 * WINDOW), generator=torch.Generator().manual_seed(1))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, 3 * WINDOW :] = 0
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def rename(folder: Path, source: Path, names) -> Path:
    """A copy of a checkpoint in one file, each weight as `names(name)`; None leaves it out."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    tensors = {k: v for file in sorted(source.glob("*.safetensors")) for k, v in load_file(file).items()}
    save_file(
        {names(k): v for k, v in tensors.items() if names(k)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    for file in source.glob("*.json"):
        if "index" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def newer(name):
    """As transformers 4.52 to 4.57 wrote them."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1)
    return f"model.{name}"


@pytest.mark.parametrize("style", ["hub", "newer"])
def test_its_logits_are_those_of_the_whole_model_on_text(stored, batch, style, tmp_path, caplog):
    import torch

    from distill.family.head import hidden_states, output_head
    from distill.runtime._loading import load_model

    folder, whole = stored
    model = load_model(folder if style == "hub" else rename(tmp_path / "newer", folder, newer), device="cpu")
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert model.num_parameters() == whole.model.language_model.num_parameters() < whole.num_parameters()
    assert "vision" not in caplog.text
    with torch.no_grad():
        expected_BTV = whole(**batch).logits
        hidden_BTD = hidden_states(model, **{f"{name}_BT": value for name, value in batch.items()})
        torch.testing.assert_close(model(**batch).logits, expected_BTV, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output_head(model).logits(hidden_BTD), expected_BTV, rtol=1e-5, atol=1e-5)
    # the whole file's word counts: it ends a turn by a second token
    assert model.config.eos_token_id == whole.config.eos_token_id and len(model.config.eos_token_id) == 2


def test_what_it_saves_loads_as_any_text_model_does(stored, batch, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from distill.runtime._loading import load_model

    model = load_model(stored[0], device="cpu")
    model.save_pretrained(tmp_path / "saved")
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(found.values()) and type(again) is type(model)
    with torch.no_grad():
        assert again(**batch).logits.equal(model(**batch).logits)


def test_stored_16_bits_stay_and_four_bits_are_made_of_them(tokenizer, batch, tmp_path):
    import torch

    from distill.runtime._loading import load_model, load_quantised

    whole = write(tmp_path / "half", tokenizer, 5, "bfloat16")
    assert {p.dtype for p in load_model(tmp_path / "half", device="cpu").parameters()} == {torch.bfloat16}
    quantised = load_quantised(tmp_path / "half", "nf4", device="cpu", rest=torch.float32)
    with torch.no_grad():
        p_BTV = whole.float()(**batch).logits.double().log_softmax(-1)
        q_BTV = quantised(**batch).logits.double().log_softmax(-1)
    kl = (p_BTV.exp() * (p_BTV - q_BTV)).sum(-1)[batch["attention_mask"] > 0].mean()
    assert 1e-6 < kl < MAX_KL_NATS["bnb_nf4"]


@pytest.mark.parametrize("what", ["model.layers.3.mlp.up_proj.weight is missing", "audio_tower.weight is not known"])
def test_a_checkpoint_in_parts_is_refused_and_not_filled_with_random_numbers(stored, tmp_path, what):
    from distill.runtime._loading import load_model

    def names(name):
        if name == "language_model.model.layers.3.mlp.up_proj.weight" and what.endswith("missing"):
            return None
        if name == "multi_modal_projector.mm_soft_emb_norm.weight" and what.endswith("known"):
            return "audio_tower.weight"
        return name

    broken = rename(tmp_path / "broken", stored[0], names)
    with pytest.raises(DataError, match=what) as refused:
        load_model(broken, device="cpu")
    assert len(str(refused.value).splitlines()) <= 6


def test_an_adapter_goes_with_the_whole_checkpoint_in_plain_peft(stored, batch, tmp_path):
    import torch

    from distill.runtime._adapter_names import name_base
    from distill.runtime._loading import load_model
    from distill.runtime.bnb import import_bitsandbytes

    import_bitsandbytes()
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

    folder, whole = stored
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", base_model_name_or_path=str(folder))
    adapted = get_peft_model(load_model(folder, device="cpu"), settings).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    adapted.save_pretrained(tmp_path)

    def logits(model):
        with torch.no_grad():
            return model(**batch).logits

    told, plain = logits(adapted), logits(whole)
    assert (told - plain).abs().max() > 0.1
    # the trap: under the language model's names the adapter has no place there, and does nothing
    with pytest.warns(UserWarning, match="missing adapter keys"):
        untouched = AutoPeftModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(untouched), plain, rtol=1e-5, atol=1e-5)
    for _ in range(2):  # a second time changes nothing
        name_base(tmp_path, str(folder), None)
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path).eval()
    assert not [name for name, _ in theirs.named_parameters() if "lora" in name and "language_model" not in name]
    torch.testing.assert_close(logits(theirs), told, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(load_model(tmp_path, device="cpu")), told, rtol=1e-5, atol=1e-5)


def test_its_shape_is_read_from_the_folder_before_anything_is_loaded(stored):
    folder, whole = stored
    for config in (read_stored(str(folder), None, "teacher.model"), config_of(str(folder), None, "teacher.model")):
        assert config["model_type"] == "gemma3_text"
        assert (config["vocab_size"], config["max_position_embeddings"]) == (whole.config.text_config.vocab_size, 256)
    assert published("google/gemma-3-27b-it")[1].config["vocab_size"] == 262_208


@pytest.fixture
def folders(rows, tokenizer, tmp_path, monkeypatch):
    """Teacher and student as the hub has them, and the data; the store lies beside them."""
    monkeypatch.setenv("DISTILL_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for seed, role in enumerate(("teacher", "student")):
        write(tmp_path / role, tokenizer, seed)
    for name, part in {"train": rows[:ROWS], "evaluation": rows[ROWS : ROWS + EVALUATION_ROWS]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path


@pytest.mark.slow
def test_it_goes_through_every_stage_as_teacher_and_student(folders):
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    folder, models = with_an_adapter(folders)
    assert models["teacher"]["parameters"] == models["student"]["parameters"]
    again, found = AutoModelForCausalLM.from_pretrained(folder / "packages/bf16", output_loading_info=True)
    assert type(again).__name__ == "Gemma3ForCausalLM" and not any(found.values())

    folder, stages = run(folders, "full", teacher={"targets": "sampled", "draws": 8}, until="compress", **BF16)
    assert kind_of_targets(folders, stages) == "sampled"
    before = {k: v for file in (folders / "student").glob("*.safetensors") for k, v in load_file(file).items()}
    after = load_file(folder / "packages/bf16/model.safetensors")
    assert all(name.startswith("model.") for name in after)
    matrices = {name: weight for name, weight in after.items() if weight.ndim == 2}
    assert not [n for n, weight in matrices.items() if before[f"language_model.{n}"].bfloat16().equal(weight)]

    _, stages = run(
        folders,
        "qlora",
        teacher={"quantization": "nf4"},
        loss={"kind": "text"},
        adapter={"kind": "qlora"},
        until="compress",
        **BF16,
    )
    assert kind_of_targets(folders, stages) == "tokens"

    student = {"kind": "pretrained", "model": str(folders / "student"), "layers": [0, 2, 5]}
    folder, _ = run(folders, "cut", teacher={"live": True}, student=student, until="compress", **BF16)
    config = json.loads((folder / "packages/bf16/config.json").read_text())
    assert config["layer_types"] == ["sliding_attention", "sliding_attention", "full_attention"]


def test_its_gguf_is_refused_with_the_way_that_there_is(stored):
    from distill.recipe import options_of

    student = config_of(str(stored[0]), None, "student.model")
    said = options_of("compression")["gguf_q8_0"](kind="gguf_q8_0").refuse(student)
    assert "not gemma3_text; llama.cpp runs it as gemma3" in said and "convert_hf_to_gguf.py" in said
