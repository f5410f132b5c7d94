"""Cases: the rows that are timed, and their inputs. N rows, H hidden size, V vocabulary, K token ids per row."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the benchmark: which op, on which shapes, with which options."""

    name: str
    op: str
    """logits: both logits are there. linear: hidden states and heads. sparse: the teacher is K token ids a row."""
    kind: str
    num_rows: int
    num_tokens: int
    student_size: int = 0
    teacher_size: int = 0
    teacher_tokens: int = 0
    """V of the teacher where it is not the student's."""
    kept: int = 0
    """K."""
    tail: str = "bucket"
    dtype: torch.dtype = torch.bfloat16
    options: dict[str, Any] = field(default_factory=dict)
    """As the public ops take them."""
    masked: float = 0.0
    """Share of the rows whose label is ignored."""
    frozen_head: bool = False
    no_grad: bool = False
    cuda_graph: bool = False
    target_ms: float | None = None
    """On an H200, from the roofline that the kernels were designed with."""

    @property
    def title(self) -> str:
        """The case in one cell: divergence, shapes, dtype and what is special."""
        sizes = {
            "logits": "",
            "linear": f" H {self.student_size}/{self.teacher_size}",
            "sparse": f" H {self.student_size} K {self.kept} {self.tail}",
        }[self.op]
        special = [name for name in ("frozen_head", "no_grad", "cuda_graph") if getattr(self, name)]
        special += [f"{name}={value:g}" for name, value in self.options.items()]
        special += [f"{self.masked:.0%} masked"] * (self.masked > 0)
        special += [f"V_t {self.teacher_tokens}"] * (self.teacher_tokens > 0)
        dtype = str(self.dtype).removeprefix("torch.")
        return " ".join([f"{self.kind} N {self.num_rows}{sizes} V {self.num_tokens} {dtype}", *special])

    @property
    def flops(self) -> float:
        """Of the matrix products that no implementation can leave out."""
        rows = self.num_rows * (1 - self.masked)
        wanted = 1 if self.no_grad else 2 if self.frozen_head else 3
        return 2.0 * rows * self.num_tokens * (wanted * self.student_size + self.teacher_size)

    @property
    def bytes_moved(self) -> float:
        """For logits: each read once, and each gradient written once."""
        return float(self.num_rows * self.num_tokens * self.dtype.itemsize * (2 if self.no_grad else 3))

    def tiny(self) -> "Case":
        """The same in a thousandth of a second, for tests."""
        sizes = {"student_size": min(self.student_size, 16), "teacher_size": min(self.teacher_size, 24)}
        wider = 103 if self.teacher_tokens else 0
        return replace(self, num_rows=24, num_tokens=96, teacher_tokens=wider, kept=min(self.kept, 8), **sizes)


def cpu_cases() -> list[Case]:
    """Two vocabularies, two divergences, two dtypes."""
    rows = []
    for label, num_rows, student_size, teacher_size, num_tokens in (
        ("32k", 1024, 512, 1024, 32_000),
        ("2k", 2048, 128, 256, 2048),
    ):
        sizes = {"num_rows": num_rows, "student_size": student_size, "teacher_size": teacher_size}
        for short, kind in (("kl", "forward_kl"), ("jsd", "jsd")):
            for dtype in (torch.bfloat16, torch.float32):
                name = f"{label}-{short}-{'bf16' if dtype is torch.bfloat16 else 'fp32'}"
                rows.append(Case(name=name, op="linear", kind=kind, num_tokens=num_tokens, dtype=dtype, **sizes))
    return rows


def gpu_cases() -> list[Case]:
    """What a large GPU is asked, the decisive ones first: a run that is out of time has them."""
    decisive = ("b4", "a2", "a4", "b5", "c1", "a1", "b1", "a6")
    cases = {case.name: case for case in (*_linear(), *_logits(), *_sparse(), *_special())}
    return [*(cases.pop(name) for name in decisive), *cases.values()]


def _linear() -> list[Case]:
    rows = [
        ("b4", "jsd", 8192, 4096, 4096, 128_256, 50.0),
        ("b5", "forward_kl", 8192, 4096, 8192, 128_256, 61.0),
        ("b1", "jsd", 8192, 2048, 4096, 32_000, 7.9),
        ("b2", "jsd", 8192, 4096, 8192, 32_000, 15.3),
        ("b3", "forward_kl", 8192, 2048, 4096, 128_256, 31.5),
        ("b8", "jsd", 1024, 4096, 4096, 128_256, 6.8),
    ]
    names = ("name", "kind", "num_rows", "student_size", "teacher_size", "num_tokens", "target_ms")
    return [Case(op="linear", **dict(zip(names, row, strict=True))) for row in rows]


def _logits() -> list[Case]:
    rows = [
        ("a2", "forward_kl", 8192, 128_256, 1.85),
        ("a4", "jsd", 8192, 128_256, 2.6),
        ("a1", "forward_kl", 8192, 32_000, 0.46),
        ("a3", "reverse_kl", 8192, 128_256, 1.9),
        ("a7-151936", "forward_kl", 8192, 151_936, 2.26),
        ("a7-262144", "forward_kl", 8192, 262_144, 3.9),
        ("a7-50257", "forward_kl", 8192, 50_257, 0.75),
        ("a5-skew", "skew_forward_kl", 8192, 128_256, 2.6),
        ("a5-tvd", "tvd", 8192, 128_256, 2.6),
    ]
    names = ("name", "kind", "num_rows", "num_tokens", "target_ms")
    mixed = {"temperature": 2.0, "hard_weight": 0.5}
    sizes = {"kind": "forward_kl", "num_rows": 8192, "num_tokens": 128_256}
    return [
        *(Case(op="logits", **dict(zip(names, row, strict=True))) for row in rows),
        Case(name="a5-ce", op="logits", options=mixed, target_ms=2.6, **sizes),
        Case(name="a6", op="logits", cuda_graph=True, target_ms=0.03, **{**sizes, "num_rows": 64}),
        Case(name="a8", op="logits", no_grad=True, target_ms=1.2, **sizes),
    ]


def _sparse() -> list[Case]:
    rows = {"op": "sparse", "kind": "forward_kl", "num_rows": 8192}
    return [
        Case(name="c1", num_tokens=128_256, student_size=2048, kept=64, target_ms=18.8, **rows),
        Case(name="c2", num_tokens=128_256, student_size=4096, kept=256, tail="sampled", target_ms=36.5, **rows),
        Case(
            name="c3",
            num_tokens=32_000,
            student_size=4096,
            kept=64,
            frozen_head=True,
            options={"hard_weight": 0.5},
            target_ms=6.3,
            **rows,
        ),
    ]


def _special() -> list[Case]:
    by_name = {case.name: case for case in _linear()}
    b4, b5 = by_name["b4"], by_name["b5"]
    capped = {"student_softcap": 30.0, "student_scale": 0.9, "teacher_softcap": 30.0, "teacher_scale": 0.9}
    return [
        replace(b5, name="b6-frozen", frozen_head=True, target_ms=48.0),
        replace(b5, name="b6-no_grad", no_grad=True, target_ms=36.0),
        replace(b5, name="b6-masked", masked=0.5, target_ms=29.9),
        replace(b4, name="b7", options=capped, teacher_tokens=128_512, target_ms=51.0),
    ]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tensors of one case; those of the student that want a gradient require one."""

    student_logits: Tensor | None = None
    teacher_logits: Tensor | None = None
    student_hidden: Tensor | None = None
    student_head: Tensor | None = None
    teacher_hidden: Tensor | None = None
    teacher_head: Tensor | None = None
    token_ids: Tensor | None = None
    values: Tensor | None = None
    labels: Tensor | None = None

    def students(self) -> dict[str, Tensor]:
        """What a gradient is wanted for, by its usual name."""
        named = {"dlogits": self.student_logits, "dhidden": self.student_hidden, "dhead": self.student_head}
        return {name: tensor for name, tensor in named.items() if tensor is not None and tensor.requires_grad}


def make_inputs(case: Case, device: torch.device, seed: int = 0) -> Inputs:
    """Logits of standard deviation 3 and a student some tenths of a nat away: peaked rows, not `torch.rand`.

    The student's hidden states are the teacher's first ones with noise; the teacher's further ones matter little.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    def leaf(tensor: Tensor, wanted: bool = True) -> Tensor:
        # a parameter has no gaps between its rows; a slice of float32 would
        return tensor.to(case.dtype).contiguous().requires_grad_(wanted and not case.no_grad)

    num_rows, num_tokens = case.num_rows, case.num_tokens
    labels = None
    if case.masked or case.options.get("hard_weight"):
        labels = torch.randint(0, num_tokens, (num_rows,), generator=generator, device=device)
        masked = torch.randperm(num_rows, generator=generator, device=device)[: round(case.masked * num_rows)]
        labels[masked] = IGNORED
    if case.op == "logits":
        teacher = normal(num_rows, num_tokens).mul_(3)
        student = leaf(normal(num_rows, num_tokens).mul_(0.7).add_(teacher))
        return Inputs(student_logits=student, teacher_logits=teacher.to(case.dtype), labels=labels)
    student_size, teacher_size = case.student_size, case.teacher_size
    size = max(student_size, teacher_size)
    head = normal(max(num_tokens, case.teacher_tokens), size)
    head *= torch.where(torch.arange(size, device=device) < student_size, 3 / student_size**0.5, 0.7 / size**0.5)
    hidden = normal(num_rows, size)
    noisy = normal(num_rows, student_size).mul_(0.15).add_(hidden[:, :student_size])
    student_head = leaf(head[:num_tokens, :student_size], not case.frozen_head)
    student = {"student_hidden": leaf(noisy), "student_head": student_head, "labels": labels}
    if case.op == "linear":
        teacher_hidden, teacher_head = hidden[:, :teacher_size], head[:, :teacher_size]
        teacher = {"teacher_hidden": teacher_hidden.to(case.dtype), "teacher_head": teacher_head.to(case.dtype)}
        return Inputs(**{name: tensor.contiguous() for name, tensor in teacher.items()}, **student)
    token_ids, values = _kept(case, hidden[:, :student_size], head[:num_tokens, :student_size], generator)
    return Inputs(token_ids=token_ids, values=values, **student)


def _kept(case: Case, hidden: Tensor, head: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The K likeliest ids of each row with log-probabilities, or distinct ids with weights that add up to about 1."""
    ids, values = [], []
    for rows in slices(len(hidden), 512):
        log_p = (hidden[rows] @ head.T).log_softmax(-1)
        if case.tail == "sampled":
            drawn = torch.multinomial(log_p.exp(), case.kept, generator=generator)
            weights = torch.rand(drawn.shape, generator=generator, device=drawn.device)
            ids.append(drawn)
            values.append(2 * weights / case.kept)
        else:
            top = log_p.topk(case.kept, -1)
            ids.append(top.indices)
            values.append(top.values)
    return torch.cat(ids).int(), torch.cat(values)


def slices(length: int, step: int) -> Iterator[slice]:
    """Consecutive slices of at most `step`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
