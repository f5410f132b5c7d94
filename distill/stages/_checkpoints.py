"""The trainer's checkpoints: which one a training goes on from, and its weights."""

import shutil
from pathlib import Path
from typing import Any

from distill.distributed import ALONE, World

COMPLETE = "complete"
"""File in a checkpoint that is whole: one without it was being written when its process was killed."""


def same_checkpoint(folder: Path, together: World) -> Path | None:
    """The newest whole checkpoint, as the leader sees it: it alone deletes the others."""
    found = last_checkpoint(folder) if together.leads else None
    name = together.share(found.name if found else None)
    return folder / name if name else None


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; half-written ones are deleted."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / COMPLETE).exists():
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimizer steps before it."""
    return int(checkpoint.name.rpartition("-")[2])


def load_last_checkpoint(model: Any, folder: Path, together: World = ALONE) -> None:
    """Puts the weights of the last whole checkpoint in `folder` into `model`; without one, `model` stays as it is."""
    checkpoint = same_checkpoint(folder, together)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)


def load_checkpoint(model: Any, checkpoint: Path) -> None:
    """Puts a checkpoint's weights into `model`: those of its adapter, or all."""
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        loaded = set_peft_model_state_dict(model, load_peft_weights(str(checkpoint), device="cpu"))
        assert not loaded.unexpected_keys and not any(".lora_" in key for key in loaded.missing_keys), loaded
        return
    from safetensors.torch import load_file

    state = {k: v for file in sorted(checkpoint.glob("*.safetensors")) for k, v in load_file(file).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    assert not unexpected and set(missing) <= tied, (missing, unexpected)
