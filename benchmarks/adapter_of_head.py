"""What a LoRA on the output head costs: beside none there, a head that is trained whole, and PEFT with full logits.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/adapter_of_head.py

needs `distill` installed; three minutes on two cores. A random Llama of 512 x 1 over 32,000 tokens is the student, one
of 1024 x 1 beside it the teacher; JSD of 1,024 tokens in float32, forward and backward. Each way runs in a process of
its own; a round is one step of each. Prediction: 1.05 of the time without an adapter there (10 % more products at rank
64, of which the body hides some) and the same memory; PEFT with full logits twice the time and ten times the memory.
Measured: 1.06 and the same; 3.8 times and 11 times.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from distill.loss.jsd import Jsd
from distill.runtime.bnb import import_bitsandbytes
from distill.stages._step import Step

VOCAB_SIZE, ROWS, ROW_TOKENS, RANK = 32_000, 4, 256, 64
REPETITIONS = 15
WAYS = {
    "none": "no adapter on the head",
    "fused": "LoRA on the head",
    "whole": "the head itself trained",
    "full_logits": "LoRA on the head, PEFT's forward with full logits",
}
Way = subprocess.Popen[str]


def main() -> None:
    """Prints a table."""
    ways = {name: _start(name) for name in WAYS}
    told = [{name: _ask(way) for name, way in ways.items()} for _ in range(REPETITIONS + 2)][2:]
    for way in ways.values():
        way.terminate()
    print(
        f"| {ROWS * ROW_TOKENS:,} tokens, rank {RANK} | time (p20 to p80) | memory beside the weights |\n|---|---|---|"
    )
    for name, said in WAYS.items():
        ratio = sorted(each[name]["seconds"] / each["none"]["seconds"] for each in told)
        fifth = len(ratio) // 5
        peak = max(each[name]["peak_bytes"] for each in told) / 2**20
        middle = statistics.median(ratio)
        print(f"| {said} | {middle:.2f} ({ratio[fifth]:.2f} to {ratio[-1 - fifth]:.2f}) x | {peak:,.0f} MiB |")


def _start(name: str) -> Way:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, __file__, name], stdin=pipe, stdout=pipe, text=True)


def _ask(way: Way) -> dict[str, float]:
    assert way.stdin and way.stdout
    way.stdin.write("step\n")
    way.stdin.flush()
    return json.loads(way.stdout.readline())


class FullLogits(nn.Module):
    """What autograd does with the models' own logits: JSD of the counted tokens, from its definition."""

    def __init__(self, student: Any, teacher: Any):
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        counted = batch["labels"] != -100
        logq = self.student(input_ids=batch["input_ids"]).logits[counted].log_softmax(-1)
        with torch.no_grad():
            logp = self.teacher(input_ids=batch["input_ids"]).logits[counted].log_softmax(-1)
        half = torch.tensor(0.5).log()
        logm = torch.logaddexp(logp + half, logq + half)
        return 0.5 * ((logp.exp() * (logp - logm)).sum() + (logq.exp() * (logq - logm)).sum())


def step_of(name: str) -> tuple[nn.Module, Any]:
    """(what gives the loss of a batch, the student)."""
    student, teacher = llama(512), llama(1024).requires_grad_(False)
    import_bitsandbytes()
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "v_proj"] + (["lm_head"] if name in {"fused", "full_logits"} else [])
    adapted = get_peft_model(student, LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules=targets))
    if name == "whole":
        student.lm_head.weight.requires_grad_(True)
    if name == "full_logits":
        return FullLogits(adapted, teacher), adapted
    return Step(adapted, Jsd(kind="jsd"), teacher=teacher, bf16=False), adapted


def llama(size: int) -> LlamaForCausalLM:
    torch.manual_seed(size)
    shape = {"hidden_size": size, "intermediate_size": 2 * size, "num_hidden_layers": 1}
    heads = {"num_attention_heads": size // 64, "tie_word_embeddings": False}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, **shape, **heads))


def serve(name: str) -> None:
    """A step for each line that is read; its seconds, and the peak of resident memory above what there was before."""
    step, student = step_of(name)
    ids = torch.randint(0, VOCAB_SIZE, (ROWS, ROW_TOKENS), generator=torch.Generator().manual_seed(0))
    labels = torch.cat([ids[:, 1:], torch.full((ROWS, 1), -100)], dim=1)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "weights": labels.ge(0).float(),
    }
    for _ in sys.stdin:
        Path("/proc/self/clear_refs").write_text("5")  # from here the kernel measures the peak anew
        before, started = _resident("VmRSS"), time.perf_counter()
        step(batch).backward()
        took = time.perf_counter() - started
        student.zero_grad()
        print(json.dumps({"seconds": took, "peak_bytes": _resident("VmHWM") - before}), flush=True)


def _resident(what: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1])
    else:
        main()
