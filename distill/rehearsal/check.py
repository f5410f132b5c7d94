"""check_rehearsal(): what would stop the real run, as far as it can be told before anything is made."""

import os

from distill._encoding_checks import check_templates
from distill._process_checks import check_hardware, check_processes
from distill._shape_checks import num_steps, warm_up_cut
from distill._weights_check import check_weights
from distill.checks import check_configs, check_models, load
from distill.errors import RecipeError
from distill.family.reading import refuse_unknown_architecture
from distill.recipe import Recipe
from distill.rehearsal._data import check_data, is_here
from distill.rehearsal._likely import likely_mistakes
from distill.rehearsal._sources import Source, read, student_source, teacher_sources
from distill.rehearsal._tokenizers import real_tokenizer


def check_rehearsal(recipe: Recipe) -> tuple[str, ...]:
    """Holds the recipe against the real configurations and the real data, where these are here or known.

    Returns what stops nothing and should be known, a sentence each.

    Raises:
        RecipeError: the run would stop. Nothing has been written.
    """
    sources = [*teacher_sources(recipe).values()]
    own = student_source(recipe)
    sources += [own] if own else []
    refuse_gated(sources)
    check_processes(recipe)
    check_hardware(recipe)
    student = check_configs(recipe, read)
    rows = check_data(recipe)
    for source in sources:
        refuse_unknown_architecture(source.config, source.key)
    check_weights(recipe, may_be_elsewhere=True)
    check_models(recipe, student, elsewhere=recipe.hardware is not None)
    _check_encoding(recipe, sources)
    cut = _warm_up_cut(recipe, rows)
    return (*([cut] if cut else []), *likely_mistakes(recipe, sources))


def _check_encoding(recipe: Recipe, sources: list[Source]) -> None:
    """Holds the data that is here against the tokenizers that are here. Raises RecipeError."""
    folders = [source for source in sources if source.is_folder]
    for source in folders:
        real_tokenizer(source)
    if folders and is_here(recipe.data):
        check_templates(load(recipe.data), [(source.model, source.revision) for source in folders])


def refuse_gated(sources: list[Source]) -> None:
    """Refuses repositories that ask for an account, when nobody is logged in and the hub is to be asked.

    Raises:
        RecipeError: names them, how to log in, and how to rehearse without the hub.
    """
    if is_offline() or has_token():
        return
    gated = list(dict.fromkeys(f"{s.key}={s.model}" for s in sources if s.known and s.known[1].gated))
    if gated:
        raise RecipeError(
            f"{', '.join(gated)}: a gated repository, and there is no token here, so the run could not download it.\n"
            "Accept its licence on the hub, then `hf auth login` (or HF_TOKEN=…). Weights that you have: name their "
            "folder instead.\nTo rehearse the rest without the hub: HF_HUB_OFFLINE=1."
        )


def gated_unproven(sources: list[Source]) -> list[str]:
    """A sentence on each gated repository that could not be told to be within reach."""
    known = {source.model: source.known[1] for source in sources if source.known}
    token = "the token was not tried" if has_token() else "there is no token here"
    return [
        f"access to {name}: it {'is' if checkpoint.gated else 'was for a time, and may be,'} gated, and {token}"
        for name, checkpoint in known.items()
        if checkpoint.gated or checkpoint.may_be_gated
    ]


def is_offline() -> bool:
    """Whether the environment forbids the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def has_token() -> bool:
    """Whether somebody is logged in to the hub here."""
    from huggingface_hub import get_token

    return bool(get_token())


def _warm_up_cut(recipe: Recipe, num_rows: int | None) -> str | None:
    if num_rows is None and recipe.training.max_steps is None:
        return None
    return warm_up_cut(recipe, num_steps(recipe, num_rows or 0))
