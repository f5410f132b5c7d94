"""content_hash: whether the files behind a teacher are the same as last time."""

import hashlib
from pathlib import Path

from distill.answer_file.distillkit import CONFIG
from distill.teacher.file import File

VERSION = b"2"
"""Raise it when the same files would be read otherwise."""


def content_hash(teacher: File) -> str:
    """Hash of the answers' files, of what unpacks them and of the tokenizer; of the names of what is on the hub.

    A data set on the hub is as fixed as its `teacher.revision`.
    """
    digest = hashlib.sha256(VERSION)
    for name in (teacher.path, teacher.requests, teacher.compression, teacher.tokenizer):
        if name is None or not Path(name).exists():
            digest.update(repr(name).encode())
            continue
        folder = Path(name)
        files = sorted(folder.rglob("*")) if folder.is_dir() else [folder, folder.parent / CONFIG]
        for file in files:
            # a tokenizer's folder is its checkpoint's, and the weights say nothing about the answers
            if file.is_file() and file.suffix != ".safetensors":
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:20]
