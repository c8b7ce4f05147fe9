"""Two to six submissions side by side: figures, ratios with intervals, and what differs in system and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcai500.leaderboard.display import NO_VALUE, Unit, flat, plain_fact, quality, time_unit_of, unit_of
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
    unlike = [name for name in ("workload", "size", "edition") if len({getattr(row, name) for row in rows}) > 1]
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
    """Figures with one unit for all of a kind, so that they can be compared at a glance."""

    def shown(name: str, values: Sequence[float | None], unit: Unit) -> tuple[str, tuple[str, ...]]:
        return name, tuple(unit.with_name(value) for value in values)

    unit = unit_of(row.vflops for row in rows)
    ranges = [f"{unit.shown(row.vflops_low)} to {unit.with_name(row.vflops_high)}" for row in rows]
    figures = [shown("VFLOPS", [row.vflops for row in rows], unit), ("95 % interval", tuple(ranges))]
    if has_ratio:
        figures.append(("VFLOPS, times the first", tuple(_ratio(row, rows[0]) for row in rows)))
    per_device, per_w = [row.vflops_per_device for row in rows], [row.vflops_per_w for row in rows]
    times_s, energies_j = [row.wall_s for row in rows], [row.energy_j for row in rows]
    return [
        *figures,
        shown("VFLOPS per device", per_device, unit_of(per_device)),
        shown("VFLOPS per watt", per_w, unit_of(per_w, "flop/s/W")),
        ("Quality", tuple(quality(row.achieved_quality) for row in rows)),
        shown("Time", times_s, time_unit_of(times_s)),
        shown("Energy", energies_j, unit_of(energies_j, "J")),
        ("Energy is", tuple(row.energy_label or "not measured" for row in rows)),
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
