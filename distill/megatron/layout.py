"""The files of a Megatron-LM checkpoint: one per tensor-parallel rank and pipeline stage.

Megatron writes SAVE/latest_checkpointed_iteration.txt and SAVE/iter_0001000/mp_rank_00/model_optim_rng.pt (with
pipeline stages: mp_rank_00_000); what it publishes is called release/ in place of iter_…. With the distributed
optimizer its first version 3.0 wrote the model to model_rng.pt, and each data-parallel rank's part of the optimizer to
a folder beside it, whose name has one number more: mp_rank_00_000/optim.pt (mp_rank_00_000_000 with pipeline stages).
Source: `get_checkpoint_name`, `get_checkpoint_names` (in the versions that had it) and `read_metadata` in
megatron/checkpointing.py of NVIDIA/Megatron-LM.
"""

import re
from pathlib import Path

from distill.errors import RecipeError

TRACKER = "latest_checkpointed_iteration.txt"
FILES = ("model_optim_rng.pt", "model_rng.pt")
"""The second: the optimizer is in a file of its own."""
OPTIMIZER = "optim.pt"
"""That file, where it stands in a folder of its own."""
_RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?")


def rank_files(checkpoint: Path, iteration: int | None = None) -> list[list[Path]]:
    """files[stage][rank] of a checkpoint: a save folder, one iteration's folder, or a single file.

    Raises:
        RecipeError: it is no such checkpoint, or a rank is missing; the message names it.
    """
    if checkpoint.suffix == ".zip" and checkpoint.is_file():  # as NVIDIA publishes its 345M
        raise RecipeError(f"{checkpoint} is an archive. Unpack it (unzip), then give the folder that comes out of it.")
    if checkpoint.is_file():
        return [[checkpoint]]
    if not checkpoint.is_dir():
        raise RecipeError(f"{checkpoint}: no such folder. Give the folder that Megatron-LM saved to, or its .pt file.")
    folder = _one_iteration(checkpoint, iteration)
    single = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if single:
        return [[single]]
    folders = [path for path in sorted(folder.glob("mp_rank_*")) if path.is_dir() and not _is_optimizers(path)]
    ranks = {path.name: _RANK.fullmatch(path.name) for path in folders}
    strange = [name for name, match in ranks.items() if match is None]
    if strange or not ranks:
        found = ", ".join(strange or sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise RecipeError(
            f"{folder} is not a Megatron-LM checkpoint: found {found}.\n"
            f"Needed: mp_rank_00/{FILES[0]} and so on (with pipeline stages mp_rank_00_000; expert parallelism is not "
            "supported)."
        )
    return _grid(folder, {name: match for name, match in ranks.items() if match is not None})


def _is_optimizers(folder: Path) -> bool:
    """Whether nothing but the optimizer's state lies here: its name then counts a data-parallel rank too."""
    return [path.name for path in folder.iterdir()] == [OPTIMIZER]


def _one_iteration(checkpoint: Path, iteration: int | None) -> Path:
    """The folder that holds the ranks."""
    if iteration is not None:
        return _existing(checkpoint, f"iter_{iteration:07d}", "--iteration")
    if any(checkpoint.glob("mp_rank_*")) or any((checkpoint / name).is_file() for name in FILES):
        return checkpoint
    tracker = checkpoint / TRACKER
    if tracker.is_file():
        said = tracker.read_text("utf-8", errors="replace").strip()
        if said != "release" and not said.isdigit():
            raise RecipeError(f'{tracker} says {said[:40]!r}; needed: a number of steps, or "release".')
        return _existing(checkpoint, said if said == "release" else f"iter_{int(said):07d}", str(tracker))
    saved = sorted(path for path in [*checkpoint.glob("iter_*"), checkpoint / "release"] if path.is_dir())
    if len(saved) > 1:
        raise RecipeError(
            f"{checkpoint} holds {', '.join(path.name for path in saved[:4])}{' …' if len(saved) > 4 else ''} and no "
            f"{TRACKER}. Give one of these folders."
        )
    return saved[0] if saved else checkpoint


def _existing(checkpoint: Path, name: str, named_by: str) -> Path:
    if not (checkpoint / name).is_dir():
        there = ", ".join(path.name for path in sorted(checkpoint.iterdir()) if path.is_dir()) or "no folder"
        raise RecipeError(f"{named_by} names {name}, but {checkpoint} holds {there}.")
    return checkpoint / name


def _grid(folder: Path, ranks: dict[str, re.Match[str]]) -> list[list[Path]]:
    """files[stage][rank], every one of them there."""
    staged = {match[2] is not None for match in ranks.values()}
    if len(staged) > 1:
        raise RecipeError(f"{folder} mixes folders with and without a pipeline stage: {', '.join(ranks)}.")
    places = {(int(match[2] or 0), int(match[1])): folder / name for name, match in ranks.items()}
    num_stages, num_ranks = (1 + max(place[axis] for place in places) for axis in (0, 1))
    files: list[list[Path]] = []
    missing: list[str] = []
    for stage in range(num_stages):
        files.append([])
        for rank in range(num_ranks):
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if staged == {True} else "")
            where = places.get((stage, rank), folder / name)
            file = next((where / f for f in FILES if (where / f).is_file()), None)
            if file is None:
                missing.append(f"{name}/{FILES[0]}")
            else:
                files[-1].append(file)
    if missing:
        raise RecipeError(
            f"{folder}: {', '.join(missing[:4])} {'is' if len(missing) == 1 else 'are'} missing.\n"
            f"Found {sum(map(len, files))} of {num_stages * num_ranks} files; every rank holds a part of every weight. "
            "Copy the missing ones here."
        )
    return files
