"""Peers: other packages' ops, called as their own trainers and examples call them.

Liger-Kernel 0.8.5: fused_linear_jsd (its sum of head gradients in the inputs' dtype, which is the default, and in
float32), fused_linear_kl_div (of teacher probabilities that exist: making them is part of the step), chunked_loss
(compiled, its default) and, for logits, its JSD and TVD of log-probabilities. TRL 1.16: ChunkedDivergenceFunction.
torchtune 0.6: its chunked KL losses of all logits. speculators 0.9: its fused Triton losses of logits. QuACK has
cross-entropy alone. What is not installed is a line in the table.
"""

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from cases import IGNORED, Case, Inputs
from providers import Provider, Step, Unsupported
from torch import Tensor

BETA = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
"""Both packages: beta in between mixes as we do; at the ends it names the two KL divergences."""


def peer_providers() -> list[Provider]:
    """All of them, installed or not."""
    return [
        Provider(name="Liger fused_linear_jsd", make=partial(_liger_fused_jsd, sum_dtype=None)),
        Provider(name="Liger fused_linear_jsd, float32 sum", make=partial(_liger_fused_jsd, sum_dtype=torch.float32)),
        Provider(name="Liger fused_linear_kl_div", make=_liger_fused_kl),
        Provider(name="Liger chunked_loss, compiled", make=_liger_chunked),
        Provider(name="Liger jsd, tvd", make=_liger_logits),
        Provider(name="TRL ChunkedDivergence", make=_trl),
        Provider(name="torchtune, 8 chunks", make=_torchtune),
        Provider(name="speculators, fused", make=_speculators, capturable=True),
    ]


def _liger(module: str, needs_gpu: bool, inputs: Inputs) -> Any:
    if importlib.util.find_spec("liger_kernel") is None:
        raise Unsupported("liger-kernel is not installed")
    some = inputs.student_hidden if inputs.student_hidden is not None else inputs.student_logits
    if needs_gpu and some is not None and not some.is_cuda:
        raise Unsupported("its triton kernels need a GPU")
    return importlib.import_module(f"liger_kernel.{module}")


def _plain_linear(case: Case, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and heads, of a case that has no scale, cap or temperature."""
    if case.op != "linear" or case.kind not in BETA:
        raise Unsupported(f"no {case.kind} of {case.op} inputs", obvious=True)
    if case.options:
        raise Unsupported("no scale and no soft cap")
    student_hidden, student_head = inputs.student_hidden, inputs.student_head
    teacher_hidden, teacher_head = inputs.teacher_hidden, inputs.teacher_head
    assert student_hidden is not None and student_head is not None
    assert teacher_hidden is not None and teacher_head is not None
    return student_hidden, student_head, teacher_hidden, teacher_head


def _counted(case: Case) -> float:
    return float(case.num_rows - round(case.masked * case.num_rows))


def _liger_fused_jsd(case: Case, inputs: Inputs, sum_dtype: torch.dtype | None) -> Step:
    tensors = _plain_linear(case, inputs)
    module = _liger("transformers.fused_linear_jsd", True, inputs)
    op = module.LigerFusedLinearJSD(jsd_beta=BETA[case.kind], accum_dtype=sum_dtype)
    return Step(loss=lambda: op(*tensors, inputs.labels), multiplier=_counted(case))


def _liger_fused_kl(case: Case, inputs: Inputs) -> Step:
    student_hidden, student_head, teacher_hidden, teacher_head = _plain_linear(case, inputs)
    if case.kind != "forward_kl":
        raise Unsupported(f"no {case.kind}", obvious=True)
    op = _liger("transformers.fused_linear_kl_div", True, inputs).LigerFusedLinearKLDivLoss(reduction="sum")

    def loss() -> Tensor:
        with torch.no_grad():
            probabilities = (teacher_hidden @ teacher_head.T).softmax(-1, dtype=torch.float32)
        return op(student_hidden, student_head, probabilities, inputs.labels)

    return Step(loss=loss)


def _liger_chunked(case: Case, inputs: Inputs) -> Step:
    student_hidden, student_head, teacher_hidden, teacher_head = _plain_linear(case, inputs)
    options: dict[str, Any] = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "beta": BETA[case.kind]}
    op = _liger("chunked_loss", False, inputs).LigerFusedLinearJSDLoss(**options)
    labels = inputs.labels
    if labels is None:
        labels = torch.zeros(case.num_rows, dtype=torch.long, device=student_hidden.device)
    loss: Callable[[], Tensor] = lambda: op(student_hidden, student_head, teacher_hidden, teacher_head, labels)  # noqa: E731
    return Step(loss=loss, multiplier=_counted(case))


def _liger_logits(case: Case, inputs: Inputs) -> Step:
    if case.op != "logits" or case.kind not in (*BETA, "tvd") or case.options:
        raise Unsupported(f"no {case.kind} of {case.op} inputs with these options", obvious=True)
    student, teacher = inputs.student_logits, inputs.teacher_logits
    assert student is not None and teacher is not None
    if case.kind == "tvd":
        op = _liger("ops.tvd", True, inputs).LigerTVDLossFunction.apply

        def tvd() -> Tensor:
            return op(student.softmax(-1, dtype=torch.float32), teacher.softmax(-1, dtype=torch.float32), None, "sum")

        return Step(loss=tvd)
    module = _liger("transformers.jsd", True, inputs).LigerJSD(beta=BETA[case.kind])

    def jsd() -> Tensor:
        return module(student.log_softmax(-1, dtype=torch.float32), teacher.log_softmax(-1, dtype=torch.float32))

    return Step(loss=jsd, multiplier=_counted(case))


def _torchtune(case: Case, inputs: Inputs) -> Step:
    names = {"forward_kl": "ForwardKL", "reverse_kl": "ReverseKL"}
    if case.kind not in names or case.op == "sparse":
        raise Unsupported(f"no {case.kind} of {case.op} inputs", obvious=True)
    if case.options:
        raise Unsupported("no temperature, scale or soft cap")
    op = getattr(_alone("torchtune", "modules/loss/kd_losses.py"), f"{names[case.kind]}WithChunkedOutputLoss")(8)
    labels = inputs.labels
    if labels is None:
        some = inputs.student_logits if inputs.student_hidden is None else inputs.student_hidden
        assert some is not None
        labels = torch.zeros(case.num_rows, dtype=torch.long, device=some.device)

    def loss() -> Tensor:
        student, teacher = inputs.student_logits, inputs.teacher_logits
        if case.op == "logits":
            assert student is not None and teacher is not None
            chunks = [list(logits[None].chunk(8, dim=1)) for logits in (student, teacher)]
        else:
            chunks = [_chunks_of_logits(inputs.student_hidden, inputs.student_head, case.num_tokens)]
            with torch.no_grad():
                chunks.append(_chunks_of_logits(inputs.teacher_hidden, inputs.teacher_head, case.num_tokens))
        return op(*chunks, labels[None])

    entropy = "the teacher's entropy" if case.kind == "forward_kl" else ""
    return Step(loss=loss, multiplier=_counted(case), leaves_out=entropy)


def _chunks_of_logits(hidden: Tensor | None, head: Tensor | None, num_tokens: int) -> list[Tensor]:
    assert hidden is not None and head is not None
    return [rows @ head[:num_tokens].T for rows in hidden[None].chunk(8, dim=1)]


def _speculators(case: Case, inputs: Inputs) -> Step:
    names = {"forward_kl": "kl_div", "reverse_kl": "reverse_kl_div", "jsd": "js_div", "tvd": "tv"}
    student, teacher = inputs.student_logits, inputs.teacher_logits
    if case.kind not in names or case.options or student is None or teacher is None:
        raise Unsupported(f"no {case.kind} of {case.op} inputs with these options", obvious=True)
    if not student.is_cuda:
        raise Unsupported("its triton kernels need a GPU")
    not_an_npu = {"speculators.utils.util": {"is_npu_available": lambda: False}}
    op = getattr(_alone("speculators", "losses/fused.py", not_an_npu), f"fused_{names[case.kind]}_loss")
    return Step(loss=lambda: op(student[None], teacher[None]).sum())


def _alone(package: str, file: str, stand_ins: dict[str, dict[str, Any]] | None = None) -> Any:
    """One file of a package, without the many requirements of the rest; `stand_ins` are what the file imports of it."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise Unsupported(f"{package} is not installed")
    path = Path(found.submodule_search_locations[0]) / file
    if not path.is_file():
        raise Unsupported(f"this {package} has no {file}")
    for name, members in (stand_ins or {}).items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(members)
    name = f"{package}_alone.{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _trl(case: Case, inputs: Inputs) -> Step:
    if case.op != "linear" or case.kind not in BETA:
        raise Unsupported(f"no {case.kind} of {case.op} inputs", obvious=True)
    op = _trl_function().apply
    options = case.options
    after = [options.get("temperature", 1.0)]
    for who in ("student", "teacher"):
        after += [options.get(f"{who}_scale", 1.0), options.get(f"{who}_softcap")]
    beta = BETA[case.kind]

    def loss() -> Tensor:
        student, teacher = inputs.student_hidden, inputs.teacher_hidden
        assert student is not None and teacher is not None and inputs.teacher_head is not None
        if case.masked:  # as its trainer does
            counted = (inputs.labels != IGNORED).nonzero().squeeze(1)
            student, teacher = student[counted], teacher[counted]
        head = inputs.teacher_head[: case.num_tokens]
        rows, _ = op(student, inputs.student_head, None, teacher, head, None, beta, *after)
        return rows.sum()

    return Step(loss=loss)


@cache
def _trl_function() -> Any:
    """TRL's op from its two files, which need nothing else of TRL and of its many requirements.

    The one helper they import gathers sharded heads; ours are whole.
    """
    found = importlib.util.find_spec("trl")
    if found is None or not found.submodule_search_locations:
        raise Unsupported("trl is not installed")
    if importlib.util.find_spec("transformers") is None:
        raise Unsupported("trl needs transformers, which is not installed")
    folder = Path(found.submodule_search_locations[0]) / "kernels"
    if not (folder / "chunked_divergence.py").is_file():
        raise Unsupported("this trl has no kernels/chunked_divergence.py (1.16 has)")
    package = "trl_kernels_alone"
    utils = types.ModuleType(f"{package}.trainer.utils")
    utils.maybe_gather_lm_head_ctx = lambda *_: contextlib.nullcontext()  # type: ignore[attr-defined]
    modules = {name: types.ModuleType(name) for name in (package, f"{package}.trainer", f"{package}.kernels")}
    for module in modules.values():
        module.__path__ = []  # type: ignore[attr-defined]
    modules[f"{package}.kernels"].__path__ = [str(folder)]  # type: ignore[attr-defined]
    sys.modules.update(modules, **{f"{package}.trainer.utils": utils})
    return importlib.import_module(f"{package}.kernels.chunked_divergence").ChunkedDivergenceFunction
