"""What processes hold of models that are cut, and what it took them: `python loading.py FOLDER CASES`.

CASES is a JSON list of {"name": …}: `memory` measures what reading and cutting a student and a live teacher took;
`fails` notes when which process ended; `order` notes who read before whom where nothing is cut; any other name compares
both, once they are cut, with what one process reads, bit for bit.
The leader prints one JSON line per case: what each process found.
"""

import json
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill import distributed
from distill.adapter.lora import Lora
from distill.adapter.none import NoAdapter
from distill.loss.text import Text
from distill.runtime._outline import outline_of
from distill.runtime.hf import load_model
from distill.stages import _sharding
from distill.stages._loading import Source, read_student
from distill.stages._step import Step
from distill.stages._together import cut_models
from distill.stages.train import _build
from distill.student.pretrained import Pretrained
from distill.student.scratch import Scratch
from tests.distributed.processes import end_together

ADAPTER = {"none": NoAdapter(kind="none"), "lora": Lora(kind="lora", rank=4)}


@dataclass(frozen=True)
class Asked:
    """The part of a recipe that decides what is built."""

    student: Any
    adapter: Any
    seed: int = 3


class Words:
    """The length of a vocabulary and its special ids are what a student from scratch takes from a tokenizer."""

    bos_token_id, eos_token_id, pad_token_id = None, 0, 0

    def __len__(self) -> int:
        return 101


def student_of(folder: Path, case: dict) -> Source:
    layers = case.get("layers")
    student = Scratch(kind="scratch", hidden_size=48)
    if case["student"] != "scratch":
        here = folder / case["student"].format(rank=distributed.world().rank)
        student = Pretrained(kind="pretrained", model=str(here), layers=layers)
    build = partial(_build, Asked(student, ADAPTER[case.get("adapter", "none")]), Words(), folder)
    return Source(lambda device: build(), partial(build, outline=True))


def teacher_of(folder: Path, dtype: str | None = None) -> Source:
    """As `distill.stages.train` opens a live one; dtype None is the one that is stored."""
    return Source(
        lambda device: load_model(folder, dtype=dtype, device=device).requires_grad_(False),
        lambda: outline_of(folder).requires_grad_(False),
    )


def cut_both(folder: Path, case: dict, world: distributed.World) -> tuple[Step, Any, bool]:
    """The student's step and the teacher, cut; and whether this process had no storage for the student before."""
    student = read_student(student_of(folder, case), "full", world)
    was_empty = all(tensor.is_meta for tensor in [*student.parameters(), *student.buffers()])
    checkpoint = folder / case["checkpoint"] if "checkpoint" in case else None
    teacher = teacher_of(folder / case["teacher"], case.get("dtype")) if "teacher" in case else None
    cut, teacher, states = cut_models(student, teacher, "full", world, checkpoint, bf16=case.get("bf16", False))
    assert cut
    step = Step(student, Text(kind="text"), teacher=teacher, teacher_states=states, bf16=False)
    _sharding.root(step, _sharding.mesh_of(world))
    return step, teacher, was_empty


def differences(cut: Any, whole: Any) -> list[str]:
    """The tensors of `cut`, gathered, that are not those of `whole` in name, place, dtype and every bit."""
    found, expected = named(cut), named(whole)
    wrong = [f"{name} is in one only" for name in found.keys() ^ expected.keys()]
    for name in sorted(found.keys() & expected.keys()):  # all processes gather in one order
        mine, theirs = found[name].detach(), expected[name].detach()
        assert not mine.is_meta
        if hasattr(mine, "full_tensor"):
            held, rows = mine.to_local().numel(), -(-len(theirs) // distributed.world().size)
            mine = mine.full_tensor()
            if held > rows * theirs[0].numel():
                wrong.append(f"{name} is not cut")
        if mine.dtype != theirs.dtype or not torch.equal(as_bytes(mine), as_bytes(theirs)):
            wrong.append(name)
        if found[name].requires_grad != expected[name].requires_grad:
            wrong.append(f"{name} is trained in one only")
    if places(cut) != places(whole):
        wrong.append("other weights are tied")
    return wrong


def named(model: Any) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def places(model: Any) -> list[set[str]]:
    """The names that each weight goes by."""
    names: dict[int, set[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), set()).add(name)
    return sorted(names.values(), key=min)


def same(folder: Path, case: dict, world: distributed.World) -> dict[str, Any]:
    step, teacher, was_empty = cut_both(folder, case, world)
    whole = student_of(folder, case).read("cpu")
    if "checkpoint" in case:
        from distill.stages._checkpoints import load_checkpoint

        load_checkpoint(whole, folder / case["checkpoint"])
    told: dict[str, Any] = {"empty": was_empty, "student": differences(step.student, whole)}
    told["tensors"] = len(named(step.student))
    if teacher is not None:
        told["teacher"] = differences(teacher, teacher_of(folder / case["teacher"]).read("cpu"))
        told["dtype"] = str(teacher.dtype)
    return told


def memory(folder: Path, case: dict, world: distributed.World) -> dict[str, int]:
    """Bytes beyond what this process had before: its own at most (looked at every millisecond), and resident at most.

    Files that are mapped are resident too while they are read, though the system may drop them at any time.
    """
    cut_both(folder, {**case, "student": "small", "teacher": "small"}, world)  # imports and libraries are there now
    world.wait()
    # sets VmHWM, the most that was ever resident, to what is resident now
    Path("/proc/self/clear_refs").write_text("5")
    own, resident, most, over = status("RssAnon"), status("VmRSS"), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            most[0] = max(most[0], status("RssAnon"))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    step, teacher, _ = cut_both(folder, case, world)
    over.set()
    watching.join()
    parts = sum(t.to_local().nbytes for model in (step.student, teacher) for t in model.parameters())
    return {"own": most[0] - own, "resident": status("VmHWM") - resident, "parts": parts}


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024


def fails(folder: Path, case: dict, world: distributed.World) -> dict[str, Any]:
    """Never returns; each process leaves the time at which the leader failed, or at which it was told to end."""
    try:
        cut_both(folder, case, world)
    except (SystemExit, Exception):
        (folder / f"{case['name']}-{world.rank}.time").write_text(str(time.time()))
        raise
    raise AssertionError("nothing failed")


def order(folder: Path, case: dict, world: distributed.World) -> dict[str, Any]:
    """Whether the leader had read when this process began to, and that nobody built an outline."""
    found, read = [], student_of(folder, case).read

    def noted(device: str | None) -> Any:
        found.append((folder / "leader-has-read").exists())
        model = read(device)
        if world.leads:
            (folder / "leader-has-read").touch()
        return model

    model = read_student(Source(noted, partial(sys.exit, "an outline was built")), case["sharding"], world)
    world.wait()
    (folder / "leader-has-read").unlink(missing_ok=True)
    return {"leader_had_read": found, "whole": not any(weight.is_meta for weight in model.parameters())}


def cases(world: distributed.World) -> None:
    torch.set_num_threads(1)
    world.connect()
    world.on_failure = partial(print, file=sys.stderr, flush=True)
    for case in json.loads(sys.argv[2]):
        found = {"memory": memory, "fails": fails, "order": order}.get(case["name"], same)
        told = world.gather(found(Path(sys.argv[1]), case, world))
        if world.leads:
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    end_together(cases)
