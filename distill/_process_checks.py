"""check_processes(): whether a recipe can be divided over the processes that a launcher started."""

import os

from distill.distributed import world
from distill.errors import RecipeError
from distill.recipe import Recipe


def check_processes(recipe: Recipe) -> None:
    """Raises RecipeError with the numbers, where the batch or what the recipe asks for cannot be divided."""
    size = world().size
    if size == 1:
        return
    _one_gpu_each()
    training = recipe.training
    unit = size * training.gradient_accumulation_steps
    if training.batch_size % unit:
        below = training.batch_size // unit * unit
        near = [f"training.batch_size={number}" for number in (below, below + unit) if number]
        raise RecipeError(
            f"training.batch_size={training.batch_size} cannot be divided over {size} processes with "
            f"training.gradient_accumulation_steps={training.gradient_accumulation_steps}: it has to be a multiple of "
            f"{unit}.\nUse {' or '.join(near)}, or another number of processes or accumulation steps."
        )
    if training.on_policy:
        raise RecipeError(
            f"training.on_policy={training.on_policy} is not supported under {size} processes: the student's answers "
            "would be written by one of them while the others wait.\n"
            "Start one process (python -m distill …), or leave out training.on_policy."
        )
    if training.sharding == "full" and recipe.adapter.kind == "qlora":
        raise RecipeError(
            "training.sharding=full cannot cut the four-bit weights of adapter=qlora: their scales belong to whole "
            "rows.\nUse training.sharding=none (each process holds the four-bit student), or adapter=lora."
        )
    live = recipe.teacher if recipe.live and recipe.teacher.kind == "hf" else None
    if live is not None and (live.device_map is not None or live.quantization != "none"):
        given = f"teacher.device_map={live.device_map}, teacher.quantization={live.quantization}"
        raise RecipeError(
            f"A live teacher under {size} processes is held by each of them, or cut over all of them "
            f"(training.sharding=full); {given} speaks against both.\n"
            "Leave both out, or store the teacher's answers first: teacher.live=false."
        )


def _one_gpu_each() -> None:
    """Raises RecipeError where this process has no GPU of its own, though the machine has some."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return
    import torch

    found, rank = torch.cuda.device_count(), world().local_rank
    if found and rank >= found:
        raise RecipeError(
            f"Process {rank} of this machine has no GPU of its own: {found} can be seen (CUDA_VISIBLE_DEVICES).\n"
            f"Start {found} processes here, or show all of the machine's GPUs to each of them."
        )
