"""Names beside the points of a picture, placed so that they stay legible where points crowd together."""

import math
from collections.abc import Sequence
from typing import Any

_SIZE = 11
_POINT_RADIUS = 6
_LEADER_FROM = 24


def label_points(
    figure: Any,
    axes: Any,
    points: Sequence[tuple[str, float, float]],
    *,
    lines: Sequence[tuple[float, float, float, float]] = (),
    text_colour: str,
    leader_colour: str,
) -> None:
    """Writes the name of each (name, x, y) beside it; a thin line leads to names that found no room near their point.

    Greedy: each name takes the cheapest of some hundred places. Lying on another name or point, or outside the
    axes, costs most; then being nearer to a stranger than to its own point; then crossing one of `lines`
    (x0, y0, x1, y1; level or upright); then the distance. `figure` needs 72 dpi and its final limits.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    inside = axes.get_window_extent(renderer).padded(4)
    to_pixels = axes.transData.transform
    places = [to_pixels((x, y)) for _, x, y in points]
    marks = [Bbox.from_bounds(px, py, 0, 0).padded(_POINT_RADIUS) for px, py in places]
    strokes = [Bbox([to_pixels((x0, y0)), to_pixels((x1, y1))]).padded(1) for x0, y0, x1, y1 in lines]
    names: list[Any] = []
    crowding = [sum(math.dist(place, other) < 60 for other in places) for place in places]
    for index in sorted(range(len(points)), key=lambda i: (-crowding[i], places[i][0], -places[i][1])):
        name, x, y = points[index]
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=_SIZE, color=text_colour, zorder=4
        )
        text.set(va="center", parse_math=False, in_layout=False)
        extent = text.get_window_extent(renderer)
        px, py = places[index]
        strangers = [mark for i, mark in enumerate(marks) if i != index]
        best = (math.inf, 0.0, 0.0, "left", Bbox.null())
        for reach, dx, dy, side in _places(extent.height):
            left = px + dx - {"left": 0.0, "center": extent.width / 2, "right": extent.width}[side]
            box = Bbox.from_bounds(left - 2, py + dy - extent.height / 2, extent.width + 4, extent.height)
            covered = sum(_shared_area(box, other) for other in [*strangers, *names])
            leader = _leader(box, (px, py)) if math.hypot(dx, dy) > _LEADER_FROM else []
            covered += sum(_shared_area(dot, other) for dot in leader for other in [*strangers, *names])
            cut_off = box.width * box.height - _shared_area(box, inside)
            own, nearest = (
                _gap(box, (px, py)),
                min((_gap(box, p) for p in places if p is not places[index]), default=99),
            )
            crossed = sum(_shared_area(box, stroke) > 0 for stroke in strokes)
            misleading = reach < _LEADER_FROM and nearest < own + 3
            cost = 20 * covered + 20 * cut_off + 60 * misleading + 12 * crossed + reach
            if cost < best[0]:
                best = (cost, dx, dy, side, box)
        _, dx, dy, side, box = best
        text.set(position=(dx, dy), ha=side)
        names.append(box)
        if math.hypot(dx, dy) > _LEADER_FROM:
            end = _nearest(box, (px, py))
            look = {"arrowstyle": "-", "color": leader_colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5}
            to = (end[0] - px, end[1] - py)
            axes.annotate("", (x, y), xytext=to, textcoords="offset points", zorder=2, arrowprops=look)
            names.extend(_leader(box, (px, py)))


def _places(height: float) -> list[tuple[float, float, float, str]]:
    """(distance, dx, dy, alignment) in pixels: right first, then left, above, below and the diagonals, then farther."""
    found = []
    for reach in (10, 17, 24, 32, 42, 54, 68, 84):
        beside = [(reach, 0, "left"), (-reach, 0, "right")]
        upright = [(0, reach + height / 3, "center"), (0, -reach - height / 3, "center")]
        slanted = [(a * reach, b * reach, side) for b in (0.8, -0.8) for a, side in ((0.7, "left"), (-0.7, "right"))]
        for rank, (dx, dy, side) in enumerate([*beside, *upright, *slanted]):
            found.append((reach + rank / 2, float(dx), float(dy), side))
    return found


def _nearest(box: Any, point: tuple[float, float]) -> tuple[float, float]:
    return min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)


def _gap(box: Any, point: tuple[float, float]) -> float:
    """Pixels between a point and a box; 0 inside."""
    return math.dist(_nearest(box, point), point)


def _leader(box: Any, point: tuple[float, float]) -> list[Any]:
    """The line from a name to its point, as small boxes that nothing should cover."""
    from matplotlib.transforms import Bbox

    (x0, y0), (x1, y1) = _nearest(box, point), point
    steps = [i / 8 for i in range(8)]
    return [Bbox.from_bounds(x0 + t * (x1 - x0), y0 + t * (y1 - y0), 0, 0).padded(1.5) for t in steps]


def _shared_area(one: Any, other: Any) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)
