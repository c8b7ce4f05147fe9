"""The plots of a plan: amounts over the number of nodes, and the parts of the time at each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from markupsafe import Markup

from hpcai500.report.amounts import seconds_text, share_text
from hpcai500.report.curves import BOTTOM, HEIGHT, TOP, WIDTH
from hpcai500.report.svg import CHARACTER_WIDTH, About, Drawing, Scale

Value = TypeVar("Value")
LEFT, RIGHT = 64.0, 24.0
BAR, GAP = 20.0, 6.0
WIDE, BAR_LEFT, BAR_RIGHT = 1032.0, 60.0, 100.0
LEGEND_HEIGHT = 22.0
MAX_TICKS = 7
TIMES_S = (*(10.0**power for power in range(-6, 0)), 1, 3, 10, 30, 60, 180, 600, 1800, 3600, 3 * 3600, 10 * 3600)
TIMES_S += (30 * 3600, 100 * 3600, 1000 * 3600, 10_000 * 3600)
RATES = tuple(factor * 10.0**power for power in range(-3, 12) for factor in (1, 3))
MAX_BARS = 24
LEAST_SHARE = 0.002  # of a part that is in the legend
# Classes of the report's style sheet, by part of the time
COLOURS = {
    "compute": "p-compute",
    "overhead": "p-optimizer",
    "network": "p-communication",
    "stragglers": "p-other",
    "input": "p-data",
    "evaluation": "p-evaluation",
    "batch": "p-checkpoint",
    "start-up": "p-restart",
}


class Mark(NamedTuple):
    """An amount at a number of nodes, its interval, and what stands beside it."""

    num_nodes: int
    value: float
    low: float
    high: float
    label: str = ""


class Line(NamedTuple):
    """Marks that belong together."""

    name: str
    marks: Sequence[Mark]


def draw_over_nodes(
    about: About,
    lines: Sequence[Line],
    *,
    y_label: str,
    text: Callable[[float], str],
    ticks: Sequence[float],
    falls: bool,
) -> Markup:
    """Amounts over nodes, both logarithmic, beside what the smallest size would become if it scaled perfectly.

    Args:
        about: the drawing.
        lines: to draw; those without marks are left out.
        y_label: what stands on the vertical axis.
        text: of an amount.
        ticks: round values, in their order, of which those within the plot are marked.
        falls: whether the amount of perfect scaling falls with the nodes, or rises.
    """
    kept = [line for line in lines if line.marks]
    first = kept[0].marks[0]
    most = max(mark.num_nodes for line in kept for mark in line.marks)
    ratio = most / first.num_nodes
    ideal = first.value / ratio if falls else first.value * ratio
    values = [value for line in kept for mark in line.marks for value in (mark.low, mark.high)] + [ideal]
    drawing = Drawing(about, WIDTH, HEIGHT)
    x_scale = Scale(first.num_nodes / 1.2, most * 1.35, LEFT, WIDTH - RIGHT, is_log=True)
    y_scale = Scale(min(values) / 1.25, max(values) * 1.25, HEIGHT - BOTTOM, TOP, is_log=True)
    numbers = sorted({mark.num_nodes for line in kept for mark in line.marks})
    within = [tick for tick in ticks if y_scale.low <= tick <= y_scale.high]
    _draw_axes(drawing, x_scale, y_scale, numbers, [(tick, text(tick)) for tick in thinned(within)])
    drawing.text((2, 13), y_label, "label")
    ends = [(x_scale(first.num_nodes), y_scale(first.value)), (x_scale(most), y_scale(ideal))]
    drawing.path(ends, "target")
    for number, line in enumerate(kept, start=1):
        points = [(x_scale(mark.num_nodes), y_scale(mark.value)) for mark in line.marks]
        for mark, (x, _) in zip(line.marks, points, strict=True):
            drawing.line((x, y_scale(mark.low)), (x, y_scale(mark.high)), "whisker")
        drawing.path(points, f"curve l{number}")
        for mark, point in zip(line.marks, points, strict=True):
            tip = f"{line.name}, {mark.num_nodes:,} nodes: {text(mark.value)}"
            drawing.dot(point, f"f{number}", tip=tip)
            if mark.label:
                drawing.text((point[0] + 5, point[1] + 16), mark.label, "tick")
    _draw_legend(drawing, [*(line.name for line in kept), "perfect scaling"], falls=falls)
    return drawing.render()


def _draw_axes(
    drawing: Drawing, x_scale: Scale, y_scale: Scale, numbers: Sequence[int], ticks: Sequence[tuple[float, str]]
) -> None:
    for tick, text in ticks:
        drawing.line((x_scale.start, y_scale(tick)), (x_scale.end, y_scale(tick)), "grid")
        drawing.text((x_scale.start - 6, y_scale(tick) + 4), text, "tick", anchor="end")
    for number in thinned(numbers):
        drawing.line((x_scale(number), y_scale.start), (x_scale(number), y_scale.start + 4), "axis")
        drawing.text((x_scale(number), y_scale.start + 16), f"{number:,}", "tick", anchor="middle")
    drawing.line((x_scale.start, y_scale.start), (x_scale.end, y_scale.start), "axis")
    drawing.text(((x_scale.start + x_scale.end) / 2, drawing.height - 3), "nodes", "tick", anchor="middle")


def thinned(values: Sequence[Value]) -> Sequence[Value]:
    """Evenly chosen ones, at most MAX_TICKS, from the first on."""
    return values[:: math.ceil(len(values) / MAX_TICKS) or 1]


def _draw_legend(drawing: Drawing, names: Sequence[str], *, falls: bool) -> None:
    """In the corner that the lines leave free."""
    x = WIDTH - RIGHT - 140 if falls else LEFT + 12
    for number, name in enumerate(names, start=1):
        y = TOP + 16 * number - 8
        css = "target" if number == len(names) else f"curve l{number}"
        drawing.path([(x, y), (x + 20, y)], css)
        drawing.text((x + 26, y + 4), name, "tick")


def draw_shares(about: About, rows: Sequence[tuple[str, Mapping[str, float]]], width: float = WIDE) -> Markup:
    """Bars of the same length, one a number of nodes, of the parts of its time; the largest sizes where they are many.

    Args:
        about: the drawing.
        rows: of each number of nodes its name, and seconds by part.
        width: of the drawing.
    """
    shown = rows[-MAX_BARS:]
    names = [name for name in COLOURS if any(parts[name] > LEAST_SHARE * sum(parts.values()) for _, parts in shown)]
    places = _legend_places(names, width)
    top = LEGEND_HEIGHT * (1 + max((row for _, row in places), default=0))
    drawing = Drawing(about, width, top + len(shown) * (BAR + GAP))
    for name, (x, row) in zip(names, places, strict=True):
        drawing.rectangle((x, LEGEND_HEIGHT * row + 4), 12, 12, f"part {COLOURS[name]}")
        drawing.text((x + 17, LEGEND_HEIGHT * row + 14), name, "tick")
    for number, (label, parts) in enumerate(shown):
        y = top + number * (BAR + GAP)
        total_s = sum(parts.values())
        drawing.text((BAR_LEFT - 8, y + 14), label, "label", anchor="end")
        scale = Scale(0, total_s, BAR_LEFT, width - BAR_RIGHT)
        begin_s = 0.0
        for name in names:
            start, end = scale(begin_s), scale(begin_s + parts[name])
            tip = f"{name}: {seconds_text(parts[name])}, {share_text(parts[name] / total_s)}"
            drawing.rectangle((start, y), end - start, BAR, f"part {COLOURS[name]}", tip=tip)
            begin_s += parts[name]
        drawing.text((width - BAR_RIGHT + 7, y + 14), seconds_text(total_s), "tick")
    return drawing.render()


def _legend_places(names: Sequence[str], width: float) -> list[tuple[float, int]]:
    """Place along the row, and row, of each name."""
    places: list[tuple[float, int]] = []
    x, row = BAR_LEFT, 0
    for name in names:
        needed = 36 + CHARACTER_WIDTH * len(name)
        if x + needed > width:
            x, row = BAR_LEFT, row + 1
        places.append((x, row))
        x += needed
    return places
