"""The word problems: every answer is worked out again from the printed text, by other means than the generator's."""

import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from itertools import islice

import pytest
from pydantic import ValidationError

from distill.data import word_problems
from distill.data._templates import NEW, TRAINED, Template
from distill.data.word_problems import WordProblems, is_for_evaluation
from distill.errors import DataError

EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
ALL = (*TRAINED, *NEW)
IN_WORDS = {"[Hh]alf|twice": 2, "three times": 3, "weeks and": 7}


def generated(templates, count, seed="test"):
    """(template name, prompt, response), training side."""
    return list(islice(word_problems._problems(templates, seed, evaluation=False), count))


def numbers_in(text):
    return [int(digits) for digits in re.findall(r"\d+", text)]


@pytest.fixture(scope="module")
def problems():
    """At least 60 problems of every template."""
    found = generated(TRAINED, 8000) + generated(NEW, 1200)
    counts = Counter(name for name, _, _ in found)
    assert set(counts) == {template.name for template in ALL} and min(counts.values()) >= 60
    return found


def test_every_equation_holds_and_follows_from_what_stands_before_it(problems):
    for name, prompt, response in problems:
        *lines, last = response.split("\n")
        known = set(numbers_in(prompt))
        # numbers that the story says in words
        known |= {number for words, number in IN_WORDS.items() if re.search(words, prompt)}
        known |= {1} if name == "trips_needed" else set()
        result = None
        assert 1 <= len(lines) <= 3
        for line in lines:
            match = EQUATION.fullmatch(line)
            assert match, (name, response)
            left, right, result = int(match[1]), int(match[3]), int(match[4])
            # addition by counting, multiplication by adding up, the others by their inverse
            value = {
                "+": lambda a, b: sum([a, b]),
                "-": lambda a, b: next(c for c in range(a + 1) if c + b == a),
                "*": lambda a, b: sum([a] * b),
                "/": lambda a, b: Fraction(a, b),
            }[match[2]](left, right)
            assert value == result, (name, response)
            if name in {"left_over", "trips_needed"} and line == lines[0]:
                # the number of full boxes is the one thing that has to be guessed: check that it is the most that fit
                total = next(number for number in numbers_in(prompt) if 0 < number - result < left)
                assert left in known and right == total // left
                known.add(right)
            for operand in (left, right):
                assert operand in known, (name, prompt, response)
            known.add(result)
        assert last == f"#### {result}", (name, response)


def test_every_step_is_used(problems):
    """A result that is not the answer is an operand further down."""
    for name, _, response in problems:
        lines = response.split("\n")[:-1]
        for place, line in enumerate(lines[:-1]):
            result = line.split("=")[1]
            later = [operand for rest in lines[place + 1 :] for operand in re.split(r"\D", rest.split("=")[0])]
            assert result in later or name == "trips_needed", (name, response)


def test_numbers_are_small_positive_integers(problems):
    for _, prompt, response in problems:
        assert re.fullmatch(r"[A-Za-z0-9 ,.?]+", prompt), prompt
        assert re.fullmatch(r"[-+*/=0-9\n]+#### \d+", response), response
        assert all(1 <= number <= 150 for number in numbers_in(prompt + " " + response))
        assert "{" not in prompt


# (template, wording, the numbers drawn, how the story tells them, the answer worked out by a person)
BY_HAND = [
    ("gets_more", 0, {"has": 28, "more": 15}, r"has 28 \w+\. \w+ gives \w+ 15 more", 43),
    ("gives_away", 1, {"has": 50, "gone": 18}, r"had 50 \w+ but lost 18", 32),
    ("together", 2, {"first": 26, "second": 25}, r"brings 26 \w+ and \w+ brings 25", 51),
    ("how_many_more", 1, {"larger": 40, "smaller": 13}, r"has 13 \w+\. \w+ has 40\. How many fewer", 27),
    ("three_heaps", 2, {"first": 12, "second": 9, "third": 30}, r"hold 12, 9 and 30", 51),
    ("in_and_out", 0, {"start": 31, "out": 12, "into": 7}, r"has 31 people.* 12 get off and 7 get on", 26),
    ("more_than_together", 1, {"has": 20, "more": 6}, r"found 6 more \w+ than \w+, who found 20", 46),
    ("fewer_than_together", 2, {"has": 20, "fewer": 6}, r"has 20 \w+, the next has 6 fewer", 34),
    ("age_later", 1, {"age": 11, "older": 4, "years": 6}, r"is 4 years older .* is 11.* in 6 years", 21),
    ("only_one_kind", 1, {"has": 33, "gone": 9, "unused": 21}, r"has 21 \w+ and 33 \w+\. It sells 9", 24),
    ("full_boxes", 1, {"count": 8, "each": 6}, r"are 6 \w+ in every .* in 8", 48),
    ("boxes_and_loose", 1, {"count": 7, "each": 4, "loose": 15}, r"holds 4 .* has 7 full \w+ and 15 more", 43),
    ("boxes_and_used", 0, {"count": 6, "each": 7, "used": 5}, r"has 6 \w+ with 7 .* uses 5", 37),
    ("one_colour_of_boxes", 1, {"count": 4, "each": 8, "unused": 11}, r"11 old and 4 new \w+ with 8", 32),
    ("price", 2, {"count": 8, "price": 7}, r"do 8 \w+ cost if one \w+ costs 7", 56),
    ("change", 2, {"paid": 50, "count": 4, "price": 9}, r"costs 9 coins\. \w+ takes 4 \w+ and gives 50", 14),
    (
        "two_prices",
        1,
        {"count": 3, "price": 4, "other_count": 5, "other_price": 6},
        r"\w+ costs 4 coins, .* 6\. How many coins do 3 \w+ and 5",
        42,
    ),
    ("share", 1, {"people": 7, "part": 8}, r"7 children divide 56", 8),
    ("boxes_to_fill", 0, {"each": 9, "part": 5}, r"has 45 \w+ and puts 9 into each", 5),
    ("share_after_loss", 0, {"lost": 4, "people": 5, "part": 6}, r"has 34 \w+, but 4 are broken.* among 5", 6),
    ("rate", 0, {"each": 12, "days": 5}, r"12 pages a day.* in 5 days", 60),
    ("time_needed", 0, {"each": 6, "part": 9}, r"has 54 pages.* reads 6 pages a day", 9),
    ("rate_and_rest", 0, {"total": 60, "each": 7, "days": 6}, r"has 60 pages.* 7 pages a day for 6 days", 18),
    ("saving", 0, {"has": 22, "each": 4, "weeks": 9}, r"has 22 coins and saves 4 .* after 9 weeks", 58),
    ("half", 1, {"part": 29}, r"has 58 \w+\. \w+ has half as many", 29),
    ("twice", 1, {"has": 26}, r"twice as many \w+ as \w+, who finds 26", 52),
    ("twice_together", 1, {"has": 17}, r"twice as many \w+ as \w+, who sells 17", 51),
    ("garden_rows_lost", 0, {"rows": 9, "lost": 2, "each": 6}, r"9 rows of 6 plants\. Rabbits eat 2", 42),
    ("half_as_many_together", 1, {"part": 15}, r"half as many \w+ as \w+, who finds 30", 45),
    ("delivery", 0, {"count": 3, "each": 8, "has": 20, "gone": 6}, r"has 20 \w+.* 3 \w+ with 8 .* sells 6", 38),
    ("change_from_two_prices", 1, {"price": 12, "other_price": 19, "paid": 40}, r"12 coins, a chair 19.* has 40", 9),
]


def fixed(name, phrasing, values):
    """The problem of this template and wording with all drawn numbers given, without a distractor."""
    (original,) = [template for template in ALL if template.name == name]
    assert set(values) == set(original.numbers)
    template = replace(
        original,
        numbers={key: (value, value) for key, value in values.items()},
        phrasings=(original.phrasings[phrasing],),
    )
    wording = re.sub(r"\\{\w+\\}", r"\\w+", re.escape(original.phrasings[phrasing]))
    for _, prompt, response in word_problems._problems([template], "fixed", evaluation=False):
        if re.fullmatch(wording, prompt):
            return prompt, response
    raise AssertionError("no problem without a distractor")


@pytest.mark.parametrize(("name", "phrasing", "values", "story", "answer"), BY_HAND, ids=[row[0] for row in BY_HAND])
def test_stories_solved_by_hand(name, phrasing, values, story, answer):
    prompt, response = fixed(name, phrasing, values)
    assert re.search(story, prompt), prompt
    assert response.endswith(f"\n#### {answer}"), (prompt, response)


def test_every_template_is_solved_by_hand():
    assert [row[0] for row in BY_HAND] == [template.name for template in ALL]


def test_the_example_of_the_module_is_true():
    _, response = fixed("boxes_and_loose", 0, {"count": 7, "each": 4, "loose": 15})
    assert response == "7*4=28\n28+15=43\n#### 43"


def test_templates_are_many_and_say_everything_that_is_needed():
    assert len(TRAINED) >= 24 and len(NEW) >= 4
    assert len({template.name for template in ALL}) == len(ALL)
    wordings = [wording for template in ALL for wording in template.phrasings]
    assert len(set(wordings)) == len(wordings)
    for template in ALL:
        assert 2 <= len(template.phrasings) <= 4 and 1 <= len(template.steps) <= 3, template.name
        results = {step.split()[0] for step in template.steps}
        operands = {word for step in template.steps for word in (step.split()[2], step.split()[4])}
        needed = {word for word in operands - results if not word.isdecimal()}
        if template.name in {"left_over", "trips_needed"}:
            needed.remove("full")
        for wording in template.phrasings:
            told = set(re.findall(r"{(\w+)}", wording))
            assert needed <= told, (template.name, wording)
            assert not told & results, f"{template.name} tells a result"
            assert wording.endswith("?")


def test_all_operations_and_lengths_occur(problems):
    assert {sign for _, _, response in problems for _, sign, _, _ in EQUATION.findall(response)} == set("+-*/")
    assert {response.count("=") for _, _, response in problems} == {1, 2, 3}


def test_some_numbers_distract(problems):
    def distracts(prompt, response):
        return bool(Counter(numbers_in(prompt)) - Counter(numbers_in(response)))

    share = statistics.mean(distracts(prompt, response) for _, prompt, response in problems)
    assert 0.1 < share < 0.35
    by_template = defaultdict(set)
    for name, prompt, response in problems:
        by_template[name].add(distracts(prompt, response))
    assert all(True in seen for seen in by_template.values())


def test_prompts_are_short(problems):
    words = [len(prompt.split()) for _, prompt, _ in problems]
    assert min(words) >= 10 and max(words) <= 40
    assert 15 <= statistics.mean(words) <= 25
    assert max(len(prompt) for _, prompt, _ in problems) <= 200
    assert max(len(response) for _, _, response in problems) <= 45


def test_sizes_and_labels():
    examples = WordProblems(
        kind="word_problems", num_rows=70, evaluation_rows=30, new_template_rows=20, labelled_rows=25
    ).load()
    assert len(examples.train) == 70
    assert {name: len(rows) for name, rows in examples.evaluation.items()} == {
        "exact_match": 30,
        "exact_match_new_templates": 20,
    }
    assert [row.response is not None for row in examples.train] == [True] * 25 + [False] * 45
    assert all(row.response for rows in examples.evaluation.values() for row in rows)


def test_defaults():
    examples = WordProblems(kind="word_problems").load()
    assert len(examples.train) == 6000 and all(row.response for row in examples.train)
    assert [len(rows) for rows in examples.evaluation.values()] == [500, 200]


def test_no_new_templates_no_metric():
    options = WordProblems(kind="word_problems", num_rows=5, evaluation_rows=5, new_template_rows=0)
    assert list(options.load().evaluation) == ["exact_match"]


def test_fewer_rows_are_the_first_of_more():
    few = WordProblems(kind="word_problems", num_rows=40, evaluation_rows=10, labelled_rows=0).load()
    many = WordProblems(kind="word_problems", num_rows=90, evaluation_rows=50).load()
    assert [row.prompt for row in few.train] == [row.prompt for row in many.train[:40]]
    assert few.evaluation["exact_match"] == many.evaluation["exact_match"][:10]


def test_evaluation_never_occurs_in_training():
    evaluation = WordProblems(kind="word_problems", num_rows=1, evaluation_rows=3000, new_template_rows=500).load()
    prompts = [row.prompt for rows in evaluation.evaluation.values() for row in rows]
    assert len(set(prompts)) == 3500 and all(map(is_for_evaluation, prompts))
    texts_by_seed = []
    for seed in (0, 1, -1, 12345):
        train = WordProblems(kind="word_problems", num_rows=8000, problem_seed=seed).load().train
        texts = {row.prompt for row in train}
        assert len(texts) == 8000, "a training problem occurs twice"
        assert not texts & set(prompts)
        texts_by_seed.append(texts)
    for seed, texts in enumerate(texts_by_seed):
        for others in texts_by_seed[:seed]:
            assert len(texts & others) < 80, "two seeds give the same problems"


def test_evaluation_does_not_depend_on_the_training_rows():
    one = WordProblems(kind="word_problems", num_rows=10, problem_seed=3).load()
    two = WordProblems(kind="word_problems", num_rows=20, problem_seed=4, labelled_rows=2).load()
    assert one.evaluation == two.evaluation


def test_new_templates_are_never_trained():
    """Their wordings, as patterns, match no training prompt."""
    texts = [prompt for _, prompt, _ in generated(TRAINED, 5000)]
    patterns = [
        re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(wording)))
        for template in NEW
        for wording in template.phrasings
    ]
    for pattern in patterns:
        assert not any(pattern.search(text) for text in texts), pattern.pattern
    rows = WordProblems(kind="word_problems", num_rows=1, evaluation_rows=400).load().evaluation
    plain = [sum(bool(pattern.search(row.prompt)) for pattern in patterns) for row in rows["exact_match_new_templates"]]
    assert sum(plain) > 100, "the patterns find new templates where they are"
    assert not any(pattern.search(row.prompt) for pattern in patterns for row in rows["exact_match"])


def test_a_tenth_belongs_to_evaluation():
    texts = [f"{number} pens" for number in range(20_000)]
    assert 1800 < sum(map(is_for_evaluation, texts)) < 2200


def test_one_load_is_like_the_next_also_in_another_process():
    options = {"kind": "word_problems", "num_rows": 300, "evaluation_rows": 100, "problem_seed": 7}
    first = WordProblems(**options).load()
    assert first == WordProblems(**options).load()
    script = (
        "import json, sys; from distill.data.word_problems import WordProblems; "
        "e = WordProblems(**json.loads(sys.argv[1])).load(); print(json.dumps([r.prompt for r in e.train])); "
        "print(e.fingerprint); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(options)], capture_output=True, text=True, check=True
    )
    prompts, fingerprint = done.stdout.splitlines()
    assert json.loads(prompts) == [row.prompt for row in first.train]
    assert fingerprint == first.fingerprint


def test_training_settings_change_the_fingerprint_of_training_alone():
    one, other = (WordProblems(kind="word_problems", num_rows=50, problem_seed=seed).load() for seed in (0, 1))
    fewer = WordProblems(kind="word_problems", num_rows=50, evaluation_rows=10).load()
    assert one.fingerprint != other.fingerprint and one.evaluation_fingerprint == other.evaluation_fingerprint
    assert one.fingerprint == fewer.fingerprint and one.evaluation_fingerprint != fewer.evaluation_fingerprint


def test_the_problems_are_those_that_the_bundled_teacher_learnt():
    """Fails when templates or generator change: then the teacher and the README's figures must be made again."""
    text = json.dumps([generated(TRAINED, 3000, "pinned"), generated(NEW, 500, "pinned")])
    assert sha256(text.encode()).hexdigest()[:16] == "4b5e570eef99b15d"


def test_too_many_rows_are_refused(monkeypatch):
    small = Template("small", {"has": (2, 3)}, ("second = has * 2",), ("What is twice {has}?",))
    monkeypatch.setattr(word_problems, "TRAINED", [small])
    monkeypatch.setattr(word_problems, "DISTRACTORS", ["It is {distractor} o'clock."])
    with pytest.raises(DataError, match=r"asks for 100 different word problems, but .* found only \d+"):
        WordProblems(kind="word_problems", num_rows=100).load()


@pytest.mark.parametrize(
    "wrong", [{"num_rows": 0}, {"num_rows": "10"}, {"evaluation_rows": 0}, {"labelled_rows": -1}, {"seed": 1}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        WordProblems(kind="word_problems", **wrong)


def test_a_hundred_thousand_take_seconds():
    start = time.process_time()
    assert len(generated(TRAINED, 100_000)) == 100_000
    assert time.process_time() - start < 15
