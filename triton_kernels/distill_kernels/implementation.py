"""Which implementation computes rows: "eager" unless the environment says DISTILL_KERNELS=triton (or =streaming).

The Triton kernels have run in Triton's interpreter only, never on a GPU, so nobody is switched over silently.
"""

import os

import torch
from torch import Tensor

IMPLEMENTATIONS = ("eager", "triton", "streaming")
"""streaming: triton without the kernel whose clusters hold a row, so that the two can be compared."""


def runs_triton(logits: Tensor) -> bool:
    """Whether rows of these logits go to the Triton kernels: asked for, float32 or smaller, and on a CUDA device.

    With TRITON_INTERPRET=1 tensors on the CPU go there too. float64 is always eager: the kernels count in float32.
    """
    asked = os.environ.get("DISTILL_KERNELS", "eager")
    if asked not in IMPLEMENTATIONS:
        raise ValueError(f"DISTILL_KERNELS: found {asked!r}; needed one of {', '.join(IMPLEMENTATIONS)}, or unset it.")
    if asked == "eager" or logits.dtype == torch.float64:
        return False
    if not logits.is_cuda and not (logits.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return False
    if torch.version.hip is not None:
        raise ValueError(f"DISTILL_KERNELS={asked}: found a ROCm build of torch; needed CUDA. Unset DISTILL_KERNELS.")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"DISTILL_KERNELS={asked}: found no triton package; needed triton 3.4 or later. "
            "Install it (pip install triton), or unset DISTILL_KERNELS."
        ) from error
    return True


def allows_clusters() -> bool:
    """Whether a row may be held by a cluster, where the device has clusters."""
    return os.environ.get("DISTILL_KERNELS") != "streaming"
