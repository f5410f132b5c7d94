"""Weights & Biases: one W&B run for each finished run folder, online where the user is logged in, else offline."""

import dataclasses
import math
import netrc
import os
import shlex
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic.dataclasses import dataclass

from distill.errors import StageFailed, first_line
from distill.option import STRICT
from distill.run_folder import RunFolder

SPEED = ("runtime", "device", "prefill_tokens_per_second", "decode_tokens_per_second")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Wandb:
    """Curves, final scores, samples and the report go to Weights & Biases."""

    kind: Literal["wandb"]
    project: str = "distill"
    entity: str | None = None
    """User or team; None: the account's default."""
    group: str | None = None
    """Runs that belong together; None: the recipe's name."""
    tags: list[str] = dataclasses.field(default_factory=list)
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: WANDB_MODE where it is set, else online where the user is logged in, else offline."""

    def log_run(self, run: Path) -> str | None:
        """Logs the finished run folder as one new W&B run; returns a line for the logbook.

        Nothing is printed. With mode=auto, a server that cannot be reached costs nothing: the run is kept offline.

        Returns:
            Where the W&B run is, and for an offline one the command that uploads it. None when disabled.

        Raises:
            StageFailed: mode=online and W&B refused or was out of reach; or WANDB_MODE holds an unknown word.
        """
        mode = self.mode if self.mode != "auto" else _chosen_mode()
        if mode == "disabled":
            return None
        from wandb.errors import Error

        folder = RunFolder.read(run)
        try:
            tracked = self._start(folder, mode)
        except Error as error:
            reason = first_line(error).rstrip(".")
            if self.mode == "online":
                raise StageFailed(
                    f"tracking.mode=online, but W&B could not be reached: {reason}. The run itself is complete: "
                    f"{run}. Log in with `wandb login`, or use tracking.mode=offline; the same command goes on."
                ) from error
            note, mode = f"; could not go online: {reason}", "offline"
            tracked = self._start(folder, mode)
        else:
            note = ""
        try:
            _log_curves(tracked, folder)
            _log_models(tracked, folder)
            _log_samples(tracked, folder)
            _log_files(tracked, folder)
            tracked.summary.update(summary_of(folder))
        finally:
            tracked.finish()
        if mode == "online":
            return f"W&B run {tracked.id} ({tracked.url})"
        folder_of_run = shlex.quote(str(Path(tracked.dir).parent))
        return f"W&B run {tracked.id} (offline{note}; upload with: wandb sync {folder_of_run})"

    def _start(self, folder: RunFolder, mode: Any) -> Any:
        import wandb

        # before init: the login that init does on its own account prints, too
        wandb.setup(settings=wandb.Settings(silent=True))
        return wandb.init(
            dir=folder.path,
            project=self.project,
            entity=self.entity,
            group=self.group or folder.name,
            job_type="distill",
            name=f"{folder.name} {folder.path.name}",
            tags=list(self.tags) or None,
            config={
                "recipe": folder.recipe,
                "hardware": folder.start.get("hardware"),
                "versions": folder.start.get("versions"),
            },
            mode=mode,
            # a run that the user has open in this process stays as it is
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=30,
                disable_code=True,
                disable_git=True,
                # the training is over: the machine's load now and the terminal's output say nothing about it
                x_disable_stats=True,
                # W&B would take the command line as it was typed, with what our own record hides
                x_disable_meta=True,
            ),
        )


def figures_of(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Model → kind, scores, divergence from the student, bytes, proof, runtime and speed; None where there is none."""
    apart = {proof.get("package"): proof.get("kl_to_student_nats") for proof in folder.verification}
    of_any = dict.fromkeys(name for model in folder.models for name in model.get("scores") or {})
    figures = {}
    for model in folder.models:
        scores, speed = model.get("scores") or {}, model.get("speed") or {}
        figures[str(model["name"])] = {
            "kind": model.get("kind"),
            **{name: scores.get(name) for name in of_any},
            "kl_to_student_nats": apart.get(model["name"]),
            **{name: model.get(name) for name in ("bytes", "parameters", "verified")},
            **{name: speed.get(name) for name in SPEED},
        }
    return figures


def summary_of(folder: RunFolder) -> dict[str, float | bool]:
    """Final figures as `<model>/<figure>`: what W&B's tables of runs show side by side. Missing ones are left out."""
    figures = {f"{model}/{name}": value for model, each in figures_of(folder).items() for name, value in each.items()}
    return {name: value for name, value in figures.items() if isinstance(value, bool | int | float)}


def _log_models(tracked: Any, folder: RunFolder) -> None:
    """The table of models, and the task's score against bytes: of several runs, W&B joins both."""
    import wandb

    figures = figures_of(folder)
    if not figures:
        return
    columns: list[Any] = ["model", *next(iter(figures.values()))]
    rows: list[Any] = [[model, *each.values()] for model, each in figures.items()]
    tracked.log({"models": wandb.Table(columns=columns, data=rows)})
    task = folder.task
    if task is not None and task in columns:
        places = [columns.index(name) for name in ("bytes", task)]
        known: list[Any] = [row for row in rows if all(row[place] is not None for place in places)]
        points = wandb.Table(columns=columns, data=known)
        chart = wandb.plot.scatter(points, "bytes", task, title=f"{task} against bytes")
        tracked.log({"quality_against_bytes": chart})


def _log_curves(tracked: Any, folder: RunFolder) -> None:
    """History of each model against the tokens that this model has been trained on."""
    for model in dict.fromkeys(str(line["model"]) for line in folder.metrics if "model" in line):
        tracked.define_metric(f"{model}/tokens", hidden=True)
        tracked.define_metric(f"{model}/*", step_metric=f"{model}/tokens")
    for line in folder.metrics:
        values = {key: value for key, value in line.items() if isinstance(value, int | float)}
        # W&B draws no gap for a NaN; leaving it out keeps the other figures of the step
        values = {key: value for key, value in values.items() if math.isfinite(value)}
        tracked.log({f"{line.get('model', 'student')}/{key}": value for key, value in values.items()})


def _log_samples(tracked: Any, folder: RunFolder) -> None:
    import wandb

    if not folder.samples:
        return
    models = list(dict.fromkeys(name for sample in folder.samples for name in sample.get("answers") or {}))
    judged = [name for name in models if any(name in (sample.get("correct") or {}) for sample in folder.samples)]
    columns = ["prompt", "reference", *models, *(f"{name} correct" for name in judged)]
    table = wandb.Table(columns=columns, allow_mixed_types=True)
    for sample in folder.samples:
        answers, correct = sample.get("answers") or {}, sample.get("correct") or {}
        row = [_as_text(sample.get("prompt")), _as_text(sample.get("reference"))]
        table.add_data(*row, *(_as_text(answers.get(name)) for name in models), *(correct.get(name) for name in judged))
    tracked.log({"samples": table})


def _log_files(tracked: Any, folder: RunFolder) -> None:
    """The report to look at, and the small files that compare, reproduce and prove the run, as one artifact."""
    import wandb

    report = folder.path / "report.html"
    if report.is_file():
        tracked.log({"report": wandb.Html(str(report), inject=False)})
    artifact = wandb.Artifact(f"{folder.name}-run", type="run", metadata={"folder": folder.path.name})
    for name in ("report.html", "scores.json", "verification.json"):
        if (folder.path / name).is_file():
            artifact.add_file(str(folder.path / name), name=name)
    if folder.recipe_text:
        with artifact.new_file("recipe.yaml", encoding="utf-8") as file:
            file.write(folder.recipe_text)
    tracked.log_artifact(artifact)


def _chosen_mode() -> str:
    asked = os.environ.get("WANDB_MODE", "").strip().lower()
    if not asked:
        return "online" if _is_logged_in() else "offline"
    modes = {"dryrun": "offline", "run": "online", "shared": "online"}
    mode = modes.get(asked, asked)
    if mode not in {"online", "offline", "disabled"}:
        raise StageFailed(
            f"WANDB_MODE={asked} is set; W&B knows online, offline and disabled. Correct it, or set tracking.mode; "
            "the run itself is complete and the same command goes on."
        )
    return mode


def _is_logged_in() -> bool:
    """An API key in the environment, or an entry for the W&B server in the user's netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if host in netrc.netrc(path).hosts:
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)
