"""What stands in for checkpoints, tokenizers and data is like them where it decides something."""

import json
from typing import Any

import pytest

from distill import _hydra
from distill.encoding import load_tokenizer, tokenizer_hash
from distill.errors import RecipeError
from distill.family.reading import near_names, read_known
from distill.recipe import YOURS, parse
from distill.rehearsal._data import sample
from distill.rehearsal._sources import CLOSED, Source, source, teacher_sources
from distill.rehearsal._tokenizers import tokenizers_for
from distill.rehearsal.check import check_rehearsal
from distill.rehearsal.recipe import rehearsed
from distill.stages._local_teacher import among, likeliest, num_ids

TEXTS = ["Ada has 7 boxes with 4 pens in each.", "How many pens is that in all?", "7*4=28\n#### 28"] * 4


def composed(*overrides) -> Any:
    return parse(_hydra.compose([*overrides, "rehearse=true"]).config)


def made_of(recipe, folder, **how) -> Any:
    return rehearsed(recipe, folder, **how)


def stand_ins(*models):
    return tokenizers_for([source("teacher.model", model, None) for model in models], TEXTS)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("openai-community/gpt2-xl", "openai-community/gpt2", True),
        ("openai-community/gpt2-xl", "EleutherAI/gpt-neo-125m", True),
        ("openai-community/gpt2-xl", "facebook/opt-1.3b", False),
        ("huggyllama/llama-65b", "meta-llama/Llama-2-7b-hf", True),
        ("meta-llama/Llama-2-7b-hf", "codellama/CodeLlama-7b-hf", False),
        ("codellama/CodeLlama-34b-hf", "codellama/CodeLlama-7b-hf", False),
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-0.6B", True),
        ("Qwen/Qwen3-32B", "Qwen/Qwen2.5-0.5B", False),
    ],
)
def test_tokenizers_are_shared_where_the_real_ones_are(first, second, shared):
    one, other = stand_ins(first, second)
    assert (tokenizer_hash(one.tokenizer) == tokenizer_hash(other.tokenizer)) is shared


def test_vocabularies_that_are_padded_differently_are_padded_differently():
    # Qwen2.5 has 151,665 tokens; 152,064 rows in the 7B, 151,936 in the 0.5B
    large, small = stand_ins("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-0.5B")
    assert large.vocab_size > small.vocab_size > len(small.tokenizer) == len(large.tokenizer)
    gpt2 = stand_ins("openai-community/gpt2")[0]
    assert gpt2.vocab_size == len(gpt2.tokenizer)


def test_a_folder_keeps_its_tokenizer_and_a_closed_model_gets_one(tiny_teacher):
    folder = source("student.model", str(tiny_teacher), None)
    closed = Source("teacher.model", "gpt-9", None, CLOSED, stands_in=True)
    own, other = tokenizers_for([folder, closed], TEXTS)
    assert own.is_real and tokenizer_hash(own.tokenizer) == tokenizer_hash(load_tokenizer(tiny_teacher))
    assert not other.is_real


def test_the_rehearsed_recipe_asks_for_the_same_with_less(tmp_path):
    recipe = composed("recipe=llama2_70b_to_7b")
    made = made_of(recipe, tmp_path, num_processes=2).recipe
    assert list(made.compression) == list(recipe.compression) and made.loss == recipe.loss
    assert made.baselines == recipe.baselines and made.adapter == recipe.adapter
    assert made.training.max_length == recipe.training.max_length and made.training.max_steps == 2
    assert made.training.batch_size % (2 * made.training.gradient_accumulation_steps) == 0
    assert made.tracking.kind == "none"
    teacher, student = (json.loads((tmp_path / place / "config.json").read_text()) for place in _places(made))
    assert teacher["num_key_value_heads"] < teacher["num_attention_heads"]  # 8 of 64 in the 70B
    assert student["num_key_value_heads"] == student["num_attention_heads"]  # all of them in the 7B
    assert teacher["rope_parameters"]["rope_theta"] == 10_000
    assert load_tokenizer(made.student.model).tokenize("x")[0].startswith("▁")


def test_a_teacher_that_is_still_to_be_named_is_of_our_own_shape(tmp_path):
    recipe = composed("recipe=customer_service")
    assert recipe.teacher.model == YOURS
    assert check_rehearsal(recipe) == ()
    made = made_of(recipe, tmp_path)
    (said,) = [words for words in made.not_proven if words.startswith("teacher.model is left to you")]
    assert "with teacher.model=… yours is rehearsed" in said and "its own tokenizer" not in " ".join(made.not_proven)
    config = json.loads((tmp_path / made.recipe.teacher.model / "config.json").read_text())
    assert config["model_type"] == "llama" and config["num_key_value_heads"] < config["num_attention_heads"]
    # the run itself needs a name, and is told where one comes from
    with pytest.raises(RecipeError, match=r"give teacher.model=FOLDER \(recipe=customer_service_teacher makes"):
        parse(_hydra.compose(["recipe=customer_service"]).config)
    named = composed("recipe=customer_service", "teacher.model=openai-community/gpt2")
    assert named.teacher.model == "openai-community/gpt2"


@pytest.mark.parametrize(("until", "judged"), [("train", False), ("compress", False), ("verify", True)])
def test_a_limit_that_no_stage_asks_for_is_not_listed(tmp_path, until, judged):
    made = made_of(composed("recipe=gpt2xl_to_gpt2", f"until={until}"), tmp_path)
    assert any("max_kl_nats" in words for words in made.not_proven) is judged


def _places(recipe):
    return recipe.teacher.model, recipe.student.model


def test_layers_that_a_student_keeps_are_kept_of_the_stand_in_too(tmp_path):
    recipe = composed("recipe=gpt2xl_to_gpt2", "student.layers=[0,3,6,9]", "compression=[bf16]")
    made = made_of(recipe, tmp_path).recipe
    config = json.loads((tmp_path / made.student.model / "config.json").read_text())
    assert made.student.layers is not None and max(made.student.layers) == config["n_layer"] - 1
    assert len(made.student.layers) < config["n_layer"]


def test_a_served_teacher_costs_nothing(tmp_path):
    served = ["teacher.base_url=https://api.openai.com/v1", "teacher.model=gpt-9", "teacher.key_env=NO_SUCH_KEY"]
    recipe = composed("recipe=quickstart", "teacher=server", "loss=text", *served)
    made = made_of(recipe, tmp_path)
    assert made.recipe.teacher.kind == "hf"
    assert any("gpt-9 at https://api.openai.com/v1 was not asked" in words for words in made.not_proven)


def test_a_tokenizer_that_is_not_here_is_not_proven_and_one_that_is_needs_no_word(tmp_path):
    def of(*overrides):
        made = made_of(composed(*overrides), tmp_path / str(len(overrides)))
        return [words.partition(":")[0] for words in made.not_proven if "its own tokenizer and chat template" in words]

    assert of("recipe=qwen3_32b_to_0b6") == ["Qwen/Qwen3-32B", "Qwen/Qwen3-0.6B"]
    assert of("recipe=quickstart", "compression=[]") == []


def test_filters_that_random_models_never_pass_are_left_out_and_said(tmp_path):
    made = made_of(composed("recipe=math_assistant"), tmp_path)
    assert made.recipe.teacher.filters == ["duplicate"] and made.recipe.teacher.samples == 2
    assert any("teacher.filters" in words for words in made.not_proven)


def test_a_data_set_that_nobody_knows_gets_the_recipes_own_columns(tmp_path):
    fields = ["data.prompt_template='{question} ({level})'", "data.response_field=solution", "data.rows=null"]
    recipe = composed("recipe=customer_service_teacher", "data.path=some/set", *fields)
    made = sample(recipe, tmp_path)
    assert any("columns of some/set: not proven" in words for words in made.not_proven)
    examples = made.data.load()
    assert "(" in str(examples.train[0].prompt) and examples.train[0].response


def test_of_several_teachers_each_is_asked(tmp_path):
    rows = [{"prompt": f"q{n}", "response": "a", "who": "math" if n < 300 else "law"} for n in range(400)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    teachers = "{math: {kind: hf, model: openai-community/gpt2}, law: {kind: hf, model: openai-community/gpt2-xl}}"
    recipe = composed(
        *("recipe=gpt2xl_to_gpt2", f"data.path={tmp_path / 'rows.jsonl'}", "data.prompt_template=null"),
        *("teacher=routed", f"teacher.teachers={teachers}", "data.teacher_field=who"),
    )
    made = made_of(recipe, tmp_path / "made").recipe
    assert {example.teacher for example in made.data.load().train} == {"math", "law"}
    assert {t.model for t in made.teacher.teachers.values()} == set(_folders(tmp_path / "made"))


def _folders(folder):
    return [str(place) for place in (folder / "checkpoints").iterdir() if place.name[-1] in "01"]


def test_a_teacher_for_each_key():
    sources = teacher_sources(composed("recipe=qwen3_32b_to_0b6", "teacher=vllm"))
    assert sources["teacher"].config["num_key_value_heads"] == 8


def test_rows_that_pad_an_embedding_are_never_answered(tiny_teacher):
    import torch

    known = num_ids(load_tokenizer(tiny_teacher))
    logits_BV = torch.zeros(2, known + 5)
    logits_BV[0, known + 2], logits_BV[0, 7], logits_BV[1, known - 1] = 9.0, 1.0, 1.0
    assert among(known, likeliest)(logits_BV, [0, 1], 0).tolist() == [7, known - 1]


def test_near_names_are_of_the_family_that_was_meant():
    assert "did you mean Qwen/Qwen3-" in str(near_names("Qwen/Qwen3-7B"))
    assert near_names("somebody/model-of-theirs") is None
    with pytest.raises(RecipeError, match="OPT was published in 125M"):
        read_known("facebook/opt-3b", None, "teacher.model")
