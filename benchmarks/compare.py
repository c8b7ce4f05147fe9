"""Says which figures moved between two tables of ``make bench``, and which way.

    python benchmarks/compare.py OLD NEW        (NEW: benchmarks/table.json if it is left out)

A figure moved if the old and the new values do not overlap: from lower to upper quartile where both are ten values or
more, from least to greatest where they are fewer. Values that are drawn alike are then called moved in at most 4 of 100
figures (2.9 with four values, 3.5 with ten, 0.2 with twenty; tests/test_benchmark_table.py). Figures of fewer than four
values are shown and not judged. Noise that lasts longer than a run of all benchmarks (another neighbour on the host
that day) is in no spread; ratios of alternating runs suffer least from it.

Exits with 0 if nothing became worse, 1 if something did, 2 if the tables cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Literal

import msgspec
from table import Figure, Table, read_table

MIN_NUM_VALUES = 4  # of three each, one in ten pairs of samples drawn alike would not overlap
MIN_FOR_QUARTILES = 10  # of six each, one in eight
Verdict = Literal["improved", "worse", "within noise", "too few values", "missing", "new"]


def judge(old: Figure, new: Figure) -> Verdict:
    """Compare two figures of the same name."""
    fewest = min(len(old.values), len(new.values))
    if fewest < MIN_NUM_VALUES:
        return "too few values"
    (old_low, old_high), (new_low, new_high) = (
        one.box if fewest >= MIN_FOR_QUARTILES else (min(one.values), max(one.values)) for one in (old, new)
    )
    if new_low <= old_high and old_low <= new_high:
        return "within noise"
    return "improved" if (new.median < old.median) == (new.better == "less") else "worse"


def compare(old: Table, new: Table) -> list[tuple[Verdict, Figure | None, Figure | None]]:
    """All figures of both, those of the new table first and in its order.

    Raises:
        ValueError: they are of different machines.
    """
    if old.machine != new.machine:
        differing = [
            key for key in sorted({*old.machine, *new.machine}) if old.machine.get(key) != new.machine.get(key)
        ]
        told = "; ".join(f"{key} {old.machine.get(key)!r} and {new.machine.get(key)!r}" for key in differing)
        raise ValueError(f"the tables are of different machines ({told}), so their figures cannot be compared")
    before = {(one.benchmark, one.what, one.unit): one for one in old.figures}
    compared: list[tuple[Verdict, Figure | None, Figure | None]] = []
    for one in new.figures:
        known = before.pop((one.benchmark, one.what, one.unit), None)
        compared.append(("new", None, one) if known is None else (judge(known, one), known, one))
    return compared + [("missing", one, None) for one in before.values()]


def describe(verdict: Verdict, old: Figure | None, new: Figure | None) -> str:
    """A line of the listing."""
    one = new or old
    assert one is not None
    told = " -> ".join(f"{figure.median:.4g}" if figure else "none" for figure in (old, new))
    ratio = f", x {new.median / old.median:.3f}" if old and new and old.median else ""
    text = f"{verdict:<14}  {one.benchmark}: {one.what}: {told} {one.unit}".rstrip() + ratio
    return text + (f", and misses its bar of {one.bar:g}" if new and new.meets_bar is False else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", default=Path(__file__).with_name("table.json"))
    args = parser.parse_args()
    tables = []
    for path in (args.old, args.new):
        try:
            tables.append(read_table(path))
        except (OSError, msgspec.MsgspecError) as error:
            print(
                f"cannot read the table {str(path)!r}: {error}; make one with python benchmarks/all.py", file=sys.stderr
            )
            return 2
    old, new = tables
    try:
        compared = compare(old, new)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name in sorted({*old.versions, *new.versions}):
        if old.versions.get(name) != new.versions.get(name):
            print(f"other {name}: {old.versions.get(name, 'none')} -> {new.versions.get(name, 'none')}")
    for entry in compared:
        print(describe(*entry))
    counts = {verdict: sum(entry[0] == verdict for entry in compared) for verdict, _, _ in compared}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "there is nothing in either table")
    return 1 if "worse" in counts else 0


if __name__ == "__main__":
    sys.exit(main())
