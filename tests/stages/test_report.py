"""The report and the terminal's table, read back as a browser and a reader would."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from distill.run_folder import RunFolder, hide_secrets_in_command, without_secrets
from distill.stages import report
from distill.stages._number import digits, duration, mebibytes, score, size
from distill.stages._samples import side_by_side

SAMPLE_RUN = Path(__file__).parent / "sample_run"
VOID = {"meta", "br", "wbr", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """What a browser makes of the page: tags, attributes, table rows and the text of elements with a class."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        name = dict(attrs).get("class") or ""
        if tag not in VOID:
            self.open.append((tag, name))
            self.texts.setdefault(name, []).append("")
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        opened, _ = self.open.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        for _, name in {(tag, name) for tag, name in self.open}:
            self.texts[name][-1] += data
        if any(tag in {"td", "th"} for tag, _ in self.open):
            self.rows[-1][-1] += data


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(SAMPLE_RUN, tmp_path / "2026-11-22_03-10-05"))


def page_of(run: Path) -> Page:
    page = Page(report.write_report(run).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def change(path: Path, edit) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(edit(value) or value))


def test_the_page_needs_nothing_from_elsewhere(run):
    path = report.write_report(run)
    text = path.read_text()
    page = Page(text)
    assert path == run / "report.html" and path.stat().st_size < 1_000_000
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    links = [value for _, name, value in page.attributes if name in {"src", "href", "xlink:href", "action", "srcset"}]
    assert links and all(value.startswith("#") for value in links)
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert not [n for _, n, _ in page.attributes if n.startswith("on")]
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)), "two pictures share an id"
    used = {link[1:] for link in links} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert used <= set(ids)


def test_text_from_outside_stays_text_with_its_white_space(run):
    prompt = "<script>alert(1)</script>\n\n   def f(x):\n\treturn '&amp;' + x"
    answer = '</div><img src=x onerror="alert(2)">  two  spaces'
    sample = {"prompt": prompt, "reference": None, "answers": {"teacher": answer}, "correct": {"teacher": False}}
    (run / "samples.json").write_text(json.dumps([sample]))
    change(run / "scores.json", lambda s: s["models"][0].update(name="<b>teacher</b>$x_1$"))
    change(run / "verification.json", lambda v: v[0].update(detail="<i>detail</i>"))
    with (run / "recipe.yaml").open("a") as file:
        file.write("# </pre><script>alert(3)</script>\n")
    page = page_of(run)
    assert (
        not {"script", "img", "b", "i"} & (set(page.tags) - {"b"}) and page.tags.count("b") == 6
    )  # the tiles' figures
    assert page.texts["pre prompt"] == [prompt]
    assert answer in page.texts["pre"]
    assert any("<i>detail</i>" in cell for row in page.rows for cell in row)
    assert any("<b>teacher</b>$x_1$" in cell for row in page.rows for cell in row)


def test_the_score_table_shows_every_figure_in_its_unit(run):
    page = page_of(run)
    rows = {row[0]: row for row in reversed(page.rows)}  # the score table comes first
    head = [" ".join(cell.split()) for cell in rows["model"]]
    assert head[:4] == ["model", "verified", "exact match%", "exact match, new templates%"]
    assert head[4:8] == ["bits per byte ↓", "KL to teachernats/token ↓", "top-1 agreement%", "sizeMiB ↓"]
    assert rows["teacher"][2:] == ["96.2", "84.0", "0.412", "", "", "12.0", "", "412", "21,840", "transformers, cpu"]
    assert [cell.strip() for cell in rows["gguf_q8_0"][1:10]] == [
        "✓", "89.5", "71.8", "–", "0.0314", "96.8", "0.669", "18", "2,411",
    ]  # fmt: skip
    assert rows["bnb_nf4_lora"][-1] == "transformers, cpu"


def test_bold_is_the_best_of_student_and_packages_not_of_the_teacher(run):
    bold = [text for text in page_of(run).texts["best"] if text]
    # student and bf16 share three scores and, as shown, the agreement; KL is the student's, size the GGUF's
    assert sorted(bold) == sorted(["89.6", "72.0", "0.437", "0.0311", "96.9", "89.6", "72.0", "0.437", "96.9", "0.669"])


def test_it_says_what_was_reused_and_where_training_went_on(run):
    rows = {row[0]: row for row in page_of(run).rows}
    assert rows["teach"][1] == "reusedsealed result exists"
    assert rows["train student"][1] == "made, went on from step 360new: loss changed"
    assert rows["train student"][2:5] == ["72 s", "1.28 GiB", "1"]
    text = (run / "report.html").read_text()
    assert "started 2 times" in text and "python -m distill recipe=quickstart tracking=wandb" in text
    assert "4f1c2ab+dirty" in text and "bitsandbytes 0.50.2" in text and "override /loss: forward_kl" in text


def test_the_same_run_gives_the_same_bytes_in_any_process(run):
    first = report.write_report(run).read_bytes()
    code = f"from pathlib import Path; from distill.stages.report import write_report; write_report(Path({str(run)!r}))"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert (run / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    "missing", ["metrics.jsonl", "samples.json", "verification.json", "record.jsonl", "recipe.yaml"]
)
def test_a_file_that_is_not_there_leaves_its_section_out(run, missing):
    sections = {
        "metrics.jsonl": "loss",
        "samples.json": "samples",
        "verification.json": "verification",
        "record.jsonl": "stages",
    }
    (run / missing).unlink()
    page = page_of(run)
    ids = {value for tag, name, value in page.attributes if tag == "section" and name == "id"}
    assert ids == {"quality", "scores", "verification", "loss", "samples", "stages", "reproduce"} - {
        sections.get(missing)
    }
    (run / missing).write_text("")
    assert page_of(run).tags == page.tags


def test_scores_may_be_missing_and_the_teacher_too(run):
    def without(scores):
        scores["models"] = [m for m in scores["models"] if m["kind"] in {"student", "package"}]
        for model in scores["models"]:
            model["scores"] = {"exact_match": None, "bits_per_byte": 0.5}
            model.pop("speed")
        scores["models"][0]["scores"] = {}
        scores["models"][1] |= {"bytes": None, "verified": False}

    change(run / "scores.json", without)
    rows = {row[0]: [cell.strip() for cell in row] for row in reversed(page_of(run).rows)}
    assert rows["student"] == ["student", "", "–", "2.27", "–", "–", ""]
    assert rows["bf16"][1:4] == ["✗", "0.500", "–"]
    (run / "scores.json").write_text('{"recipe": "x", "models": []}')
    assert "scores" not in page_of(run).texts


def test_an_empty_folder_gives_a_page(tmp_path):
    assert "Reproduce" in report.write_report(tmp_path).read_text()


def test_a_line_that_a_crash_cut_in_half_is_skipped(run):
    text = (run / "record.jsonl").read_text()
    (run / "record.jsonl").write_text('{"event": "sta\n' + text + '{"event": "stage", "na')
    assert len(RunFolder.read(run).stages) == 12
    (run / "metrics.jsonl").write_text('{"model": "a\u2028b", "tokens": 1, "loss_nats": 2}\n')
    assert RunFolder.read(run).metrics[0]["model"] == "a\u2028b"


def test_the_recipe_is_read_with_the_kinds_of_its_defaults(run):
    recipe = RunFolder.read(run).recipe
    assert recipe["loss"] == {"kind": "forward_kl", "temperature": 1.0}
    assert recipe["compression"]["bnb_nf4_lora"] == {"kind": "bnb_nf4_lora", "rank": 16, "max_steps": 120}
    assert list(recipe["compression"]) == ["bf16", "bnb_int8", "bnb_nf4", "bnb_nf4_lora", "gguf_q8_0"]
    assert "defaults" not in recipe


def test_secrets_are_hidden_everywhere(run):
    with (run / "recipe.yaml").open("a") as file:
        file.write("extra: {api_key: sk-1234, password: 5678, url: 'https://me:pw99@host/v1', max_new_tokens: 64}\n")
    start = {
        "event": "start",
        "command": "python -m distill ++extra.api_key=sk-1234 extra.url=https://me:pw99@host/v1 seed=1",
    }
    (run / "record.jsonl").write_text(json.dumps(start) + "\n")
    text = report.write_report(run).read_text()
    assert not re.search("sk-1234|5678|pw99", text)
    assert "extra.api_key=(hidden)" in text and "seed=1" in text and "max_new_tokens: 64" in text
    kept = {"tokenizer": "org/name", "max_tokens": 3, "prompt_field": "q", "name": None, "hub_token": None, "on": True}
    assert without_secrets(kept) == kept
    hidden = without_secrets(
        {"hf_token": "a", "s": {"secrets": {"a": [1, "b"]}}, "keys": ["x"], "tokenizer_password": 3}
    )
    assert hidden == {
        "hf_token": "(hidden)",
        "s": {"secrets": {"a": ["(hidden)", "(hidden)"]}},
        "keys": ["(hidden)"],
        "tokenizer_password": "(hidden)",
    }
    assert hide_secrets_in_command("x a.max_new_tokens=8 a.key='b c' d") == "x a.max_new_tokens=8 a.key=(hidden) d"


def model(num_bytes, value, kind="package", task="exact_match"):
    return {"name": f"m{num_bytes}", "kind": kind, "bytes": num_bytes, "scores": {task: value}, "verified": True}


def test_the_pick_is_the_smallest_verified_package_within_a_point_of_the_best():
    models = [model(9, 0.90), model(8, 0.895), model(7, 0.891), model(6, 0.88), model(5, 0.95, "student")]
    assert report.pick(models, "exact_match")["bytes"] == 7
    models[2]["verified"] = False
    assert report.pick(models, "exact_match")["bytes"] == 8
    assert report.pick(models[4:], "exact_match") is None
    lower = [
        model(9, 1.00, task="bits_per_byte"),
        model(8, 1.009, task="bits_per_byte"),
        model(7, 1.02, task="bits_per_byte"),
    ]
    assert report.pick(lower, "bits_per_byte")["bytes"] == 8


def test_the_headline_compares_with_the_teacher(run):
    folder = RunFolder.read(run)
    said = report.headline(folder.models, folder.task).replace("\u00a0", " ")
    assert (
        said == "gguf_q8_0 reaches 89.5 % exact match in 685 KiB: 93 % of what the teacher reaches, 18 times smaller."
    )
    tiles = {tile["title"] + " " + tile["note"]: tile["value"] for tile in report.tiles(folder.models, folder.task)}
    assert tiles["student against baseline_text"] == "+6.4" and tiles["student against baseline_no_teacher"] == "+37.8"
    assert tiles["verified loaded in a fresh process"] == "5"
    worse = [m | ({"scores": {"exact_match": 0.5}} if m["kind"] == "student" else {}) for m in folder.models]
    assert "−1.8" in [tile["value"] for tile in report.tiles(worse, "exact_match")]


def test_an_adapter_is_as_large_as_what_it_needs(run):
    scores = json.loads((run / "scores.json").read_text())
    bf16 = next(model for model in scores["models"] if model["name"] == "bf16")
    scores["models"].append({**bf16, "name": "lora", "bytes": 60_000, "base_bytes": 2_000_000})
    (run / "scores.json").write_text(json.dumps(scores))
    folder = RunFolder.read(run)
    assert folder.model("lora")["bytes"] == 2_060_000 and folder.model("bf16")["bytes"] == bf16["bytes"]
    assert report.headline(folder.models, folder.task).startswith("gguf_q8_0 reaches")
    page = report.page_of(folder)
    assert [row["name"] for row in page["rows"] if row["smallest"]] == ["gguf_q8_0"]
    report.write_report(run)
    assert "own with that of the base" in (run / "report.html").read_text()


def test_without_a_share_it_is_the_package_that_is_smaller():
    models = [
        {"name": "teacher", "kind": "teacher", "bytes": 3600, "scores": {"bits_per_byte": 2.37}},
        {**model(1000, 2.41, task="bits_per_byte"), "name": "gguf_q8_0"},
    ]
    said = report.headline(models, "bits_per_byte").replace("\u00a0", " ")
    assert said == (
        "gguf_q8_0 reaches 2.41 bits per byte in 0.977 KiB, 3.6 times smaller than the teacher; the teacher reaches "
        "2.37."
    )


def test_a_rehearsal_recommends_nothing(run):
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("until: report", "until: report\nrehearse: true"))
    page = page_of(run)
    said = "Rehearsal: tiny random models of the same architectures; no figure here means anything."
    assert page.texts["banner"] == [said]
    assert "headline" not in page.texts and "tiles" not in page.texts
    whole = (run / "report.html").read_text()
    assert whole.index(said) < whole.index("<section") and "package to take" not in whole
    (run / "recipe.yaml").write_text(text)
    assert "banner" not in page_of(run).texts and "headline" in page_of(run).texts


def test_details_have_a_column_only_where_there_are_any(run):
    def head():
        return next(row for row in page_of(run).rows if row[0] == "package")

    assert head()[-1] == "detail"
    change(run / "verification.json", lambda proofs: [{**proof, "detail": ""} for proof in proofs])
    assert head()[-1] == "bit-equal"
    rows = {row[0]: row for row in page_of(run).rows if len(row) == len(head())}
    assert rows["gguf_q8_0"][-1].strip() == "–" and "the other formats (–)" in (run / "report.html").read_text()


def test_short_names_stay_whole(run):
    page = (report.write_report(run)).read_text()
    assert "gguf_q8_0</span></th>" in page and "baseline_<wbr>no_<wbr>teacher" in page


def test_samples_show_right_and_wrong_and_join_equal_answers():
    def sample(number, right):
        answers = {"a": "1", "b": "1" if right[0] == right[1] else "2"}
        return {
            "prompt": f"p{number}",
            "reference": "1",
            "answers": answers,
            "correct": dict(zip("ab", right, strict=True)),
        }

    rows = [sample(i, (True, True)) for i in range(20)] + [sample(20, (False, False)), sample(21, (True, False))]
    shown = side_by_side(rows, most=4)
    assert [s["prompt"] for s in shown] == ["p21", "p0", "p20", "p1"]
    assert shown[1]["answers"] == [{"models": ["a", "b"], "text": "1", "correct": True}]
    assert [a["models"] for a in shown[0]["answers"]] == [["a"], ["b"]]
    chat = side_by_side([{"prompt": [{"role": "user", "content": "hi"}], "answers": {"a": "x" * 5000}}])[0]
    assert chat["prompt"] == "user: hi" and chat["answers"][0]["text"].endswith("… (2,000 more characters)")
    assert chat["reference"] is None and chat["answers"][0]["correct"] is None and chat["verdict"] == ""


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (digits, 0.0311, "0.0311"), (digits, 1.9400, "1.94"), (digits, 61302.0, "61,302"), (digits, 8.1e-6, "8.1e-06"),
        (digits, 0, "0"), (digits, -2.5, "-2.50"), (digits, float("nan"), "nan"), (digits, None, "–"),
        (digits, 99.97, "100.0"), (size, 512, "512 B"), (size, 701333, "685 KiB"), (size, 1203400, "1.15 MiB"),
        (size, 14.5e9, "13.5 GiB"), (size, None, "–"), (mebibytes, 2**21, "2.00"), (duration, 0.14, "0.1 s"),
        (duration, 72.4, "72 s"), (duration, 750, "12 min 30 s"), (duration, 18180, "5 h 03 min"),
        (score("exact_match").show, 0.8955, "89.5"), (score("kl_to_teacher_nats").show, 0.0311, "0.0311"),
    ],
)  # fmt: skip
def test_figures_are_written_for_people(show, value, text):
    assert show(value) == text


def test_directions_are_known():
    assert [score(name).lower_is_better for name in ("exact_match", "top1_agreement", "accuracy")] == [False] * 3
    assert [score(name).lower_is_better for name in ("bits_per_byte", "kl_to_teacher_nats", "perplexity")] == [True] * 3


# --- terminal ---------------------------------------------------------------------------------------------------------


def printed(scores, width=100) -> list[str]:
    out = io.StringIO()
    report.print_table(scores, Console(file=out, width=width))
    return out.getvalue().splitlines()


def test_the_table_fits_and_names_every_model_with_its_figures():
    scores = json.loads((SAMPLE_RUN / "scores.json").read_text())
    scores["models"][5]["verified"] = False
    lines = printed(scores)
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line.split()}
    assert rows["teacher"] == "96.2 84.0 – 12.0 MiB 412"
    assert rows["baseline_no_teacher"] == "51.8 31.0 0.388 2.27 MiB 1,177"
    assert rows["bf16"] == "89.6 72.0 0.0312 1.15 MiB 1,248 ✓" and rows["bnb_int8"].endswith("✗")
    assert [line.split()[0] for line in lines if line.split()][-9:] == [m["name"] for m in scores["models"]]


def test_the_table_bears_missing_figures_long_names_and_narrow_terminals():
    scores = json.loads((SAMPLE_RUN / "scores.json").read_text())
    for entry in scores["models"]:
        entry |= {
            "name": entry["name"] + "[bold]" + "x" * 60,
            "speed": None,
            "bytes": None,
            "scores": {"exact_match": 0.5},
        }
    lines = printed(scores)
    assert max(map(len, lines)) <= 100 and sum("50.0" in line for line in lines) == 9
    assert any(line.startswith("teacher[bold]xx") for line in lines)
    assert max(map(len, printed(scores, width=60))) <= 60
    assert "nothing has been scored" in " ".join(printed({"recipe": "r", "models": []}))
