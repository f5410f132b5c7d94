"""evaluate: every model is scored on the same text."""

import json
import math

import pytest

from distill.artifact import Artifact
from distill.encoding import encode_prompt, encode_response, load_tokenizer, train_tokenizer
from distill.evaluation.bits_per_byte import BitsPerByte
from distill.example import Example
from distill.results import write_samples
from distill.stages._passages import passages
from distill.stages.evaluate import score_model
from tests.small_models import gpt2_tokenizer


def num_tokens(tokenizer, passage):
    return len(encode_response(tokenizer, passage.response)) - (not passage.ends)


def test_models_with_other_tokens_are_scored_on_the_same_characters(shared_data):
    sides = [gpt2_tokenizer(shared_data), load_tokenizer(shared_data / "stories260k")]
    text = (shared_data / "wikitext2/valid.txt").read_text("utf-8")
    rows = [Example(f"Go on, {n}:", text[3000 * n : 3000 * n + 2000 - 190 * n]) for n in range(10)]
    scored = passages(rows, sides, max_length=300, positions=1000)
    assert [passage.prompt for passage in scored] == [row.prompt for row in rows[: len(scored)]]
    for row, passage in zip(rows, scored, strict=False):
        assert str(row.response).startswith(str(passage.response))
        assert passage.ends == (passage.response == row.response)
    for tokenizer in sides:
        sizes = [num_tokens(tokenizer, passage) for passage in scored]
        assert sum(sizes) <= 1000
        assert all(size + len(encode_prompt(tokenizer, p.prompt)) <= 300 for size, p in zip(sizes, scored, strict=True))
    # 512 tokens need more of them for a text than 50,257 do, and are what fills up
    assert sum(num_tokens(sides[1], passage) for passage in scored) > 990
    assert sum(num_tokens(sides[0], passage) for passage in scored) < 700


def test_each_text_has_its_beginning_scored_before_any_is_gone_on_with():
    tokenizer = train_tokenizer([], 300)  # a letter is a token
    rows = [Example("", "a" * 25), Example("", None), Example("", "b" * 4), Example("", "c" * 30)]
    scored = passages(rows, [tokenizer], max_length=11, positions=40)
    said = [(passage.response, passage.ends) for passage in scored]
    # 10 + 4 and its end + 10, then the rest of the first (10), then what is left of 40
    assert said == [("a" * 10, False), ("b" * 4, True), ("c" * 10, False), ("a" * 10, False), ("c" * 5, False)]
    assert passages(rows, [tokenizer], max_length=11, positions=1000)[-1].ends
    # an answer has a prompt that what follows could not do without
    assert len(passages([Example("?", "a" * 25)], [tokenizer], max_length=11, positions=40)) == 1
    assert passages([Example("?" * 20, "a")], [tokenizer], max_length=11, positions=40) == []


def test_bits_per_byte_are_those_of_the_definition(shared_data, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = shared_data / "stories260k"
    tokenizer = load_tokenizer(checkpoint)
    scored = [Example("", "Once upon a time, there was a little dog", ends=False), Example("", "It was red. é")]
    evaluation = BitsPerByte(kind="bits_per_byte", samples=0, speed=False)
    sets = {"exact_match": []}
    score_model(checkpoint, "transformers", evaluation, sets, tmp_path, scored=scored, max_length=64, teacher=None)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()
    nats = num_bytes = 0
    for passage in scored:
        ids = [tokenizer.bos_token_id, *tokenizer(passage.response, add_special_tokens=False)["input_ids"]]
        ids += [tokenizer.eos_token_id] * passage.ends
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(float(logprobs[t, ids[t + 1]]) for t in range(len(ids) - 1))
        num_bytes += len(str(passage.response).encode())
    found = json.loads((tmp_path / "scores.json").read_text())
    assert found["scored_rows"] == {"bits_per_byte": 2}
    assert found["scores"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)


def test_models_go_on_with_the_first_words_of_plain_texts(shared_data, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = shared_data / "stories260k"
    tokenizer = load_tokenizer(checkpoint)
    rows = [
        Example("", "Once there was a red cat. It sat on a mat."),
        Example("", "Tim and Sue ran to the big park to play."),
    ]
    begun = ["Once there was a red", "Tim and Sue ran to"]  # 20 and 18 characters, of 42 and 39
    evaluation = BitsPerByte(kind="bits_per_byte", samples=2, max_new_tokens=8, speed=False)
    sets = {"exact_match": rows}
    score_model(checkpoint, "transformers", evaluation, sets, tmp_path, scored=[], max_length=64, teacher=None)
    write_samples(evaluation, rows, {"student": Artifact("scores", tmp_path, "made")}, tmp_path)
    samples = json.loads((tmp_path / "samples.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    for row, start, sample in zip(rows, begun, samples, strict=True):
        ids = [tokenizer.bos_token_id, *tokenizer(start, add_special_tokens=False)["input_ids"]]
        said = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
        assert sample["answers"] == {"student": tokenizer.decode(said, skip_special_tokens=True)}
        assert (sample["prompt"], sample["prompt"] + sample["reference"]) == (start, row.response)


@pytest.mark.slow
def test_teacher_and_student_are_compared_on_what_both_can_read(run_cli, tmp_path, tiny_teacher, tiny_run_arguments):
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"Count to {n}.", "response": "one, two, three, " * 30}) + "\n" for n in range(24)
        )
    )
    arguments = [argument for argument in tiny_run_arguments if not argument.startswith("data.")]
    arguments += ["data=local", "data.path=rows.jsonl", "baselines=[]", "compression=[]", "evaluation.positions=600"]
    # the teacher has 192 positions, and its answers are shorter than the data's
    arguments += ["student.max_position_embeddings=512", "training.max_length=256", "evaluation.compare=text"]
    ran = run_cli(*arguments)
    assert ran.returncode == 0, ran.stderr
    (scores,) = tmp_path.glob("outputs/quickstart/*/scores.json")
    models = {model["name"]: model for model in json.loads(scores.read_text())["models"]}
    assert models["teacher"]["scored_rows"]["bits_per_byte"] == models["student"]["scored_rows"]["bits_per_byte"]
    assert models["student"]["scores"]["kl_to_teacher_nats"] > 0
