"""What one process does on one device for `test_stages.py`: `python work.py FOLDER STORE JOB …`.

Each job is a recipe, run by the pipeline in a store of its own, to which the answers of STORE are copied first: so
every device trains on the same targets. FOLDER/results.json says how each job went; one that fails spoils no other.
"""

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from distill import _hydra, pipeline
from distill.checkpoint import BUNDLED
from distill.data.word_problems import WordProblems
from distill.encoding import encode_prompt, load_tokenizer
from distill.example import Example
from distill.recipe import parse
from distill.runtime.hf import Transformers
from distill.student.scratch import Scratch

TEACHER = BUNDLED / "quickstart_teacher"
STEPS, FEW_STEPS, STOPPED_AT = 20, 6, 5
BASE = [
    "recipe=quickstart",
    "name=gpu",
    "teacher.responses=data",
    "data.num_rows=48",
    "data.labelled_rows=null",
    "data.evaluation_rows=4",
    "data.new_template_rows=0",
    "student.hidden_size=64",
    "student.num_hidden_layers=2",
    "student.num_attention_heads=2",
    f"training.max_steps={FEW_STEPS}",
    "training.batch_size=8",
    "training.warmup_steps=3",
    "training.logging_steps=1",
    "training.save_steps=3",
    "training.bf16=false",
    "training.dropout=0",
    "baselines=[]",
    "compression=[]",
    "until=train",
]
LORA = ["adapter=lora", "adapter.rank=4"]
UNTIED = ["student=pretrained", "student.model={untied}"]
KINDS = {
    "sampled": ["teacher.targets=sampled"],
    "top_k": ["teacher.targets=top_k"],
    "dense": ["teacher.targets=dense"],
    "frozen_head": ["teacher.targets=frozen_head", *UNTIED, *LORA],
    "next": ["loss=aligned", "teacher.targets=auto", "student.vocab_size=320"],
}
CURVES = {
    "dense": [*KINDS["dense"], f"training.max_steps={STEPS}"],
    "sampled": KINDS["sampled"],
    "frozen_head": KINDS["frozen_head"],
    "aligned": KINDS["next"],
    "jsd": [*KINDS["top_k"], "loss=jsd"],
    "live": ["teacher.live=true"],
    "lora_on_head": [*KINDS["top_k"], *UNTIED, *LORA, "adapter.target_modules=[q_proj,down_proj,lm_head]"],
    "on_policy": [
        *["loss=jsd", "training.on_policy=1", "training.on_policy_rounds=2", "training.max_steps=2"],
        *["training.on_policy_temperature=0", "training.on_policy_max_new_tokens=12"],
    ],
}
"""Jobs of which the loss curve is compared, each with its recipe."""
SAME_AS_DENSE = {"packed": ["training.packing=true"], "checkpointed": ["training.gradient_checkpointing=true"]}
TRITON = ("dense", "sampled", "frozen_head", "jsd", "live", "lora_on_head")
READY = "ready"
"""File in a store in which all answers are."""
DROPPED = [*KINDS["dense"], "training.dropout=0.1"]
LARGE = ["student.hidden_size=1024", "student.intermediate_size=4096", "training.max_steps=2"]


def asked(kind: str) -> Callable[["Work"], dict[str, Any]]:
    """A job: the teacher is asked on this device; says where the store lies."""
    return lambda work: {"store": str(work.run("asked", [*KINDS[kind], "until=teach"])["teach"])}


def curve(*overrides: str, kernels: str = "eager") -> Callable[["Work"], dict[str, Any]]:
    """A job: the loss curve of a training."""
    return lambda work: work.trained(work.name, overrides, kernels)


def split(name: str) -> Callable[["Work"], dict[str, Any]]:
    """A job: the curve of `name`, computed in micro-batches of two rows."""
    return curve(*CURVES[name], "training.gradient_accumulation_steps=4")


def twice(work: "Work") -> dict[str, Any]:
    """A job: one training, once more, and once more interrupted in the middle of a step; the final weights of each."""
    found = {name: work.trained(f"twice-{name}", DROPPED)["weights"] for name in ("first", "second")}
    with deterministic():
        found["whole"] = work.trained("twice-whole", DROPPED)["weights"]
        with interrupted(STOPPED_AT):
            work.trained("twice-resumed", DROPPED)
        resumed = work.trained("twice-resumed", DROPPED)
    return {**found, "resumed": resumed["weights"], "from_step": resumed["from_step"]}


def greedy(work: "Work") -> dict[str, Any]:
    """A job: the teacher's greedy answers and log-probabilities in float32."""
    tokenizer = load_tokenizer(TEACHER)
    prompts = [encode_prompt(tokenizer, problem.prompt) for problem in problems()]
    with Transformers(TEACHER, dtype="float32") as model:
        answers = model.generate(prompts, 24)
        logprobs_NV = model.logprobs(prompts[:4], [[len(prompt) - 1] for prompt in prompts[:4]])
        return {
            "answers": answers,
            "logprobs": logprobs_NV.tolist(),
            "speed": model.speed(32, 8),
            "device": model.device,
        }


def problems() -> Sequence[Example]:
    """What is asked for greedy answers."""
    return WordProblems(kind="word_problems", num_rows=24).load().train


def large(work: "Work") -> dict[str, Any]:
    """A job: GPU memory at the peak of a training, and what is still taken after it."""
    done = work.trained("large", LARGE)
    return {**done, "allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved()}


JOBS: dict[str, Callable[["Work"], dict[str, Any]]] = {
    **{f"asked {kind}": asked(kind) for kind in KINDS},
    "greedy": greedy,
    **{name: curve(*overrides) for name, overrides in CURVES.items()},
    **{f"{name} split": split(name) for name in CURVES},
    **{name: curve(*CURVES["dense"], *how) for name, how in SAME_AS_DENSE.items()},
    "qlora": curve(*KINDS["top_k"], *UNTIED, "adapter=qlora", "adapter.rank=4"),
    "bf16": curve(*CURVES["dense"], "training.bf16=true"),
    "twice": twice,
    "large": large,
    # last: a kernel that reads where it must not ends all that the process would do on the GPU
    **{f"{name} triton": curve(*CURVES[name], kernels="triton") for name in TRITON},
}


class Work:
    """Runs recipes below `folder`; `answers` is the store whose responses every training is given."""

    def __init__(self, folder: Path, answers: Path):
        self.folder, self.answers, self.name = folder, answers, ""
        self.seen: set[str] = set()
        self.untied = folder / "untied"
        untied_student(self.untied)
        self._note_devices()

    def run(self, name: str, overrides: Sequence[str], answers: Path | None = None) -> dict[str, Path]:
        """Runs a recipe; for each stage what it made, and "run", the run folder."""
        store = self.folder / name / "store"
        if answers is not None and not store.exists():
            wait_for(answers / READY)
            shutil.copytree(answers / "responses", store / "responses")
        os.environ["DISTILL_STORE"] = str(store)
        run = self.folder / name / f"run-{time.monotonic_ns()}"
        run.mkdir(parents=True)
        words = [word.format(untied=self.untied) for word in overrides]
        base = [word for word in BASE if "student=pretrained" not in words or not word.startswith("student.")]
        pipeline.run(parse(_hydra.compose([*base, *words]).config), run)
        events = [json.loads(line) for line in (run / "record.jsonl").read_text().splitlines()]
        self.stages = {event["name"]: event for event in events if event["event"] == "stage"}
        return {"run": run, **{stage.split()[0]: Path(event["made"]).resolve() for stage, event in self.stages.items()}}

    def trained(self, name: str, overrides: Sequence[str], kernels: str = "eager") -> dict[str, Any]:
        """The losses in nats, where it computed, and what was measured of a training."""
        os.environ["DISTILL_KERNELS"] = kernels
        self.seen.clear()
        student = self.run(name.replace(" ", "-"), overrides, self.answers)["train"]
        event = self.stages["train student"]
        return {
            "curve": [json.loads(line)["loss_nats"] for line in (student / "curve.jsonl").read_text().splitlines()],
            "devices": sorted(self.seen),
            "from_step": event["resumed_from_step"],
            "gpu_peak_bytes": event.get("gpu_peak_bytes"),
            "weights": str(student / "checkpoint" / "model.safetensors"),
            "triton": sorted(name for name in sys.modules if name.startswith("distill_kernels.triton_")),
        }

    def _note_devices(self) -> None:
        """Remembers on which devices batches are trained on and answers are written."""
        from distill.stages._step import Step

        forward, generate, seen = Step.forward, Transformers.generate, self.seen

        def noted_forward(step, batch):
            seen.add(batch["input_ids"].device.type)
            return forward(step, batch)

        def noted_generate(model, *arguments, **more):
            seen.add(next(model.model.parameters()).device.type)
            return generate(model, *arguments, **more)

        Step.forward, Transformers.generate = noted_forward, noted_generate


def wait_for(file: Path, seconds: float = 240) -> None:
    """Another process writes it."""
    until = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < until, f"{file} was not written: see what the CPU's process said"
        time.sleep(0.1)


def untied_student(folder: Path) -> None:
    """A random student with an output head of its own, and the teacher's tokenizer."""
    student = Scratch(kind="scratch", hidden_size=64, num_hidden_layers=2, tie_word_embeddings=False)
    tokenizer = load_tokenizer(TEACHER)
    student.build(tokenizer, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def deterministic() -> Iterator[None]:
    """With kernels alone whose sums have one order: attention's fastest backward has not."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def interrupted(step: int) -> Iterator[None]:
    """Ctrl-C in the middle of this step."""
    from distill.stages._trainer import DistillTrainer

    real = DistillTrainer.compute_loss

    def stopped(self, *arguments, **more):
        if self.state.global_step + 1 == step:
            raise KeyboardInterrupt
        return real(self, *arguments, **more)

    DistillTrainer.compute_loss = stopped
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        DistillTrainer.compute_loss = real


def main(folder: Path, answers: Path, names: list[str]) -> None:
    """Does the jobs; results.json is written after each."""
    work, results = Work(folder, answers), {}
    facts = {"device": "cuda" if torch.cuda.is_available() else "cpu", "tf32": torch.backends.cuda.matmul.allow_tf32}
    for name in names:
        work.name, started = name, time.monotonic()
        if not name.startswith("asked "):
            (folder / "asked" / "store").mkdir(parents=True, exist_ok=True)
            (folder / "asked" / "store" / READY).touch()
        try:
            results[name] = JOBS[name](work)
        except BaseException:
            results[name] = {"error": traceback.format_exc()}
        results[name]["seconds"] = round(time.monotonic() - started, 2)
        (folder / "results.json").write_text(json.dumps({**facts, **results}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
