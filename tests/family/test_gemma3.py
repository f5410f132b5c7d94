"""Our facts of Gemma 3's checkpoints with a vision tower are what transformers makes of the published files."""

import pytest

from distill.family import gemma3
from distill.family.known import config_of, family_of
from distill.family.text_part import DEFAULTS

VISION = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
LINEAR = {"factor": 8.0, "rope_type": "linear"}
TEXT = {
    "4B": {"hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34},
    "12B": {
        "hidden_size": 3840,
        "intermediate_size": 15_360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "27B": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21_504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
    },
}
STORED = {"4B": 4_300_079_472, "12B": 12_187_325_040, "27B": 27_432_406_640}
"""Parameters as the hub counts them in the safetensors files."""


def as_published(text, vision):
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "eos_token_id": [1, 106],
        "image_token_index": 262_144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "rope_scaling": LINEAR, "sliding_window": 1024, **text},
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": vision,
    }


OF_IMAGES = [p for p in gemma3.FAMILY.published if p.not_loaded]


@pytest.mark.parametrize("checkpoint", OF_IMAGES, ids=lambda p: p.model)
def test_our_facts_are_what_transformers_makes_of_the_published_file(checkpoint):
    from transformers import AutoConfig

    config = as_published(TEXT[checkpoint.size.split()[0]], VISION)
    text = AutoConfig.for_model(
        config["model_type"], **{k: v for k, v in config.items() if k != "model_type"}
    ).text_config
    told = AutoConfig.for_model("gemma3_text", **checkpoint.config)
    theirs, ours = text.to_dict(), told.to_dict()
    assert {key: ours[key] for key in checkpoint.config} == {key: theirs[key] for key in checkpoint.config}
    # what is left to defaults is the same too
    assert {key for key in theirs if theirs[key] != ours.get(key)} <= {"_name_or_path", "dtype"}
    assert family_of(config) is gemma3.FAMILY


@pytest.mark.parametrize("checkpoint", OF_IMAGES, ids=lambda p: p.model)
def test_what_is_stored_is_the_language_model_and_what_is_not_loaded(checkpoint):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    size = checkpoint.size.split()[0]
    config = as_published(TEXT[size], VISION)
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    assert type(whole).__name__ == "Gemma3ForConditionalGeneration"
    assert whole.num_parameters() == STORED[size] == checkpoint.parameters + checkpoint.not_loaded
    seen = whole.model.vision_tower.num_parameters() + sum(
        p.numel() for p in whole.model.multi_modal_projector.parameters()
    )
    assert checkpoint.not_loaded == seen


def test_what_published_files_leave_out_is_as_transformers_fills_it_in():
    from transformers import Gemma3TextConfig

    filled = Gemma3TextConfig().to_dict()
    assert DEFAULTS["gemma3_text"] == {key: filled[key] for key in DEFAULTS["gemma3_text"]}


@pytest.mark.parametrize("checkpoint", OF_IMAGES, ids=lambda p: p.model)
def test_a_plan_downloads_all_and_loads_the_language_model(checkpoint):
    from distill.planning.facts import bytes_to_download
    from distill.planning.model import model_of

    model = model_of(checkpoint.model, config_of(checkpoint.model, None, "x"), checkpoint.stored_dtype, on_disk=False)
    assert model.parameters == checkpoint.parameters and model.positions == 131_072
    assert bytes_to_download(model) == 2 * STORED[checkpoint.size.split()[0]]
    # five layers in six look back on 1024 tokens and no further
    assert model.windows.count(None) == model.layers // 6 and set(model.windows) == {None, 1024}
