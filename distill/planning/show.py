"""The plan as tables in a terminal, readable at 80 columns."""

import textwrap

from rich import box
from rich.console import Console
from rich.table import Table

from distill._command import output
from distill.planning.result import Plan, spoken_time

WIDTH = 100
LEAST_WIDTH = 12
"""Of a column of sentences: no word of theirs is longer."""
PARTS = ("weights", "optimizer", "gradients", "activations", "logits", "kv_cache", "process")
HEADS = ("weights", "AdamW", "grad.", "activ.", "logits", "KV", "rest")


def show(plan: Plan, console: Console | None = None) -> None:
    """Prints memory, time and disk of each stage, what is assumed, and the verdict."""
    out = console or output(WIDTH)
    size = f", {plan.nodes} nodes" if plan.nodes > 1 else ""
    teacher = f"teacher {_count(plan.teacher_parameters)}, " if plan.teacher_parameters else ""
    out.print(
        f"[bold]{plan.recipe}[/bold] on {plan.hardware}{size}: {teacher}student {_count(plan.student_parameters)} "
        f"parameters, {plan.rows:,} rows"
    )
    if plan.stages:
        wide = _memory(plan, gap=1)
        needed = out.measure(wide, options=out.options.update(max_width=10 * WIDTH)).maximum
        out.print(wide if needed <= out.width else _memory(plan, gap=0))
        out.print(_time(plan))
    out.print(_disk(plan))
    for title, lines in (("Assumed", plan.assumptions), ("Licence", plan.licence)):
        for line in lines:
            _say(out, f"{title}: {line}", "dim" if title == "Assumed" else "yellow")
    for stage in plan.stages:
        if not stage.fits:
            _say(out, f"{stage.said}.", "red")
        elif stage.memory.offloads:
            _say(out, f"{stage.said}.", "yellow")
        if stage.hurried:
            _say(out, f"{stage.hurried}.", "yellow")
    _say(out, plan.verdict, "bold green" if plan.fits and not plan.refused else "bold red")


def _memory(plan: Plan, *, gap: int) -> Table:
    host = any(stage.memory.host for stage in plan.stages)
    beside = ("host",) if host else ()
    heads = ("stage", *HEADS, "sum", "there", *beside, "fits")
    table = _table("GB on the fullest device", *heads, gap=gap)
    # where there is no room, a name is what breaks: of a figure, a digit would be lost
    table.columns[0].no_wrap = False
    for stage in plan.stages:
        parts = [_gb(getattr(stage.memory, part)) for part in PARTS]
        fits = "[green]yes[/green]" if stage.fits else "[red]NO[/red]"
        sums = (_gb(stage.memory.total), _gb(stage.available_bytes), *([_gb(stage.memory.host)] if host else ()))
        table.add_row(stage.name, *parts, *sums, fits)
    return table


def _time(plan: Plan) -> Table:
    table = _table("time", "stage", "what, and where", "tokens", "PFLOP", "hours", "bound by")
    for stage in plan.stages:
        words = f"{stage.what}; {stage.layout}"
        hours = f"{stage.seconds / 3600:,.2f}" if stage.seconds >= 36 else spoken_time(stage.seconds)
        table.add_row(
            stage.name,
            words,
            _count(stage.tokens) if stage.tokens else "",
            _number(stage.flops / 1e15),
            hours,
            stage.bound,
        )
    for sentences in (table.columns[1], table.columns[5]):
        sentences.justify, sentences.no_wrap, sentences.min_width = "left", False, LEAST_WIDTH
    return table


def _disk(plan: Plan) -> str:
    lines = [f"download {d.name}: {_gb(d.bytes)} GB ({d.dtype})" for d in plan.downloads]
    lines.append(f"store of responses {_gb(plan.store_bytes)} GB, disk at most {_gb(plan.disk_bytes)} GB in all")
    total = f"{spoken_time(plan.hours * 3600)} in all, {_number(plan.node_hours)} node-hours"
    if plan.price is not None:
        total += f", {_number(plan.gpu_hours)} device-hours at {plan.price_per_gpu_hour:g}: {plan.price:,.2f} in money"
    return "\n".join([*lines, total])


def _table(title: str, *columns: str, gap: int = 1) -> Table:
    """Columns whose figures are never broken; `gap`: spaces on each side."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold", no_wrap=True)
    return table


def _say(out: Console, text: str, style: str) -> None:
    for line in textwrap.wrap(text, min(out.width, WIDTH), subsequent_indent="  ", break_on_hyphens=False):
        out.print(line, style=style, markup=False, emoji=False, soft_wrap=True)


def _gb(size: float) -> str:
    """Three digits of decimal gigabytes; "" for nothing."""
    gigabytes = size / 1e9
    if not gigabytes:
        return ""
    return (
        f"{gigabytes:,.0f}" if gigabytes >= 99.95 else f"{gigabytes:.1f}" if gigabytes >= 9.995 else f"{gigabytes:.2f}"
    )


def _count(number: float) -> str:
    """65.3B, 124M, 7,473."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= 0.9995 * unit:  # three digits of less
            return f"{number / unit:.3g}{letter}"
    return f"{number:,.0f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
