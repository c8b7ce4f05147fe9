"""What the benchmarks of this folder share: the machine's name, medians with their spread, figures for the table."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from hpcai500.system import describe_node, describe_software

FIGURES_VARIABLE = "HPCAI500_FIGURES"  # benchmarks/all.py names a file in it, to which `figure` appends


def machine() -> str:
    """The machine in one line: processor, cores, memory, torch."""
    node, software = describe_node(), describe_software()
    sets = ", ".join(node["instruction_sets"]) or "no vector extensions"
    memory_gib = node["memory_bytes"] / 2**30
    torch = software["libraries"]["torch"]
    return f"{node['processor']}, {node['num_cores']} cores ({sets}), {memory_gib:.0f} GiB, torch {torch}"


def spread(values: Sequence[float], unit: str = "") -> str:
    """Median, minimum and maximum, as "1.23 (1.10 .. 1.40) s"."""
    text = f"{statistics.median(values):.4g} ({min(values):.4g} .. {max(values):.4g})"
    return f"{text} {unit}".rstrip()


def figure(
    what: str,
    values: Sequence[float],
    unit: str = "",
    *,
    better: Literal["less", "more"] = "less",
    bar: float | None = None,
) -> None:
    """Give the table of ``make bench`` a line; does nothing where the benchmark runs alone.

    Args:
        what: says what was measured, the same in every run.
        values: as measured, at least one; for a ratio that of each pair of alternating runs.
        unit: of the values; "" for a ratio.
        better: whether less or more of it is better.
        bar: what is to be reached: at most that much where less is better, at least that much where more is.
    """
    if path := os.environ.get(FIGURES_VARIABLE):
        line = {"what": what, "unit": unit, "better": better, "bar": bar, "values": list(values)}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
