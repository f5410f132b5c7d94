"""How far a few token ids per position turn the gradient of forward KL, and whether they do so on average.

A real teacher (stories260k: 260,032 parameters, 512 tokens) and a student of its first two layers, trained until it
is 0.83 nats away. The gradient over all of the student's parameters, on 4,096 tokens that it was not trained on, from
the teacher's whole distributions and from what is left of them after the store's own encoding.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py

needs `distill` and `distill_kernels` installed, and stories260k and tinystories in ../shared/data beside the repository
or in the folder that DISTILL_SHARED_DATA names. Prints the table of docs/sampling.md; about three minutes of one core.
"""

import argparse
import copy
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from distill_kernels import linear_divergence, linear_sparse_divergence
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from distill._shards import key_of
from distill.targets import Layout, Places
from distill.targets.packing import bits_for
from distill.targets.sampled import SampledTargets
from distill.targets.sampling import systematic_draws, uniform_of
from distill.targets.top_k import POSITION_BYTES, TopKTargets

# B rows, T token ids of a row, N = B (T - 1) positions, V vocabulary, K token ids kept, D hidden size, P parameters

NUM_ROWS, ROW_TOKENS = 16, 257
KL_NATS = 0.83
LARGE_VOCAB = 151_936
SHARED_DATA = Path(os.environ.get("DISTILL_SHARED_DATA", Path(__file__).parent / "../../shared/data"))


def main() -> None:
    """Prints the table, and below it what it takes to match independent draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="of the draws whose mean is compared with dense")
    parser.add_argument("--few-seeds", type=int, default=10, help="of the other rows, which show an angle only")
    arguments = parser.parse_args()

    scene = Scene.prepare()
    print(f"{scene.num_positions} positions, student at {scene.kl_nats:.3f} nats, {scene.dense_P.numel()} parameters\n")
    print("| targets | distinct ids | bytes | angle | angle of the mean | beyond 3 standard errors |")
    print("|---|---|---|---|---|---|")
    results = {}
    for name, method in methods(scene, arguments.seeds, arguments.few_seeds):
        results[name] = measure(scene, method)
        print(f"| {name} | {results[name].line()} |", flush=True)

    independent = results["independent, 50 draws"]
    match = next(
        (name, results[name])
        for name in sorted((n for n in results if n.startswith("systematic")), key=lambda n: results[n].size_bytes)
        if results[name].angle_degrees <= independent.angle_degrees
    )
    share = match[1].size_bytes / independent.size_bytes
    print(f"\nThe angle of 50 independent draws: {match[0]}, {share:.2f} x the bytes.")


@dataclass(frozen=True)
class Scene:
    """The teacher's distributions at some positions, and a student whose hidden states there are differentiable."""

    keys: list[bytes]
    input_ids_N: Tensor
    logprobs_NV: Tensor
    hidden_ND: Tensor
    student: LlamaForCausalLM
    dense_P: Tensor
    kl_nats: float

    @classmethod
    def prepare(cls) -> "Scene":
        """The same scene each time: text in the data's order, a student from seed 0."""
        teacher = AutoModelForCausalLM.from_pretrained(SHARED_DATA / "stories260k", dtype=torch.float32).eval()
        rows_BT = story_rows()
        held_out_BT, train_BT = rows_BT[:NUM_ROWS], rows_BT[NUM_ROWS:]
        student = trained_student(teacher, train_BT, held_out_BT)
        with torch.no_grad():
            teacher_ND = hidden_states(teacher, held_out_BT)
            logprobs_NV = teacher.lm_head(teacher_ND).log_softmax(-1)
        hidden_ND = hidden_states(student, held_out_BT)
        loss = linear_divergence(hidden_ND, student.lm_head.weight, teacher_ND, teacher.lm_head.weight, "forward_kl")
        return cls(
            keys=[key_of(row_T) for row_T in held_out_BT.numpy()],
            input_ids_N=held_out_BT[:, :-1].flatten(),
            logprobs_NV=logprobs_NV,
            hidden_ND=hidden_ND,
            student=student,
            dense_P=gradient(student, loss),
            kl_nats=loss.item() / len(hidden_ND),
        )

    @property
    def num_positions(self) -> int:
        """N."""
        return len(self.logprobs_NV)

    def uniform_N(self, seed: int) -> Tensor:
        """The number that each position is drawn with."""
        return torch.from_numpy(np.concatenate([uniform_of(key, seed, range(ROW_TOKENS - 1)) for key in self.keys]))


@dataclass(frozen=True)
class Kept:
    """What is left of the distributions, as the loss takes it; `num_distinct` token ids in all, in `size_bytes`."""

    token_ids_NK: np.ndarray
    values_NK: np.ndarray
    tail: str
    num_distinct: int
    size_bytes: float


@dataclass(frozen=True)
class Method:
    """One row of the table; `variance_NV` of the weights, where the mean over the seeds is compared with dense."""

    keep: Callable[[int], Kept]
    num_seeds: int = 1
    variance_NV: Tensor | None = None


def methods(scene: Scene, seeds: int, few_seeds: int) -> Iterator[tuple[str, Method]]:
    """The rows of the table."""
    p_NV = scene.logprobs_NV.double().exp()
    fraction_NV = (50 * p_NV).frac()
    yield "independent, 50 draws", Method(lambda seed: independent(scene, 50, seed), seeds, p_NV * (1 - p_NV) / 50)
    every = Method(lambda seed: systematic(scene, 50, seed), seeds, fraction_NV * (1 - fraction_NV) / 50**2)
    yield "systematic, 50 draws", every
    for draws in (25, 16, 15, 14, 13, 12):
        yield f"systematic, {draws} draws", Method(lambda seed, n=draws: systematic(scene, n, seed), few_seeds)
    yield (
        "systematic, 50 draws, ids shuffled",
        Method(lambda seed: systematic(scene, 50, seed, shuffle=True), few_seeds),
    )
    yield "top 12, renormalised", Method(lambda _: top_k(scene, 12, "renormalize"))
    for k in (12, 32):
        yield f"top {k} + tail bucket", Method(lambda _, k=k: top_k(scene, k, "bucket"))
    yield (
        "exact top 8 + 4 systematic draws of the rest",
        Method(lambda seed: top_and_sampled(scene, 8, 4, seed), few_seeds),
    )


def systematic(scene: Scene, draws: int, seed: int, shuffle: bool = False) -> Kept:
    """What the store keeps by default."""
    order_V = torch.arange(scene.logprobs_NV.shape[1])
    if shuffle:
        order_V = torch.randperm(len(order_V), generator=torch.Generator().manual_seed(0))
    drawn_ND = order_V[systematic_draws(scene.logprobs_NV[:, order_V].exp(), scene.uniform_N(seed), draws)]
    return of_draws(scene, drawn_ND, draws)


def independent(scene: Scene, draws: int, seed: int) -> Kept:
    """Random-sampling knowledge distillation, arXiv:2503.16870: each draw with a number of its own."""
    generator = torch.Generator().manual_seed(seed)
    cumulative_NV = scene.logprobs_NV.double().exp().cumsum(-1)
    uniform_ND = torch.rand(scene.num_positions, draws, dtype=torch.float64, generator=generator)
    return of_draws(scene, torch.searchsorted(cumulative_NV, uniform_ND * cumulative_NV[:, -1:], right=True), draws)


def of_draws(scene: Scene, drawn_ND: Tensor, draws: int) -> Kept:
    """Drawn ids after the store's encoding."""
    targets = SampledTargets.of_draws(drawn_ND.sort(-1).values.numpy(), np.zeros(len(drawn_ND)))
    arrays = through_bytes(targets, Layout("sampled", scene.logprobs_NV.shape[1], draws))
    num_distinct = len(targets.token_ids_E)
    entry_bits = bits_for(LARGE_VOCAB) + bits_for(draws)
    size_bytes = 2 * len(targets) + num_distinct * entry_bits / 8
    return Kept(arrays["token_ids"], arrays["values"], "sampled", num_distinct, size_bytes)


def top_k(scene: Scene, k: int, tail: str) -> Kept:
    """The likeliest ids and their quantised log-probabilities; the rest is forgotten, or one bucket."""
    logprobs_NK, ids_NK = (part.numpy() for part in scene.logprobs_NV.topk(k))
    mass_N = np.exp(logprobs_NK.astype(np.float64)).sum(1)
    nothing_N = np.zeros(len(mass_N), dtype=np.float32)
    tail_N = np.log(np.maximum(1 - mass_N, 1e-300)).astype(np.float32)
    targets = TopKTargets(ids_NK.astype(np.int32), logprobs_NK, tail_N, nothing_N, nothing_N)
    arrays = through_bytes(targets, Layout("top_k", scene.logprobs_NV.shape[1], k))
    size_bytes = len(targets) * (POSITION_BYTES + k * (bits_for(LARGE_VOCAB) + 8) / 8)
    values = arrays["values"] if tail == "bucket" else arrays["values"][:, :k]
    return Kept(arrays["token_ids"], values, tail, k * len(targets), size_bytes)


def top_and_sampled(scene: Scene, k: int, draws: int, seed: int) -> Kept:
    """The likeliest ids with their probabilities, and for the rest draws that share its mass."""
    logprobs_NK, ids_NK = scene.logprobs_NV.topk(k)
    others_NV = scene.logprobs_NV.scatter(1, ids_NK, -torch.inf)
    drawn = of_draws(scene, systematic_draws(others_NV.exp(), scene.uniform_N(seed), draws), draws)
    mass_N1 = (1 - logprobs_NK.double().exp().sum(1, keepdim=True)).clamp(min=0).numpy()
    # two bytes more a position for the tail's mass and two for the range of the log-probabilities
    size_bytes = drawn.size_bytes + scene.num_positions * (4 + k * (bits_for(LARGE_VOCAB) + 8) / 8)
    return Kept(
        np.concatenate([ids_NK.int().numpy(), drawn.token_ids_NK], axis=1),
        np.concatenate([logprobs_NK.exp().numpy(), (drawn.values_NK * mass_N1).astype(np.float32)], axis=1),
        "sampled",
        drawn.num_distinct + k * scene.num_positions,
        size_bytes,
    )


def through_bytes(targets: SampledTargets | TopKTargets, layout: Layout) -> dict[str, np.ndarray]:
    """What a batch of one row holds after the targets were written and read."""
    data = memoryview(targets.to_bytes(layout))
    read = type(targets).from_bytes(data, len(targets), layout)
    batch = type(targets).batch([read], Places((1, len(targets)), [0], [len(targets)]), layout)  # type: ignore[list-item]
    return {name: array[0] for name, array in batch.items()}


@dataclass(frozen=True)
class Result:
    """Means over the seeds: distinct ids and bytes per position at 151,936 tokens, the angle to the dense gradient."""

    num_distinct: float
    size_bytes: float
    angle_degrees: float
    mean_angle_degrees: float
    beyond: float | None

    def line(self) -> str:
        """The cells of the table."""
        beyond = "" if self.beyond is None else f"{self.beyond:.2%}"
        means = f"{self.num_distinct:.1f} | {self.size_bytes:.1f} | {self.angle_degrees:.2f}°"
        return f"{means} | {self.mean_angle_degrees:.2f}° | {beyond}"


def measure(scene: Scene, method: Method) -> Result:
    """One method: each seed's gradient against the dense one, and their mean against it."""
    sum_P, squares_P = torch.zeros_like(scene.dense_P), torch.zeros_like(scene.dense_P)
    angles, distinct, sizes = [], [], []
    for seed in range(method.num_seeds):
        kept = method.keep(seed)
        loss = linear_sparse_divergence(
            scene.hidden_ND,
            scene.student.lm_head.weight,
            torch.from_numpy(kept.token_ids_NK),
            torch.from_numpy(kept.values_NK),
            tail=kept.tail,
        )
        gradient_P = gradient(scene.student, loss)
        error_P = gradient_P - scene.dense_P
        sum_P += error_P
        squares_P += error_P**2
        angles.append(angle(gradient_P, scene.dense_P))
        distinct.append(kept.num_distinct / scene.num_positions)
        sizes.append(kept.size_bytes / scene.num_positions)
    mean_P = sum_P / method.num_seeds
    mean_angle = angle(mean_P + scene.dense_P, scene.dense_P)
    beyond = None
    if method.variance_NV is not None:
        variance_P = (squares_P - method.num_seeds * mean_P**2).clamp(min=0) / (method.num_seeds - 1)
        put_exact_variance(scene, variance_P, method.variance_NV)
        beyond = (mean_P.abs() > 3 * (variance_P / method.num_seeds).sqrt()).double().mean().item()
    return Result(float(np.mean(distinct)), float(np.mean(sizes)), float(np.mean(angles)), mean_angle, beyond)


def put_exact_variance(scene: Scene, variance_P: Tensor, weight_variance_NV: Tensor) -> None:
    """Replaces the estimate for tokens that the student never reads: their rows are hidden states times weights.

    Most of them are so unlikely that 200 seeds draw them never, and the estimate is a variance of zero.
    """
    name, embedding_VD = next(scene.student.named_parameters())
    assert name == "model.embed_tokens.weight" and embedding_VD is scene.student.lm_head.weight
    exact_VD = weight_variance_NV.T @ scene.hidden_ND.detach().double() ** 2
    is_read_V = scene.input_ids_N.bincount(minlength=len(embedding_VD)) > 0
    variance_VD = variance_P[: embedding_VD.numel()].view_as(exact_VD)  # the first parameter
    variance_VD[~is_read_V] = exact_VD[~is_read_V]


def gradient(student: LlamaForCausalLM, loss: Tensor) -> Tensor:
    """Over all parameters in one float64 vector; the graph stays for the next loss."""
    parts = torch.autograd.grad(loss, list(student.parameters()), retain_graph=True)
    return torch.cat([part.reshape(-1).double() for part in parts])


def angle(a_P: Tensor, b_P: Tensor) -> float:
    """Degrees between two gradients."""
    return math.degrees(math.acos(min(1.0, (a_P @ b_P / (a_P.norm() * b_P.norm())).item())))


def story_rows() -> Tensor:
    """Token ids `[B, T]`: the stories one after another, each with its beginning mark, cut into rows."""
    tokenizer = AutoTokenizer.from_pretrained(SHARED_DATA / "stories260k")
    lines = (SHARED_DATA / "tinystories" / "stories.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [next(iter(json.loads(line).values())) for line in lines]
    ids = [i for text in texts if text.isascii() for i in tokenizer(text)["input_ids"]]
    num_rows = len(ids) // ROW_TOKENS
    return torch.tensor(ids[: num_rows * ROW_TOKENS]).view(num_rows, ROW_TOKENS)


def trained_student(teacher: LlamaForCausalLM, train_BT: Tensor, held_out_BT: Tensor) -> LlamaForCausalLM:
    """The teacher without its last three layers, taught with dense targets until the held-out rows are KL_NATS away."""
    torch.manual_seed(0)
    student = copy.deepcopy(teacher)
    student.model.layers = student.model.layers[:2]
    student.config.num_hidden_layers = 2
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3, betas=(0.9, 0.98))
    for step in range(1, 1001):
        optimizer.zero_grad()
        kl(student, teacher, train_BT[torch.randint(len(train_BT), (8,))]).backward()
        optimizer.step()
        if step % 10 == 0:
            with torch.no_grad():
                kl_nats = kl(student, teacher, held_out_BT).item()
            print(f"\rstep {step}: {kl_nats:.3f} nats", end="", file=sys.stderr, flush=True)
            if kl_nats < KL_NATS:
                return student
    raise SystemExit(f"the student did not come within {KL_NATS} nats of the teacher")


def kl(student: LlamaForCausalLM, teacher: LlamaForCausalLM, rows_BT: Tensor) -> Tensor:
    """Forward KL in nats, the mean over positions."""
    hidden_ND = hidden_states(student, rows_BT)
    with torch.no_grad():
        teacher_ND = hidden_states(teacher, rows_BT)
    loss = linear_divergence(hidden_ND, student.lm_head.weight, teacher_ND, teacher.lm_head.weight, "forward_kl")
    return loss / len(hidden_ND)


def hidden_states(model: LlamaForCausalLM, rows_BT: Tensor) -> Tensor:
    """`[N, D]`, of all positions that have a next token."""
    return model.model(input_ids=rows_BT[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)


if __name__ == "__main__":
    main()
