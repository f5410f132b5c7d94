"""check_processes(): whether a recipe can be divided over the processes that a launcher started."""

import os

from distill.distributed import world
from distill.errors import RecipeError
from distill.hardware import hardware_of
from distill.recipe import Recipe
from distill.training import Training


def check_processes(recipe: Recipe) -> None:
    """Raises RecipeError with the numbers, where the batch or what the recipe asks for cannot be divided."""
    size = world().size
    if size == 1:
        return
    _one_gpu_each()
    check_division(recipe, size)


def check_hardware(recipe: Recipe) -> None:
    """Raises RecipeError, where the batch cannot be divided over one process for each device of `recipe.hardware`."""
    size = hardware_of(recipe.hardware).count if recipe.hardware else 1
    if size > 1 and "train" in recipe.stages:
        _check_batch(recipe, size)


def check_division(recipe: Recipe, size: int) -> None:
    """Raises RecipeError, where `size` processes could not train this recipe together."""
    if size == 1:
        return
    _check_batch(recipe, size)
    training = recipe.training
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


def _check_batch(recipe: Recipe, size: int) -> None:
    training = recipe.training
    unit = size * training.gradient_accumulation_steps
    if training.batch_size % unit == 0:
        return
    raise RecipeError(
        f"training.batch_size={training.batch_size} cannot be divided over {size} processes with "
        f"training.gradient_accumulation_steps={training.gradient_accumulation_steps}: it has to be a multiple of "
        f"{unit}.\nUse {' or '.join(_dividing(training, size))}, or another number of processes."
    )


def _dividing(training: Training, size: int) -> list[str]:
    """Overrides with which the batch can be divided: the batches next to its own, the accumulation next to its own."""
    batch, steps = training.batch_size, training.gradient_accumulation_steps
    fitting = [number for number in range(1, batch // size + 1) if batch % (size * number) == 0]
    near = [min(fitting, key=lambda number: abs(number - steps))] if fitting else []
    below = batch // (size * steps) * size * steps
    batches = [number for number in (below, below + size * steps) if number]
    return [
        *(f"training.batch_size={number}" for number in batches),
        *(f"training.gradient_accumulation_steps={number}" for number in near),
    ]


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
