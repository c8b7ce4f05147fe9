"""Plots of the board as SVG, without scripts or style of their own: static/style.css gives classes their colours.

Labels stand at what they name, so no legend is needed; each plot has a title and a description for those who hear it.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from html import escape

from hpcai500.leaderboard.display import day, unit_of
from hpcai500.leaderboard.rows import Dot, Row

WIDTH, PHONE_WIDTH, HEIGHT = 960, 380, 420
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 40, 40
MAX_DOTS = 400  # of submissions that were no record
BAR_WIDTH, BAR_HEIGHT = 88, 8
LABEL_GAP = 15  # between two labels' base lines
MAX_LABEL = 28  # letters
LETTER = 7.2  # as wide as one is, about


def interval_bar(value: float, low: float, high: float, scale: float) -> str:
    """A bar as long as a score is of the largest on the page, with a line over its interval."""
    if scale <= 0:
        return ""
    end, first, last = (round(min(part / scale, 1) * BAR_WIDTH, 1) for part in (value, low, high))
    return (
        f'<svg class="bar" width="{BAR_WIDTH}" height="{BAR_HEIGHT}" aria-hidden="true">'
        f'<rect width="{end}" height="{BAR_HEIGHT}" rx="1"/>'
        f'<line x1="{first}" x2="{max(last, first + 1):.1f}" y1="4" y2="4"/></svg>'
    )


def record_plot(records: Sequence[Row], others: Sequence[Dot], title: str, *, width: int = WIDTH) -> str:
    """The best score over time as a step line, and every other submission as a dot.

    Args:
        records: those that were the best when they were published, oldest first; at least one.
        others: the rest.
        title: of the plot.
        width: of the drawing; PHONE_WIDTH for a narrow screen.
    """
    everybody: list[Row | Dot] = [*records, *others]
    days = [_day_number(row.published_at) for row in everybody]
    first_day, last_day = min(days), max(days)
    margin = max(10, (last_day - first_day) // 20)
    axes = _Axes(first_day - margin, last_day + margin, [row.vflops for row in everybody], width)
    best = records[-1]
    description = (
        f"{len(records)} records from {day(records[0].published_at)} to {day(best.published_at)}; "
        f"the best is {axes.unit.with_name(best.vflops)} by {best.system} of {best.organisation}."
    )
    dots = others[:: 1 + len(others) // MAX_DOTS]
    name = f"plot-{width}"
    parts = [
        f'<svg class="w{width}" viewBox="0 0 {width} {HEIGHT}" role="img" aria-labelledby="{name}" '
        f'aria-describedby="{name}-text">',
        f'<title id="{name}">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>',
        *axes.grid(),
        *(f'<circle class="other" cx="{x}" cy="{y}" r="3"/>' for x, y in map(axes.place, dots)),
        f'<path class="step" d="{_steps([axes.place(row) for row in records], axes.x(last_day))}"/>',
        *(f'<circle class="record" cx="{x}" cy="{y}" r="5"/>' for x, y in map(axes.place, records)),
        *_labels(records, axes),
        "</svg>",
    ]
    return "".join(parts)


class _Axes:
    """Days to the right, scores upwards: by their logarithm where they span more than twentyfold."""

    def __init__(self, first_day: int, last_day: int, scores: Sequence[float], width: int) -> None:
        self.right = width - RIGHT
        self.first_day, self.last_day = first_day, max(last_day, first_day + 1)
        known = [score for score in scores if score > 0] or [1.0]
        self.is_log = max(known) / min(known) > 20
        self.low, self.high = (min(known) / 1.5, max(known) * 1.5) if self.is_log else (0.0, max(known) * 1.12)
        self.unit = unit_of(known)

    def x(self, day_number: int) -> float:
        part = (day_number - self.first_day) / (self.last_day - self.first_day)
        return round(LEFT + part * (self.right - LEFT), 1)

    def y(self, score: float) -> float:
        if self.is_log:
            part = math.log(max(score, self.low) / self.low) / math.log(self.high / self.low)
        else:
            part = score / self.high
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)

    def place(self, row: Row | Dot) -> tuple[float, float]:
        return self.x(_day_number(row.published_at)), self.y(row.vflops)

    def grid(self) -> list[str]:
        bottom = HEIGHT - BOTTOM
        parts = [f'<text x="{LEFT - 48}" y="{TOP - 18}">VFLOPS, {self.unit.name}</text>']
        for tick in self._score_ticks():
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{self.right}" y1="{y}" y2="{y}"/>')
            shown = f"{tick / self.unit.divisor:,.10g}"
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{shown}</text>')
        for day_number, name in self._day_ticks():
            x = self.x(day_number)
            parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 5}"/>')
            parts.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{name}</text>')
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{self.right}" y1="{bottom}" y2="{bottom}"/>')
        return parts

    def _score_ticks(self) -> list[float]:
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            return [tick for tick in ticks if self.low <= tick <= self.high]
        rough = self.high / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough)
        return [number * step for number in range(math.floor(self.high / step) + 1)]

    def _day_ticks(self) -> list[tuple[int, str]]:
        months = max(1, (self.last_day - self.first_day) // 30)
        step = next((size for size in (1, 2, 3, 6) if months / size <= self.right / 95), 12)
        first = datetime.date.fromordinal(self.first_day)
        ticks: list[tuple[int, str]] = []
        for number in range(first.year * 12 + first.month, first.year * 12 + first.month + months + 2):
            when = datetime.date(number // 12, number % 12 + 1, 1)
            if number % step == 0 and when.toordinal() <= self.last_day:
                ticks.append((when.toordinal(), f"{when:%b %Y}" if when.month == 1 or not ticks else f"{when:%b}"))
        return ticks


def _steps(places: Sequence[tuple[float, float]], end: float) -> str:
    first_x, first_y = places[0]
    return f"M{first_x} {first_y}" + "".join(f"H{x}V{y}" for x, y in places[1:]) + f"H{end}"


def _labels(records: Sequence[Row], axes: _Axes) -> list[str]:
    """Names at the records, from the best down as far as there is room.

    The line only rises, so it crosses nothing that stands above it to the left of a record, or below it to the right.
    """
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for row in reversed(records):
        x, y = axes.place(row)
        text = f"{_cut(row.system)}, {axes.unit.shown(row.vflops)}"
        width = LETTER * len(text)
        is_left = x - width - 8 > LEFT
        span, base = ((x - 8 - width, x - 8), y - 10) if is_left else ((x + 8, x + 8 + width), y + 18)
        if any(span[0] < right and left < span[1] and abs(base - other) < LABEL_GAP for left, right, other in taken):
            continue
        taken.append((*span, base))
        anchor = ' text-anchor="end"' if is_left else ""
        parts.append(f'<text class="label" x="{span[is_left]:.1f}" y="{base:.1f}"{anchor}>{escape(text)}</text>')
    return parts


def _cut(name: str) -> str:
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"


def _day_number(time: str) -> int:
    return datetime.date.fromisoformat(time[:10]).toordinal()
