"""The report's pictures as inline SVG: quality against bytes, and loss against tokens.

Colours are CSS variables of the page, so one picture serves light and dark; text stays text, in the page's font.
The same input gives the same bytes on every machine: fixed ids, no dates, metrics of the font that matplotlib ships.
"""

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from distill.stages._number import Score, is_finite, score, size

# Stand-ins that matplotlib can draw with; each becomes var(--name) of the page's style sheet.
_COLOURS = {
    name: f"#0a0b{number:02x}"
    for number, name in enumerate(
        ["ink", "quiet", "line", "surface", "teacher", "baseline", "student", "package", "bad"]
        + [f"series-{i}" for i in range(8)]
    )
}
_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_MARKERS = {"teacher": "D", "baseline": "o", "student": "o", "package": "s"}


def quality_svg(models: Sequence[Mapping[str, Any]], task: str, *, narrow: bool = False) -> str | None:
    """The task's score against bytes (log), better is up, with the Pareto front; None without a single point.

    Every model with both figures takes part in the front, teacher and baselines too: a baseline on it is news.
    A teacher of unknown size (behind an API, for example) is a level line.
    """
    shown = score(task)
    values = [(model, (model.get("scores") or {}).get(task)) for model in models]
    points = [
        (m, m["bytes"] / 2**20, v) for m, v in values if is_finite(v) and is_finite(m.get("bytes")) and m["bytes"] > 0
    ]
    if not points:
        return None
    figure, axes = _axes(narrow)
    levels = [v for m, v in values if m.get("kind") == "teacher" and is_finite(v)]
    scale = 100 if shown.unit == "%" else 1
    _limits(axes, [x for _, x, _ in points], [scale * v for v in [*levels, *(v for _, _, v in points)]], shown)
    for level in levels:
        axes.axhline(scale * level, color=_COLOURS["teacher"], linewidth=1, linestyle=(0, (1, 3)), zorder=1)
    front = pareto_front([(x, v) for _, x, v in points], lower_is_better=shown.lower_is_better)
    xs, ys = [x for x, _ in front], [scale * y for _, y in front]
    edge = axes.get_xlim()[1]
    axes.plot([*xs, edge], [*ys, ys[-1]], drawstyle="steps-post", color=_COLOURS["line"], linewidth=1.6, zorder=1)
    titles = {}
    for index, (model, x, value) in enumerate(points):
        kind = "bad" if model.get("verified") is False else str(model.get("kind"))
        hollow = kind == "baseline"
        marks = axes.plot(
            [x], [scale * value], marker=_MARKERS.get(str(model.get("kind")), "s"), markersize=8 if kind != "teacher" else 7.5,
            markerfacecolor=_COLOURS["surface"] if hollow else _COLOURS.get(kind, _COLOURS["package"]),
            markeredgecolor=_COLOURS[kind] if hollow else _COLOURS["surface"],
            markeredgewidth=1.8 if hollow else 1.2, linestyle="none", zorder=3, gid=f"point-{index}",
        )  # fmt: skip
        marks[0].set_clip_on(False)
        titles[f"point-{index}"] = (
            f"{model['name']}: {shown.show(value)} {shown.unit} {shown.title}, {size(model['bytes'])}"
        )
    _label_points(figure, axes, [(str(m["name"]), x, scale * v) for m, x, v in points])
    axes.set_xlabel("MiB on disk (log scale)")
    direction = ", lower is better" if shown.lower_is_better else ""
    axes.set_title(
        f"{shown.title}{', ' + shown.unit if shown.unit else ''}{direction}",
        loc="left",
        fontsize=11,
        color=_COLOURS["quiet"],
    )
    return _svg(figure, "quality-narrow" if narrow else "quality", titles)


def loss_svg(metrics: Sequence[Mapping[str, Any]], *, narrow: bool = False) -> str | None:
    """Each model's training loss in nats per token against the tokens it has seen; None without a curve.

    Colours are `series-0`, `series-1`, … in the order of `curves`.
    """
    lines = curves(metrics)
    if not lines:
        return None
    figure, axes = _axes(narrow)
    losses = [loss for _, ys in lines.values() for loss in ys]
    if min(losses) > 0 and max(losses) / min(losses) > 20:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        axes.yaxis.set_minor_formatter("")
    most = max(x for xs, _ in lines.values() for x in xs)
    unit, name = (1e9, "billion") if most >= 1e9 else (1e6, "million") if most >= 1e6 else (1e3, "thousand")
    for index, (xs, ys) in enumerate(lines.values()):
        axes.plot(
            [x / unit for x in xs], ys, color=_COLOURS[f"series-{index % 8}"], linewidth=1.8, solid_joinstyle="round"
        )
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{name} tokens trained on")
    axes.set_title("loss, nats/token", loc="left", fontsize=11, color=_COLOURS["quiet"])
    return _svg(figure, "loss-narrow" if narrow else "loss", {})


def curves(metrics: Sequence[Mapping[str, Any]], most_points: int = 160) -> dict[str, tuple[list[float], list[float]]]:
    """model → (tokens, loss in nats), long curves as the means of `most_points` equal stretches."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in metrics:
        tokens, loss = line.get("tokens"), line.get("loss_nats")
        if is_finite(tokens) and is_finite(loss):
            points.setdefault(str(line.get("model", "student")), []).append((tokens, loss))
    found = {}
    for model, pairs in points.items():
        stretch = math.ceil(len(pairs) / most_points)
        parts = [pairs[start : start + stretch] for start in range(0, len(pairs), stretch)]
        found[model] = ([sum(x for x, _ in p) / len(p) for p in parts], [sum(y for _, y in p) / len(p) for p in parts])
    return found


def pareto_front(points: Sequence[tuple[float, float]], *, lower_is_better: bool) -> list[tuple[float, float]]:
    """The (bytes, score) points that no other one beats in both, by rising bytes."""
    sign = 1 if lower_is_better else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (point[0], sign * point[1])):
        if not front or sign * y < sign * front[-1][1]:
            front.append((x, y))
    return front


def _axes(narrow: bool) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # 72 dpi: one point is one unit of the SVG, so labels measured here are as wide there
    figure = Figure(figsize=(5.0, 5.2) if narrow else (10.6, 5.0), dpi=72, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_COLOURS["line"])
    axes.grid(axis="y", color=_COLOURS["line"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_COLOURS["line"], labelcolor=_COLOURS["quiet"], labelsize=11, length=0, pad=6)
    axes.tick_params(axis="x", which="major", length=4)
    axes.xaxis.label.set(color=_COLOURS["quiet"], fontsize=11)
    return figure, axes


def _limits(axes: Any, sizes: Sequence[float], values: Sequence[float], shown: Score) -> None:
    """Room for labels on all sides; at least a factor of four in bytes, so that the axis has marks."""
    from matplotlib.ticker import LogLocator, NullLocator

    low, high = math.log10(min(sizes)), math.log10(max(sizes))
    room = max(0.12 * (high - low), (math.log10(4) - (high - low)) / 2, 0.08)
    axes.set_xscale("log")
    axes.set_xlim(10 ** (low - room), 10 ** (high + room))
    wide = high - low > 2
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_plain)
    spread = max(values) - min(values) or abs(max(values)) / 10 or 1.0
    bottom, top = min(values) - 0.12 * spread, max(values) + 0.12 * spread
    axes.set_ylim(*((top, bottom) if shown.lower_is_better else (bottom, top)))


def _plain(value: float, _: Any = None) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _label_points(figure: Any, axes: Any, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside the points; no label lies on another label or on a point while there is room."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    inside = axes.get_window_extent(renderer)
    places = [axes.transData.transform((x, y)) for _, x, y in points]
    taken = [Bbox.from_bounds(px - 6, py - 6, 12, 12) for px, py in places]
    for index in sorted(range(len(points)), key=lambda i: (places[i][0], -places[i][1])):
        name, x, y = points[index]
        text = axes.annotate(
            name,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=11,
            color=_COLOURS["ink"],
            va="center",
            zorder=4,
        )
        extent = text.get_window_extent(renderer)
        width, height = extent.width, extent.height
        best = None
        for cost, dx, dy, side in _offsets(width, height):
            left = places[index][0] + dx - (width if side == "right" else width / 2 if side == "center" else 0)
            box = Bbox.from_bounds(left - 2, places[index][1] + dy - height / 2 - 1, width + 4, height + 2)
            overlap = sum(_shared_area(box, other) for i, other in enumerate(taken) if i != index)
            outside = max(0.0, inside.x0 - box.x0) + max(0.0, box.x1 - inside.x1 - 8)
            outside += max(0.0, inside.y0 - box.y0) + max(0.0, box.y1 - inside.y1 - 4)
            total = cost + 10 * overlap + 50 * outside
            if best is None or total < best[0]:
                best = (total, dx, dy, side, box)
        assert best is not None
        _, dx, dy, side, box = best
        text.set(position=(dx, dy), ha=side)
        text.set_in_layout(False)
        taken.append(box)
        if math.hypot(dx, dy) > 26:
            axes.annotate(
                "", (x, y), xytext=(dx, dy), textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "color": _COLOURS["quiet"], "linewidth": 0.7, "shrinkA": 2, "shrinkB": 6},
            )  # fmt: skip


def _offsets(width: float, height: float) -> list[tuple[float, float, float, str]]:
    """(cost, dx, dy, alignment): right of the point first, then left, above, below, and then farther away."""
    found = []
    for ring, reach in enumerate((10, 20, 34, 50, 70)):
        for cost, (dx, dy, side) in enumerate(
            [
                (reach, 0, "left"),
                (-reach, 0, "right"),
                (0, reach + height / 4, "center"),
                (0, -reach - height / 4, "center"),
                (reach * 0.8, reach * 0.6, "left"),
                (reach * 0.8, -reach * 0.6, "left"),
                (-reach * 0.8, reach * 0.6, "right"),
                (-reach * 0.8, -reach * 0.6, "right"),
            ]  # fmt: skip
        ):
            found.append((20 * ring + cost, dx, dy, side))
    return found


def _shared_area(one: Any, other: Any) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _svg(figure: Any, name: str, titles: Mapping[str, str]) -> str:
    """The figure as an <svg> element: ids start with `name`, colours and font are the page's, `titles` are tooltips."""
    import matplotlib

    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # its style sheet would reach the whole page; the page has the two rules for .figure alone
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib always writes a viewBox"
    head = f'<svg class="figure" role="img" {box[0]} {_NAMESPACES}>'
    text = head + text[text.index(">") + 1 :]
    for gid, title in titles.items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{html.escape(title)}</title>', 1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|xlink:href="#)', rf"\1{name}-", text)
    for colour, stand_in in _COLOURS.items():
        text = text.replace(stand_in, f"var(--{colour})")
    return re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
