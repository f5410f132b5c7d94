"""Where weights lie while a model is asked: on one device, or spread by accelerate over all there is."""

import contextlib
from collections.abc import Iterator
from typing import Any

from distill.errors import RecipeError

WEIGHTS_SHARE = 0.8
"""Of a device's free memory; the rest is for the part that is fetched, and for what is computed."""


def places(device: str | None, device_map: str | None, *, quantised: bool) -> dict[str, Any]:
    """Arguments of `from_pretrained` that say where weights lie.

    Quantised weights cannot wait in the CPU's memory, so they may fill the GPUs as far as transformers lets them.
    """
    if device_map is None:
        return {"device_map": {"": device or default_device()}}
    return {"device_map": device_map, "max_memory": None if quantised else room_for_weights()}


def room_for_weights() -> dict[Any, int] | None:
    """Bytes of each GPU, by its number, and of the CPU's memory ("cpu") that weights may fill; None without a GPU.

    Left to themselves, transformers and accelerate fill several GPUs to the last byte before they use the CPU's memory,
    and nothing is left to compute with.
    """
    import torch
    from accelerate.utils import get_max_memory

    if not torch.cuda.is_available():
        return None
    return {place: int(WEIGHTS_SHARE * size) for place, size in get_max_memory().items()}


def default_device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def offloaded(model: Any) -> int:
    """How many of its weights wait in the CPU's memory or on the disk."""
    return sum(parameter.device.type == "meta" for parameter in model.parameters())


@contextlib.contextmanager
def said_if_too_large(name: object) -> Iterator[None]:
    """Says in our words what bitsandbytes says when quantised weights do not fit on the GPUs."""
    try:
        yield
    except ValueError as error:
        if "dispatched on the CPU or the disk" not in str(error):
            raise
        raise RecipeError(
            f"The quantised weights of {name} do not fit on the GPUs, and they cannot wait in the CPU's memory.\n"
            "Take more GPUs, teacher.quantization=nf4 instead of int8, or the weights as they are, of which the rest "
            "waits there: teacher.quantization=none teacher.device_map=auto.\n"
            "What each of these takes: python -m distill.plan recipe=…"
        ) from error
