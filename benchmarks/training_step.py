"""What sampled targets cost: a training step beside plain cross-entropy, and teaching beside the teacher alone.

    python benchmarks/training_step.py

needs `distill` installed; two minutes on two cores. A random Llama of 256 x 4 over 32,000 tokens is the student, one of
512 x 8 the teacher: speed does not depend on what they have learnt. Prediction: a step within 1.05 of cross-entropy,
which it is but for 10 ids instead of one a position; drawing 10 % of a teacher as small as this, writing 1 %.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill._shards import Row
from distill._store_writer import StoreWriter
from distill.family.head import hidden_states, output_head
from distill.loss._divergence import StudentOutput
from distill.loss.forward_kl import ForwardKl
from distill.loss.text import Text
from distill.responses import Header, TeacherResponses, TeacherTargets
from distill.stages._rows import TokenRow, collate
from distill.targets import Layout
from distill.targets.make import make
from distill.targets.sampling import uniform_of

VOCAB_SIZE, DRAWS = 32_000, 50
ROWS, ROW_TOKENS = 16, 128
REPETITIONS = 15
LOSSES = {"sampled": ForwardKl(kind="forward_kl"), "text": Text(kind="text")}


def main() -> None:
    """Prints two tables."""
    with tempfile.TemporaryDirectory() as folder:
        teaching = teach(Path(folder))
        store = TeacherResponses(Path(folder))
        seconds = steps(store)
        peaks = {name: peak_of(name, Path(folder)) for name in LOSSES}
    print(f"| a step of {ROWS} rows of {ROW_TOKENS} tokens, {VOCAB_SIZE:,} in all | time | peak memory |")
    print("|---|---|---|")
    for name in LOSSES:
        ratio, memory = seconds[name] / seconds["text"], peaks[name] / peaks["text"]
        print(f"| loss={LOSSES[name].kind} | {ratio:.3f} x | {memory:.3f} x ({peaks[name] / 2**20:.0f} MiB) |")
    print("\n| teaching | share of the time |\n|---|---|")
    for name, took in teaching.items():
        print(f"| {name} | {took / sum(teaching.values()):.1%} |")


def teach(folder: Path) -> dict[str, float]:
    """Writes the store, and says how many seconds the teacher's forward, drawing and writing took."""
    teacher = llama(512, 8).to(torch.bfloat16).eval()
    rng, layout = np.random.default_rng(0), Layout("sampled", VOCAB_SIZE, DRAWS)
    took = {"the teacher's forward and head": 0.0, "drawing": 0.0, "packing and writing": 0.0}
    sizes = {"vocab_size": VOCAB_SIZE, "kept": DRAWS, "num_rows": ROWS * 4}
    header = Header(teacher="random", engine="", dtype="bfloat16", kind="sampled", **sizes)
    writer = StoreWriter(folder, header, [range(i, i + ROWS) for i in range(0, ROWS * 4, ROWS)])
    with torch.inference_mode():
        for numbers in writer.missing():
            ids_BT = rng.integers(0, VOCAB_SIZE, size=(ROWS, ROW_TOKENS)).astype(np.int32)
            input_BT = torch.from_numpy(ids_BT).long()
            started = time.perf_counter()
            hidden_BTD = hidden_states(teacher, input_BT, torch.ones_like(input_BT))
            took["the teacher's forward and head"] += time.perf_counter() - started
            rows = []
            for b, number in enumerate(numbers):
                row = Row(number, "", "teacher", ids_BT[b], 1)
                started = time.perf_counter()
                logits_TV = output_head(teacher).logits(hidden_BTD[b, :-1]) * 12  # as sure as a trained one
                answered = time.perf_counter()
                uniform_T = torch.from_numpy(uniform_of(row.key, 0, range(ROW_TOKENS - 1)))
                targets = make(layout, logits_TV, input_BT[b, 1:], uniform_N=uniform_T)
                took["drawing"] += time.perf_counter() - answered
                took["the teacher's forward and head"] += answered - started
                rows.append(Row(number, "", "teacher", ids_BT[b], 1, targets))
            started = time.perf_counter()
            writer.write(rows)
            took["packing and writing"] += time.perf_counter() - started
    writer.finish()
    return took


def steps(store: TeacherResponses) -> dict[str, float]:
    """Median seconds of a step with each loss, turn by turn in one process, reading the store included."""
    runs = {name: Step(name, store) for name in LOSSES}
    took: dict[str, list[float]] = {name: [] for name in LOSSES}
    for repetition in range(REPETITIONS + 2):
        for name, step in runs.items():
            started = time.perf_counter()
            step.run(repetition)
            took[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds[2:]) for name, seconds in took.items()}


class Step:
    """One optimisation of the student with a loss: rows from the store, forward, loss, backward, AdamW."""

    def __init__(self, name: str, store: TeacherResponses):
        self.loss, self.name, self.store = LOSSES[name], name, store
        self.student = llama(256, 4)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=1e-4)

    def run(self, number: int) -> None:
        chosen = [(number * ROWS + i) % len(self.store) for i in range(ROWS)]
        rows = [TokenRow(n, ROW_TOKENS, 1, self.store) for n in chosen]
        vocab_size = VOCAB_SIZE if self.name == "sampled" else None
        batch = collate(rows, pad_id=0, prompt_weight=0.0, target_vocab=vocab_size)
        targets = TeacherTargets.of_batch("sampled", 1.0, batch) if self.name == "sampled" else None
        with torch.autocast("cpu", torch.bfloat16):
            head = output_head(self.student)
            student = StudentOutput(
                hidden_BTD=hidden_states(self.student, batch["input_ids"], batch["attention_mask"]),
                head_VD=head.weight_VD,
                labels_BT=batch["labels"],
                weights_BT=batch["weights"],
            )
            terms = self.loss(student, targets)  # type: ignore[arg-type]
        (terms.total / terms.tokens).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def peak_of(name: str, store: Path) -> int:
    """Peak resident bytes of a process that takes three steps."""
    ran = subprocess.run([sys.executable, __file__, name, str(store)], capture_output=True, text=True, check=True)
    return int(ran.stdout)


def llama(size: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": size, "intermediate_size": 2 * size, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, num_attention_heads=size // 64, **shape))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        step = Step(sys.argv[1], TeacherResponses(Path(sys.argv[2])))
        for number in range(3):
            step.run(number)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    else:
        main()
