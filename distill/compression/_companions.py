"""The files of a checkpoint that are neither weights nor configuration, and belong into every package."""

import shutil
from collections.abc import Iterable
from pathlib import Path

LICENCES = ("LICENSE*", "NOTICE*")
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",  # SentencePiece
    "chat_template*",
    "generation_config.json",
    *LICENCES,
)


def copy_companions(student: Path, package: Path) -> list[str]:
    """Copies tokenizer, chat template, generation config and licence texts as they are; returns their names.

    Copied and not saved anew: what transformers writes after a load may tokenise differently.
    """
    return _copy(COMPANIONS, student, package)


def copy_licences(checkpoint: Path, folder: Path) -> list[str]:
    """Copies the licence texts alone, which whoever passes a checkpoint on has to add; returns their names."""
    return _copy(LICENCES, checkpoint, folder)


def _copy(patterns: Iterable[str], source: Path, folder: Path) -> list[str]:
    names = sorted({file.name for pattern in patterns for file in source.glob(pattern) if file.is_file()})
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return names
