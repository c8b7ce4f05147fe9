"""Two to six submissions side by side: figures, ratios with intervals, and what differs in system and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcai500.leaderboard.display import NO_VALUE, duration, flat, plain_fact, quality, with_unit
from hpcai500.leaderboard.rows import Row

LEAST, MOST = 2, 6
NOT_COMPARED = ("runs", "notes", "warnings")  # facts that differ between any two
CAUTION = "These are of different {}, so their scores do not compare; what differs in system and settings still does."


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of text for each figure and each fact that differs; the ratios are to the first submission."""

    rows: tuple[Row, ...]
    figures: tuple[tuple[str, tuple[str, ...]], ...]
    differences: tuple[tuple[str, tuple[str, ...]], ...]
    num_equal: int
    caution: str


def compare(rows: Sequence[Row], facts: Sequence[dict[str, Any]]) -> Comparison:
    """Compare submissions, each a row and its facts, in the order given."""
    unlike = [name for name in ("workload", "size") if len({getattr(row, name) for row in rows}) > 1]
    told = [dict(_facts_of(row, fact)) for row, fact in zip(rows, facts, strict=True)]
    names = list(dict.fromkeys(name for one in told for name in one))
    texts = {name: tuple(one.get(name, NO_VALUE) for one in told) for name in names}
    differences = tuple((name, values) for name, values in texts.items() if len(set(values)) > 1)
    return Comparison(
        rows=tuple(rows),
        figures=tuple(_figures(rows, has_ratio=not unlike)),
        differences=differences,
        num_equal=len(texts) - len(differences),
        caution=CAUTION.format(" and ".join(f"{name}s" for name in unlike)) if unlike else "",
    )


def _figures(rows: Sequence[Row], *, has_ratio: bool) -> list[tuple[str, tuple[str, ...]]]:
    def column(name: str, texts: list[str]) -> tuple[str, tuple[str, ...]]:
        return name, tuple(texts)

    figures = [
        column("VFLOPS", [with_unit(row.vflops) for row in rows]),
        column("95 % interval", [f"{with_unit(row.vflops_low)} to {with_unit(row.vflops_high)}" for row in rows]),
    ]
    if has_ratio:
        figures.append(column("VFLOPS, times the first", [_ratio(row, rows[0]) for row in rows]))
    return [
        *figures,
        column("VFLOPS per device", [with_unit(row.vflops_per_device) for row in rows]),
        column("VFLOPS per watt", [with_unit(row.vflops_per_w, "flop/s/W") for row in rows]),
        column("Quality", [quality(row.achieved_quality) for row in rows]),
        column("Time", [duration(row.wall_s) for row in rows]),
        column("Energy of the devices", [with_unit(row.energy_j, "J") for row in rows]),
    ]


def _ratio(row: Row, first: Row) -> str:
    """Quotient of two scores, with the lowest and highest that their intervals allow."""
    if row is first:
        return "1"
    if first.vflops <= 0 or first.vflops_low <= 0:
        return NO_VALUE
    low, high = row.vflops_low / first.vflops_high, row.vflops_high / first.vflops_low
    return f"{row.vflops / first.vflops:.3f} ({low:.3f} to {high:.3f})"


def _facts_of(row: Row, facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What columns and facts say of system and settings."""
    columns = ("workload", "size", "level", "edition", "precision", "accelerator", "num_devices", "num_nodes")
    kept = {name: value for name, value in facts.items() if name not in NOT_COMPARED}
    told = [(name, str(getattr(row, name))) for name in columns] + flat(kept)
    return [plain_fact(name, text) for name, text in told]
