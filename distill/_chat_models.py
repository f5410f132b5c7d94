"""found_in(): which models a run, or a folder on a device, has to talk to, and which of them one should take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.checkpoint import local_folder
from distill.errors import RecipeError, first_line
from distill.run_folder import RunFolder
from distill.workspace import store_folder

if TYPE_CHECKING:
    from distill.recipe import Recipe
    from distill.runtime.speaking import Speaker
    from distill.teacher.hf import Hf

CONTEXT = 4096
"""Tokens for which a llama.cpp package gets memory, or what a row of the recipe needs where that is more."""


@dataclass(frozen=True)
class Model:
    """A model that can be opened. `teacher` says how a teacher is loaded, `warning` what to know of a package."""

    name: str
    path: Path
    teacher: "Hf | None" = None
    warning: str = ""

    @property
    def is_gguf(self) -> bool:
        """Whether llama.cpp runs it, and not transformers."""
        return bool(_gguf_files(self.path))

    def open(self, recipe: "Recipe | None") -> "Speaker":
        """The model in memory, in the runtime that its users have.

        Raises:
            DistillError: its runtime is not installed, or refuses the files.
        """
        from distill.runtime.speaking import LlamaCppSpeaker, TransformersSpeaker

        if self.is_gguf:
            from distill.runtime.llama_cpp import LlamaCpp

            if find_spec("xllamacpp") is None:
                other = "\nOr talk to another model of this run, such as --package student" if recipe else ""
                raise RecipeError(
                    f"{self.name} needs llama.cpp, which is not installed: pip install 'distill[gguf]'{other}"
                )
            row = recipe.training.max_length + recipe.evaluation.max_new_tokens if recipe else 0
            return LlamaCppSpeaker(LlamaCpp(self.path, context=max(CONTEXT, row), num_slots=1))
        from safetensors import SafetensorError

        from distill.runtime.hf import Transformers

        try:
            if self.teacher is None:
                return TransformersSpeaker(Transformers(self.path))
            from distill.stages._local_teacher import how_to_load

            path = local_folder(self.teacher.model, self.teacher.revision)
            return TransformersSpeaker(Transformers(path, **how_to_load(self.teacher, path)))
        # what transformers says of files that are missing or odd
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            if isinstance(error, RecipeError):
                raise
            raise RecipeError(f"{self.name} does not load from {self.path}: {first_line(error)}") from None


@dataclass(frozen=True)
class Found:
    """The models of a run or of a folder. `recipe` is what the run was made from, None for a folder alone."""

    folder: Path
    recipe: "Recipe | None"
    models: Mapping[str, Model]
    missing: Mapping[str, str]
    """Name → why it is known and not here."""
    default: str

    def chosen(self, names: Sequence[str]) -> list[Model]:
        """The models of these names, in their order; the default one for none.

        Raises:
            RecipeError: there is none of a name; says which there are.
        """
        for name in names:
            if name not in self.models:
                why = self.missing.get(name, f"there is no {name} in {self.folder}")
                raise RecipeError(f"--package {name}: {why}.\nThere are: {', '.join(self.models)}.")
        return [self.models[name] for name in dict.fromkeys(names or [self.default])]


def found_in(folder: Path | None) -> Found:
    """What there is in a run's folder, in one of its packages, in a copy of one, or in any checkpoint or .gguf file.

    Of a folder with several runs, and without any folder of outputs/, the run that was evaluated last.

    Raises:
        RecipeError: nothing there can be talked to.
    """
    if folder is not None and not folder.exists():
        raise RecipeError(f"{folder}: no such folder. Needed: a run's folder, or a package.{_newest_hint()}")
    folder = folder or Path("outputs")
    if _is_model(folder):
        if len(files := _gguf_files(folder)) > 1:
            raise RecipeError(f"{folder} holds {len(files)} .gguf files; name one of them.")
        run = folder.resolve().parent.parent
        if folder.resolve().parent == run / "packages" and (run / "recipe.yaml").is_file():
            return _found_in_run(run, default=folder.resolve().name)
        name = folder.resolve().name
        return Found(folder, None, {name: Model(name, folder)}, {}, name)
    run = folder if (folder / "recipe.yaml").is_file() else _newest(folder)
    if run is None and folder == Path("outputs"):
        raise RecipeError("No finished run below outputs/. Make one: python -m distill; or name a run's folder.")
    if run is None:
        raise RecipeError(
            f"{folder} holds no run (recipe.yaml) and no model (config.json, adapter_config.json, or one .gguf)."
            f"{_parent_hint(folder) or _newest_hint()}"
        )
    return _found_in_run(run)


def _found_in_run(run: Path, default: str | None = None) -> Found:
    try:
        read = RunFolder.read(run)
    except ValueError as error:
        raise RecipeError(f"{run}: a file of this run is broken: {first_line(error)}") from None
    recipe = _recipe_of(run)
    proofs = {proof.get("package"): proof for proof in read.verification}
    models: dict[str, Model] = {}
    missing: dict[str, str] = {}
    for path in _packages(run, recipe):
        models[path.name] = Model(path.name, path, warning=_doubt(path.name, proofs.get(path.name)))
    for name in ("student", *recipe.baselines):
        path = _trained(name, read)
        if path is not None:
            models[name] = Model(name, path)
        else:
            missing[name] = f"the store of this run no longer has {name}, or it was never trained"
    _add_teacher(read, recipe, models, missing)
    if not models.keys() - {"teacher"}:
        command = read.start.get("command", f"python -m distill recipe={run / 'recipe.yaml'}")
        raise RecipeError(f"{run} has made nothing to talk to yet. The same command goes on: {command}")
    default = default or _recommended(read, models)
    return Found(run, recipe, models, missing, default)


def _doubt(package: str, proof: Mapping[str, Any] | None) -> str:
    """What to know of a package that has no proof, or one against it; "" where it is verified."""
    if proof is None:
        return f"{package} was not verified: this run ended before."
    return f"{package} did not pass verification: {proof.get('detail')}" if proof.get("verified") is False else ""


def _recommended(read: RunFolder, models: Mapping[str, Model]) -> str:
    """The report's choice, else the first verified package, else the student, else whatever there is."""
    from distill.stages.report import pick

    best = pick(read.models, read.task)
    verified = [str(proof["package"]) for proof in read.verification if proof.get("verified")]
    names = [*([str(best["name"])] if best else []), *verified, "student", *models]
    return next(name for name in names if name in models)


def _recipe_of(run: Path) -> "Recipe":
    from distill import _hydra
    from distill.recipe import parse

    file = str((run / "recipe.yaml").resolve()).replace("\\", "\\\\").replace("'", "\\'")
    return parse(_hydra.compose([f"recipe='{file}'"]).config)


def _packages(run: Path, recipe: "Recipe") -> list[Path]:
    """Folders of packages, in the recipe's order."""
    names = list(recipe.compression)
    found = [path for path in (run / "packages").glob("*/") if _is_model(path)]
    return sorted(found, key=lambda path: (names.index(path.name) if path.name in names else len(names), path.name))


def _trained(name: str, read: RunFolder) -> Path | None:
    """Where a student's or a baseline's checkpoint lies: as scores.json says, or in the store that is used here."""
    scored = read.model(name)
    prints = [str(stage["fingerprint"]) for stage in read.stages if stage.get("name") == f"train {name}"]
    stores = [store_folder(), read.path.resolve().parent.parent / "store"]
    places = [Path(scored["path"])] if scored and scored.get("path") else []
    places += [store / "student" / one / "checkpoint" for one in prints[-1:] for store in stores]
    return next((path for path in places if (path / "config.json").is_file()), None)


def _add_teacher(read: RunFolder, recipe: "Recipe", models: dict[str, Model], missing: dict[str, str]) -> None:
    teacher, scored = recipe.teacher, read.model("teacher")
    if teacher.kind != "hf":
        missing["teacher"] = f"the teacher of this run (teacher={teacher.kind}) is no checkpoint that could be loaded"
        return
    # a rehearsal's stand-in is named there alone
    if scored and scored.get("path") and Path(scored["path"]).is_dir():
        teacher = replace(teacher, model=scored["path"])
    if Path(teacher.model).is_absolute() and not Path(teacher.model).is_dir():
        missing["teacher"] = f"its checkpoint is no longer in {teacher.model}"
        return
    models["teacher"] = Model("teacher", Path(teacher.model), teacher)


def _is_model(path: Path) -> bool:
    names = ("config.json", "adapter_config.json")
    return bool(_gguf_files(path)) or any((path / name).is_file() for name in names)


def _gguf_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".gguf" else []
    return sorted(path.glob("*.gguf")) if not (path / "config.json").is_file() else []


def _newest(folder: Path) -> Path | None:
    """Of the runs up to two folders deeper, the one that was evaluated last; a rehearsal where there is no other."""
    scored = [file for depth in ("*", "*/*") for file in folder.glob(f"{depth}/scores.json")]
    runs = [file for file in scored if (file.parent / "recipe.yaml").is_file()]
    runs = [file for file in runs if not (file.parent / "rehearsal.md").is_file()] or runs
    return max(runs, key=lambda file: file.stat().st_mtime).parent if runs else None


def _parent_hint(folder: Path) -> str:
    parent = folder.resolve().parent
    return f"\nThe run around it: python -m distill.chat {parent}" if (parent / "recipe.yaml").is_file() else ""


def _newest_hint() -> str:
    newest = _newest(Path("outputs"))
    return f"\nThe newest run here: python -m distill.chat {newest}" if newest else ""
