"""Names of checkpoints as recipes write them: a folder, a hub id, or `bundled:NAME`."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.errors import RecipeError, first_line
from distill.option import is_meant_as_path
from distill.papers import HUB_PATTERNS, papers_in

BUNDLED = Path(__file__).parent / "bundled"
_SMALL = ["*.json", "*.model", "*.jinja", "*.txt"]
"""Of a repository on the hub: its tokenizer, its template and its settings."""


def checkpoint_folder(name: str) -> str:
    """`name` with `bundled:` resolved and existing folders made absolute; a hub id stays as it is.

    Raises:
        ValueError: there is no name, or no bundled checkpoint of this one (pydantic turns it into the recipe's error).
    """
    if not name:  # Path("") is the current folder
        raise ValueError("is empty; give a checkpoint folder, a hub id or bundled:NAME")
    if name.startswith("bundled:"):
        folder = BUNDLED / name.removeprefix("bundled:")
        if not (folder / "config.json").is_file():
            found = ", ".join(sorted(f"bundled:{p.parent.name}" for p in BUNDLED.glob("*/config.json"))) or "none"
            raise ValueError(f"no checkpoint {name!r} ships with distill; these do: {found}")
        return str(folder)
    at_home = os.path.expanduser(name)  # no shell does it behind student.model=
    return str(Path(at_home).resolve()) if Path(at_home).is_dir() else name


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Most tokens of a row, as a config.json says; None where it does not."""
    return config.get("max_position_embeddings") or config.get("n_positions")


def read_config(name: str, revision: str | None, asked_by: str) -> dict[str, Any]:
    """config.json of a checkpoint, from its folder or from the hub, without loading weights.

    Raises:
        RecipeError: there is no such checkpoint; the message names `asked_by`, the key that asked for it.
    """
    file = Path(name) / "config.json"
    if not Path(name).is_dir():
        if is_meant_as_path(name):
            raise RecipeError(f"{asked_by}={name}: no such folder. It takes a checkpoint folder or a hub id.")
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(name, "config.json", revision=revision))
        except Exception as error:  # offline, gated, unknown: the hub's client has a type for each
            raise RecipeError(
                f"{asked_by}={name}: no such folder here, and the hub gave no config.json for it "
                f"({type(error).__name__}: {first_line(error)})."
            ) from None
    if not file.is_file():
        if any(file.parent.glob("mp_rank_*")) or (file.parent / "latest_checkpointed_iteration.txt").is_file():
            raise RecipeError(
                f"{asked_by}={name}: a checkpoint of Megatron-LM, which transformers does not read.\n"
                f"Convert it: python -m distill.megatron {name} NEW_FOLDER"
            )
        raise RecipeError(f"{asked_by}={name}: the folder has no config.json, so it is no checkpoint.")
    return json.loads(file.read_text())


@functools.cache
def local_folder(name: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint on this disk; one on the hub is downloaded once, at its revision.

    Only what a model without code of its own consists of: no Python, and pickles only where the hub has nothing else;
    their tensors are read without executing anything, and written as safetensors beside the hub's cache.

    Raises:
        RecipeError: there are no weights, or the hub does not give them.
    """
    if Path(name).is_dir():
        return Path(name)
    wanted = ["*.safetensors", *_SMALL, *HUB_PATTERNS]
    # Mistral's repositories hold every weight a second time, for Mistral's own code
    folder = _download("checkpoint", name, revision, wanted, ignore_patterns=["consolidated*"])
    if any(folder.glob("*.safetensors")):
        return folder
    folder = _download("checkpoint", name, revision, [*wanted, "pytorch_model*.bin"])
    from huggingface_hub import constants

    from distill._bin_weights import as_safetensors

    # folder.name is the commit
    return as_safetensors(folder, Path(constants.HF_HOME) / "distill" / name.replace("/", "--") / folder.name)


@functools.cache
def papers_of(name: str, revision: str | None = None) -> list[Path]:
    """The licence papers of a checkpoint; of one on the hub they alone are downloaded, where they are not here yet.

    Empty where there are none, or the hub does not give them: whoever asks says so. The hub is asked once for all
    packages of a run.
    """
    if Path(name).is_dir():
        return papers_in(Path(name))
    try:
        return papers_in(_download("licence", name, revision, HUB_PATTERNS))
    except RecipeError:
        return []


@functools.cache
def tokenizer_folder(name: str, revision: str | None = None) -> Path:
    """A folder with a checkpoint's tokenizer and settings; of one on the hub these alone are downloaded.

    A served teacher's weights are somewhere else, and may be hundreds of gigabytes.

    Raises:
        RecipeError: the hub does not give them.
    """
    return Path(name) if Path(name).is_dir() else _download("tokenizer", name, revision, _SMALL)


def _download(what: str, name: str, revision: str | None, patterns: Sequence[str], **more: Any) -> Path:
    """The files of these patterns, from the hub or from its cache here; `what` they are is for the error's words."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), **more))
    except Exception as error:  # offline, gated, unknown, no such revision: the hub's client has a type for each
        raise RecipeError(
            f"{name}: the hub did not give this {what} ({type(error).__name__}: {first_line(error)})."
        ) from None


def weight_bytes(folder: Path) -> int:
    """Bytes of the weights of a local checkpoint."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
