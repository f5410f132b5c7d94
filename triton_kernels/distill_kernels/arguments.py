"""What is refused, and with which words: the argument, what was found, what is needed.

Everything here is read from shapes and dtypes, or from small tensors that are on the CPU already: no check waits for
an accelerator.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor

from distill_kernels.rows import Rows, is_captured
from distill_kernels.settings import KINDS, TAILS, Settings
from distill_kernels.student import Student

REPEATED_IDS = (
    "token_ids: a row holds the same id twice; needed: ids unique within a row. "
    "Add the probabilities of repeated ids before, or use tail='sampled', which adds their weights."
)


def check_settings(options: dict[str, Any]) -> Settings:
    """The settings of a call, each in its range."""
    one_of("kind", options["kind"], KINDS)
    if options["kind"] == "jsd":
        number("beta", options["beta"], 0, 1, "0 < beta < 1; use forward_kl or reverse_kl for the ends")
    if options["kind"].startswith("skew"):
        number("alpha", options["alpha"], 0, 1, "0 < alpha < 1; use forward_kl or reverse_kl for alpha = 0")
    for name in ("temperature", "student_scale", "teacher_scale"):
        number(name, options[name], 0, math.inf, "a finite number above 0")
    for name in ("student_softcap", "teacher_softcap"):
        if options[name] is not None:
            number(name, options[name], 0, math.inf, "None or a finite number above 0")
    if options["hard_weight"] not in (0, 1):
        number("hard_weight", options["hard_weight"], 0, 1, "0 <= hard_weight <= 1")
    return Settings(**options)


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuses a word that is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name}: found {value!r}; needed one of {', '.join(allowed)}.")


def number(name: str, value: Any, above: float, below: float, needed: str) -> None:
    """Refuses what is not a number strictly between the bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: found {type(value).__name__} {value!r}; needed {needed}, as a number.")
    if not above < value < below:
        raise ValueError(f"{name}: found {value!r}; needed {needed}.")


def floating(name: str, tensor: Any) -> None:
    """Refuses what is not a tensor of float16, bfloat16, float32 or float64 with at least one dimension."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: found {type(tensor).__name__}; needed a floating-point tensor.")
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"{name}: found dtype {tensor.dtype}; needed float16, bfloat16, float32 or float64.")
    if tensor.dim() == 0:
        raise ValueError(f"{name}: found a scalar; needed [..., size].")


def same(name: str, found: object, other: str, needed: object) -> None:
    """Refuses two properties that have to be equal and are not."""
    if found != needed:
        raise ValueError(f"{name}: found {_plain(found)}; needed {_plain(needed)}, as in {other}.")


def at_least_one_token(num_tokens: int) -> None:
    """Refuses an empty vocabulary: it has no distribution."""
    if num_tokens == 0:
        raise ValueError("student_logits, teacher_logits: found a vocabulary of 0 tokens; needed at least 1.")


def check_projection(who: str, hidden: Tensor, head: Tensor, bias: Tensor | None) -> None:
    """Hidden states `[..., H]`, head `[V, H]`, bias `[V]`, on one device."""
    floating(f"{who}_hidden", hidden)
    floating(f"{who}_head", head)
    if head.dim() != 2 or head.shape[0] == 0 or head.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{who}_head: found shape {list(head.shape)}; needed [vocabulary, {hidden.shape[-1]}], "
            f"for {who}_hidden has shape {list(hidden.shape)}."
        )
    same(f"{who}_head.device", head.device, f"{who}_hidden", hidden.device)
    if bias is not None:
        floating(f"{who}_bias", bias)
        same(f"{who}_bias.shape", bias.shape, f"the vocabulary of {who}_head", head.shape[:1])
        same(f"{who}_bias.device", bias.device, f"{who}_hidden", hidden.device)


def check_student(student: Student) -> None:
    """`check_projection`, and a low-rank update that fits the head, which is frozen then."""
    hidden, head = student.hidden, student.head
    check_projection("student", hidden, head, student.bias)
    if student.lora_A is None and student.lora_B is None:
        return
    A, B = cast(Tensor, student.lora_A), cast(Tensor, student.lora_B)
    for name, tensor in (("lora_A", A), ("lora_B", B)):
        floating(f"student_head.{name}", tensor)
        same(f"student_head.{name}.device", tensor.device, "student_hidden", hidden.device)
    (num_tokens, size), rank = head.shape, A.shape[0]
    same("student_head.lora_A.shape", A.shape, "rank r and student_hidden", (rank, size))
    same("student_head.lora_B.shape", B.shape, "the vocabulary of weight and lora_A", (num_tokens, rank))
    number("student_head.scale", student.lora_scale, -math.inf, math.inf, "a finite number")
    if head.requires_grad:
        raise ValueError(
            "student_head.weight: found requires_grad=True; needed a frozen weight, for the gradient of a LowRankHead "
            "goes to lora_A and lora_B. Call weight.requires_grad_(False), or pass weight + scale * lora_B @ lora_A."
        )


def product_dtype(who: str, hidden: Tensor, head: Tensor, logits_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of hidden @ head: the tensors' own, autocast's where it is on, float32 where `logits_dtype` says so."""
    device = hidden.device.type
    dtypes = {hidden.dtype, head.dtype}
    if logits_dtype is not None:
        if logits_dtype != torch.float32:
            raise ValueError(f"logits_dtype: found {logits_dtype}; needed None or torch.float32.")
        if torch.float64 in dtypes:
            raise ValueError(f"logits_dtype: found torch.float32 with float64 {who} tensors; needed None for these.")
        return torch.float32
    if torch.is_autocast_enabled(device) and torch.float64 not in dtypes:
        return torch.get_autocast_dtype(device)
    if len(dtypes) > 1:
        raise TypeError(
            f"{who}_head: found {head.dtype}; needed {hidden.dtype}, as in {who}_hidden. "
            f"Cast one of them, use torch.autocast, or pass logits_dtype=torch.float32."
        )
    return hidden.dtype


def check_chunk_bytes(chunk_bytes: int | None) -> int | None:
    """A positive whole number of bytes, or None for the device's default."""
    if chunk_bytes is None:
        return None
    number("chunk_bytes", chunk_bytes, 0, math.inf, "None or a number of bytes above 0")
    return max(1, int(chunk_bytes))


def check_rows(
    leading: torch.Size,
    device: torch.device,
    num_tokens: int,
    labels: Tensor | None,
    ignore_index: int,
    row_weight: Tensor | None,
    hard_weight: float,
) -> Rows:
    """The rows of a call; the ones whose label is `ignore_index` do not count."""
    if labels is None and hard_weight > 0:
        raise ValueError(f"labels: found None with hard_weight={hard_weight}; needed the label of each row.")
    num_rows = leading.numel()
    labels_N = weight_N = counted_M = blank_N = None
    if row_weight is not None:
        floating("row_weight", row_weight)
        same("row_weight.shape", row_weight.shape, "the rows", leading)
        same("row_weight.device", row_weight.device, "the student", device)
        weight_N = row_weight.detach().reshape(-1)
    if labels is not None:
        integers("labels", labels)
        same("labels.shape", labels.shape, "the rows", leading)
        same("labels.device", labels.device, "the student", device)
        labels_N = labels.reshape(-1)
        counts_N = labels_N != ignore_index
        if device.type == "cpu":
            _check_labels(labels_N[counts_N], num_tokens, ignore_index)
        if is_captured(device):
            blank_N = ~counts_N
        else:
            counted_M = counts_N.nonzero().squeeze(-1)
            if len(counted_M) == num_rows:
                counted_M = None
    return Rows(
        num_rows=num_rows,
        labels_N=labels_N,
        weight_N=weight_N,
        counted_M=counted_M,
        ignore_index=ignore_index,
        blank_N=blank_N,
    )


def integers(name: str, tensor: Any) -> None:
    """Refuses what is not a tensor of whole numbers."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: found {type(tensor).__name__}; needed a tensor of int32 or int64.")
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: found dtype {tensor.dtype}; needed int32 or int64.")


def check_sparse(
    token_ids: Tensor, values: Tensor | float, tail: str, kind: str, leading: torch.Size, num_tokens: int, rows: Rows
) -> tuple[Tensor, Tensor]:
    """`token_ids` `[N, K]`, `values` `[N, K]` or `[N, K + 1]`, once they fit each other, tail and divergence."""
    one_of("tail", tail, TAILS)
    if tail != "bucket" and kind != "forward_kl":
        advice = "samples are unbiased for it alone" if tail == "sampled" else "the others need the tail's mass"
        raise ValueError(
            f"tail: found {tail!r} with kind={kind!r}; needed kind='forward_kl' ({advice}), or tail='bucket' with "
            f"log-probabilities."
        )
    integers("token_ids", token_ids)
    if token_ids.dim() != len(leading) + 1 or token_ids.shape[:-1] != leading or token_ids.shape[-1] == 0:
        raise ValueError(
            f"token_ids: found shape {list(token_ids.shape)}; needed {[*leading, 'K']} with K of at least 1."
        )
    if isinstance(values, int | float):
        number("values", values, -math.inf, math.inf, "a float tensor like token_ids, or one finite number for all ids")
        # filled on the device: copying a number there cannot be captured in a CUDA graph
        weights = torch.full((), float(values), device=token_ids.device).expand(token_ids.shape)
    else:
        floating("values", values)
        weights = values.detach()
    num_ids = token_ids.shape[-1]
    if not (tail == "bucket" and weights.shape == (*leading, num_ids + 1)):  # the last may be the rest's
        same("values.shape", weights.shape, "token_ids", token_ids.shape)
    same("values.device", weights.device, "token_ids", token_ids.device)
    ids_NK = token_ids.reshape(rows.num_rows, num_ids)
    values = weights.reshape(rows.num_rows, weights.shape[-1])
    if token_ids.device.type == "cpu" and rows.num_counted > 0 and rows.blank_N is None:
        everything = slice(None)
        _check_ids(rows.pick(ids_NK, everything), rows.pick(values, everything), tail, num_tokens)
    return ids_NK, values


def check_unique_ids(ids_NK: Tensor, rows: Rows) -> None:
    """Refuses an id that a row holds twice, where ids can be read without waiting for an accelerator."""
    if ids_NK.device.type != "cpu" or rows.num_counted == 0:
        return
    if bool(repeats(rows.pick(ids_NK, slice(None), blank=-1)).any()):
        raise ValueError(REPEATED_IDS)


def repeats(ids_MK: Tensor) -> Tensor:
    """Whether a row holds an id twice, `[M]`; pads may repeat."""
    ids_MK = ids_MK.sort(-1).values
    return ((ids_MK[:, 1:] == ids_MK[:, :-1]) & (ids_MK[:, 1:] >= 0)).any(-1)


def _check_labels(labels_M: Tensor, num_tokens: int, ignore_index: int) -> None:
    if len(labels_M) == 0:
        return
    low, high = (int(end) for end in torch.aminmax(labels_M))
    if low < 0 or high >= num_tokens:
        raise ValueError(
            f"labels: found {low if low < 0 else high}; needed 0 to {num_tokens - 1}, the vocabulary that student and "
            f"teacher share, or ignore_index={ignore_index}."
        )


def _check_ids(ids_MK: Tensor, values: Tensor, tail: str, num_tokens: int) -> None:
    """`values` as `check_sparse` gives them."""
    low, high = (int(end) for end in torch.aminmax(ids_MK))
    if low < -1 or high >= num_tokens:
        raise ValueError(
            f"token_ids: found {low if low < -1 else high}; needed 0 to {num_tokens - 1}, the student's vocabulary, "
            f"or -1 for padding."
        )
    num_rests = values.shape[1] - ids_MK.shape[1]
    absent = torch.nn.functional.pad(ids_MK < 0, (0, num_rests))
    if num_rests:  # where every token is among the ids there is no rest, whatever its value
        absent[:, -1] = (ids_MK >= 0).sum(-1) == num_tokens
    present = values.masked_fill(absent, 0.0) if low < 0 or num_rests else values
    if tail == "sampled":
        if bool((present < 0).any()):
            raise ValueError(f"values: found {float(present.min())}; needed weights of at least 0 for tail='sampled'.")
        return
    if bool((present > 1e-3).any()):
        raise ValueError(
            f"values: found {float(present.max())}; needed log-probabilities, at most 0, for tail={tail!r}. "
            f"Weights belong to tail='sampled'."
        )
    mass_M = present.float().exp().masked_fill_(absent, 0.0).sum(-1)
    # 16-bit log-probabilities are rounded by up to 1/256 of themselves, so their sum may pass 1 by about that
    if bool((mass_M > 1.05).any()):
        raise ValueError(
            f"values: found a row whose probabilities add up to {float(mass_M.max()):.4g}; needed at most 1. "
            f"They are log-probabilities over the whole vocabulary at the call's temperature."
        )
    if tail == "renormalize" and bool((mass_M == 0).any()):
        raise ValueError("values: found a row without any mass; tail='renormalize' needed one id with probability > 0.")


def _plain(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
