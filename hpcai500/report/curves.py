"""Plots of curves over time, and of a machine's speed over its size; each line is named at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from hpcai500.report.amounts import flops_text
from hpcai500.report.svg import CHARACTER_WIDTH, About, Drawing, Point, Scale, span, spread_labels, tick_text

WIDTH, HEIGHT = 480.0, 270.0
LEFT, TOP, BOTTOM = 50.0, 26.0, 34.0
NUM_COLOURS = 7
MAX_CURVES = 40  # that are drawn; those between look the same
LABEL_GAP = 13.0


@dataclass(frozen=True)
class Curve:
    """A line to draw: its name, its points and whether each has a dot."""

    label: str
    points: Sequence[Point]
    has_dots: bool = False


class Level(NamedTuple):
    """A horizontal line, such as a target."""

    label: str
    value: float


def draw_curves(
    about: About,
    curves: Sequence[Curve],
    *,
    y_label: str,
    level: Level | None = None,
    with_zero: bool = False,
) -> Markup:
    """Curves over time in seconds, in one plot.

    Args:
        about: the drawing.
        curves: to draw, one point each at least.
        y_label: what stands on the vertical axis.
        level: a line to compare with.
        with_zero: whether the vertical axis begins at 0.
    """
    kept = [curve for curve in curves if curve.points]
    if not kept:
        return Markup()
    shown = kept[:: -(-len(kept) // MAX_CURVES)]
    drawing = Drawing(about, WIDTH, HEIGHT)
    heights = [y for curve in shown for _, y in curve.points] + ([level.value] if level else [])
    unit_s, unit = time_unit(max(x for curve in shown for x, _ in curve.points))
    right = _label_width(shown, level)
    x_scale = Scale(0, max(x for curve in shown for x, _ in curve.points) / unit_s * 1.0001, LEFT, WIDTH - right)
    y_scale = Scale(*span(heights, with_zero=with_zero), HEIGHT - BOTTOM, TOP)
    draw_axes(drawing, x_scale, y_scale, x_label=f"time on the ranked clock ({unit})", y_label=y_label)
    if level is not None:
        y = y_scale(level.value)
        drawing.line((LEFT, y), (WIDTH - right, y), "target")
    few = len(shown) <= NUM_COLOURS
    for index, curve in enumerate(shown):
        points = [(x_scale(x / unit_s), y_scale(y)) for x, y in curve.points]
        css = f"l{index % NUM_COLOURS + 1}" if few else "l1 thin"
        drawing.path(points, f"curve {css}")
        if curve.has_dots and len(points) <= 30 and few:
            for (x, y), (_, value) in zip(points, curve.points, strict=True):
                drawing.dot((x, y), f"f{index % NUM_COLOURS + 1}", tip=f"{curve.label}: {value:.4g}")
    _name_curves(drawing, shown, number=len(kept), y_scale=y_scale, right=right, level=level, few=few)
    return drawing.render()


def _label_width(curves: Sequence[Curve], level: Level | None) -> float:
    labels = [curve.label for curve in curves] if len(curves) <= NUM_COLOURS else ["9999 seeds"]
    longest = max(len(label) for label in [*labels, *([level.label] if level else [])])
    return min(150.0, 14 + CHARACTER_WIDTH * longest)


def _name_curves(
    drawing: Drawing,
    curves: Sequence[Curve],
    *,
    number: int,
    y_scale: Scale,
    right: float,
    level: Level | None,
    few: bool,
) -> None:
    """Names at the lines' ends, moved apart where they would meet."""
    ends = [(curve.label, y_scale(curve.points[-1][1]), f"t{index + 1}") for index, curve in enumerate(curves)]
    if not few:
        ends = sorted(ends, key=lambda end: end[1])[len(ends) // 2 :][:1]
        ends = [(f"{number} runs", ends[0][1], "t1")]
    if level is not None:
        ends.append((level.label, y_scale(level.value), "muted"))
    places = spread_labels([y for _, y, _ in ends], gap=LABEL_GAP, low=TOP, high=HEIGHT - BOTTOM)
    for (label, _, css), place in zip(ends, places, strict=True):
        drawing.text((WIDTH - right + 7, place + 4), label, css)


def draw_axes(drawing: Drawing, x_scale: Scale, y_scale: Scale, *, x_label: str, y_label: str) -> None:
    """Thin lines at round values, with their numbers and what they are."""
    ticks = y_scale.ticks(6)
    for tick in ticks:
        y = y_scale(tick)
        drawing.line((x_scale.start, y), (x_scale.end, y), "grid")
        drawing.text((x_scale.start - 6, y + 4), _tick(tick, ticks, y_scale), "tick", anchor="end")
    ticks = x_scale.ticks(5)
    for tick in ticks:
        x = x_scale(tick)
        drawing.line((x, y_scale.start), (x, y_scale.start + 4), "axis")
        drawing.text((x, y_scale.start + 16), _tick(tick, ticks, x_scale), "tick", anchor="middle")
    drawing.line((x_scale.start, y_scale.start), (x_scale.end, y_scale.start), "axis")
    drawing.text(((x_scale.start + x_scale.end) / 2, drawing.height - 3), x_label, "tick", anchor="middle")
    drawing.text((2, 13), y_label, "label")


def _tick(value: float, ticks: Sequence[float], scale: Scale) -> str:
    if scale.is_log:
        return f"{value:,g}" if value < 1e6 else flops_text(value, "")
    return tick_text(value, ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0)


def time_unit(longest_s: float) -> tuple[float, str]:
    """Seconds in the unit in which a time is shown, and its name."""
    if longest_s < 300:
        return 1.0, "s"
    return (60.0, "min") if longest_s < 3 * 3600 else (3600.0, "h")


class ScalingPoint(NamedTuple):
    """A machine of some size: its score with the interval."""

    label: str
    num_devices: int
    vflops: float
    low: float
    high: float
    efficiency: float


def draw_scaling(about: About, points: Sequence[ScalingPoint]) -> Markup:
    """VFLOPS over devices, both logarithmic, beside what the smallest would reach if it scaled perfectly."""
    drawing = Drawing(about, WIDTH, HEIGHT)
    ordered = sorted(points, key=lambda point: point.num_devices)
    first, last = ordered[0], ordered[-1]
    ideal = first.vflops * last.num_devices / first.num_devices
    right, bottom = WIDTH - 20, HEIGHT - BOTTOM
    x_scale = Scale(first.num_devices / 1.25, last.num_devices * 1.4, LEFT, right, is_log=True)
    lowest = min(point.low or point.vflops for point in ordered)
    y_scale = Scale(lowest / 1.4, max(ideal, *(point.high for point in ordered)) * 1.3, bottom, TOP, is_log=True)
    for tick in y_scale.ticks(5):
        drawing.line((LEFT, y_scale(tick)), (right, y_scale(tick)), "grid")
        drawing.text((LEFT - 6, y_scale(tick) + 4), flops_text(tick, ""), "tick", anchor="end")
    for number in sorted({point.num_devices for point in ordered}):
        drawing.line((x_scale(number), bottom), (x_scale(number), bottom + 4), "axis")
        drawing.text((x_scale(number), bottom + 16), f"{number:,}", "tick", anchor="middle")
    drawing.line((LEFT, bottom), (right, bottom), "axis")
    drawing.text(((LEFT + right) / 2, HEIGHT - 3), "devices", "tick", anchor="middle")
    drawing.text((2, 13), "VFLOPS", "label")
    ends = [(point.num_devices, value) for point, value in ((first, first.vflops), (last, ideal))]
    drawing.path([(x_scale(x), y_scale(y)) for x, y in ends], "target")
    drawing.text((x_scale(last.num_devices) - 10, y_scale(ideal) - 2), "perfect scaling", "muted", anchor="end")
    drawing.path([(x_scale(point.num_devices), y_scale(point.vflops)) for point in ordered], "curve l1")
    for point in ordered:
        x = x_scale(point.num_devices)
        drawing.line((x, y_scale(point.low or lowest)), (x, y_scale(point.high)), "whisker")
        drawing.dot((x, y_scale(point.vflops)), "f1", radius=4, tip=f"{point.label}: {flops_text(point.vflops)}")
        if point is not first:
            text = f"{100 * point.efficiency:.0f} %"
            drawing.text((x + 5, y_scale(point.vflops) + 18), text, "t1")
    return drawing.render()
