"""Settings: the options of one call, checked; what the loss of a row needs to know besides its tensors."""

from dataclasses import dataclass

KINDS = ("forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd")
TAILS = ("bucket", "zero", "renormalize", "uniform", "sampled")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One row's loss is `(1 - hard_weight) * temperature**2 * D + hard_weight * CE`; D is `kind`, in nats."""

    kind: str
    beta: float = 0.5
    alpha: float = 0.1
    temperature: float = 1.0
    hard_weight: float = 0.0
    student_scale: float = 1.0
    student_softcap: float | None = None
    teacher_scale: float = 1.0
    teacher_softcap: float | None = None
