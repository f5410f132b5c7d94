"""python -m distill: compose the recipe, check it, run it, say where the report is.

Everything that can be wrong with a recipe or an argument is found before Hydra makes a run folder (exit code 2).
Hydra then runs the one job, or every job of a sweep. torch is imported by the pipeline only.
"""

import argparse
import contextlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf

from distill import _hydra, _submitting, compare, distributed, shipped
from distill._command import INTERRUPTED, debugging, fault_of_ours, reader_left, say_error
from distill._hydra_errors import explain
from distill._own_recipe import write_recipe
from distill._sigterm import EXIT_CODE, Terminated, ignore_sigterm, raise_at_sigterm
from distill._slurm_tasks import srun_task, submitted_task
from distill.errors import DistillError, RecipeError, StageFailed
from distill.progress import console, quiet_libraries, write_any_letter
from distill.recipe import Recipe, parse
from distill.record import log

NUM_TRACEBACK_LINES = 12
"""Kept in the logbook; the end of a traceback says what happened."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command and exits.

    0 done, 1 a stage failed, 2 the recipe or an argument is wrong, 130 interrupted, 143 ended by SIGTERM.
    """
    typed = sys.argv[1:] if arguments is None else arguments
    distributed.started_by_hand()
    raise_at_sigterm()
    quiet_libraries()
    write_any_letter()
    try:
        srun_task().announce()
        if distributed.several() and not distributed.join().leads:
            _follow(typed)
        code = _run_command(typed)
    except KeyboardInterrupt as stop:
        # Hydra's launcher imports submitit at the moment in which it sends jobs off
        sent_off = "submitit" in sys.modules
        goes_on = _submitting.STILL_RUNNING if sent_off else f"The same command goes on: {_command(typed)}"
        code, word = _interrupted(stop)
        _say(f"{word} {goes_on}")
    except DistillError as error:
        say_error(str(error))
        code = error.exit_code
    except BrokenPipeError:
        code = reader_left()
    except Exception as error:
        say_error(str(_submitting.explained(error) or fault_of_ours(error)))
        code = 1
        if debugging():
            traceback.print_exc()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    ignore_sigterm()  # torchrun sends it to us as soon as another process has ended
    distributed.world().leave(code)
    sys.exit(code)


def _follow(typed: list[str], *, submitted: bool = False) -> NoReturn:
    """A process that does not lead: it checks the same recipe, then does what the leader says. It says nothing.

    What is `submitted` was checked before, and has a log file of its own, in which it may speak.
    """
    processes = distributed.world()
    if not submitted and not debugging():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until this process ends)
    try:
        args = _arguments(typed)
        if not submitted and not _only_shows(args):
            _check([parse(job.config) for job in _composed(args)])
            processes.gather()
        while True:
            with contextlib.suppress(distributed.JobOver):
                job = processes.share()
                composed = _hydra.recompose(job["overrides"], args.config_dir)
                _run_pipeline(parse(composed.config), Path(job["folder"]), ())
                processes.share()
    except KeyboardInterrupt as stop:
        processes.fail(*_interrupted(stop))
    except DistillError as error:
        processes.fail(error.exit_code, str(error))
    except Exception as error:
        if debugging():
            traceback.print_exc()
        processes.fail(1, f"{type(error).__name__}: {error}")
    raise AssertionError("fail() ends this process")


def _run_command(typed: list[str]) -> int:
    args = _arguments(typed)
    if _only_shows(args) and args.cfg != "job":
        overrides = args.overrides if args.shell_completion else _hydra.for_hydra(args.overrides, args.config_dir)
        with explain(args.overrides):
            return _start_hydra(typed, args, overrides)
    if args.cfg:
        _print_config(args)
        return 0
    submits = _submitting.check_launcher(args.overrides, sweeps=_sweeps(args))
    _check([parse(job.config) for job in _composed(args)])
    if submits:
        _say(_submitting.NOTICE)
    distributed.world().gather()  # nothing is written before all processes have found the recipe right
    return _start_hydra(typed, args, _hydra.for_hydra(args.overrides, args.config_dir))


def _only_shows(args: argparse.Namespace) -> bool:
    return bool(args.shell_completion or args.hydra_help or args.help or args.info or args.cfg)


def _composed(args: argparse.Namespace) -> "list[_hydra.Composed]":
    """The run, or every run of a sweep."""
    if _sweeps(args):
        return _hydra.compose_sweep(args.overrides, args.config_dir)
    return [_hydra.compose(args.overrides, args.config_dir)]


def _sweeps(args: argparse.Namespace) -> bool:
    return args.multirun or "hydra.mode=MULTIRUN" in args.overrides


def _check(recipes: Sequence[Recipe]) -> None:
    """Refuses what the recipes' files and checkpoints speak against, while nothing is written yet."""
    for recipe in recipes:
        if recipe.rehearse:
            from distill.rehearsal.check import check_rehearsal as check
        else:
            from distill.checks import check
        check(recipe)


def _arguments(typed: list[str]) -> argparse.Namespace:
    """Hydra's flags and our overrides. Raises RecipeError for flags that mean nothing here."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()

    def refuse(message: str) -> None:
        flag = re.split(r"[= ]", message.removeprefix("unrecognized arguments: --"), maxsplit=1)[0]
        keys = {"recipe", *(field.name for field in fields(Recipe))}
        hint = f". Keys have no dashes: {flag}=…" if flag.partition(".")[0] in keys else ""
        raise RecipeError(f"{message}{hint}. See python -m distill --help")

    parser.error = refuse  # type: ignore[method-assign,assignment]
    # flags may stand between overrides
    args = parser.parse_intermixed_args(typed)
    if args.config_name or args.config_path:
        raise RecipeError(
            "--config-name and --config-path have no meaning here; choose with recipe=NAME or recipe=FILE."
        )
    if args.experimental_rerun:
        raise RecipeError("--experimental-rerun has no meaning here; recipe=RUN_FOLDER/recipe.yaml runs a run again.")
    if args.resolve and args.cfg in {"hydra", "all"}:
        raise RecipeError(f"--resolve: --cfg {args.cfg} can be shown unresolved only; --cfg job is always resolved.")
    if args.run + args.multirun + (args.cfg is not None) + (args.info is not None) + args.shell_completion > 1:
        raise RecipeError("Only one of --run, --multirun, --cfg, --info and --shell-completion can be given.")
    return args


def _print_config(args: argparse.Namespace) -> None:
    """--cfg job: the composed YAML as a run takes it; not parsed, so that a wrong recipe can be looked at too."""
    composed = _hydra.compose(args.overrides, args.config_dir)
    for line in composed.dropped:
        _say(line)
    config = OmegaConf.create(composed.config)
    package = args.package if args.package and args.package != "_global_" else None
    chosen = OmegaConf.select(config, package) if package else config
    if chosen is None:
        raise RecipeError(f"--package {package}: there is no such key. There are: {', '.join(map(str, config))}.")
    print(OmegaConf.to_yaml(chosen).rstrip() if OmegaConf.is_config(chosen) else chosen)


def _start_hydra(typed: list[str], args: argparse.Namespace, overrides: list[str]) -> int:
    """Hands over to hydra.main and returns the worst exit code of its jobs."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import MissingConfigException

    codes, folders, as_typed = [0], [], sys.argv

    def job(_: DictConfig) -> None:
        # the record keeps the command as the user typed it
        sys.argv = as_typed
        if not distributed.is_started_by_hand():
            return _run_submitted(typed, args.config_dir)
        failed = _run_job(typed, args.config_dir)
        codes.append(failed.exit_code if failed else 0)
        folders.append(Path(HydraConfig.get().runtime.output_dir))
        processes = distributed.world()
        processes.job_over()
        if processes.size > 1 and processes.broken:
            raise SystemExit(codes[-1])  # the processes are out of step: no other job of a sweep can follow

    # hydra.main reads sys.argv: flags first, since argparse takes no overrides on both sides of a flag
    flags = list(typed)
    for override in args.overrides:
        flags.remove(override)
    sys.argv = [as_typed[0], *flags, *overrides]
    # Hydra would print a stack trace of its own and exit; with this it hands the exception to us
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(str(shipped.conf_folder()), "config", version_base=_hydra.VERSION_BASE)(job)()
    except OSError as error:
        if isinstance(error, MissingConfigException | BrokenPipeError):
            raise
        raise RecipeError(f"The run folder cannot be made: {error}. hydra.run.dir=FOLDER chooses another.") from error
    finally:
        sys.argv = as_typed
    if suggested := compare.suggestion(folders):
        _say(suggested)
    return max(codes)


def _run_submitted(typed: list[str], config_dir: str | None) -> None:
    """A launcher's job in a process of its own, or this process's part in a job of several tasks.

    Raises:
        DistillError: with the run's folder, message and exit code; what is raised is all that comes back from here.
    """
    submitted_task().announce()
    processes, code = distributed.join(), INTERRUPTED
    try:
        if not processes.leads:
            _follow(typed, submitted=True)
        failed = _run_job(typed, config_dir)
        code = failed.exit_code if failed else 0
        if failed:
            raise failed
    except SystemExit as ended:  # a follower's end, or submitit's, which sends this job off again
        code = ended.code if isinstance(ended.code, int) else 1
        if processes.leads or code not in {0, 1, 2}:
            raise
        processes.outlive()  # the result of this task has to be written
    finally:
        processes.leave(code)


def _run_job(typed: list[str], config_dir: str | None) -> DistillError | None:
    """One run inside the folder that Hydra made; the error that stopped it, already said and noted.

    Faults end here, so that the other jobs of a sweep go on.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    run_folder = Path(hydra_config.runtime.output_dir)
    ours = list(hydra_config.overrides.task)
    composed = _hydra.recompose([*hydra_config.overrides.hydra, *ours], config_dir)
    recipe = parse(composed.config)
    if len(ours) and hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN":
        _say(f"{_shown(run_folder)}: {' '.join(text.removeprefix('++') for text in ours)}")
    processes = distributed.world()
    processes.on_failure = partial(_say_failure, run_folder)
    try:
        write_recipe(composed, run_folder / "recipe.yaml")
        processes.share({"overrides": list(composed.overrides), "folder": str(run_folder.resolve())})
        _run_pipeline(recipe, run_folder, composed.dropped)
    except KeyboardInterrupt as stop:
        log(run_folder, f"{_interrupted(stop)[1]} The same command goes on.")
        raise
    except DistillError as error:
        say_error(str(error))
        log(run_folder, f"Stopped: {error}")
        if debugging():
            traceback.print_exception(error)
        return _portable(error, run_folder)
    except Exception as error:
        if known := _submitting.explained(error):
            say_error(str(known))
            log(run_folder, f"Stopped: {known}")
            return _portable(known, run_folder)
        return _unforeseen(error, run_folder, typed)
    report = run_folder / "report.html"
    _say(f"Report: {_shown(report)}" if report.is_file() else f"Run folder: {_shown(run_folder)}")
    if report.is_file() and not recipe.rehearse:
        _say(f"Talk to it: python -m distill.chat {shlex.quote(_shown(run_folder))}")
    return None


def _interrupted(stop: KeyboardInterrupt) -> tuple[int, str]:
    """(exit code, what to say) of Ctrl-C or of SIGTERM."""
    return (EXIT_CODE, str(stop)) if isinstance(stop, Terminated) else (INTERRUPTED, "Interrupted.")


def _portable(error: DistillError, run_folder: Path) -> DistillError:
    """`error` as it can travel from one process to another: a class that every process has, a text and a code."""
    portable = DistillError(f"{_shown(run_folder)}: {error}")
    portable.exit_code = error.exit_code
    return portable


def _say_failure(run_folder: Path, message: str) -> None:
    """Another process failed while this one waits in a collective for ever."""
    say_error(message)
    log(run_folder, f"Stopped: {message}")


def _run_pipeline(recipe: Recipe, run_folder: Path, notes: Sequence[str]) -> None:
    """`notes` go to the terminal and into the logbook."""
    if recipe.rehearse:
        from distill.rehearsal.run import rehearse as run
    else:
        from distill.pipeline import run
    run(recipe, run_folder, notes)


def _unforeseen(error: Exception, run_folder: Path, typed: list[str]) -> DistillError:
    """A fault that nobody foresaw: one line here, the end of its traceback in the logbook."""
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()[-NUM_TRACEBACK_LINES:]
    log(run_folder, "Stopped by an unforeseen error:\n\n" + "\n".join(f"    {line}" for line in lines))
    message = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {message[0] if message else 'no message'}"
    say_error(said)
    _say(f"The traceback is in {_shown(run_folder / 'logbook.md')}. The same command goes on: {_command(typed)}")
    if debugging():
        traceback.print_exception(error)
    return _portable(StageFailed(said), run_folder)


def _shown(path: Path) -> str:
    """`path` as short as it can be typed here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _command(typed: list[str]) -> str:
    return " ".join(["python -m distill", *(shlex.quote(text) for text in typed)])


def _say(text: str) -> None:
    """One message on stderr, word for word: brackets in it are no markup, and lines break where the terminal does."""
    console().print(text, markup=False, emoji=False)


if __name__ == "__main__":
    main()
