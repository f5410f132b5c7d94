"""Bad input, through the real command: at most six lines, no stack trace, exit code 2, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import cli_environment

PROBLEM = {"prompt": "How much is 1 + 1?", "response": "#### 2"}


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(PROBLEM) + "\n" for _ in range(12)))
    return file


def refused(run, tmp_path, *arguments, words=(), **environment):
    before = sorted(tmp_path.rglob("*"))
    ran = run(*arguments, **environment)
    said = ran.stderr.strip()
    assert ran.returncode == 2, (ran.returncode, said)
    assert "Traceback" not in said and 1 <= len(said.splitlines()) <= 6, said
    for word in words:
        assert word in said, said
    assert sorted(tmp_path.rglob("*")) == before, "something was written"
    return said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipe=quickstrat"], ["quickstrat", "quickstart"]),
        (["loss=forward_lk"], ["forward_lk", "forward_kl"]),
        (["lss=jsd"], ["lss", "loss"]),
        (["training.learnin_rate=1"], ["learnin_rate", "learning_rate"]),
        (["training.learning_rate=0"], ["training.learning_rate=0", "greater than 0"]),
        (["teacher.model=./nowhere"], ["teacher.model", "nowhere"]),
        (["teacher.model=bundled:big"], ["bundled:big", "bundled:quickstart_teacher"]),
        (["data=local", "data.path=missing.csv"], ["missing.csv", "no such file"]),
        (["data=local"], ["data.path", "needed"]),
    ],
)
def test_wrong_words(run_cli, tmp_path, tiny_teacher, arguments, words):
    if not any("teacher.model" in argument for argument in arguments):
        arguments = [*arguments, f"teacher.model={tiny_teacher}"]
    refused(run_cli, tmp_path, *arguments, words=words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["holds no rows"]),
        ('{"prompt": "a", "response": "b"}\nnot json\n', ["line 2", "not JSON"]),
        ('{"question": "a", "answer": "b"}\n', ["'prompt'", "question, answer", "data.prompt_field"]),
    ],
)
def test_wrong_files(run_cli, tmp_path, tiny_teacher, content, words):
    (tmp_path / "rows.jsonl").write_text(content)
    arguments = ["data=local", "data.path=rows.jsonl", f"teacher.model={tiny_teacher}", "baselines=[]"]
    refused(run_cli, tmp_path, *arguments, words=["rows.jsonl", *words])


def test_answers_without_a_final_answer(run_cli, tmp_path, data, tiny_teacher):
    data.write_text(data.read_text().replace("#### ", ""))
    arguments = ["data=local", f"data.path={data}", f"teacher.model={tiny_teacher}", "baselines=[]"]
    arguments += ["evaluation.compare=final_answer"]
    refused(run_cli, tmp_path, *arguments, words=["####", "none of the 1 answers", "evaluation.compare=text"])


def test_a_teacher_of_another_tokenizer(run_cli, tmp_path, data, tiny_teacher, shared_data):
    arguments = [
        "data=local",
        f"data.path={data}",
        f"teacher.model={tiny_teacher}",
        "baselines=[]",
        "compression=[bf16]",
    ]
    arguments += ["student=pretrained", f"student.model={shared_data / 'stories260k'}"]
    refused(run_cli, tmp_path, *arguments, words=["tokenizers", "tiny_teacher", "stories260k", "loss=text"])


def test_a_gguf_of_an_architecture_that_llama_cpp_lacks(run_cli, tmp_path, data, tiny_teacher):
    student = tmp_path / "opt"
    student.mkdir()
    shutil.copytree(tiny_teacher, student, dirs_exist_ok=True)
    config = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "vocab_size": 384, "hidden_size": 64}
    (student / "config.json").write_text(json.dumps(config))
    arguments = ["data=local", f"data.path={data}", f"teacher.model={tiny_teacher}", "baselines=[]"]
    arguments += ["student=pretrained", f"student.model={student}", "compression=[bf16,gguf_q8_0]"]
    refused(run_cli, tmp_path, *arguments, words=["gguf_q8_0", "opt"])


def test_nf4_of_a_width_that_is_silently_wrong_on_a_cpu(run_cli, tmp_path, tiny_teacher):
    arguments = ["compression=[bnb_nf4]", "student.hidden_size=96", f"teacher.model={tiny_teacher}"]
    refused(run_cli, tmp_path, *arguments, words=["bnb_nf4", "96", "64"])


def test_labels_that_do_not_exist(run_cli, tmp_path, tiny_teacher):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n' * 12)
    arguments = ["data=local", "data.path=rows.jsonl", f"teacher.model={tiny_teacher}", "baselines=[]"]
    refused(
        run_cli,
        tmp_path,
        *arguments,
        "teacher.responses=data",
        words=["training rows", "data.response_field"],
    )


def test_an_output_that_cannot_be_written(run_cli, tmp_path, tiny_teacher):
    (tmp_path / "outputs").write_text("a file, not a folder")
    refused(run_cli, tmp_path, f"teacher.model={tiny_teacher}", words=["outputs", "cannot be written"])


def test_no_space_left(tmp_path, tiny_teacher):
    """A real, small file system; mounting needs rights that not every machine gives."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("a small file system cannot be mounted here")
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "distill", f"teacher.model={tiny_teacher}"],
            cwd=disk,
            env=cli_environment(),
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 2 and "free space" in ran.stderr and "Traceback" not in ran.stderr, ran.stderr
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_prompts_longer_than_the_context_are_counted_and_said(run_cli, tmp_path, tiny_teacher, tiny_run_arguments):
    rows = [PROBLEM] * 20 + [{"prompt": "word " * 400, "response": "#### 1"}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    kept = [a for a in tiny_run_arguments if not a.startswith("data.")]
    ran = run_cli(
        *kept,
        "data=local",
        "data.path=rows.jsonl",
        "data.eval_path=eval.jsonl",
        "until=train",
        "baselines=[]",
        "loss=forward_kl",
    )
    assert ran.returncode == 0, ran.stderr
    assert "2 prompts do not fit the context of tiny_teacher" in ran.stderr
    (run,) = (tmp_path / "outputs" / "quickstart").iterdir()
    assert "2 prompts do not fit the context of tiny_teacher" in (run / "logbook.md").read_text()
