"""recipes/ and the command that lists them: what a recipe names exists, fits together and is found."""

import dataclasses
import functools
import itertools
import json
import re
import shlex
import subprocess
import sys

import pytest

from distill import _hydra, shipped
from distill._licences import verdict
from distill._recipe_list import listed
from distill.data._prompt import fields_of
from distill.data.known import data_set
from distill.errors import RecipeError
from distill.family.known import published
from distill.recipe import parse
from tests.conftest import ROOT, cli_environment
from tests.small_models import gpt2_tokenizer

FILES = {file.stem: file for file in sorted((ROOT / "recipes").glob("*.yaml"))}
TO_FILL_IN = {"customer_service": ["teacher.model=org/teacher"]}
"""What a recipe leaves to its user."""
OF_CHECKPOINTS = sorted(
    set(FILES) - {"quickstart", "quickstart_teacher", "customer_service", "customer_service_teacher"}
)

EACH = pytest.mark.parametrize("name", FILES)
EACH_OF_CHECKPOINTS = pytest.mark.parametrize("name", OF_CHECKPOINTS)


def composed(*typed):
    return parse(_hydra.compose(typed).config)


@functools.cache
def recipe_of(name):
    return composed(f"recipe={name}", *TO_FILL_IN.get(name, []))


def test_the_recipes_of_the_mission_are_there():
    asked = """gpt2xl_to_gpt2 gptneo2b7_to_125m opt66b_to_1b3 opt175b_to_1b3 bloom176b_to_560m llama65b_to_7b
    llama2_70b_to_7b codellama34b_to_7b megatron8b3_to_gpt2 qwen3_32b_to_0b6 llama31_70b_to_8b math_assistant
    customer_service customer_service_chat code_assistant low_resource_news quickstart quickstart_teacher"""
    assert set(asked.split()) <= set(FILES)


@EACH
def test_it_says_what_it_is_meant_to_run_on(name):
    from distill.hardware import hardware_of

    recipe = recipe_of(name)
    hardware = hardware_of(recipe.hardware)
    # the global batch divides over the devices that it names and over accumulation
    assert recipe.training.batch_size % (hardware.count * recipe.training.gradient_accumulation_steps) == 0


@EACH_OF_CHECKPOINTS
def test_its_checkpoints_are_known_and_pinned(name):
    recipe = recipe_of(name)
    for side in (recipe.teacher, recipe.student):
        _, checkpoint = published(side.model)
        assert side.revision == checkpoint.revision, side.model
        assert side.model == checkpoint.model, "as the hub spells it"


@EACH_OF_CHECKPOINTS
def test_rows_fit_the_positions_of_both(name):
    recipe = recipe_of(name)
    for side in (recipe.teacher, recipe.student):
        config = published(side.model)[1].config
        positions = config.get("max_position_embeddings") or config.get("n_positions")
        # BLOOM has none: ALiBi
        assert positions is None or recipe.training.max_length <= positions, side.model


@EACH_OF_CHECKPOINTS
def test_its_packages_can_be_made_of_its_student(name):
    recipe = recipe_of(name)
    family, checkpoint = published(recipe.student.model)
    config = {"model_type": family.model_type, **checkpoint.config}
    assert recipe.compression
    assert not {kind: option.refuse(config) for kind, option in recipe.compression.items() if option.refuse(config)}


@pytest.mark.slow
@EACH_OF_CHECKPOINTS
def test_it_fits_what_it_is_meant_to_run_on(name):
    from distill.planning import plan

    made = plan(recipe_of(name))
    assert made.fits, made.verdict


@EACH
def test_no_licence_forbids_it(name):
    assert verdict(recipe_of(name)).level != "refused"


@EACH
def test_its_data_has_the_fields_that_it_names(name):
    data = recipe_of(name).data
    if data.kind != "local":
        return
    known = data_set(data.path)
    assert data.subset == known.subset
    assert data.split in known.splits
    assert data.eval_path in (None, data.path) and (data.eval_path is None or data.eval_split in known.splits)
    if data.messages_field:
        named = {data.messages_field: "messages"}
    elif data.text_field:
        named = {data.text_field: "text"}
    else:
        prompts = fields_of(data.prompt_template) if data.prompt_template else (data.prompt_field,)
        named = dict.fromkeys([*prompts, data.response_field], "text")
    assert named.items() <= known.columns.items()


@EACH
def test_its_sample_gives_rows_to_learn_and_to_judge(name, tmp_path):
    data = recipe_of(name).data
    if data.kind != "local":
        return
    rows = data_set(data.path).rows()
    (tmp_path / "sample.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    examples = dataclasses.replace(data, path=str(tmp_path / "sample.jsonl"), eval_path=None, rows=None).load()
    assert len(examples.train) >= 28
    answered = [example for example in [*examples.train, *examples.evaluation["exact_match"]] if example.response]
    assert len(answered) == len(examples.train) + len(examples.evaluation["exact_match"])


@EACH_OF_CHECKPOINTS
def test_its_settings_are_those_that_the_field_uses(name):
    recipe = recipe_of(name)
    low, high = (1e-4, 2e-4) if recipe.adapter.kind != "none" else (1e-5, 1e-4)
    assert low <= recipe.training.learning_rate <= high
    assert recipe.training.lr_scheduler_type == "cosine" and recipe.training.warmup_steps
    if published(recipe.teacher.model)[1].parameters > 30e9 and recipe.teacher.kind == "hf":
        assert recipe.teacher.device_map == "auto", "one GPU does not hold it"


def commands_in(text):
    """The arguments of each `-m distill` in a recipe's comments."""
    lines = [line[2:] for line in text.splitlines() if line.startswith("#   ")]
    for command in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        words = shlex.split(command)
        if "distill" in words:
            yield [*words[words.index("distill") + 1 :]]


@pytest.mark.parametrize(
    ("name", "typed"),
    [(name, typed) for name, file in FILES.items() for typed in commands_in(file.read_text("utf-8"))],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[1:]) or "alone",
)
def test_commands_in_its_comments_compose_and_parse(name, typed):
    assert typed[0] == f"recipe={name}"
    composed(*typed)


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("llama65b_to_7b", ["teacher=vllm", "teacher.tensor_parallel_size=8"]),
        ("llama65b_to_7b", ["data.path=mine.jsonl", "data.subset=null"]),
        ("bloom176b_to_560m", ["data.subset=20231101.sw"]),
        ("gptneo2b7_to_125m", ["teacher.model=EleutherAI/gpt-neo-1.3B", "teacher.revision=null"]),
        ("megatron8b3_to_gpt2", ["teacher.model=openai-community/gpt2-xl"]),
        ("qwen3_32b_to_0b6", ["student.revision=null", "loss=reverse_kl", "training.on_policy=0.5"]),
        ("qwen3_32b_to_0b6", ["""data.prompt_template='"{instruction} /no_think"'"""]),
        ("qwen3_32b_to_0b6", ["teacher=vllm", "teacher.tensor_parallel_size=2"]),
        ("low_resource_news", ["""data.prompt_template='"Translate into English: {text}"'"""]),
        ("code_assistant", ["teacher.responses=data"]),
        (
            "customer_service_chat",
            ["data.messages_field=turns", "data.speaker_field=speaker", "data.content_field=text", "data.agent=SYSTEM"],
        ),
    ],
)
def test_overrides_that_its_comments_name_compose_and_parse(name, typed):
    text = " ".join(FILES[name].read_text("utf-8").replace("\n#", " ").split())
    for argument in typed:
        assert argument in text or argument == "data.path=mine.jsonl", "the comment says so"
    composed(f"recipe={name}", *(shlex.split(argument)[0] for argument in typed))


@EACH_OF_CHECKPOINTS
def test_how_many_tokens_a_server_keeps_is_what_its_comment_says(name):
    text = " ".join(FILES[name].read_text("utf-8").replace("\n#", " ").split())
    if said := re.search(r"(\d+) likeliest tokens", text):
        served = composed(f"recipe={name}", *TO_FILL_IN.get(name, []), "teacher=vllm")
        assert served.target_kind == "top_k" and served.teacher.top_k == int(said[1])


@EACH
def test_it_is_listed_as_hydra_would_compose_it(name):
    fast = listed(name, FILES[name])
    config = _hydra.compose([f"recipe={name}"]).config
    assert fast.licences == verdict(config)
    assert (fast.name, fast.hardware) == (config["name"], config["hardware"])
    assert fast.summary and len(fast.summary) <= 118


@pytest.mark.parametrize(
    ("name", "teachers", "student"),
    [
        ("bloom176b_to_560m", ("BLOOM 176B",), "BLOOM 560M"),
        ("llama31_70b_to_8b", ("Llama 3.1 70B Instruct",), "Llama 3.1 8B Instruct"),
        ("llama2_70b_to_7b", ("Llama 2 70B",), "Llama 2 7B"),
        ("quickstart", ("bundled:quickstart_teacher (5.6 MB)",), "new, 128 x 4"),
        ("quickstart_teacher", (), "new, 256 x 4"),
        ("customer_service", ("yours",), "new, 128 x 2"),
    ],
)
def test_who_teaches_whom(name, teachers, student):
    row = listed(name, FILES[name])
    assert (row.teachers, row.student) == (teachers, student)


class TestCommand:
    def run(self, *typed, cwd, columns=None):
        command = [sys.executable, "-m", "distill.recipes", *typed]
        environment = {k: v for k, v in cli_environment().items() if k != "COLUMNS"}
        environment |= {"COLUMNS": str(columns)} if columns else {}
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)

    def test_all_recipes_in_a_table_of_a_line_each_where_it_is_piped(self, tmp_path):
        ran = self.run(cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        lines = ran.stdout.splitlines()
        for name, file in FILES.items():
            (line,) = [line for line in lines if line.split()[:1] == [name]]
            assert shipped.first_comment(file) in line
        assert not list(tmp_path.iterdir()), "it writes nothing"

    @pytest.mark.parametrize("columns", [60, 80])
    def test_in_few_columns_each_has_lines_of_its_own_and_no_word_is_cut(self, tmp_path, columns):
        ran = self.run(cwd=tmp_path, columns=columns)
        lines = ran.stdout.splitlines()
        assert max(map(len, lines)) <= columns
        for name, file in FILES.items():
            start = lines.index(name)
            rest = lines[start + 1 : start + 8]
            own = list(itertools.takewhile(lambda line: line.startswith("  "), rest))
            assert shipped.first_comment(file) in " ".join(" ".join(own).split())

    def test_what_cannot_be_read_is_a_line_and_the_others_are_listed(self, tmp_path):
        own = tmp_path / "own"
        own.mkdir()
        (own / "mine.yaml").write_text("# @package _global_\n# mine\nseed: 41\n")
        (own / "broken.yaml").write_text("# @package _global_\nteacher: [\n")
        (own / "foreign.yaml").write_text("services: {web: 3}\n")
        (own / "number.yaml").write_text("# @package _global_\nteacher: 3\n")
        (own / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
        ran = self.run("hydra.searchpath=[file://own]", cwd=tmp_path)
        names = {line.split()[0] for line in ran.stdout.splitlines() if line.strip()}
        assert {"mine", *FILES} <= names and not {"broken", "foreign", "number", "bytes"} & names
        said = ran.stderr.splitlines()
        assert ran.returncode == 2 and len(said) == 4
        for name in ("broken", "foreign", "number", "bytes"):
            assert len([line for line in said if f"own/{name}.yaml" in line]) == 1, said

    def test_json_has_the_words_of_the_licences(self, tmp_path):
        ran = self.run("--json", cwd=tmp_path)
        rows = {row["name"]: row for row in json.loads(ran.stdout)}
        assert set(rows) == set(FILES)
        assert rows["opt66b_to_1b3"]["licence"]["verdict"] == "notice"
        assert any("OPT" in sentence for sentence in rows["opt66b_to_1b3"]["licence"]["sentences"])

    def test_own_folders_are_listed_and_come_first(self, tmp_path):
        own = tmp_path / "own" / "recipes"
        own.mkdir(parents=True)
        text = FILES["gpt2xl_to_gpt2"].read_text("utf-8")
        (own / "gpt2xl_to_gpt2.yaml").write_text(text.replace("# GPT-2 of 1.5B", "# Ours of 1.5B"), "utf-8")
        forbidden = "# @package _global_\n# scratch\ndefaults:\n  - override /data: local\n  - override /teacher: hf\n"
        forbidden += "data: {path: x.csv}\nteacher: {model: meta-llama/Llama-2-7b-hf}\n"
        (own / "forbidden.yaml").write_text(forbidden)
        # more than the plain reader knows: a chain of recipes, composed by Hydra
        (own / "chained.yaml").write_text("# @package _global_\n# ours, chained\ndefaults:\n  - quickstart\nseed: 3\n")
        ran = self.run("hydra.searchpath=[file://own]", "--json", cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        rows = {row["name"]: row for row in json.loads(ran.stdout)}
        assert rows["gpt2xl_to_gpt2"]["summary"].startswith("Ours")
        assert rows["forbidden"]["licence"]["accept"] == ["llama2"]
        assert len(rows) > len(FILES)

    @pytest.mark.parametrize(
        ("typed", "words"),
        [
            (["recipe=x"], "recipe=x is no argument of this command"),
            (["hydra.searchpath=[file://nowhere]"], "there is no such folder"),
            (["--jsn"], "--jsn"),
        ],
    )
    def test_wrong_arguments_exit_with_2(self, tmp_path, typed, words):
        ran = self.run(*typed, cwd=tmp_path)
        assert ran.returncode == 2
        assert words in ran.stderr and "Traceback" not in ran.stderr

    def test_it_loads_nothing_heavy(self):
        code = (
            "import sys; from distill.recipes import main\n"
            "try: main([])\nexcept SystemExit: pass\n"
            "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=cli_environment())
        heavy = {"torch", "transformers", "datasets", "hydra", "peft", "wandb"}
        assert not heavy & set(ran.stdout.splitlines()[-1].split()), ran.stderr


class TestOwnFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "mine.yaml").write_text("# @package _global_\n# mine\nseed: 41\n")
        (tmp_path / "recipes").mkdir()
        (tmp_path / "recipes" / "nested.yaml").write_text("# @package _global_\n# nested\nseed: 42\n")
        return tmp_path

    def test_recipes_lie_in_it_or_in_its_recipes(self, folder):
        search = f"hydra.searchpath=[file://{folder}]"
        assert composed("recipe=mine", search, "teacher.model=org/x").seed == 41
        assert composed("recipe=nested", search, "teacher.model=org/x").seed == 42
        assert composed("recipe=math_assistant", search).name == "math_assistant"

    def test_the_command_line_finds_them(self, folder, run_cli):
        ran = run_cli("recipe=nested", f"hydra.searchpath=[file://{folder}]", "teacher.model=org/x", "--cfg", "job")
        assert ran.returncode == 0, ran.stderr
        assert "seed: 42" in ran.stdout and "name: nested" in ran.stdout

    def test_a_typo_is_told_near_names_of_both(self, folder):
        with pytest.raises(RecipeError, match="did you mean nested"):
            _hydra.compose(["recipe=nestd", f"hydra.searchpath=[file://{folder}]"])
        with pytest.raises(RecipeError, match="did you mean math_assistant"):
            _hydra.compose(["recipe=math_asistant", f"hydra.searchpath=[file://{folder}]"])

    def test_a_recipe_in_a_configuration_folder_is_still_found(self, folder):
        (folder / "more" / "recipe").mkdir(parents=True)
        (folder / "more" / "recipe" / "third.yaml").write_text("# @package _global_\n# third\nseed: 43\n")
        typed = ["recipe=third", f"hydra.searchpath=[file://{folder}]"]
        assert _hydra.compose(typed, str(folder / "more")).config["seed"] == 43


AMHARIC = "ሰላም ለዓለም። የአዲስ አበባ ዜና፦ “ዝናብ” 40% ጨምሯል።"


def byte_fallback(shared_data):
    """A Llama's SentencePiece of 512 pieces."""
    from distill.encoding import load_tokenizer

    return load_tokenizer(shared_data / "stories260k")


@pytest.mark.parametrize("kind", [gpt2_tokenizer, byte_fallback])
def test_any_letter_of_the_news_can_be_written_back(shared_data, kind):
    from distill.encoding import decode_response, encode_response

    tokenizer = kind(shared_data)
    news = [row["text"] for row in data_set("community-datasets/swahili_news").rows()]
    for text in [*news, AMHARIC]:
        assert decode_response(tokenizer, encode_response(tokenizer, text)).encode() == text.encode()
    assert len(encode_response(tokenizer, AMHARIC)) > 2 * len(AMHARIC), "a letter costs up to its three bytes"
