"""One file of a Megatron-LM checkpoint → tensors, arguments, version; nothing that is in the file is run.

torch.load(weights_only=True) builds tensors, numbers and containers. Megatron adds three kinds of objects: its
arguments (argparse.Namespace) and numpy's random state, which are allowed while the file is read, and instances of its
own classes (enums among the arguments, the loss scaler), in whose place an empty object comes: none of its code is
imported. A file that asks for anything else is refused.
"""

import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import RecipeError, first_line

if TYPE_CHECKING:
    from torch import Tensor

VERSIONS = (0.0, 1.0, 2.0, 3.0)
"""What `checkpoint_version` may be; the oldest files have none and mean 0."""
_MEGATRONS_OWN = ("megatron", "fp16")
_WRAPPERS = {"module", "language_model", "embedding", "transformer", "encoder"}
"""Names of modules around the layers, which differ between Megatron's versions and say nothing."""
_UNUSED = ("word_embeddings_for_head.weight", "lm_head.weight")
"""Copies of the embedding on the last pipeline stage."""


@dataclass(frozen=True)
class Rank:
    """One rank's part of the model, mapped from disk where the file allows it."""

    file: Path
    version: float
    arguments: Mapping[str, Any]
    """Empty in the oldest files."""
    tensors: "Mapping[str, Tensor]"
    """By Megatron's names without the modules around: `layers.0.mlp.dense_h_to_4h.weight`, `word_embeddings.weight`."""


def read_rank(file: Path) -> Rank:
    """What is stored in `file`.

    Raises:
        RecipeError: not a Megatron-LM checkpoint, an unknown version, interleaved pipeline stages, foreign objects.
    """
    content = _load(file)
    if not isinstance(content, dict) or not any(str(key).startswith("model") for key in content):
        found = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise RecipeError(f'{file} is not a Megatron-LM checkpoint: found {found}; needed: a dict with "model".')
    if "model" not in content:
        raise RecipeError(
            f"{file} holds {', '.join(k for k in content if k.startswith('model'))}: interleaved pipeline stages are "
            "not supported. Save it again with Megatron without --num-layers-per-virtual-pipeline-stage."
        )
    version = content.get("checkpoint_version", 0)
    # True equals 1.0 to Python, and says no version
    if isinstance(version, bool) or not isinstance(version, (int, float)) or version not in VERSIONS:
        raise RecipeError(
            f"{file} has checkpoint_version {version!r}; known are {', '.join(map(str, VERSIONS))}, which differ in "
            "the order of the query, key and value rows. Nothing was guessed."
        )
    arguments = content.get("args")
    known = vars(arguments) if isinstance(arguments, Namespace) else {}
    tensors = {name: tensor for name, tensor in _flat(content["model"]) if name not in _UNUSED}
    if any(name.startswith("decoder.layers.") for name in tensors):
        raise RecipeError(
            f"{file} is of Megatron-Core (decoder.layers…), not of Megatron-LM's own GPT-2. Convert it with Megatron's "
            "tools/checkpoint/convert.py and its Hugging Face saver."
        )
    return Rank(file, float(version), known, tensors)


def _load(file: Path) -> Any:
    import torch
    from torch.serialization import safe_globals

    mapped = _is_whole_zip(file)  # torch before 1.6 wrote another format, which cannot be mapped
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file) if mapped else []
        own = [name for name in foreign if name.split(".")[0] in _MEGATRONS_OWN]
        with safe_globals([*_numpys(), Namespace, *((_nothing(name), name) for name in own)]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"Unpickler error: (.{1,150})", str(error))
        raise RecipeError(
            f"{file} asks for {named[1] if named else 'an unknown object'}: that could run code, or is damage. Only "
            "tensors, numbers, arguments and random states are read.\n"
            "If you trust where it is from, save it again with Megatron without them (--no-save-optim --no-save-rng)."
        ) from None
    # whatever the legacy format's reader stumbles over in half a file
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, AssertionError) as error:
        raise RecipeError(f"{file} cannot be read: {first_line(error)}. Is it whole?") from None


def _is_whole_zip(file: Path) -> bool:
    """Whether torch wrote it as a zip archive. Raises RecipeError where only the beginning of one is there."""
    try:
        if zipfile.is_zipfile(file):
            return True
        with file.open("rb") as opened:
            begins = opened.read(4)
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error.strerror or error}.") from None
    if begins == b"PK\x03\x04":
        raise RecipeError(
            f"{file} is cut short: {file.stat().st_size:,} bytes of an archive whose list of contents, at its end, is "
            "missing. Copy it again."
        )
    return False


def _numpys() -> list[Any]:
    """What an array of numpy's Mersenne twister is made of, under its names in numpy 1 and 2."""
    import numpy

    makes = numpy.array([0]).__reduce__()[0]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    return [*((makes, name) for name in names), numpy.ndarray, numpy.dtype, type(numpy.dtype("uint32"))]


def _nothing(name: str) -> type:
    """A class that takes anything and does nothing, in place of Megatron's `name`."""

    def ignore(self: object, *arguments: object) -> None: ...

    return type(name.rpartition(".")[2], (), {"__init__": ignore, "__setstate__": ignore})


def _flat(tree: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> "Iterator[tuple[str, Tensor]]":
    """Dotted names and tensors of nested state dicts; what is no tensor (`_extra_state`) is left out."""
    import torch

    for key, value in tree.items():
        path = (*prefix, *str(key).split("."))
        if isinstance(value, Mapping):
            yield from _flat(value, path)
        elif isinstance(value, torch.Tensor):
            start = next((i for i, part in enumerate(path) if part not in _WRAPPERS), 0)
            yield ".".join(path[start:]), value
