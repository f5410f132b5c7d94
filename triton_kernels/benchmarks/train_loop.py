"""A short training with nothing but torch and the ops: does a student learn from its teacher with these kernels?

    DISTILL_KERNELS=triton python triton_kernels/benchmarks/train_loop.py [--tiny] [--device cpu]

For machines on which `python -m distill` cannot run. A small transformer learns the words of this repository's own
files with `linear_sparse_divergence` (cross-entropy), then a smaller one learns from it with `linear_divergence`
(JSD), once with the eager implementation and once with the triton kernels, from the same seed over the same batches.
Exit code 1 if the student did not learn, or if the two implementations led to different places.
"""

import argparse
import collections
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

import torch  # noqa: E402
from distill_kernels import linear_divergence, linear_sparse_divergence  # noqa: E402
from torch import Tensor, nn  # noqa: E402


def main(arguments: list[str]) -> int:
    """Prints a table of both implementations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    num_tokens, size, steps = (500, 32, 40) if options.tiny else (32_000, 512, 150)
    batches = Batches(words(num_tokens), device, 4 if options.tiny else 32, 32 if options.tiny else 256)
    teacher = Model(num_tokens, size, 4, device)
    text = train(teacher, batches, steps, lambda hidden, ids: from_text(hidden, teacher.head.weight, ids))
    print(f"teacher: {text.first:.3f} to {text.last:.3f} nats a token in {steps} steps of {batches.size} tokens\n")
    print("| implementation | JSD at first | in the last ten steps | tokens/s | peak MiB |\n|---|---|---|---|---|")
    curves = {}
    for name in ("eager", "triton") if device.type == "cuda" else ("eager",):
        os.environ["DISTILL_KERNELS"] = name
        curve = curves[name] = distil(teacher, batches, Model(num_tokens, size // 2, 2, device), steps)
        row = f"{curve.first:.4f} | {curve.last:.4f} | {curve.tokens_per_second:,.0f} | {curve.peak_mib:,.0f}"
        print(f"| {name} | {row} |")
    if not all(curve.last < 0.8 * curve.first for curve in curves.values()):
        print("\nThe student did not learn.")
        return 1
    ends = [curve.last for curve in curves.values()]
    if max(ends) > 1.03 * min(ends):
        print("\nThe implementations led to different losses.")
        return 1
    return 0


class Curve:
    """What a training came to."""

    def __init__(self, losses: list[float], tokens_per_second: float, peak_mib: float) -> None:
        self.first, self.last = losses[0], sum(losses[-10:]) / len(losses[-10:])
        self.tokens_per_second, self.peak_mib = tokens_per_second, peak_mib


class Model(nn.Module):
    """A causal transformer with a head of its own; seeded by its sizes, so that it is the same every time."""

    def __init__(self, num_tokens: int, size: int, num_layers: int, device: torch.device) -> None:
        super().__init__()
        torch.manual_seed(size)
        layer = nn.TransformerEncoderLayer(size, max(size // 64, 1), 4 * size, 0.0, batch_first=True, norm_first=True)
        self.embedding = nn.Embedding(num_tokens, size)
        self.position = nn.Embedding(512, size)
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, num_tokens, bias=False)
        self.to(device)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Hidden states `[B, T, H]`; the head is applied by the loss."""
        length = ids_BT.shape[1]
        hidden = self.embedding(ids_BT) + self.position.weight[:length]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids_BT.device)
        return self.norm(self.layers(hidden, mask=mask, is_causal=True))


class Batches:
    """The same random windows for everybody."""

    def __init__(self, ids: Tensor, device: torch.device, rows: int, length: int) -> None:
        self._ids, self._rows, self._length = ids.to(device), rows, length
        self.size = rows * length

    def __call__(self, steps: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            starts = torch.randint(0, len(self._ids) - self._length - 1, (self._rows,), generator=generator).tolist()
            yield torch.stack([self._ids[start : start + self._length + 1] for start in starts])


def words(num_tokens: int) -> Tensor:
    """The words of this repository's text and code, by frequency; those too rare are token 0."""
    folders = [HERE.parents[1] / name for name in ("distill", "docs", "tests", "triton_kernels")]
    files = sorted(file for folder in folders for kind in ("*.md", "*.py") for file in folder.rglob(kind))
    found = re.findall(r"\w+|[^\w\s]|\n", "\n".join(file.read_text(errors="replace") for file in files))
    ranked = [word for word, _ in collections.Counter(found).most_common(num_tokens - 1)]
    ids = {word: number for number, word in enumerate(ranked, start=1)}
    return torch.tensor([ids.get(word, 0) for word in found])


def from_text(hidden_BTH: Tensor, head_VH: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy in nats, summed."""
    labels = ids[:, 1:].int()
    return linear_sparse_divergence(hidden_BTH, head_VH, labels[..., None], 1.0, tail="sampled", labels=labels)


def distil(teacher: Model, batches: Batches, student: Model, steps: int) -> Curve:
    """Trains the student on the teacher's whole distribution."""

    def loss(hidden_BTH: Tensor, ids: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_BTH = teacher(ids[:, :-1])
        return linear_divergence(hidden_BTH, student.head.weight, teacher_BTH, teacher.head.weight, "jsd")

    return train(student, batches, steps, loss)


def train(model: Model, batches: Batches, steps: int, loss_of: Callable[[Tensor, Tensor], Tensor]) -> Curve:
    """AdamW in bfloat16 autocast."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    on_gpu = next(model.parameters()).is_cuda
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    losses, started = [], time.perf_counter()
    for number, ids in enumerate(batches(steps)):
        if number == 5:  # the first steps compile
            _ = losses[-1].item()
            started = time.perf_counter()
        with torch.autocast("cuda" if on_gpu else "cpu", torch.bfloat16):
            loss = loss_of(model(ids[:, :-1]), ids) / batches.size
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    values = torch.stack(losses).tolist()
    rate = (steps - 5) * batches.size / (time.perf_counter() - started)
    return Curve(values, rate, torch.cuda.max_memory_allocated() / 2**20 if on_gpu else float("nan"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
