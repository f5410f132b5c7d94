"""evaluate: every model is scored on the same tokens."""

import json

import pytest


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
