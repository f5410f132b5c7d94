"""Checkpoints that the hub holds as pytorch_model.bin alone (OPT's are): their tensors, once, as safetensors.

Nothing of the files is executed: torch's restricted unpickler (`weights_only=True`) builds tensors and containers, and
refuses everything else. One shard is in memory at a time, and not even that where its pages can be mapped.
"""

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from distill.artifact import locked
from distill.checkpoint import weight_bytes
from distill.errors import RecipeError, first_line

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def as_safetensors(source: Path, target: Path) -> Path:
    """`target`: the checkpoint of the folder `source`, its weights as safetensors; made once, and whole or not at all.

    Of several processes that ask at once, as torchrun starts them, one converts and the others wait for it.

    Raises:
        RecipeError: a shard is missing, or holds more than tensors.
        StageFailed: the disk of `target` knows no locks.
    """
    if (target / "config.json").is_file():
        return target
    with locked(target.with_name(f"{target.name}.lock")):
        # the process that held it before may have made the folder
        return target if (target / "config.json").is_file() else _made(source, target)


def _made(source: Path, target: Path) -> Path:
    scratch = target.with_name(f"{target.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    shards = _shards(source)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        weight_map |= dict.fromkeys(_convert(shard, scratch / name), name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": weight_bytes(scratch)}, "weight_map": weight_map}
        (scratch / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".bin" and file.name != INDEX:
            shutil.copyfile(file, scratch / file.name)
    scratch.rename(target)
    return target


def _shards(source: Path) -> list[Path]:
    index = source / INDEX
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [WEIGHTS]
    missing = [name for name in names if not (source / name).is_file()]
    if missing:
        raise RecipeError(
            f"{source}: no weights: there are no .safetensors files, and {', '.join(missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Download the checkpoint again, or name another."
        )
    return [source / name for name in names]


def _convert(shard: Path, target: Path) -> list[str]:
    """Writes one shard's tensors; returns their names."""
    import torch
    from safetensors.torch import save_file

    try:
        # files from before torch 1.6 are no zip archives and cannot be mapped
        state = torch.load(shard, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(shard))
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise RecipeError(
            f"{shard}: cannot be read as weights alone ({first_line(error)}). "
            "A checkpoint with safetensors is needed; huggingface.co/spaces/safetensors/convert makes one of it."
        ) from None
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            continue  # a version number or a name
        # safetensors refuses tensors that share memory, as tied embeddings do in such files
        shared = value.untyped_storage().data_ptr() in seen
        seen.add(value.untyped_storage().data_ptr())
        tensors[name] = value.clone() if shared else value.contiguous()
    save_file(tensors, target, metadata={"format": "pt"})
    return list(tensors)
