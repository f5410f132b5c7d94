"""The option `teacher=server`, and whole runs with it in processes of their own."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from distill.responses import TeacherResponses
from distill.teacher.server import Server
from tests.conftest import ROOT
from tests.served.fault_proxy import FaultProxy
from tests.served.serving import QUICKSTART, serving

KEY = "sk-never-to-be-seen-7Zq93xLbV2"


def parsed(**settings) -> Server:
    given = {"kind": "server", "base_url": "http://localhost:8000/v1", "model": "m", **settings}
    return TypeAdapter(Server).validate_json(json.dumps(given))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    with serving(QUICKSTART, tmp_path_factory.mktemp("gguf") / "quickstart.gguf", 192) as server:
        yield server


@pytest.fixture
def arguments(tiny_run_arguments):
    """(base_url, model, further) → the command line of a tiny run of one compression."""

    def make(base_url: str, model: str, *more: str) -> list[str]:
        ours = [one for one in tiny_run_arguments if not one.startswith("teacher.model")]
        return [*ours, "teacher=server", f"teacher.base_url={base_url}", f"teacher.model={model}", *more]

    return make


def test_the_shipped_yaml_names_it():
    assert yaml.safe_load((ROOT / "conf/teacher/server.yaml").read_text()) == {"kind": "server"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "ftp://host/v1"},
        {"base_url": "https://user:secret@host/v1"},
        {"base_url": "https://host/v1?key=secret"},
        {"key_env": KEY},
        {"samples": 2},
        {"samples": 2, "temperature": 1.0, "responses": "data"},
        {"max_cost": 3.0},
        {"max_cost": 3.0, "price_per_million_prompt_tokens": 1.0},
        {"targets": "sampled"},
        {"top_k": 0},
        {"api_key": KEY},
        {"tokenizer": "bundled:nobody"},
    ],
)
def test_what_it_does_not_take(wrong):
    with pytest.raises(ValidationError):
        parsed(**wrong)


def test_a_key_in_the_place_of_its_variable_is_not_repeated():
    from distill.errors import RecipeError
    from distill.recipe import parse

    with pytest.raises(RecipeError, match="NAME of the environment variable") as error:
        parse({"teacher": {"kind": "server", "base_url": "http://h/v1", "model": "m", "key_env": KEY}, "name": "x"})
    assert KEY not in str(error.value)


def test_what_decides_the_stored_answers():
    paced = {"key_env": "KEY", "concurrency": 3, "requests_per_minute": 2.0}
    priced = {"price_per_million_prompt_tokens": 1.0, "price_per_million_answer_tokens": 2.0, "max_cost": 3.0}
    other = parsed(**paced, **priced, timeout_seconds=3.0, max_attempts=2, batch_size=3, tokens_per_minute=9.0)
    assert other.decides("top_k") == parsed().decides("top_k")
    # another endpoint may serve another model under the same name
    assert parsed(base_url="http://elsewhere:1/v1").decides(None) != parsed().decides(None)
    assert parsed(model="n").decides(None) != parsed().decides(None) == parsed(top_k=5).decides(None)
    assert parsed(top_k=5).decides("top_k") != parsed().decides("top_k")
    assert parsed(max_new_tokens=5).decides("next") != parsed().decides("next")
    data = parsed(responses="data", max_new_tokens=5).decides("top_k")
    assert data == parsed(responses="data").decides("top_k")


def test_the_tokenizer_is_the_named_one():
    assert parsed().tokenizer_from is None
    assert parsed(tokenizer="org/t", tokenizer_revision="v1").tokenizer_from == ("org/t", "v1")


@pytest.mark.slow
def test_a_whole_run_with_targets_and_the_same_again(llama, arguments, run_cli, tmp_path):
    tokenizer = "teacher.tokenizer=bundled:quickstart_teacher"
    with FaultProxy(llama.port) as proxy:
        rows = ("data.num_rows=24", "data.labelled_rows=8", "training.prompt_weight=0", "baselines=[]")
        command = arguments(proxy.base_url, llama.model, "loss=forward_kl", tokenizer, *rows, "compression=[bf16]")
        first = run_cli(*command)
        assert first.returncode == 0, first.stderr
        asked = len(proxy.arrivals)
        again = run_cli(*command, "until=train")
        assert again.returncode == 0 and len(proxy.arrivals) == asked  # nobody was asked, not even a probe
        # other batches of the same questions: another store, the same journal
        elsewhere = run_cli(*command, "until=teach", "teacher.filters=[duplicate]")
        assert elsewhere.returncode == 0, elsewhere.stderr
        twice = [json.loads(name)[0] or () for name, times in proxy.asked.items() if times > 1]
        assert all(len(prompt) <= 3 for prompt in twice), twice  # the probe's prompts alone
    said = " ".join((first.stdout + first.stderr).split())
    assert "rows to score" in said and "16 of 16 requests to ask (0 are in the journal)" in said
    run = _runs(tmp_path)[0]
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["teacher"]["base_url"] == proxy.base_url
    assert "prompts as token ids accepted" in (run / "logbook.md").read_text()
    store = TeacherResponses(sorted((tmp_path / "outputs/store/responses").glob("*/header.json"))[0].parent)
    assert store.header.kind == "top_k" and store.header.kept == 32 and len(store) == 24
    scores = json.loads((run / "scores.json").read_text())
    assert {"student", "bf16"} <= {model["name"] for model in scores["models"]}


@pytest.mark.slow
def test_text_alone_and_no_key_anywhere(llama, arguments, run_cli, tmp_path):
    with FaultProxy(llama.port) as proxy:
        command = arguments(proxy.base_url, llama.model, "loss=text", "until=train", "teacher.key_env=TEACHER_KEY")
        absent = run_cli(*command)
        assert absent.returncode == 2 and "teacher.key_env=TEACHER_KEY: there is no such environment" in absent.stderr
        assert not (tmp_path / "outputs").exists()
        proxy.refuse_key = "Incorrect API key provided:"
        refused = run_cli(*command, TEACHER_KEY=KEY)
        assert refused.returncode == 1 and "refuses the key" in refused.stderr
        proxy.refuse_key = None
        done = run_cli(*command, TEACHER_KEY=KEY)
        assert done.returncode == 0, done.stderr
        assert proxy.headers["authorization"] == f"Bearer {KEY}"
        files = [file for file in tmp_path.rglob("*") if file.is_file()]
        assert len(files) > 10 and not [file for file in files if KEY[:12].encode() in file.read_bytes()]
        for said in (absent, refused, done):
            assert KEY[:12] not in said.stdout + said.stderr
    recipe = yaml.safe_load((_runs(tmp_path)[-1] / "recipe.yaml").read_text())
    assert recipe["teacher"]["key_env"] == "TEACHER_KEY"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["loss=forward_kl"], r"teacher.tokenizer: is needed"),
        (["loss=jsd", "loss.temperature=2.0", "teacher.tokenizer=bundled:quickstart_teacher"], "loss.temperature=1"),
        (["loss=text", "teacher.base_url=host:1"], "needs the bare address of an endpoint"),
        (["loss=text"], "127.0.0.1:9/v1 cannot be reached"),
    ],
)
def test_bad_input_is_refused(arguments, run_cli, tmp_path, more, said):
    ran = run_cli(*arguments("http://127.0.0.1:9/v1", "m", *more, "until=teach"))
    assert ran.returncode == (1 if "reached" in said else 2) and said in " ".join(ran.stderr.split()), ran.stderr
    assert "Traceback" not in ran.stderr
    assert (tmp_path / "outputs").exists() == ("reached" in said)  # nothing is written before it is known to be right


def _runs(folder: Path) -> list[Path]:
    return sorted((folder / "outputs/quickstart").iterdir())
