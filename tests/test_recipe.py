"""parse(): every shipped file is right, every mistake is said in the user's words."""

import pytest

from distill import _hydra, shipped
from distill.errors import RecipeError
from distill.recipe import GROUPS, fields_of, options_of, parse
from tests.conftest import ROOT

BUNDLED = ROOT / "distill" / "bundled" / "quickstart_teacher"


def composed(*overrides):
    return parse(_hydra.compose([f"teacher.model={BUNDLED}" if o == "TEACHER" else o for o in overrides]).config)


def test_yaml_files_python_files_and_kinds_are_the_same_words():
    for group in GROUPS:
        kinds = set(options_of(group))
        yaml = {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}
        python = {f.stem for f in (ROOT / "distill" / group).glob("*.py") if not f.name.startswith("_")}
        # facts about data sets, not an option
        assert kinds == yaml == python - {"known"}, group


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("rehearse=yes", "rehearse='yes': true or false is needed."),
        ("seed=one", "seed='one': a whole number is needed."),
        ("training.batch_size=64.5", "training.batch_size=64.5: a whole number is needed."),
        ("training.learning_rate=fast", "training.learning_rate='fast': a number is needed."),
        ("data.rows=[1]", None),
        ("student.model=3", None),
        ("name='a b'", "name='a b': letters, digits, _, . and - are needed, and no other signs."),
        ("quickstart", "'quickstart' is no argument of ours; write recipe=quickstart."),
    ],
)
def test_a_value_of_another_kind_is_answered_with_what_is_needed(typed, said):
    with pytest.raises(RecipeError) as error:
        composed(typed)
    assert said is None or str(error.value) == said
    assert "valid" not in str(error.value) and "pattern" not in str(error.value)


def test_what_plain_text_cannot_have_is_said_at_once():
    text = ["data=local", "data.path=x.jsonl", "data.text_field=text", "TEACHER"]
    for more, missing in (
        ([], "use teacher.responses=data evaluation=bits_per_byte"),
        (["teacher.responses=data"], "use evaluation=bits_per_byte"),
        (["evaluation=bits_per_byte"], "use teacher.responses=data"),
    ):
        with pytest.raises(RecipeError, match=f"data.text_field has no prompts to answer; {missing}"):
            composed(*text, *more)
    assert composed(*text, "teacher.responses=data", "evaluation=bits_per_byte").is_plain_text


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml")))
def test_every_shipped_recipe_parses_and_bears_its_name(name):
    # a recipe may leave its teacher to the user
    overrides = [f"recipe={name}"]
    if name == "customer_service":
        overrides.append("teacher.model=org/teacher")
    recipe = parse(_hydra.compose(overrides).config)
    assert recipe.name == name
    assert shipped.first_comment(ROOT / "recipes" / f"{name}.yaml")


def test_yaml_repeats_no_default():
    import dataclasses

    import yaml

    for group in GROUPS:
        for kind, option in options_of(group).items():
            chosen = yaml.safe_load((ROOT / "conf" / group / f"{kind}.yaml").read_text())
            chosen = chosen[kind] if group == "compression" else chosen
            defaults = {field.name: field.default for field in dataclasses.fields(option)}
            assert not [name for name, value in chosen.items() if name != "kind" and defaults[name] == value], (
                group,
                kind,
            )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.learning_rat=1", ["training.learning_rat", "did you mean learning_rate"]),
        ("loss.temprature=2", ["loss.temprature", "did you mean temperature", "hard_weight"]),
        ("training.learning_rate=-1", ["training.learning_rate=-1", "greater than 0"]),
        ("training.learning_rate=fast", ["training.learning_rate='fast'", "number"]),
        ("training.batch_size=64.5", ["training.batch_size=64.5", "whole number"]),
        ("loss.hard_weight=1.5", ["loss.hard_weight=1.5", "less than or equal to 1"]),
        ("student.hidden_size=100", ["student.hidden_size=100", "multiple of 16"]),
        ("until=traim", ["until='traim'", "did you mean train?", "teach", "report"]),
        ("recipie=quickstart", ["recipie", "did you mean recipe?"]),
        ("licence.accept=llama2", ["licence.accept='llama2'", "licence.accept=[llama2]"]),
        ("evaluation.rows=x", ["evaluation.rows='x'"]),
        ("student=pretrained student.layers=3", ["student.layers=3", "write student.layers=[0, 1, 2] for the first 3"]),
        ("teacher.model=", ["teacher.model", "is empty", "hub id"]),
        ("student=pretrained student.model=", ["student.model", "is empty"]),
        ("rehearse=maybe", ["rehearse", "maybe"]),
        ("baselines=[baseline_texts]", ["baselines", "baseline_text"]),
        ("training.gradient_accumulation_steps=3", ["batch_size=64", "3"]),
        ("data.num_rows=0", ["data.num_rows=0"]),
        ("seed=-1", ["seed=-1"]),
        ("compression.bf16.max_kl=1", ["compression.bf16.max_kl", "max_kl_nats"]),
        ("+compression=[lora]", ["lora"]),
        ("teacher.targets=sampled loss=jsd", ["teacher.targets=sampled", "loss=jsd", "top_k"]),
        ("teacher.targets=frozen_head", ["frozen_head", "adapter=lora", "student=pretrained"]),
        ("training.on_policy=0.001 loss=jsd", ["on_policy=0.001", "64 rows"]),
        ("training.on_policy=0.5 loss=jsd training.sharding=full", ["sharding=full", "whole student", "adapter=lora"]),
        ("training.on_policy=0.5 loss=text", ["on_policy", "loss=text", "reverse_kl"]),
        ("loss=aligned teacher.live=true", ["aligned", "teacher.live"]),
        ("teacher=routed", ["teacher.teachers"]),
        ("student.num_attention_heads=3", ["hidden_size=128", "3"]),
    ],
)
def test_a_mistake_is_named_in_the_words_of_the_recipe(override, words):
    with pytest.raises(RecipeError) as refused:
        composed("TEACHER", *override.split())
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) <= 6
    assert refused.value.exit_code == 2


def test_options_that_exclude_each_other_are_named():
    with pytest.raises(RecipeError, match="loss=forward_kl compares the student with a teacher, but teacher=none"):
        composed("teacher=none", "baselines=[]")
    with pytest.raises(RecipeError, match=r"teacher\.model: no such key; this option has none"):
        composed("TEACHER", "teacher=none")


def test_many_mistakes_stay_short():
    config = _hydra.compose([f"teacher.model={BUNDLED}"]).config
    config["training"] = {f"wrong_{n}": n for n in range(20)}
    with pytest.raises(RecipeError) as refused:
        parse(config)
    assert len(str(refused.value).splitlines()) <= 6 and "15 more" in str(refused.value)


def test_fields_of_names_the_keys_of_one_option():
    assert fields_of("loss", "jsd") == {"kind", "beta", "temperature", "hard_weight"}
    assert fields_of("loss", "text") == {"kind"}
