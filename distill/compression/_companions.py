"""The files of a checkpoint that are neither weights nor configuration, and belong into every package."""

import shutil
from pathlib import Path

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
    "LICENSE*",
    "NOTICE*",
)


def copy_companions(student: Path, package: Path) -> list[str]:
    """Copies tokenizer, chat template, generation config and licence texts as they are; returns their names.

    Copied and not saved anew: what transformers writes after a load may tokenise differently.
    """
    names = sorted({file.name for pattern in COMPANIONS for file in student.glob(pattern) if file.is_file()})
    for name in names:
        shutil.copyfile(student / name, package / name)
    return names
