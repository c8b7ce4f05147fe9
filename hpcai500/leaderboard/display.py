"""How numbers and strangers' words are shown: one unit a column, equal decimals, no letters that mislead.

Names come from outside and are hostile text. ``clean`` takes away what escaping does not: characters that turn the
direction of reading, that cannot be seen, or that end a line.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MAX_TEXT = 500  # characters; what is longer is cut with a mark
JOINERS = "\u200c\u200d"  # scripts of Persia and India need them to be read
UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs")
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
NO_VALUE = "\u2013"


def clean(text: object, limit: int = MAX_TEXT) -> str:
    """Text of a stranger on one line: no control, direction or unassigned characters, and not longer than the limit."""
    kept = "".join(
        " " if letter.isspace() else letter
        for letter in unicodedata.normalize("NFC", str(text)[: 4 * limit])
        if letter.isspace() or letter in JOINERS or unicodedata.category(letter) not in UNSEEN
    )
    words = " ".join(kept.split())
    return words if len(words) <= limit else f"{words[: limit - 1]}…"


def clean_lines(text: str, limit: int = 10_000) -> str:
    """Likewise a longer text, whose lines stay apart."""
    lines = [clean(line, limit) for line in text[:limit].splitlines()]
    return "\n".join(line for line in lines if line)


@dataclass(frozen=True, slots=True)
class Unit:
    """What the numbers of a column are divided by and how many decimals they have, so that they can be compared."""

    name: str
    divisor: float
    num_decimals: int

    def shown(self, value: float | None) -> str:
        """The number without its unit, which stands in the header; a dash if there is none."""
        if value is None or not math.isfinite(value):
            return NO_VALUE
        return f"{value / self.divisor:,.{self.num_decimals}f}"

    def with_name(self, value: float | None) -> str:
        """The number with its unit."""
        return (
            NO_VALUE if value is None or not math.isfinite(value) else f"{self.shown(value)}\u00a0{self.name}".strip()
        )


def unit_of(values: Iterable[float | None], name: str = "flop/s") -> Unit:
    """The unit for a column: the prefix that its middle number asks for, decimals enough for its smallest one."""
    known = sorted(value for value in values if value is not None and math.isfinite(value) and value > 0)
    if not known:
        return Unit(name, 1.0, 2)
    middle = known[len(known) // 2]
    divisor, prefix = next(((size, prefix) for size, prefix in PREFIXES if middle >= size), (1.0, ""))
    return Unit(f"{prefix}{name}", divisor, _num_decimals(known[0] / divisor))


def time_unit_of(values: Iterable[float | None]) -> Unit:
    """Seconds, minutes or hours, whichever the middle of the values asks for."""
    known = sorted(value for value in values if value is not None and value > 0)
    middle = known[len(known) // 2] if known else 1.0
    name, divisor = next(
        ((name, size) for name, size in (("h", 3600.0), ("min", 60.0)) if middle >= 2 * size), ("s", 1.0)
    )
    return Unit(name, divisor, _num_decimals(known[0] / divisor) if known else 2)


def _num_decimals(smallest: float) -> int:
    """Three digits of the smallest number, at least one and at most four decimals."""
    return min(4, max(1, 2 - math.floor(math.log10(smallest))))


def with_unit(value: float | None, name: str = "flop/s") -> str:
    """One number that stands alone, with the unit that suits it."""
    return unit_of([value], name).with_name(value)


def duration(value_s: float | None) -> str:
    """One time that stands alone."""
    return time_unit_of([value_s]).with_name(value_s)


def size_in_bytes(num_bytes: int) -> str:
    """Size of a file, in powers of 1000."""
    return f"{num_bytes} B" if num_bytes < 1000 else unit_of([float(num_bytes)], "B").with_name(float(num_bytes))


def quality(value: float | None) -> str:
    """A quality, a fraction of 1."""
    return NO_VALUE if value is None else f"{value:.4f}"


def day(time: str | None) -> str:
    """Date of a time "2026-11-27T13:20:00Z"."""
    return time[:10] if time else NO_VALUE


def moment(time: str | None) -> str:
    """Such a time to the minute, for people."""
    return f"{time[:10]} {time[11:16]} UTC" if time and len(time) >= 16 else NO_VALUE


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Nested facts as pairs of a dotted name and text, in the order in which they stand."""
    if isinstance(value, dict):
        return [
            pair
            for key, inner in value.items()
            for pair in flat(inner, f"{path}.{clean(key, 80)}" if path else clean(key, 80))
        ]
    if isinstance(value, list | tuple):
        if all(not isinstance(inner, dict | list | tuple) for inner in value):
            return [(path, ", ".join(_word(inner) for inner in value) or "none")]
        return [pair for number, inner in enumerate(value, 1) for pair in flat(inner, f"{path} {number}")]
    return [(path, _word(value))]


def _word(value: object) -> str:
    if value is None:
        return NO_VALUE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return clean(value)


def plain_fact(key: str, text: str) -> tuple[str, str]:
    """A fact of ``flat`` as people read it: without its group's name, and numbers with a unit or separators."""
    name = key.removeprefix("settings.").removeprefix("libraries.")
    if text.isdigit() and name.endswith("_bytes"):
        return name.removesuffix("_bytes").replace("_", " "), size_in_bytes(int(text))
    if text.isdigit() and name.startswith("num_"):
        return name.removeprefix("num_").replace("_", " "), f"{int(text):,}"
    return name.replace("_", " "), text
