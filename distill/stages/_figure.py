"""The report's pictures as inline SVG: quality against bytes, and loss against tokens.

Colours are CSS variables of the page, so one picture serves light and dark; text stays text, in the page's font.
The same input gives the same bytes on every machine: fixed ids, no dates, metrics of the font that matplotlib ships.
"""

import contextlib
import html
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill.stages._labels import label_points
from distill.stages._number import Score, is_finite, score, size

# Stand-ins that matplotlib can draw with; each becomes var(--name) of the page's style sheet.
_NAMES = ("ink", "quiet", "line", "front", "surface", "teacher", "baseline", "student", "package", "bad")
NUM_SERIES = 8
"""Colours of curves in the page's style sheet; then they begin again."""
_NAMES += tuple(f"series-{i}" for i in range(NUM_SERIES))
_COLOUR = {name: f"#0a0b{number:02x}" for number, name in enumerate(_NAMES)}
_MARKER = {"teacher": "D", "baseline": "o", "student": "o", "package": "s"}
_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


def quality_svg(
    models: Sequence[Mapping[str, Any]], task: str, *, narrow: bool = False, name: str = "quality"
) -> str | None:
    """The task's score against bytes (log), better is up, with the Pareto front; None without a single point.

    Every model with both figures takes part in the front, teacher and baselines too: a baseline on it is news.
    The teacher is a level line as well, and only that when its size is unknown (behind an API, for example).
    Beside what scores.json says, a model may have `range` (lowest and highest score: an error bar), `series` (the
    number of its colour), `label` (the name at its point; "" for none) and `shift` (a part of the picture's width,
    so that points of equal bytes stand side by side). Ids on the page start with `name`.
    """
    shown = score(task)
    scale = 100 if shown.unit == "%" else 1
    scored = [(model, scale * value) for model in models if is_finite(value := (model.get("scores") or {}).get(task))]
    points = [(model, model["bytes"] / 2**20, y) for model, y in scored if is_finite(model.get("bytes"))]
    points = [point for point in points if point[1] > 0]
    if not points:
        return None
    front = pareto_front([(x, y) for _, x, y in points], lower_is_better=shown.lower_is_better)
    tooltips = {}
    with _style(f"{name}-narrow" if narrow else name) as prefix:
        figure, axes = _axes(narrow, shown.head)
        ends = [scale * end for model, _ in scored for end in model.get("range") or ()]
        _limits(axes, [x for _, x, _ in points], [*(y for _, y in scored), *ends], shown)
        left, right = axes.get_xlim()
        points = [(model, x * (right / left) ** model.get("shift", 0), y) for model, x, y in points]
        for y in (y for model, y in scored if model.get("kind") == "teacher"):
            axes.axhline(y, color=_COLOUR["teacher"], linewidth=1, linestyle=(0, (1, 3)), zorder=1)
        corners = [*front, (right, front[-1][1])]
        axes.plot(*zip(*corners, strict=True), drawstyle="steps-post", color=_COLOUR["front"], linewidth=1.6, zorder=1)
        for index, (model, x, y) in enumerate(points):
            _mark(axes, model, x, y, f"point-{index}")
            value = shown.show(y / scale)
            if model.get("range"):
                low, high = model["range"]
                axes.plot([x, x], [scale * low, scale * high], color=_colour(model), linewidth=1.2, zorder=2)
                value += f", {shown.show(low)}–{shown.show(high)}"
            tooltips[f"point-{index}"] = f"{model['name']}: {value} ({shown.head}), {size(model['bytes'])}"
        steps = [(a[0], a[1], b[0], a[1]) for a, b in itertools.pairwise(corners)]
        label_points(
            figure, axes, [(str(model.get("label", model["name"])), x, y) for model, x, y in points],
            lines=steps, text_colour=_COLOUR["ink"], leader_colour=_COLOUR["quiet"],
        )  # fmt: skip
        axes.set_xlabel("MiB on disk, log scale")
        return _svg(figure, prefix, tooltips)


def loss_svg(
    metrics: Sequence[Mapping[str, Any]],
    *,
    narrow: bool = False,
    name: str = "loss",
    series: Mapping[str, int] | None = None,
) -> str | None:
    """Each model's training loss in nats per token against the tokens it has seen; None without a curve.

    Colours are `series-0`, `series-1`, … in the order of `curves`, or those that `series` has for
    their names. The scale is logarithmic over a factor of 20.
    """
    lines = curves(metrics)
    if not lines:
        return None
    losses = [loss for _, ys in lines.values() for loss in ys]
    most = max(x for xs, _ in lines.values() for x in xs)
    unit, word = (1e9, "billion ") if most >= 1e9 else (1e6, "million ") if most >= 1e6 else (1, "")
    with _style(f"{name}-narrow" if narrow else name) as prefix:
        figure, axes = _axes(narrow, "loss, nats/token")
        if min(losses) > 0 and max(losses) / min(losses) > 20:
            axes.set_yscale("log")
            _log_marks(axes.yaxis, losses)
        for index, (model, (xs, ys)) in enumerate(lines.items()):
            colour = _COLOUR[f"series-{(series or {}).get(model, index) % NUM_SERIES}"]
            axes.plot([x / unit for x in xs], ys, color=colour, linewidth=1.8, solid_joinstyle="round")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(_plain)
        if narrow:  # numbers of six digits would touch
            axes.locator_params(axis="x", nbins=4)
        axes.set_xlabel(f"{word}tokens trained on")
        return _svg(figure, prefix, {})


def curves(metrics: Sequence[Mapping[str, Any]], most_points: int = 160) -> dict[str, tuple[list[float], list[float]]]:
    """model → (tokens, loss in nats); a longer curve becomes the means of at most `most_points` equal stretches."""
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
    """The (bytes, score) points that no other one equals or beats in both, by rising bytes."""
    sign = 1 if lower_is_better else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * y < sign * front[-1][1]:
            front.append((x, y))
    return front


@contextlib.contextmanager
def _style(name: str) -> Iterator[str]:
    """matplotlib's own defaults, whatever the user's matplotlibrc says, and text that stays text."""
    import matplotlib.style

    look = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "DejaVu Sans", "path.simplify": False}
    with matplotlib.style.context(["default", look]), warnings.catch_warnings():
        # the reader's own font draws the text
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        yield name


def _axes(narrow: bool, title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    # 72 dpi: one point is one unit of the SVG, so labels measured here are as wide there
    figure = Figure(figsize=(4.7, 5.2) if narrow else (11.6, 5.2), dpi=72, layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_COLOUR["front"])
    axes.grid(axis="y", color=_COLOUR["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_COLOUR["front"], labelcolor=_COLOUR["quiet"], labelsize=11, length=0, pad=6)
    axes.tick_params(axis="x", which="major", length=4)
    axes.xaxis.label.set(color=_COLOUR["quiet"], fontsize=11)
    # a score's name comes from outside, and a dollar in it is no formula
    axes.set_title(title, loc="left", fontsize=11, color=_COLOUR["quiet"], parse_math=False)
    return figure, axes


def _mark(axes: Any, model: Mapping[str, Any], x: float, y: float, gid: str) -> None:
    """Diamond: teacher; ring: baseline; disc: student; square: package, in the colour of trouble if not verified."""
    kind, colour = _kind(model), _colour(model)
    is_ring = kind == "baseline"
    axes.plot(
        [x], [y], gid=gid, linestyle="none", marker=_MARKER[kind], markersize=8.5, clip_on=False, zorder=3,
        markerfacecolor=_COLOUR["surface"] if is_ring else colour,
        markeredgecolor=colour if is_ring else _COLOUR["surface"],
        markeredgewidth=1.8 if is_ring else 1.2,
    )  # fmt: skip


def _kind(model: Mapping[str, Any]) -> str:
    return str(model.get("kind")) if model.get("kind") in _MARKER else "package"


def _colour(model: Mapping[str, Any]) -> str:
    if model.get("verified") is False:
        return _COLOUR["bad"]
    series = model.get("series")
    return _COLOUR[_kind(model) if series is None else f"series-{series % NUM_SERIES}"]


def _limits(axes: Any, sizes: Sequence[float], values: Sequence[float], shown: Score) -> None:
    """Room for labels on all sides, and at least a factor of four in bytes, so that the axis has marks."""
    low, high = math.log10(min(sizes)), math.log10(max(sizes))
    room = max(0.12 * (high - low), (math.log10(4) - (high - low)) / 2)
    limits = (10 ** (low - room), 10 ** (high + room))
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    _log_marks(axes.xaxis, limits)
    spread = max(values) - min(values)
    # a difference within the noise must not fill the picture: ten points, or a tenth of the value, at least
    least = 10.0 if shown.unit == "%" else max(abs(value) for value in values) / 10 or 1.0
    room = max(0.14 * spread, (least - spread) / 2)
    bottom, top = min(values) - room, max(values) + room
    axes.set_ylim(*((top, bottom) if shown.lower_is_better else (bottom, top)))
    # headroom for labels must not promise more than everything
    axes.set_yticks([tick for tick in axes.get_yticks() if bottom <= tick <= (100 if shown.unit == "%" else top)])
    axes.set_ylim(*((top, bottom) if shown.lower_is_better else (bottom, top)))


def _log_marks(axis: Any, values: Sequence[float]) -> None:
    """1, 2, 5, 10, …, or powers of ten alone where these would crowd."""
    from matplotlib.ticker import LogLocator, NullLocator

    is_wide = max(values) / min(values) > 300
    axis.set_major_locator(LogLocator(subs=(1,) if is_wide else (1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_plain)


def _plain(value: float, _: Any = None) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _svg(figure: Any, name: str, tooltips: Mapping[str, str]) -> str:
    """The figure as an <svg> element whose ids start with `name`, whose colours and font are the page's."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # its style sheet would reach the whole page; the page has the two rules for .figure alone
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib always writes a viewBox"
    text = f'<svg class="figure" role="img" {box[0]} {_NAMESPACES}>' + text[text.index(">") + 1 :]
    for gid, tooltip in tooltips.items():
        text = text.replace(f'<g id="{gid}">', f'<g id="{gid}"><title>{html.escape(tooltip)}</title>', 1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|xlink:href="#)', rf"\1{name}-", text)
    for colour, stand_in in _COLOUR.items():
        text = text.replace(stand_in, f"var(--{colour})")
    return re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
