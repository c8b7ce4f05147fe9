"""Plots of amounts: where the time went, how step times spread over ranks, and what the devices could have done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from hpcai500.report.amounts import flops_text, prefixed, seconds_text, share_text
from hpcai500.report.curves import HEIGHT, draw_axes
from hpcai500.report.machine import Machine
from hpcai500.report.run_figures import RankSpread
from hpcai500.report.svg import CHARACTER_WIDTH, About, Drawing, Scale, tick_text

WIDTH, NARROW = 1032.0, 480.0
LEFT, RIGHT = 78.0, 132.0
BAR, GAP = 22.0, 8.0
MAX_BARS = 12
LABEL_HEIGHT = 16.0
SMALLEST_NAMED = 0.004  # part of a bar whose name is written above it; the table has all


class Part(NamedTuple):
    """A part of a bar: its name, the class of its colour, and seconds."""

    name: str
    css: str
    duration_s: float


class Bar(NamedTuple):
    """A bar of parts that lie end to end."""

    label: str
    parts: Sequence[Part]

    @property
    def total_s(self) -> float:
        """Its length."""
        return sum(max(0.0, part.duration_s) for part in self.parts)


def draw_bars(about: About, bars: Sequence[Bar]) -> Markup:
    """Stacked bars, one a run, with the parts' names above the first."""
    shown = [bar for bar in bars if bar.total_s > 0][:MAX_BARS]
    if not shown:
        return Markup()
    labels, num_rows = _place_labels(shown)
    top = 6 + num_rows * LABEL_HEIGHT + 6
    drawing = Drawing(about, WIDTH, top + len(shown) * (BAR + GAP))
    scale = Scale(0, max(bar.total_s for bar in shown), LEFT, WIDTH - RIGHT)
    for label in labels:
        y = 6 + LABEL_HEIGHT * (label.row + 1) - 4
        drawing.line((label.target, y + 3), (label.target, top - 1), "leader")
        drawing.text((label.x, y), label.text, "label")
    for number, bar in enumerate(shown):
        y = top + number * (BAR + GAP)
        drawing.text((LEFT - 8, y + 14), bar.label, "label", anchor="end")
        begin_s = 0.0
        for part in bar.parts:
            if part.duration_s > 0:
                x = scale(begin_s)
                tip = f"{part.name}: {seconds_text(part.duration_s)}, {share_text(part.duration_s / bar.total_s)}"
                drawing.rectangle((x, y), scale(begin_s + part.duration_s) - x, BAR, f"part {part.css}", tip=tip)
                begin_s += part.duration_s
        drawing.text((scale(begin_s) + 7, y + 14), seconds_text(bar.total_s), "tick")
    return drawing.render()


def draw_part_rows(about: About, bars: Sequence[Bar]) -> Markup:
    """The mean over the bars of each part, a row each: for narrow screens, where stacked names have no room."""
    shown = [bar for bar in bars if bar.total_s > 0]
    if not shown:
        return Markup()
    shares: dict[tuple[str, str], float] = {}
    for bar in shown:
        for part in bar.parts:
            key = (part.name, part.css)
            shares[key] = shares.get(key, 0.0) + max(0.0, part.duration_s) / bar.total_s / len(shown)
    kept = [(key, share) for key, share in shares.items() if share >= SMALLEST_NAMED]
    drawing = Drawing(about, NARROW, 10 + 28 * len(kept))
    scale = Scale(0, max(share for _, share in kept), 168, NARROW - 60)
    for number, ((name, css), share) in enumerate(kept):
        y = 6 + 28 * number
        drawing.text((160, y + 15), name, "label", anchor="end")
        drawing.rectangle((168, y), scale(share) - 168, 22, f"part {css}")
        drawing.text((scale(share) + 6, y + 15), share_text(share), "tick")
    return drawing.render()


class _Label(NamedTuple):
    x: float
    row: int
    target: float
    text: str


def _place_labels(bars: Sequence[Bar]) -> tuple[list[_Label], int]:
    """Names of the first bar's parts in as few rows as hold them; a name begins over its part if there is room."""
    first = bars[0]
    scale = Scale(0, max(bar.total_s for bar in bars), LEFT, WIDTH - RIGHT)
    begin_s, wanted = 0.0, []
    for part in first.parts:
        middle_s = begin_s + max(0.0, part.duration_s) / 2
        begin_s += max(0.0, part.duration_s)
        share = part.duration_s / first.total_s
        if share >= SMALLEST_NAMED:
            wanted.append((scale(middle_s), f"{part.name} {share_text(share)}"))
    # Names stand right of their leader. One that reaches over the leaders of the next goes above them, so that no
    # leader crosses a name: a staircase at most.
    labels: list[_Label] = []
    for target, text in reversed(wanted):
        width = CHARACTER_WIDTH * len(text)
        x = min(target - 4, WIDTH - width)
        row = 1 + max((label.row for label in labels if label.x < x + width + 8), default=-1)
        labels.append(_Label(x, row, target, text))
    num_rows = 1 + max((label.row for label in labels), default=0)
    return [label._replace(row=num_rows - 1 - label.row) for label in labels], num_rows


class SpreadRow(NamedTuple):
    """The ranks of a run."""

    label: str
    spread: RankSpread


def draw_spread(about: About, rows: Sequence[SpreadRow]) -> Markup:
    """Step times over ranks: a line from the fastest to the slowest rank, a box with 90 % of them, the median."""
    shown = rows[:MAX_BARS]
    if not shown:
        return Markup()
    height_each = 42.0
    drawing = Drawing(about, NARROW, max(HEIGHT, 58 + len(shown) * height_each))
    lowest = min(row.spread.own_s[0] for row in shown)
    highest = max(row.spread.step_s[-1] for row in shown)
    room = 0.06 * (highest - lowest) or highest or 1e-3
    scale = Scale(1000 * max(0.0, lowest - room), 1000 * (highest + room), LEFT - 14, NARROW - 12)
    bottom = drawing.height - 34
    ticks = scale.ticks(5)
    for tick in ticks:
        drawing.line((scale(tick), 18), (scale(tick), bottom), "grid")
        text = tick_text(tick, ticks[1] - ticks[0] if len(ticks) > 1 else 1)
        drawing.text((scale(tick), bottom + 16), text, "tick", anchor="middle")
    drawing.line((scale.start, bottom), (scale.end, bottom), "axis")
    drawing.text(
        ((scale.start + scale.end) / 2, drawing.height - 3), "median time of a step (ms)", "tick", anchor="middle"
    )
    drawing.text((2, 13), "ranks of each run", "label")
    step = min(64.0, (bottom - 24) / len(shown))
    for number, row in enumerate(shown):
        y = 26 + (number + 0.5) * step
        drawing.text((scale.start - 8, y + 4), row.label, "label", anchor="end")
        _draw_box(drawing, scale, y - 8, row.spread.own_s, "f1")
        _draw_box(drawing, scale, y + 8, row.spread.step_s, "f7")
        for own_s in row.spread.dots_s:
            drawing.dot((scale(1000 * own_s), y - 8), "f1", radius=2.5, tip=f"{1000 * own_s:.4g} ms")
        for straggler in row.spread.stragglers[:1]:
            drawing.dot((scale(1000 * straggler.own_s), y - 8), "bad", radius=4, tip=f"rank {straggler.rank}")
            x, anchor = scale(1000 * straggler.own_s), "start"
            if x > scale.end - 70:
                x, anchor = x - 16, "end"
            drawing.text((x + 8, y - 13), f"rank {straggler.rank}", "bad-text", anchor=anchor)
        if number == 0:
            _beyond(drawing, scale, row.spread.own_s, y=y - 17, text="without communication", css="t1")
            _beyond(drawing, scale, row.spread.step_s, y=y + 24, text="the whole step", css="t7")
    return drawing.render()


def _beyond(drawing: Drawing, scale: Scale, ends_s: Sequence[float], *, y: float, text: str, css: str) -> None:
    """Write over or under what lies between two times, from its left end on, or up to its right end."""
    left, right = scale(1000 * ends_s[0]), scale(1000 * ends_s[-1])
    if left + CHARACTER_WIDTH * len(text) < scale.end:
        drawing.text((left - 2, y), text, css)
    else:
        drawing.text((right + 2, y), text, css, anchor="end")


def _draw_box(drawing: Drawing, scale: Scale, y: float, percentiles: Sequence[float], css: str) -> None:
    low, five, _, middle, _, ninety_five, high = (scale(1000 * value) for value in percentiles)
    drawing.line((low, y), (high, y), "whisker")
    drawing.rectangle((five, y - 4), max(1.5, ninety_five - five), 8, f"part pale {css}")
    drawing.rectangle((middle - 1, y - 6), 2, 12, css, tip=f"median {1000 * percentiles[3]:.4g} ms")


def draw_roofline(about: About, machine: Machine, rates: Sequence[tuple[str, float]]) -> Markup:
    """The roof of one device over arithmetic intensity, and what a run reached as lines beneath it.

    Args:
        about: the drawing.
        machine: with a peak and the memory's speed.
        rates: what was reached on one device, in flop/s, each with its name.
    """
    if not machine.peak_flops or not machine.memory_bytes_per_s or not rates:
        return Markup()
    peak, memory = machine.peak_flops, machine.memory_bytes_per_s
    ridge = peak / memory
    lowest = min([rate for _, rate in rates if rate > 0], default=peak / 100)
    drawing = Drawing(about, 480, 270)
    x_low = min(0.1, lowest / memory / 3)
    x_scale = Scale(x_low, max(1000.0, ridge * 30), 58, 456, is_log=True)
    y_scale = Scale(min(lowest / 4, peak / 100), peak * 4, 236, 26, is_log=True)
    draw_axes(drawing, x_scale, y_scale, x_label="flop for each byte of memory moved", y_label="flop/s of one device")
    start = max(x_scale.low, y_scale.low / memory)
    roof = [(start, start * memory), (ridge, peak), (x_scale.high, peak)]
    drawing.path([(x_scale(x), y_scale(y)) for x, y in roof], "curve l7")
    drawing.text(
        (456, y_scale(peak) - 7), f"{machine.peak_name.partition(',')[0]} {flops_text(peak)}", "t7", anchor="end"
    )
    for index, (label, rate) in enumerate(rates):
        x, y = x_scale(rate / memory), y_scale(rate)
        drawing.line((x, y), (456, y), f"curve l{index + 1}")
        drawing.dot((x, y), f"f{index + 1}", radius=3.5, tip=f"at least {prefixed(rate / memory, 'flop')} a byte")
        below = index == len(rates) - 1
        drawing.text((456, y + (15 if below else -6)), f"{label} {flops_text(rate)}", f"t{index + 1}", anchor="end")
    return drawing.render()
