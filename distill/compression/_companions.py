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
    "additional_chat_templates/*.jinja",  # where transformers 5 keeps the templates that have a name of their own
    "generation_config.json",
)


def copy_companions(student: Path, package: Path) -> list[str]:
    """Copies tokenizer, chat templates and generation config as they are; returns their names.

    Copied and not saved anew: what transformers writes after a load may tokenise differently.
    """
    files = sorted({file for pattern in COMPANIONS for file in student.glob(pattern) if file.is_file()})
    names = [str(file.relative_to(student)) for file in files]
    for name in names:
        (package / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(student / name, package / name)
    return names
