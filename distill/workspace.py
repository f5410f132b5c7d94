"""Workspace: the store of sealed artifacts, and produce(), which reuses one or makes it."""

import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from distill.artifact import MANIFEST, Artifact, fingerprint, hash_folder, locked, open_artifact, seal, write_whole
from distill.checkpoint import local_folder
from distill.distributed import world
from distill.errors import StageFailed
from distill.progress import console
from distill.record import RunRecord

SHARED = ("responses", "student", "package")
"""Kinds of artifacts that all processes of a run open or make; the others are the leader's alone."""
NAME_WIDTH = len("evaluate baseline_no_teacher")
"""Columns of a stage's name in the terminal, the longest one's."""
RUNS = "runs"
"""Folder of the store in which each run that used it left its own folder's path."""
Make = Callable[[Path], Mapping[str, Any] | None]


def store_folder() -> Path:
    """Where sealed artifacts live: DISTILL_STORE, else outputs/store."""
    return Path(os.environ.get("DISTILL_STORE") or "outputs/store").resolve()


def notes_in(file: Path) -> list[str]:
    """What a stage had to leave out, to cut or to do otherwise, a sentence each; none without the file."""
    return json.loads(file.read_text()) if file.exists() else []


class Workspace:
    """Turns (what, settings, inputs) into a sealed artifact: an existing one, or one that `make` fills."""

    def __init__(self, record: RunRecord, store: Path):
        self.record = record
        self.store = store
        # so that whoever prunes the store knows every run that uses it, wherever it lies
        known = store / RUNS / f"{fingerprint(settings=str(record.run.resolve()), inputs={})}.txt"
        known.parent.mkdir(parents=True, exist_ok=True)
        write_whole(known, str(record.run.resolve()))
        self.terminal = console()

    def produce(
        self,
        kind: str,
        name: str,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        make: Make,
        together: bool = False,
    ) -> Artifact:
        """The artifact of this fingerprint; `make(scratch)` is called only when it is not there.

        The scratch folder survives a crash under the same fingerprint, so `make` can go on from what it finds.
        It returns what it measured (`resumed_from_step`, …) for the record. One lock per fingerprint: parallel
        runs that want the same artifact wait for the first and then reuse it.
        With `together`, the other processes of this run (see `Following`) call `make` at the same time.
        """
        artifact = self._found_or_made(kind, name, settings, inputs, make, together)
        if kind in SHARED:
            world().share({"sealed": {**vars(artifact), "path": str(artifact.path), "inputs": dict(artifact.inputs)}})
        return artifact

    def _found_or_made(
        self,
        kind: str,
        name: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        make: Make,
        together: bool,
    ) -> Artifact:
        made_from = fingerprint(settings={"kind": kind, **settings}, inputs=inputs)
        path = self.store / kind / made_from
        with locked(path.with_suffix(".lock"), lambda: self.say(name, "waits for another run that is making it")):
            found = open_artifact(path)
            if found:
                self._finished(name, found, reused=True, why="sealed result exists", seconds=0.0)
                return found
            why = self._why_new(kind, name, settings, inputs)
            scratch = scratch_of(path)
            if path.exists():  # without its manifest, and in the way of what is made now
                shutil.rmtree(path)
            resuming = scratch.exists()
            scratch.mkdir(parents=True, exist_ok=True)
            self.say(name, "goes on from an interrupted run" if resuming else f"starts ({why})")
            started = time.monotonic()
            measured = self._make_together(name, make, scratch) if together else self._make(name, make, scratch)
            made_of = {"name": name, "settings": dict(settings), "inputs": dict(inputs)}
            write_whole(scratch / "settings.json", json.dumps(made_of, indent=1))
            artifact = seal(scratch, Artifact(kind, path, made_from, inputs))
            seconds = round(time.monotonic() - started, 2)
            self._finished(name, artifact, reused=False, why=why, seconds=seconds, **measured)
            return artifact

    def reopen(self, artifact: Artifact) -> Path:
        """Breaks the seal: the folder becomes a scratch folder again, from which its stage goes on. Returns it."""
        scratch = scratch_of(artifact.path)
        with locked(artifact.path.with_suffix(".lock")):
            if open_artifact(artifact.path) is None:
                return scratch  # another run was faster
            shutil.rmtree(scratch, ignore_errors=True)
            artifact.path.rename(scratch)  # at once all of it, so that nothing is lost whatever happens next
            (scratch / MANIFEST).unlink()
        return scratch

    def find(self, kind: str, same: Callable[[Mapping[str, Any], Mapping[str, str]], bool]) -> Path | None:
        """A sealed artifact of which `same(settings, inputs)` holds; None when there is none."""
        for folder in sorted((self.store / kind).glob("*/")):
            if folder.suffix or not (folder / MANIFEST).exists():
                continue  # a scratch folder, which its run may rename at any moment
            made_from = json.loads((folder / "settings.json").read_text())
            if same(made_from["settings"], made_from["inputs"]):
                return folder
        return None

    def say(self, name: str, words: str) -> None:
        """One line in the terminal."""
        self.terminal.print(f"[bold]{escape(f'{name:<{NAME_WIDTH}}')}[/bold] {escape(words)}")

    def note(self, words: str) -> None:
        """One line in the terminal and in the logbook."""
        self.terminal.print(f"{'':<{NAME_WIDTH}} {escape(words)}")
        self.record.log(words)

    def hash_of(self, folder: Path) -> str:
        """Content hash of a checkpoint folder, remembered by names, sizes and times: large ones are read once."""
        state = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(folder.rglob("*")) if p.is_file()]
        key = fingerprint(settings=state, inputs={})
        memory = self.store / "hashes" / key
        if not memory.exists():
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memory, hash_folder(folder))
        return memory.read_text()

    def weights(self, **options: Any) -> dict[str, str]:
        """name → the hash of the content of the checkpoint that an option names, wherever it came from."""
        read = {name: option for name, option in options.items() if getattr(option, "model", None) is not None}
        return {name: self.hash_of(local_folder(option.model, option.revision)) for name, option in read.items()}

    def note_again(self, file: Path) -> None:
        """What a stage had to leave out or to cut is said again when its result is reused."""
        for words in notes_in(file):
            self.note(words)

    def hand_out(self, source: Path, target: Path) -> None:
        """A copy of a folder in place of `target`; see `copy_linked`."""
        copy_linked(source, target)

    def _make_together(self, name: str, make: Make, scratch: Path) -> Mapping[str, Any]:
        world().share({"make": str(scratch)})
        try:
            measured = self._make(name, make, scratch)
            world().wait()
        except BaseException:
            world().broken = True
            raise
        return measured

    def _make(self, name: str, make: Make, scratch: Path) -> Mapping[str, Any]:
        _measure_gpu_anew()
        try:
            measured = make(scratch)
            return {**(measured or {}), **_gpu_peak()}
        except OSError as error:
            raise StageFailed(
                f"{name}: {error.strerror or error} ({error.filename or scratch}). "
                "What was finished is kept; the same command goes on."
            ) from error
        finally:
            _free_models()

    def _finished(self, name: str, artifact: Artifact, *, reused: bool, why: str, **measured: Any) -> None:
        self.record.stage(
            name, fingerprint=artifact.fingerprint, reused=reused, why=why, made=artifact.path, **measured
        )
        went_on = f", from step {measured['resumed_from_step']}" if measured.get("resumed_from_step") else ""
        # why it is made was said when it was begun
        self.say(name, "reused" if reused else f"made in {measured['seconds']:.0f} s{went_on}")

    def _why_new(self, kind: str, name: str, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
        """What differs from the most similar artifact that was made under this name, in the recipe's words."""
        wanted = _flat({"settings": dict(settings), "inputs": dict(inputs)})
        nearest: list[str] | None = None
        for file in (self.store / kind).glob("*/settings.json"):
            if file.parent.suffix == ".scratch":
                continue  # another run's, which may be sealed and gone before it is read
            try:
                there = json.loads(file.read_text())
            except FileNotFoundError:
                continue  # pruned at this moment
            # a sibling (another package, a baseline) is not what changed; older stores name nothing
            if there.pop("name", None) != name:
                continue
            there = _flat(there)
            differing = sorted(key for key in wanted.keys() | there.keys() if wanted.get(key) != there.get(key))
            if nearest is None or len(differing) < len(nearest):
                nearest = differing
        if nearest is None:
            return "first of its kind"
        names = [key.removeprefix("settings.").removeprefix("inputs.") for key in nearest]
        return "new: " + ", ".join(names[:3]) + (", …" if len(names) > 3 else "") + " changed"


def _free_models() -> None:
    """Frees a stage's models: the next stage, its process or another one needs the memory."""
    if "torch" not in sys.modules:
        return
    gc.collect()  # a sharded model and its optimizer refer to each other
    if cuda := _used_cuda():
        cuda.empty_cache()


def _measure_gpu_anew() -> None:
    if cuda := _used_cuda():
        cuda.reset_peak_memory_stats()


def _gpu_peak() -> dict[str, int]:
    """`gpu_peak_bytes`: the most that tensors of this process took of its GPU at once; empty without one."""
    cuda = _used_cuda()
    return {"gpu_peak_bytes": cuda.max_memory_allocated()} if cuda else {}


def _used_cuda() -> Any:
    """torch.cuda where this process has used it; nothing here is to load torch, or to take memory of a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


class Following(Workspace):
    """The workspace of a process that follows the leader: it makes what all make together, and opens what is sealed.

    It keeps no record, says nothing and hashes nothing: the leader does.
    """

    def __init__(self, store: Path):
        self.store = store

    def produce(
        self,
        kind: str,
        name: str,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        make: Make,
        together: bool = False,
    ) -> Artifact:
        """The artifact that the leader has found or sealed; before that, this process's part in making it."""
        told = world().share()
        if "make" in told:
            self._make(name, make, Path(told["make"]))
            world().wait()
            told = world().share()
        sealed = told["sealed"]
        return Artifact(**{**sealed, "path": Path(sealed["path"])})

    def say(self, name: str, words: str) -> None:
        """Nothing."""

    def note(self, words: str) -> None:
        """Nothing."""

    def hand_out(self, source: Path, target: Path) -> None:
        """Nothing."""

    def hash_of(self, folder: Path) -> str:
        """Nothing that anybody reads."""
        return ""


def scratch_of(path: Path) -> Path:
    """Where the artifact at `path` is made before it is sealed."""
    return path.with_suffix(".scratch")


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{path}.{name}" if path else name).items()}


def copy_linked(source: Path, target: Path) -> None:
    """A copy of a folder in place of `target`: weights by hard links where the file system has them, the rest by bytes.

    Weights are replaced, never edited; everything else a user may edit in the copy without reaching the store.
    """

    def copy(from_file: str, to_file: str) -> str:
        if from_file.endswith((".safetensors", ".gguf")):
            try:
                os.link(from_file, to_file)
                return to_file
            except OSError:
                pass
        return shutil.copy2(from_file, to_file)

    # first: writing into a file that is linked already would change the sealed one
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=copy)
