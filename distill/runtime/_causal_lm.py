"""read_causal_lm(): AutoModelForCausalLM, but the language model alone of a checkpoint that reads images too."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.family.text_part import KEY_MAPPING, NOT_TEXT, reads_more_than_text, text_part
from distill.runtime.bnb import quiet


def read_causal_lm(folder: Path | str, **arguments: Any) -> Any:
    """The causal language model of a checkpoint, whole; what it saves is a text checkpoint, whatever it was read from.

    Args:
        folder: a checkpoint folder, or a hub id. Nothing is looked up online when the folder exists.
        arguments: of `from_pretrained`.

    Raises:
        DataError: weights are missing, of another shape than config.json says, or, in a checkpoint that reads images
            too, of names that we do not know.
    """
    from transformers import AutoModelForCausalLM

    read: Any = AutoModelForCausalLM.from_pretrained  # gives a pair when it is asked what it found
    here = _here(folder)
    language, is_part = language_config(folder)
    names = {"config": language, "key_mapping": KEY_MAPPING} if is_part else {}
    arguments = {**arguments, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with _without_report(), quiet():
        model, found = read(folder, **names, **here, **arguments)
    _must_be_whole(folder, found, all_known=is_part)
    if is_part:
        _forget_names(model)
    return model


def language_config(folder: Path | str) -> tuple[Any, bool]:
    """transformers' configuration of the language model in a checkpoint, and whether that is only a part of it."""
    from transformers import AutoConfig

    whole: Any = AutoConfig.from_pretrained(folder, **_here(folder))
    if not reads_more_than_text({"model_type": whole.model_type}):
        return whole, False
    values = text_part(whole.to_dict())
    return AutoConfig.for_model(values.pop("model_type"), **values), True


def _here(folder: Path | str) -> dict[str, bool]:
    return {"trust_remote_code": False, "local_files_only": Path(folder).is_dir()}


def _must_be_whole(folder: Path | str, found: dict[str, Any], *, all_known: bool) -> None:
    # transformers fills what is missing, or of another shape, with random numbers
    missing, mismatched = sorted(found["missing_keys"]), sorted(found["mismatched_keys"])
    unknown = sorted(name for name in found["unexpected_keys"] if not name.startswith(NOT_TEXT)) if all_known else []
    if not (missing or mismatched or unknown):
        return
    if mismatched:
        name, stored, wanted = mismatched[0]
        what = f"{name} has shape {list(stored)}, but config.json says {list(wanted)}"
    else:
        what = f"{missing[0]} is missing" if missing else f"{unknown[0]} is not known"
    raise DataError(
        f"{folder}: {what} ({len(missing)} weights are missing, {len(mismatched)} of another shape, {len(unknown)} "
        "unknown).\nNeeded: weights and config.json of one and the same model. Download it again, or name another "
        "checkpoint."
    )


def _forget_names(model: Any) -> None:
    """transformers saves weights under the names that they were read by, which a text model's config cannot load."""
    model._weight_conversions = [
        conversion for conversion in model._weight_conversions if not set(conversion.source_patterns) & set(KEY_MAPPING)
    ]


@contextlib.contextmanager
def _without_report() -> Iterator[None]:
    """Hides the table of what was found: 440 lines of Gemma's vision tower; what is wrong is said in our words."""
    from transformers.utils import logging

    shown = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(shown)
