"""distill/_hydra.py and its helpers: what is typed becomes what runs. In one process, nothing is written."""

from pathlib import Path

import pytest
import yaml

from distill import shipped
from distill._hydra import compose, compose_sweep, for_hydra
from distill._own_recipe import write_recipe
from distill.errors import RecipeError
from distill.recipe import GROUPS

SMALL = "# @package _global_\n# a small one\ntraining: {max_steps: 3}\n"
TUNED = """\
# @package _global_
# tuned
defaults:
  - override /loss: jsd
  - override /compression: [bf16, bnb_nf4]
seed: 7
loss: {beta: 0.25, temperature: 2.0}
compression: {bnb_nf4: {double_quant: true}}
training: {learning_rate: 1e-5}
"""


@pytest.fixture(autouse=True)
def recipes(tmp_path, monkeypatch):
    """Shipped recipes of this test's own, and an empty current directory."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "quickstart.yaml").write_text(SMALL)
    (folder / "tuned.yaml").write_text(TUNED)
    monkeypatch.setattr(shipped, "recipes_folder", lambda: folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def write(name: str, text: str) -> Path:
    file = Path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def refusal(*typed: str) -> str:
    with pytest.raises(RecipeError) as caught:
        compose(typed)
    assert len(str(caught.value).splitlines()) <= 6
    return str(caught.value)


def test_without_arguments_it_is_quickstart():
    config = compose([]).config
    assert config["name"] == "quickstart"
    assert config["training"] == {"max_steps": 3}
    assert {group: config[group]["kind"] for group in GROUPS if group != "compression"} == {
        "data": "word_problems",
        "teacher": "hf",
        "student": "scratch",
        "loss": "forward_kl",
        "adapter": "none",
        "evaluation": "exact_match",
        "tracking": "none",
    }
    assert config["compression"] == {"bf16": {"kind": "bf16"}}


def test_a_recipe_overrides_the_base_and_the_command_line_overrides_the_recipe():
    assert compose([]).config["seed"] == 0
    assert compose(["recipe=tuned"]).config["seed"] == 7
    assert compose(["recipe=tuned", "seed=8"]).config["seed"] == 8


def test_compressions_become_one_dictionary():
    chosen = compose(["compression=[bf16,bnb_int8]"])
    assert chosen.config["compression"] == {"bf16": {"kind": "bf16"}, "bnb_int8": {"kind": "bnb_int8"}}
    assert chosen.choices["compression"] == ["bf16", "bnb_int8"]
    assert compose(["compression=bnb_int8"]).config["compression"] == {"bnb_int8": {"kind": "bnb_int8"}}
    assert compose(["compression=[]"]).config.get("compression", {}) == {}


@pytest.mark.parametrize(
    ("typed", "composed"),
    [
        ("lsos=jsd", "++lsos=jsd"),
        ("training.max_steps=3", "++training.max_steps=3"),
        ("licence.accept=[llama2]", "++licence.accept=[llama2]"),
        ("loss=jsd", "loss=jsd"),
        ("+a=1", "+a=1"),
        ("++a=1", "++a=1"),
        ("~seed", "~seed"),
        ("hydra.run.dir=x", "hydra.run.dir=x"),
        ("hydra/launcher=basic", "hydra/launcher=basic"),
    ],
)
def test_keys_get_two_plus_signs_and_nothing_else_does(typed, composed):
    assert for_hydra([typed]) == [composed]


def test_unknown_keys_are_left_to_the_parser():
    config = compose(["lsos=1", "training.learning_rat=2"]).config
    assert config["lsos"] == 1
    assert config["training"]["learning_rat"] == 2


class TestRecipeFiles:
    @pytest.mark.parametrize(
        "name", ["mine.yaml", "a folder/mine (1).yaml", "it's, here=[x].yaml", "deep/er/mine.yaml"]
    )
    def test_any_path_works_relative_and_absolute(self, name):
        file = write(name, TUNED)
        for typed in (name, str(file.absolute())):
            assert compose([f"recipe={typed}"]).config["loss"] == {"kind": "jsd", "beta": 0.25, "temperature": 2.0}

    def test_the_name_is_the_files_unless_it_gives_one(self):
        assert compose([f"recipe={write('x/mine.yaml', TUNED)}"]).config["name"] == "mine"
        assert compose([f"recipe={write('x/mine.yaml', TUNED + 'name: yours')}"]).config["name"] == "yours"

    def test_a_run_folder_stands_for_its_recipe(self):
        write("outputs/x/2026-01-01_00-00-00/recipe.yaml", TUNED)
        assert compose(["recipe=outputs/x/2026-01-01_00-00-00"]).config["seed"] == 7

    def test_a_folder_on_the_search_path_adds_recipes_and_hides_none(self):
        write("mine/direct.yaml", "# @package _global_\nseed: 11\n")
        write("mine/recipe/nested.yaml", "# @package _global_\nseed: 12\n")
        path = "hydra.searchpath=[file://mine]"
        assert compose(["recipe=direct", path]).config["seed"] == 11
        assert compose(["recipe=nested", path]).config["seed"] == 12
        assert compose(["recipe=tuned", path]).config["seed"] == 7
        jobs = compose_sweep(["recipe=direct,nested,tuned", path])
        assert [job.config["seed"] for job in jobs] == [11, 12, 7]

    def test_a_folder_on_the_search_path_adds_options(self):
        write("mine/loss/soft.yaml", "kind: jsd\nbeta: 0.9\n")
        assert compose(["loss=soft", "hydra.searchpath=[file://mine]"]).config["loss"] == {"kind": "jsd", "beta": 0.9}
        assert compose(["loss=soft"], config_dir="mine").config["loss"] == {"kind": "jsd", "beta": 0.9}


class TestForeignKeys:
    def test_keys_that_the_chosen_option_lacks_are_dropped_with_a_line_each(self):
        chosen = compose(["recipe=tuned", "loss=forward_kl"])
        assert chosen.config["loss"] == {"kind": "forward_kl", "temperature": 2.0}
        [line] = chosen.dropped
        assert "loss.beta=0.25" in line
        assert "loss=forward_kl" in line

    def test_compressions_that_are_not_chosen_are_dropped(self):
        chosen = compose(["recipe=tuned", "compression=[bf16]"])
        assert chosen.config["compression"] == {"bf16": {"kind": "bf16"}}
        assert [line.split("=")[0] for line in chosen.dropped] == ["compression.bnb_nf4"]

    def test_a_key_that_was_typed_stays(self):
        chosen = compose(["recipe=tuned", "loss=forward_kl", "loss.beta=0.5"])
        assert chosen.config["loss"] == {"kind": "forward_kl", "temperature": 2.0, "beta": 0.5}
        assert chosen.dropped == ()
        chosen = compose(["recipe=tuned", "compression=[bf16]", "compression.bnb_nf4.double_quant=false"])
        assert chosen.config["compression"]["bnb_nf4"] == {"double_quant": False}

    def test_nothing_is_dropped_where_the_recipe_had_the_same_option(self):
        file = write("wrong.yaml", TUNED.replace("beta", "betta"))
        for typed in ([], ["loss=jsd"]):
            chosen = compose([f"recipe={file}", *typed])
            assert chosen.config["loss"] == {"kind": "jsd", "betta": 0.25, "temperature": 2.0}
            assert chosen.dropped == ()

    def test_a_kind_in_the_recipes_body_does_not_outweigh_the_command_line(self):
        file = write("kind.yaml", "# @package _global_\nloss: {kind: jsd, beta: 0.1}\n")
        assert compose([f"recipe={file}"]).config["loss"] == {"kind": "jsd", "beta": 0.1}
        assert compose([f"recipe={file}", "loss=reverse_kl"]).config["loss"] == {"kind": "reverse_kl"}


class TestSweeps:
    def test_every_job_is_composed_in_hydras_order(self):
        jobs = compose_sweep(["recipe=tuned", "loss=jsd,forward_kl", "seed=range(2)"])
        assert [(job.config["loss"]["kind"], job.config["seed"]) for job in jobs] == [
            ("jsd", 0),
            ("jsd", 1),
            ("forward_kl", 0),
            ("forward_kl", 1),
        ]
        assert [len(job.dropped) for job in jobs] == [0, 0, 1, 1]

    def test_lists_are_values_too(self):
        jobs = compose_sweep(["compression=[bf16],[bf16,bnb_int8]"])
        assert [list(job.config["compression"]) for job in jobs] == [["bf16"], ["bf16", "bnb_int8"]]

    def test_one_wrong_job_refuses_the_sweep(self):
        with pytest.raises(RecipeError, match="loss=jds"):
            compose_sweep(["loss=jsd,jds"])

    def test_recipes_can_be_swept_by_name_and_by_file(self):
        write("my own.yaml", "# @package _global_\nseed: 5\n")
        jobs = compose_sweep(["recipe=tuned,'my own.yaml'"])
        assert [(job.config["name"], job.config["seed"]) for job in jobs] == [("tuned", 7), ("my own", 5)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("typed", "said"),
        [
            ("loss=jds", ["loss=jds", "did you mean jsd?", "reverse_kl"]),
            ("recipe=quikstart", ["recipe=quikstart", "did you mean quickstart?", "tuned"]),
            ("recipe=a/b.yaml", ["recipe=a/b.yaml", "no such file"]),
            ("recipe=", ["a run needs a recipe", "tuned"]),
            ("recipe=.", ["recipe=.", "holds no recipe.yaml"]),
            ("recipe=null", ["a run needs a recipe", "tuned"]),
            ("~recipe", ["A run needs a recipe"]),
            ("loss=jsd,text", ["-m loss=jsd,text"]),
            ("seed=1,2", ["-m seed=1,2"]),
            ("seed=range(3)", ["-m"]),
            ("loss=[jsd,text]", ["loss takes one option", "reverse_kl"]),
            ("loss=null", ["loss takes one option"]),
            ("compression=3", ["compression takes one option, or a list"]),
            ("compression=[bf16,bnb_nf5]", ["compression=bnb_nf5", "did you mean bnb_nf4"]),
            ("+loss=jsd", ["loss=option", "without a plus sign"]),
            ("seed", ["'seed'", "key=value"]),
            ("data.path=(x", ["quotes twice", "data.path='(x'"]),
            ("hydra/launcher=moon", ["hydra/launcher=moon", "basic"]),
            ("hydra.foo=1", ["hydra.foo"]),
            ("hydra.searchpath=[file://nowhere]", ["nowhere", "no such folder"]),
        ],
    )
    def test_arguments(self, typed, said):
        message = refusal(typed)
        assert all(words in message for words in said), message

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("seed: 1\n", ["# @package _global_", "bad.yaml"]),
            ("defaults:\n  - override /data: local\n", ["# @package _global_", "bad.yaml", "Put it first"]),
            ("# mine\n\ndefaults:\n  - override /loss: jsd\nseed: 1\n", ["# @package _global_", "bad.yaml"]),
            ("# @package _global_\nloss: {a: [\n", ["cannot be read", "line 3"]),
            ("# @package _global_\ndefaults:\n  - override /loss: jds\n", ["loss=jds", "jsd"]),
            ("# @package _global_\ndefaults:\n  - override /los: jsd\n", ["los: no such group", "did you mean loss?"]),
            ("# @package _global_\ndefaults:\n  - loss: jsd\n", ["override /loss: jsd"]),
            ("# @package _global_\ndefaults:\n  - /loss: jsd\n", ["override /loss"]),
            ('# @package _global_\ndata: {path: "???"}\n', ["data.path is needed"]),
            ('# @package _global_\ndata: {path: "${nobody}"}\n', ["data.path", "nobody"]),
            ("", ["# @package _global_"]),
            ("- a\n- b\n", ["# @package _global_"]),
        ],
    )
    def test_recipes(self, text, said):
        message = refusal(f"recipe={write('bad.yaml', text)}")
        assert all(words in message for words in said), message

    def test_a_sweep_is_suggested_with_the_whole_command(self):
        message = refusal("recipe=tuned", "loss=jsd,text", "name=a b")
        assert "python -m distill -m recipe=tuned loss=jsd,text 'name=a b'" in message
        assert len(compose_sweep(["recipe=tuned", "loss=jsd,text", "name=a b"])) == 2

    @pytest.mark.parametrize(
        ("typed", "ways"),
        [
            ("loss=jsd,text", ["one run for each"]),
            ("training.learning_rate=1e-3,2e-3", ["one run for each"]),
            ("compression=bf16,bnb_nf4", ["one run for each", "a list"]),
            ("licence.accept=a,b", ["one run for each", "a list"]),
            ("student.layers=0,2", ["one run for each", "a list"]),
            ("data.path=a,b", ["one run for each", "one text"]),
            ("nobodys.key=a,b", ["one run for each", "a list", "one text"]),
        ],
    )
    def test_only_ways_that_the_key_can_take_are_offered(self, typed, ways):
        _, *offered = refusal("recipe=tuned", typed).splitlines()
        assert [line.split(":")[0].strip() for line in offered] == ways

    def test_a_file_that_is_nearly_meant_is_named(self):
        write("tiny_math.yaml", SMALL)
        write("folder/tuned_more.yaml", SMALL)
        assert "did you mean recipe=tiny_math.yaml?" in refusal("recipe=tiny_math")
        assert "did you mean recipe=tiny_math.yaml?" in refusal("recipe=tiny_mat.yaml")
        assert "did you mean recipe=folder/tuned_more.yaml?" in refusal("recipe=folder/tuned_mor.yaml")
        for folder in ("folder", "folder/", str(Path("folder").absolute())):
            assert "tuned_more.yaml" in refusal(f"recipe={folder}")
        # a name is a shipped recipe's first
        write("tuned.yaml", SMALL + "seed: 9\n")
        assert compose(["recipe=tuned"]).config["seed"] == 7

    def test_a_recipe_of_the_config_folder_is_found(self):
        write("mine/recipe/nested.yaml", "# @package _global_\nseed: 12\n")
        assert compose(["recipe=nested"], config_dir="mine").config["seed"] == 12
        assert "nested" in refusal("recipe=nestd", "hydra.searchpath=[file://mine]")

    def test_a_config_folder_that_is_not_there(self):
        with pytest.raises(RecipeError, match="no such folder"):
            compose([], config_dir="nowhere")


class TestOwnRecipe:
    """recipe.yaml composes to the very same configuration, whatever led to it."""

    @pytest.mark.parametrize(
        "typed",
        [
            [],
            ["recipe=tuned"],
            ["recipe=tuned", "loss=forward_kl", "compression=[bf16,bnb_int8]", "seed=3"],
            ["recipe=tuned", "compression=[bnb_nf4_lora,bnb_nf4]", "compression.bnb_nf4_lora.rank=4"],
            ["recipe=tuned", "compression=[]"],
            ["compression=bnb_int8", "data.path='1e-3'", "teacher.model='null'", "name=other"],
            ["data.path='${not} an interpolation: #x'", "teacher.model='~'", "training.learning_rate=1e-7"],
            [
                "licence.accept=[a,'b c','1']",
                "baselines=[baseline_text]",
                "data.rows='100:200'",
                "teacher.revision='3e21'",
            ],
            ["data.prompt_field='${seed}'", "student.model=null", "nobodys.key={a:{b:[1,2.5,null,true]}}"],
        ],
    )
    def test_round_trip(self, typed, tmp_path):
        typed = [text.replace("'${not}", r"'\${not}") for text in typed]
        first = compose(typed)
        own = tmp_path / "a run" / "recipe.yaml"
        own.parent.mkdir()
        write_recipe(first, own)
        again = compose([f"recipe={own}"])
        assert again.config == first.config
        assert again.choices == first.choices
        assert [type(value) for value in again.config.values()] == [type(value) for value in first.config.values()]

        write_recipe(again, own.with_name("again.yaml"))
        assert own.with_name("again.yaml").read_text() == own.read_text()

    def test_it_says_its_options_in_defaults_and_no_kinds(self, tmp_path):
        write_recipe(compose(["recipe=tuned", "seed=3"]), tmp_path / "recipe.yaml")
        text = (tmp_path / "recipe.yaml").read_text()
        recipe = yaml.safe_load(text)
        assert text.startswith("# @package _global_\n")
        assert {"override /loss": "jsd"} in recipe["defaults"]
        assert {"override /compression": ["bf16", "bnb_nf4"]} in recipe["defaults"]
        assert len(recipe["defaults"]) == len(GROUPS)
        assert "kind" not in text
        assert recipe["seed"] == 3
        assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["recipe.yaml"]

    def test_it_can_be_changed_from_the_command_line_again(self, tmp_path):
        write_recipe(compose(["recipe=tuned"]), tmp_path / "recipe.yaml")
        chosen = compose([f"recipe={tmp_path / 'recipe.yaml'}", "loss=text", "compression=[bf16]", "seed=4"])
        assert chosen.config["loss"]["kind"] == "text"
        assert chosen.config["compression"] == {"bf16": {"kind": "bf16"}}
        assert chosen.config["seed"] == 4
        assert chosen.config["name"] == "tuned"
