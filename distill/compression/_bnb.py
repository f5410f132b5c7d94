"""Quantising a student with bitsandbytes into a folder that transformers loads; what int8 and nf4 share."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def quantise(student: Path, package: Path, how: Mapping[str, Any], *, rest: Any) -> None:
    """Writes `package`: the student with its linear layers quantised, everything else in the dtype `rest`.

    Layers are quantised from the student's own weights in its own dtype; embeddings, norms and the output head are
    rounded to `rest` afterwards.

    Args:
        student: a complete checkpoint folder with float weights.
        how: arguments of `transformers.BitsAndBytesConfig`.
        rest: a torch dtype.
    """
    from distill.compression._companions import copy_companions
    from distill.runtime._loading import load_quantised
    from distill.runtime.bnb import quiet

    package.mkdir(parents=True, exist_ok=True)
    model = load_quantised(student, how, rest=rest)
    with quiet():
        model.save_pretrained(package)
    copy_companions(student, package)


def linear_widths(config: Mapping[str, Any]) -> dict[str, int]:
    """Name of each linear layer that would be quantised → its number of inputs, from a student's config.json."""
    import torch
    from transformers.pytorch_utils import Conv1D

    from distill.family.head import described_by

    model = described_by(config)
    head = model.get_output_embeddings()
    widths = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            widths[name] = module.weight.shape[0]
        elif isinstance(module, torch.nn.Linear) and module is not head:
            widths[name] = module.in_features
    return widths


def refuse_missing() -> str | None:
    """A sentence when bitsandbytes is not installed, else None."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed here: pip install bitsandbytes, or choose another compression."
    return None
