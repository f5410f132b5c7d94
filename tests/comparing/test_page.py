"""The page, read back as a browser would: whole, from disk, without a network, and nobody's text is markup."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distill.comparing.groups import group_runs
from distill.comparing.page import OURS, refuse_foreign, write_page
from distill.comparing.runs import LeftOut, find_runs
from distill.errors import RecipeError
from tests.comparing.made_runs import edit, make_run
from tests.stages.test_report import Page

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> $\\frac{$"


def page_in(folder: Path, file: Path) -> tuple[str, Page]:
    runs, left_out = find_runs([folder])
    write_page(group_runs(runs), left_out, file)
    page = Page(file.read_text(encoding="utf-8"))
    assert page.open == []
    return file.read_text(encoding="utf-8"), page


def values(page: Page, *names: str) -> list[str]:
    return [value for _, name, value in page.attributes if name in names]


@pytest.fixture
def losses(tmp_path) -> Path:
    """Two losses, two seeds, with two groups, packages, reports and a run that is left out."""
    for loss, seed in (("jsd", 0), ("jsd", 1), ("forward_kl", 0), ("forward_kl", 1)):
        student = {"jsd": 0.5, "forward_kl": 0.48}[loss] + seed / 10
        scores = {"teacher": 0.9, "baseline_text": 0.3, "student": student, "bf16": 0.5, "gguf_q8_0": 0.4}
        make_run(tmp_path / f"runs/{loss}/{seed}", seed=seed, scores=scores, options={"loss": loss}, report=True)
    make_run(tmp_path / "runs/elsewhere", rows="other rows")
    make_run(tmp_path / "runs/rehearsed", keys={"rehearse": True})
    return tmp_path / "runs"


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(losses, tmp_path):
    text, page = page_in(losses, tmp_path / "compare.html")
    assert len(text) < 500_000
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text
    links = [value for tag, name, value in page.attributes if name == "href" and tag == "a"]
    assert sorted(links) == [f"runs/{loss}/{seed}/report.html" for loss in ("forward_kl", "jsd") for seed in (0, 1)]
    inner = [value for tag, name, value in page.attributes if name in {"href", "xlink:href", "src"} and tag != "a"]
    assert inner and all(value.startswith("#") for value in inner)
    ids = values(page, "id")
    assert len(ids) == len(set(ids)), "two pictures share an id"
    used = {link[1:] for link in inner} | set(re.findall(r"url\(#([^)]*)\)", text))
    assert used <= set(ids)


def test_the_links_are_as_seen_from_the_page(losses, tmp_path):
    (tmp_path / "pages #1").mkdir()
    _, page = page_in(losses / "jsd", tmp_path / "pages #1" / "mine.html")
    for link in values(page, "href"):
        if not link.startswith("#"):
            assert (tmp_path / "pages #1" / link).is_file()
    make_run(losses / "jsd" / "javascript:a?b", report=True, rows="x")
    _, page = page_in(losses / "jsd", tmp_path / "mine.html")
    assert "runs/jsd/javascript%3Aa%3Fb/report.html" in values(page, "href")


def test_tables_and_words_are_those_of_the_terminal(losses, tmp_path):
    text, page = page_in(losses, tmp_path / "compare.html")
    rows = {" ".join(row[0].split()): [cell.strip() for cell in row] for row in page.rows}
    assert rows["A student"][1:5] == ["2", "55.050.0–60.0", "best", "72.0" + "72.0–72.0"]
    assert rows["B student"][3] == "overlap"
    assert sorted(rows["loss.kind"][1:]) == ["forward_kl", "jsd"] and rows["seeds"][1:] == ["0, 1", "0, 1"]
    assert "compare nothing across them" in text
    assert "rehearsed: a rehearsal" in text
    titles = re.findall(r"<title>(A student[^<]*)", text)
    assert titles == ["A student: 55.0, 50.0–60.0 (exact match, %), 2.27 MiB"] * 2


def test_error_bars_reach_from_the_lowest_to_the_highest(losses, tmp_path):
    """In the picture: the points lie at 55 (students), 50 and 40 (packages) percent, the bar from 50 to 60."""
    text, _ = page_in(losses / "jsd", tmp_path / "compare.html")
    svg = text[text.index("<svg") : text.index("</svg>")]
    heights = {}
    for name, y in re.findall(r"<title>(\w+): [^<]*</title>.*?<use [^>]*y=\"([-\d.]+)\"", svg, re.DOTALL):
        heights[name] = float(y)
    bars = re.findall(r'd="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+) \n"[^>]*stroke: var\(--student\)', svg)
    ((x0, low, x1, high),) = [tuple(map(float, bar)) for bar in bars]
    percent = (heights["gguf_q8_0"] - heights["bf16"]) / 10
    assert x0 == x1
    assert (low - heights["student"]) / percent == pytest.approx(5, abs=1e-3)
    assert (heights["student"] - high) / percent == pytest.approx(5, abs=1e-3)


def test_students_of_equal_bytes_stand_side_by_side(losses, tmp_path):
    text, _ = page_in(losses, tmp_path / "compare.html")
    svg = text[text.index("<svg") : text.index("</svg>")]
    places = re.findall(r"<title>([AB]) student: [^<]*</title>.*?<use [^>]*x=\"([-\d.]+)\"", svg, re.DOTALL)
    x = {letter: float(place) for letter, place in places}
    assert x["A"] + 2 < x["B"]


def test_the_curve_is_that_of_the_lowest_seed_not_of_the_newest_run(tmp_path):
    make_run(tmp_path / "runs" / "first", seed=0, scores={"student": 0.5})
    newest = make_run(tmp_path / "runs" / "second", seed=1, started="2026-11-23T00:00:00+00:00")
    (newest / "metrics.jsonl").unlink()
    assert "Training loss of the students" in page_in(tmp_path / "runs", tmp_path / "compare.html")[0]


def test_the_teachers_divergence_from_itself_is_left_empty(losses, tmp_path):
    for scores in losses.glob("*/*/scores.json"):
        edit(scores, lambda s: s["models"][0]["scores"].update(kl_to_teacher_nats=0.0123))
    text, page = page_in(losses, tmp_path / "compare.html")
    head = next(row for row in page.rows if "model" in row[0])
    teacher = next(row for row in page.rows if row[0].strip() == "teacher")
    (column,) = [place for place, name in enumerate(head) if name.startswith("KL to teacher")]
    assert teacher[column].strip() == "" and "0.0123" not in text


def test_text_from_outside_stays_text(tmp_path):
    run = make_run(tmp_path / "runs" / "evil", keys={"teacher.model": EVIL, "name": EVIL}, scores={"student": 0.5})
    edit(run / "scores.json", lambda s: s.update(recipe=EVIL, task=EVIL))
    edit(run / "scores.json", lambda s: s["models"][0].update(name=EVIL, scores={EVIL: 0.5}))
    record = (run / "record.jsonl").read_text()
    (run / "record.jsonl").write_text(record.replace("python -m distill recipe=quickstart", json.dumps(EVIL)[1:-1]))
    make_run(tmp_path / "runs" / "good", rows=None)
    other = make_run(tmp_path / "runs" / "other", scores={"student": 0.4}, keys={"name": EVIL + "2"})
    edit(other / "scores.json", lambda s: s["models"][0].update(scores={EVIL: 0.4}) or s.update(task=EVIL))
    _, page = page_in(tmp_path / "runs", tmp_path / "compare.html")
    assert not {"script", "img"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert any(EVIL in cell for row in page.rows for cell in row)
    write_page([], [LeftOut(Path(EVIL), EVIL)], tmp_path / "left.html")
    assert not {"script", "img"} & set(Page((tmp_path / "left.html").read_text()).tags)


def test_secrets_reach_neither_page_nor_json(tmp_path):
    from distill.comparing.as_json import as_json

    for number, key in enumerate(("sk-1234", "sk-5678")):
        address = f"https://me:pw99@host{number}/v1"
        make_run(tmp_path / "runs" / str(number), keys={"teacher.api_key": key, "teacher.base_url": address})
    text, _ = page_in(tmp_path / "runs", tmp_path / "compare.html")
    runs, left_out = find_runs([tmp_path / "runs"])
    for said in (text, as_json(group_runs(runs), left_out)):
        assert "host1" in said and not re.search("sk-1234|sk-5678|pw99", said)


def test_without_sizes_curves_or_scores_a_section_is_missing(tmp_path):
    run = make_run(tmp_path / "runs" / "run", scores={"student": 0.5})
    (run / "metrics.jsonl").unlink()
    edit(run / "scores.json", lambda s: s["models"][0].pop("bytes") and None)
    text, page = page_in(tmp_path / "runs", tmp_path / "compare.html")
    assert "svg" not in page.tags and "What differs" not in text and "Training loss" not in text


def test_a_curve_has_the_colour_of_its_recipe_where_another_has_no_curve(tmp_path):
    for loss, value in (("jsd", 0.9), ("forward_kl", 0.8), ("reverse_kl", 0.7)):
        make_run(tmp_path / "runs" / loss, scores={"student": value}, options={"loss": loss})
    (tmp_path / "runs" / "jsd" / "metrics.jsonl").unlink()
    text, _ = page_in(tmp_path / "runs", tmp_path / "compare.html")
    for letter, place in (("B", 1), ("C", 2)):
        assert f'class="letter" style="--colour: var(--series-{place})">{letter}<' in text
        assert f'class="chip curve" style="--colour: var(--series-{place})">{letter}<' in text
    assert 'class="chip curve" style="--colour: var(--series-0)' not in text
    after = text[text.index("Training loss of the students") :]
    strokes = re.findall(r"stroke: var\(--(series-\d)\)", after[after.index("<svg") : after.index("</svg>")])
    assert list(dict.fromkeys(strokes)) == ["series-1", "series-2"]


def test_many_points_keep_the_names_that_matter(tmp_path):
    packages = ("bf16", "bnb_int8", "bnb_nf4", "bnb_nf4_lora", "gguf_q8_0")
    for number, loss in enumerate(("jsd", "forward_kl", "reverse_kl")):
        scores = {"student": 0.5 - number / 10, **dict.fromkeys(packages, 0.4 - number / 10)}
        make_run(tmp_path / "runs" / loss, scores=scores, options={"loss": loss})
    text, _ = page_in(tmp_path / "runs", tmp_path / "compare.html")
    svg = text[text.index("<svg") : text.index("</svg>")]
    named = set(re.findall(r">([ABC] \w+)</text>", svg))
    # all students, and of the packages the one on the front: the smallest of the best recipe
    assert named == {"A student", "B student", "C student", "A gguf_q8_0"}


def test_of_hundreds_of_points_the_front_alone_has_names(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.comparing.page.MOST_STUDENTS", 12)
    for number, loss in enumerate(("jsd", "forward_kl", "reverse_kl")):
        scores = dict.fromkeys(("student", "bf16", "bnb_int8", "bnb_nf4", "gguf_q8_0"), 0.4 - number / 10)
        make_run(tmp_path / "runs" / loss, scores={**scores, "student": 0.5 - number / 10}, options={"loss": loss})
    text, _ = page_in(tmp_path / "runs", tmp_path / "compare.html")
    svg = text[text.index("<svg") : text.index("</svg>")]
    assert set(re.findall(r">([ABC] \w+)</text>", svg)) == {"A student", "A gguf_q8_0"}


def test_the_same_runs_give_the_same_bytes_in_any_process(losses, tmp_path):
    text, _ = page_in(losses, tmp_path / "compare.html")
    command = [sys.executable, "-m", "distill.compare", str(losses), "--html", "other.html"]
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert (tmp_path / "other.html").read_text() == text


def test_only_our_own_pages_are_written_over(losses, tmp_path):
    page_in(losses, tmp_path / "compare.html")
    refuse_foreign(tmp_path / "compare.html")
    assert OURS in (tmp_path / "compare.html").read_text()
    (tmp_path / "mine.html").write_text("<p>a year of work</p>")
    for file, said in (
        (tmp_path / "mine.html", "is not a page of distill.compare and stays"),
        (tmp_path, "is a folder"),
        (Path("/dev/null"), "no regular file"),
        (tmp_path / "no" / "x.html", "there is no folder"),
    ):
        with pytest.raises(RecipeError, match=said):
            refuse_foreign(file)
