"""Names beside the points of a picture, placed so that they stay legible where points crowd together."""

import math
from collections.abc import Sequence
from typing import Any

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, low, right, high, in pixels."""

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

    A point without a name ("") gets none, and no other name lies on it.

    Greedy: each name takes the cheapest of some hundred places. Lying on another name or point, or outside the
    axes, costs most; then being nearer to a stranger than to its own point; then crossing one of `lines`
    (x0, y0, x1, y1; level or upright); then the distance. `figure` needs 72 dpi and its final limits.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    x0, y0, x1, y1 = axes.get_window_extent(renderer).extents
    inside = (x0 - 4, y0 - 4, x1 + 4, y1 + 4)
    places = [(float(px), float(py)) for px, py in axes.transData.transform([(x, y) for _, x, y in points])]
    strokes = [_spanned(*axes.transData.transform([(x0, y0), (x1, y1)]), pad=1) for x0, y0, x1, y1 in lines]
    names: list[Box] = []
    crowding = [sum(math.dist(place, other) < 60 for other in places) for place in places]
    for index in sorted(range(len(points)), key=lambda i: (-crowding[i], places[i][0], -places[i][1])):
        name, x, y = points[index]
        if not name:
            continue
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=_SIZE, color=text_colour, zorder=4
        )
        text.set(va="center", parse_math=False, in_layout=False)
        extent = text.get_window_extent(renderer)
        others = [place for i, place in enumerate(places) if i != index]
        taken = [*names, *(_spanned(place, place, pad=_POINT_RADIUS) for place in others)]
        dx, dy, side, box = _cheapest(places[index], (extent.width, extent.height), others, taken, strokes, inside)
        text.set(position=(dx, dy), ha=side)
        names.append(box)
        if math.hypot(dx, dy) > _LEADER_FROM:
            px, py = places[index]
            end = _nearest(box, (px, py))
            look = {"arrowstyle": "-", "color": leader_colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 5}
            to = (end[0] - px, end[1] - py)
            axes.annotate("", (x, y), xytext=to, textcoords="offset points", zorder=2, arrowprops=look)
            names.extend(_leader(box, (px, py)))


def _cheapest(
    point: Point, extent: Point, others: Sequence[Point], taken: Sequence[Box], strokes: Sequence[Box], inside: Box
) -> tuple[float, float, str, Box]:
    """(dx, dy, alignment, box) of the place that costs least for a name of this width and height."""
    width, height = extent
    least, best = math.inf, None
    for reach, dx, dy, side in _places(height):
        if reach >= least:
            break  # they come by distance, and the distance alone costs more from here on
        left = point[0] + dx - {"left": 0.0, "center": width / 2, "right": width}[side]
        box = (left - 2, point[1] + dy - height / 2, left + width + 2, point[1] + dy + height / 2)
        is_far = math.hypot(dx, dy) > _LEADER_FROM
        drawn = [box, *_leader(box, point)] if is_far else [box]
        covered = sum(_shared_area(part, other) for part in drawn for other in taken)
        cut_off = (width + 4) * height - _shared_area(box, inside)
        own, nearest = _gap(box, point), min((_gap(box, other) for other in others), default=math.inf)
        misleading = not is_far and nearest < own + 3
        crossed = sum(_shared_area(box, stroke) > 0 for stroke in strokes)
        cost = 20 * covered + 500 * (covered > 0) + 20 * cut_off + 60 * misleading + 12 * crossed + reach
        if cost < least:
            least, best = cost, (dx, dy, side, box)
    assert best is not None
    return best


def _places(height: float) -> list[tuple[float, float, float, str]]:
    """(distance, dx, dy, alignment) in pixels: right first, then left, above, below and the diagonals, then farther."""
    found = []
    for reach in (10, 17, 24, 32, 42, 54, 68, 84, 102, 122, 144, 168):
        beside = [(reach, 0, "left"), (-reach, 0, "right")]
        upright = [(0, reach + height / 3, "center"), (0, -reach - height / 3, "center")]
        steep = [(0.7, 0.8), (0.4, 0.95), (0.9, 0.5)]
        slanted = [(a * reach, b * reach * up, "left") for up in (1, -1) for a, b in steep]
        slanted += [(-dx, dy, "right") for dx, dy, _ in slanted]
        for rank, (dx, dy, side) in enumerate([*beside, *upright, *slanted]):
            found.append((reach + rank / 2.5, float(dx), float(dy), side))
    return sorted(found)


def _nearest(box: Box, point: Point) -> Point:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _gap(box: Box, point: Point) -> float:
    """Pixels between a point and a box; 0 inside."""
    return math.dist(_nearest(box, point), point)


def _leader(box: Box, point: Point) -> list[Box]:
    """The line from a name to its point, as small boxes that nothing should cover."""
    (x0, y0), (x1, y1) = _nearest(box, point), point
    dots = [(x0 + t / 8 * (x1 - x0), y0 + t / 8 * (y1 - y0)) for t in range(8)]
    return [_spanned(dot, dot, pad=1.5) for dot in dots]


def _spanned(one: Sequence[float], other: Sequence[float], *, pad: float) -> Box:
    (left, right), (low, high) = sorted((one[0], other[0])), sorted((one[1], other[1]))
    return (left - pad, low - pad, right + pad, high + pad)


def _shared_area(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
