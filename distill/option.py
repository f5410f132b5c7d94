"""STRICT: how every option of a recipe is declared, so that its default, its range and its help stand in one place."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ConfigDict

STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, validate_default=True)
"""For `@dataclass(frozen=True, kw_only=True, config=STRICT)` from `pydantic.dataclasses`."""


FILE_SUFFIXES = frozenset(
    {".arrow", ".bz2", ".csv", ".gz", ".json", ".jsonl", ".md", ".parquet"}
    | {".tsv", ".txt", ".xlsx", ".xz", ".yaml", ".yml", ".zip", ".zst"}
)


def is_meant_as_path(name: str) -> bool:
    """Whether a name under which nothing lies on this disk is a path all the same, and not a hub id.

    By how it begins, its slashes, or a file's suffix; ids have dots of their own, as Qwen2.5 or llama3.1-2k.
    """
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).suffix.lower() in FILE_SUFFIXES


def _absolute_if_it_exists(path: str) -> str:
    # recipe.yaml must reproduce the run from any working directory; a hub id stays as it is
    at_home = os.path.expanduser(path)  # no shell does it behind data.path=
    return str(Path(at_home).resolve()) if path and Path(at_home).exists() else path


FileOrHubId = Annotated[str, AfterValidator(_absolute_if_it_exists)]
"""A file or folder, kept as an absolute path where it exists, or the id of something on the hub."""
