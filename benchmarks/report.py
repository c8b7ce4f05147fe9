"""What the benchmarks of this folder share: the machine's name, and medians with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hpcai500.system import describe_node, describe_software


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
