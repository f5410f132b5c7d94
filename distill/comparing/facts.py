"""Lines that terminal and page both say: titles, what else differs between runs, what is left out."""

from collections.abc import Sequence

from distill.comparing.groups import Group
from distill.comparing.recipe_keys import differing, shown
from distill.comparing.runs import LeftOut, ScoredRun

APART = (
    "Groups were judged on different rows, on rows that were not recorded, or in different ways: "
    "compare nothing across them."
)
ROWS_SHOWN = 12
"""Characters of the hash of evaluation rows: enough to tell groups apart."""
THE_TEACHER = ("teacher.kind", "teacher.model", "teacher.revision", "teacher.quantization", "teacher.dtype")


def title_of(group: Group) -> str:
    """`quickstart: exact match on 400 rows, 6 runs of 2 recipes`"""
    names = ", ".join(sorted({recipe.name for recipe in group.recipes}))
    num_runs = sum(len(recipe.runs) for recipe in group.recipes)
    over = f" on {group.num_rows:,} rows" if group.num_rows is not None else ""
    return f"{names}: {group.score.title}{over}, {_count(num_runs, 'run')} of {_count(len(group.recipes), 'recipe')}"


def judged_line(group: Group, groups: Sequence[Group]) -> str:
    """What sets a group apart from the others, as `key=value`; empty for one alone."""
    keys = differing([each.judged_on for each in groups])
    judged = {**group.judged_on.values, "rows": str(group.judged_on.values["rows"])[:ROWS_SHOWN]}
    own = [f"{key}={shown(judged[key])}" for key in keys if key in judged]
    return f"Judged on {', '.join(own)}" if own else ""


def notes(group: Group) -> list[str]:
    """What a reader has to know before trusting a column; empty where nothing is wrong."""
    found = [
        f"{old.path.name} counts no more: {new.path.name} is newer, of the same recipe and seed"
        f"{_scored_otherwise(old, new, group)}."
        for old, new in group.outdated
    ]
    runs = [run for recipe in group.recipes for run in recipe.runs]
    if "kl_to_teacher_nats" in {score.name for score in group.scores}:
        taught = [recipe.keys for recipe in group.recipes if recipe.keys.values.get("teacher.kind") != "none"]
        # the likelihoods of longer rows are taken up to max_length
        apart = differing([keys.only((*THE_TEACHER, "training.max_length")) for keys in taught])
        if apart:
            found.append(f"KL to the teacher is not the same measure for all of them: {', '.join(apart)} differ.")
    for path, values in sorted(_teachers_scores(group).items()):
        if len(values) > 1:
            said = " and ".join(group.score.show(value) for value in sorted(values))
            found.append(f"The teacher {path} scores {said}: rows, machine or code changed between the runs.")
    machines = {_machine(run) for run in runs}
    if len(machines) > 1:
        found.append(f"Speeds are of several machines: {'; '.join(sorted(machines))}.")
    code = {_code(run) for run in runs}
    if len(code) > 1:
        found.append(f"The runs are of several versions of the code: {', '.join(sorted(code))}.")
    return found


def left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    """One line a run that is not compared."""
    return [f"Left out: {each.path}: {each.why}." for each in sorted(left_out, key=lambda each: str(each.path))]


def _scored_otherwise(old: ScoredRun, new: ScoredRun, group: Group) -> str:
    """What two students of one recipe and seed score, where that is not the same; empty where it is."""
    scored = [
        [group.score.show((m.scores or {}).get(group.task)) for m in run.models if m.kind == "student"]
        for run in (old, new)
    ]
    if not all(scored) or scored[0][0] == scored[1][0]:
        return ""
    before, now = (f"{each[0]} {group.score.unit}".rstrip() for each in scored)
    return f"; its student scored {before}, that of {new.path.name} {now}"


def _teachers_scores(group: Group) -> dict[str, set[float]]:
    scores: dict[str, set[float]] = {}
    for recipe in group.recipes:
        for run in recipe.runs:
            for model in run.models:
                value = (model.scores or {}).get(group.task)
                if model.kind == "teacher" and model.path and value is not None:
                    scores.setdefault(model.path, set()).add(value)
    return scores


def _machine(run: ScoredRun) -> str:
    hardware = run.folder.start.get("hardware")
    if not isinstance(hardware, dict):
        return "unknown"
    return f"{hardware.get('gpu') or hardware.get('cpu') or 'unknown'}, {hardware.get('cores', '?')} cores"


def _code(run: ScoredRun) -> str:
    versions = run.folder.start.get("versions")
    version = versions.get("distill") if isinstance(versions, dict) else None
    return " ".join(str(part) for part in (version, run.folder.start.get("git")) if part) or "unknown"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
