"""Tensors, one after the other → a checkpoint folder in shards; the folder appears whole or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from distill.artifact import write_whole
from distill.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target`, renamed to it at the end; after an error it is gone.

    Raises:
        RecipeError: `target` exists.
    """
    if target.exists():
        raise RecipeError(f"{target} exists, and nothing is overwritten. Give another folder, or remove this one.")
    scratch = target.with_name(f".{target.name}.{os.getpid()}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        for file in scratch.iterdir():
            file.chmod(0o644)  # safetensors writes files that only their owner can read
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        scratch.rename(target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def write_shards(tensors: "Iterable[tuple[str, Tensor]]", folder: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Writes safetensors files of at most `shard_bytes` (a larger tensor has one of its own); returns bytes of weights.

    One shard is in memory at a time. Several get the index that transformers reads.
    """
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    held_bytes = total = 0

    def flush() -> None:
        nonlocal held, held_bytes
        from safetensors.torch import save_file

        save_file(held, folder / f"{len(shards)}.part", metadata={"format": "pt"})
        shards.append(list(held))
        held, held_bytes = {}, 0

    for name, tensor in tensors:
        if held and held_bytes + tensor.nbytes > shard_bytes:
            flush()
        held[name] = tensor
        held_bytes += tensor.nbytes
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (folder / "0.part").rename(folder / "model.safetensors")
        return total
    where = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"{number}.part").rename(folder / file)
        where |= dict.fromkeys(names, file)
    write_whole(folder / INDEX, json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1))
    return total
