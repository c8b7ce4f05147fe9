"""A small SVG writer: a drawing with title and description for screen readers, and scales with round ticks.

Colours are classes of the page's style sheet, so that a drawing follows light, dark and print. All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from markupsafe import Markup

from hpcai500.verdict import printable

Point = tuple[float, float]
CHARACTER_WIDTH = 6.4  # of the page's typeface at the size of labels, in the mean, a little generous


class About(NamedTuple):
    """What a drawing is.

    Attributes:
        name: unique in the page; ids are made of it.
        title: what it shows, in a few words.
        description: what there is to see, in sentences, for who cannot see it.
    """

    name: str
    title: str
    description: str


@dataclass
class Drawing:
    """An SVG that grows by what is drawn.

    Attributes:
        about: its name, title and description.
        width, height: of the drawing in its own units, which are pixels where there is room.
    """

    about: About
    width: float
    height: float
    _parts: list[str] = field(default_factory=list)

    def line(self, start: Point, end: Point, css: str) -> None:
        """A straight line."""
        (x1, y1), (x2, y2) = start, end
        self._parts.append(f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def path(self, points: Sequence[Point], css: str) -> None:
        """A line through some points."""
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline class="{css}" points="{text}"/>')

    def rectangle(self, corner: Point, width: float, height: float, css: str, *, tip: str = "") -> None:
        """A filled rectangle; ``tip`` is shown under a pointer."""
        shape = f'x="{corner[0]:.1f}" y="{corner[1]:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"'
        self._parts.append(f'<rect class="{css}" {shape}>{_tip(tip)}</rect>')

    def dot(self, centre: Point, css: str, *, radius: float = 3.0, tip: str = "") -> None:
        """A filled circle."""
        shape = f'cx="{centre[0]:.1f}" cy="{centre[1]:.1f}" r="{radius:g}"'
        self._parts.append(f'<circle class="{css}" {shape}>{_tip(tip)}</circle>')

    def text(self, place: Point, text: str, css: str = "", *, anchor: str = "start") -> None:
        """Some words; ``anchor`` is start, middle or end."""
        where = f'x="{place[0]:.1f}" y="{place[1]:.1f}" text-anchor="{anchor}"'
        self._parts.append(f'<text class="{css}" {where}>{escape(printable(text))}</text>')

    def render(self) -> Markup:
        """The SVG, to stand in a page."""
        name = self.about.name
        ids = f"{name}-title {name}-text"
        head = f'<svg role="img" aria-labelledby="{ids}" viewBox="0 0 {self.width:g} {self.height:g}">'
        title = f'<title id="{name}-title">{escape(printable(self.about.title))}</title>'
        description = f'<desc id="{name}-text">{escape(printable(self.about.description))}</desc>'
        # Every text of a stranger was escaped above, and names of classes are ours
        return Markup(f"{head}{title}{description}{''.join(self._parts)}</svg>")  # noqa: S704


def _tip(text: str) -> str:
    return f"<title>{escape(printable(text))}</title>" if text else ""


@dataclass(frozen=True)
class Scale:
    """From values to places along an axis."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        if self.is_log:
            part = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self, number: int = 5) -> list[float]:
        """About so many round values."""
        if self.is_log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            every = max(1, math.ceil((last - first + 1) / number))
            return [10.0**power for power in range(first, last + 1, every)]
        step = round_step((self.high - self.low) / number)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5 or 5 times a power of ten that is at least so large."""
    if least <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def span(values: Sequence[float], *, with_zero: bool = False) -> tuple[float, float]:
    """Lowest and highest of some values with a little room, never equal."""
    low, high = min(values), max(values)
    low = min(0.0, low) if with_zero else low
    room = 0.06 * (high - low) or abs(high) or 1.0
    return (low if with_zero and low == 0 else low - room), high + room


def tick_text(value: float, step: float) -> str:
    """A tick's number with as many digits as its neighbours differ by."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    if round(step * 10**digits, 6) % 1:  # a step of 2.5
        digits += 1
    return f"{value:,.{digits}f}"


def spread_labels(places: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Places at least ``gap`` apart, in the same order and near the wanted ones, within low and high if they fit."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    found = [0.0] * len(places)
    last = -math.inf
    for index in order:
        last = found[index] = max(places[index], last + gap, low)
    over = max(0.0, last - high)
    limit = math.inf
    for index in reversed(order):  # push back up what was pushed out below
        found[index] = min(found[index], limit, high) if over else found[index]
        limit = found[index] - gap
    return found
