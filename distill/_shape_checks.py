"""What can be refused of a recipe from shapes and rows alone, and would else stop a run in one of its last hours."""

from typing import Any

from distill.compression._bnb import linear_widths
from distill.errors import DataError, RecipeError
from distill.example import Examples
from distill.family.head import head_facts, takes
from distill.family.reading import Read
from distill.recipe import Recipe


def check_parallel(teacher: Any, key: str, read: Read) -> None:
    """Whether vLLM can divide the heads of this teacher over its devices. Raises RecipeError."""
    size = teacher.tensor_parallel_size
    if size == 1:
        return
    config = read(teacher.model, teacher.revision, f"{key}.model")
    shape = config.get("text_config", config)
    names = ("num_attention_heads", "n_head", "num_heads")
    heads = next((shape[name] for name in names if shape.get(name)), None)
    if not heads:
        return
    key_value = shape.get("num_key_value_heads") or heads
    # vLLM copies key and value heads where there are fewer of them than devices
    fits = heads % size == 0 and (key_value % size == 0 or size % key_value == 0)
    if not fits:
        good = [n for n in range(1, heads + 1) if heads % n == 0 and (key_value % n == 0 or n % key_value == 0)]
        raise RecipeError(
            f"{key}.tensor_parallel_size={size} does not divide the {heads} heads ({key_value} for keys and values) of "
            f"{teacher.model}. It can be {', '.join(map(str, good))}; more devices go to {key}.pipeline_parallel_size."
        )


def check_adapter(recipe: Recipe, student: dict[str, Any]) -> None:
    """Whether the student has the layers that the adapter names, and they take a LoRA. Raises RecipeError."""
    named = getattr(recipe.adapter, "target_modules", None)
    if not named:
        return
    (head, tied), layers = head_facts(student), list(linear_widths(student))
    on_head = [name for name in named if takes(name, head)]
    missing = [name for name in named if not any(takes(name, layer) for layer in [*layers, head])]
    if missing:
        there = ", ".join(dict.fromkeys(layer.rpartition(".")[2] for layer in (layers if tied else [*layers, head])))
        raise RecipeError(
            f"adapter.target_modules names {', '.join(missing)}, which is not the name of a linear layer in this "
            f"student (model_type {student.get('model_type')}). It has: {there}."
        )
    if on_head:
        _check_adapter_of_head(recipe, f"adapter.target_modules names {on_head[0]}, the student's output head", tied)


def _check_adapter_of_head(recipe: Recipe, said: str, tied: bool) -> None:
    """Raises RecipeError where a LoRA on the output head is not what would be trained, or not all of it."""
    if tied:
        # PEFT only warns: it trains the update for the head alone, and merges it into the embeddings as well
        raise RecipeError(
            f"{said}, and its config.json says that the embeddings are its weights (tie_word_embeddings).\n"
            "An update is trained for what the student says, and merged it would change what it reads as well.\n"
            "Leave it out, or take a student with a head of its own: from scratch student.tie_word_embeddings=false; a "
            "checkpoint\nthat has a head of its own says so in its config.json."
        )
    if recipe.adapter.kind != "none" and recipe.adapter.dropout:
        raise RecipeError(
            f"{said}, with adapter.dropout={recipe.adapter.dropout:g}: the fused loss cannot drop parts of the hidden "
            "states for the update alone.\nSet adapter.dropout=0 (training.dropout drops in the blocks), or leave the "
            "head out."
        )
    if recipe.target_kind == "frozen_head":
        raise RecipeError(
            f"{said}, and teacher.targets=frozen_head averages that head once and for all, so it must not be trained.\n"
            "Leave it out, or use teacher.targets=sampled."
        )


def rows_to_learn(recipe: Recipe, num_rows: int, num_answered: int | None = None) -> int:
    """Rows that training sees in an epoch: each prompt as often as it is answered, or the rows with an answer."""
    if recipe.teacher.kind != "none" and recipe.teacher.responses == "generate":
        return num_rows * getattr(recipe.teacher, "samples", 1)
    return num_rows if num_answered is None else num_answered


def num_steps(recipe: Recipe, num_rows: int) -> int:
    """Optimizer steps over so many rows; 0 where all epochs together are less than half a batch."""
    training = recipe.training
    return training.max_steps or round(training.num_train_epochs * num_rows / training.batch_size)


def check_schedule(recipe: Recipe, num_rows: int) -> None:
    """Whether the learning-rate schedule has a step at all. Raises RecipeError."""
    training = recipe.training
    if num_steps(recipe, num_rows) < 1:
        raise RecipeError(
            f"training.num_train_epochs={training.num_train_epochs:g} over {num_rows} rows in batches of "
            f"{training.batch_size} is not one optimizer step. Raise the epochs, lower training.batch_size, or give "
            "training.max_steps."
        )


def warm_up_cut(recipe: Recipe, num_steps: int) -> str | None:
    """A sentence when the trainer will warm up for fewer steps than the recipe says: half of the training at most."""
    warm_up, most = recipe.training.warmup_steps, num_steps // 2
    if warm_up <= most:
        return None
    return (
        f"training.warmup_steps={warm_up} is more than half of the {num_steps} steps of this training, so the learning "
        f"rate reaches {recipe.training.learning_rate:g} after {most} of them. Lower it, or train longer."
    )


def check_labels(examples: Examples, data: Any) -> None:
    """Whether the answers are answers, and not the prompts once more. Raises DataError."""
    answered = [
        (row.prompt, row.response) for row in examples.train if isinstance(row.prompt, str) and row.response is not None
    ]
    if answered and all(prompt.strip() == response.strip() for prompt, response in answered):
        field = getattr(data, "response_field", "response")
        raise DataError(
            f"All {len(answered)} answers equal their prompts: a student would learn to repeat what it is asked. Name "
            f"the field that holds the answers with data.response_field (it is {field!r} now)."
        )


def check_packing(recipe: Recipe, student: dict[str, Any]) -> None:
    """Raises RecipeError where rows in one sequence are known to see each other; training proves the rest."""
    why = {
        "bloom": "takes no positions, by which rows in one sequence are told apart",
        "opt": "does not let positions decide what a token sees (transformers 5.23), so rows would see each other",
    }.get(student.get("model_type", ""))
    if recipe.training.packing and why:
        raise RecipeError(f"training.packing: {student['model_type']} {why}. Leave packing out.")
