"""The report's pictures: axes, the front, labels that lie on nothing, and curves that become means."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.stages._figure import curves, loss_svg, pareto_front, quality_svg
from distill.stages._labels import label_points
from tests.stages.test_report import model


def points_of(svg: str) -> dict[int, tuple[float, float]]:
    """Number of the model → where its mark is drawn, in SVG units (y grows downwards)."""
    found = re.findall(r'id="quality(?:-narrow)?-point-(\d+)".*?<use [^>]*x="([-\d.]+)" y="([-\d.]+)"', svg, re.DOTALL)
    return {int(index): (float(x), float(y)) for index, x, y in found}


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(("task", "up"), [("exact_match", True), ("bits_per_byte", False)])
def test_bytes_are_drawn_on_a_log_scale_and_better_is_up(narrow, task, up):
    svg = quality_svg(
        [model(b, v, task=task) for b, v in [(2**20, 0.2), (2**22, 0.4), (2**26, 0.8)]], task, narrow=narrow
    )
    (x0, y0), (x1, y1), (x2, y2) = points_of(svg).values()
    assert (x2 - x1) / (x1 - x0) == pytest.approx(2, abs=1e-3)  # 4 times, then 16 times
    assert (y2 - y1) / (y1 - y0) == pytest.approx(2, abs=1e-3)
    assert (y2 < y0) is up
    assert "var(--package)" in svg and "#0a0b" not in svg


def test_small_differences_are_drawn_small():
    svg = quality_svg([model(2**20, 0.896), model(2**21, 0.898)], "exact_match")
    (_, y0), (_, y1) = points_of(svg).values()
    assert 0 < y0 - y1 < 0.05 * 374  # 0.2 points of at least 10, in a picture 374 units high


def test_there_is_no_picture_without_a_point():
    assert quality_svg([model(None, 0.5), model(0, 0.5), model(2**20, None)], "exact_match") is None
    assert quality_svg([model(2**20, float("nan"))], "exact_match") is None
    assert loss_svg([{"model": "student", "tokens": 5, "loss_nats": float("nan")}, {"model": "student"}]) is None
    assert "var(--teacher)" in quality_svg([model(None, 0.9, "teacher"), model(2**20, 0.5)], "exact_match")


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=12),
    st.booleans(),
)
def test_the_front_is_what_nothing_else_beats(points, lower_is_better):
    sign = -1 if lower_is_better else 1
    unbeaten = {
        (x, y) for x, y in points if not any((a <= x and sign * b >= sign * y) and (a, b) != (x, y) for a, b in points)
    }
    front = pareto_front(points, lower_is_better=lower_is_better)
    assert set(front) == unbeaten and front == sorted(front) and len(front) == len(unbeaten)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size_inches", [(5.2, 5.4), (11.6, 5.2)])
def test_names_lie_on_no_other_name_and_on_no_point(seed, size_inches):
    import random

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    draw = random.Random(seed)
    # crowded on purpose: nine packages within a tenth of the axes, and two far away
    points = [(f"package_{i}_q8", 0.1 * draw.random(), 0.1 * draw.random()) for i in range(9)]
    points += [("teacher", 1.0, 1.0), ("baseline", 0.5, 0.0)]
    figure = Figure(figsize=size_inches, dpi=72)
    axes = figure.add_subplot()
    axes.set(xlim=(-0.2, 1.2), ylim=(-0.2, 1.2))
    label_points(figure, axes, points, text_colour="black", leader_colour="grey")
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts if text.get_text()]
    assert len(boxes) == len(points)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    inside = axes.get_window_extent(renderer).padded(8)
    for box, (place, (_, x, y)) in itertools.product(boxes, enumerate(points)):
        px, py = axes.transData.transform((x, y))
        assert not (box.x0 < px < box.x1 and box.y0 < py < box.y1), points[place]
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1


def test_long_curves_become_means_that_keep_the_area():
    lines = [{"model": "student", "tokens": 10 * i, "loss_nats": float(i % 7)} for i in range(1000)]
    tokens, losses = curves(lines, most_points=100)["student"]
    assert len(tokens) == 100 and tokens[0] == 45 and losses[0] == pytest.approx((21 + 0 + 1 + 2) / 10)
    assert sum(losses) / 100 == pytest.approx(sum(i % 7 for i in range(1000)) / 1000)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", [False, True])
def test_numbers_below_a_curve_do_not_touch(narrow):
    metrics = [{"model": "student", "tokens": tokens, "loss_nats": 1.0} for tokens in range(0, 330_000, 10_000)]
    svg = loss_svg(metrics, narrow=narrow)
    marks = sorted((float(x), text) for x, text in re.findall(r'middle;[^"]*" x="([\d.]+)"[^>]*>([\d,]+)</text>', svg))
    assert len(marks) > 2
    for (left, one), (right, next_one) in itertools.pairwise(marks):
        # 11 px: a digit is seven wide, and two numbers need half a digit between them
        assert right - left > 7 * (len(one) + len(next_one)) / 2 + 3.5, marks
