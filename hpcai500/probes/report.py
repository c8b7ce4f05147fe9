"""Shows a verdict: as a table with a line a node, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpcai500.probes import verdict as limits
from hpcai500.probes.verdict import FIGURES, Node, Verdict

FORMAT = 1
MAX_LINES = 40  # of problems; a machine of thousands of nodes that all fail is told in JSON


def as_dictionary(verdict: Verdict) -> dict[str, Any]:
    """The content of the JSON file; rates in flop/s and bytes/s, times in seconds."""
    return {
        "format": FORMAT,
        "passed": verdict.passed,
        "problems": [vars(problem) for problem in verdict.problems],
        "is_one_machine": verdict.is_one_machine,
        "sum_bandwidth_bytes_per_s": verdict.sum_bandwidth_bytes_per_s,
        "limits": {
            "max_clock_difference_s": limits.MAX_CLOCK_DIFFERENCE_S,
            "min_share_of_peak": limits.MIN_SHARE_OF_PEAK,
            "worse_than_median": {name: {"named": one.named, "fails": one.fails} for name, one in FIGURES.items()},
        },
        "nodes": [_node(node, verdict) for node in verdict.nodes],
    }


def _node(node: Node, verdict: Verdict) -> dict[str, Any]:
    return {
        "host": node.host,
        "passed": not _failures(node, verdict),
        "figures": node.figures,
        "share_of_peak": node.share_of_peak,
        "clock_offset_s": node.clock_offset_s,
        "clock_error_s": node.clock_error_s,
        "gpus": node.gpus,
        "data": node.reports[0].data,
        "versions": node.reports[0].versions,
        "ranks": [
            {"rank": report.rank, "figures": report.figures, "errors": report.errors, "seconds": report.seconds}
            for report in node.reports
        ],
    }


def as_table(verdict: Verdict) -> str:
    """The table, the problems, and the outcome in the last line."""
    shown = [name for name in FIGURES if any(name in node.figures for node in verdict.nodes)]
    has_gpus = any(node.gpus for node in verdict.nodes)
    head = ["node", *(["GPUs"] if has_gpus else []), *(FIGURES[name].title for name in shown), "clock", ""]
    units = ["", *([""] if has_gpus else []), *(FIGURES[name].unit for name in shown), "ms", ""]
    lines = [_cells(node, verdict, shown, has_gpus=has_gpus) for node in verdict.nodes]
    text = _aligned([head, units, *lines])
    if verdict.sum_bandwidth_bytes_per_s is not None:
        text.append(f"all-reduce over all ranks: {verdict.sum_bandwidth_bytes_per_s / 1e9:.3g} GB/s (bus bandwidth)")
    problems = sorted(verdict.problems, key=lambda problem: not problem.fails)
    text += [f"{'FAIL' if one.fails else 'note'}  {one.host}: {one.text}" for one in problems[:MAX_LINES]]
    if len(problems) > MAX_LINES:
        text.append(f"... and {len(problems) - MAX_LINES} more; --json FILE has all")
    sick = [node.host for node in verdict.nodes if _failures(node, verdict)]
    good = f"pass: {len(verdict.nodes)} node{'s are' if len(verdict.nodes) > 1 else ' is'} fit"
    text.append(good if verdict.passed else f"fail: {len(sick)} of {len(verdict.nodes)} nodes ({', '.join(sick)})")
    return "\n".join(text)


def _cells(node: Node, verdict: Verdict, shown: Sequence[str], *, has_gpus: bool) -> list[str]:
    figures = [f"{node.figures[name] / FIGURES[name].scale:.4g}" if name in node.figures else "-" for name in shown]
    clock = "-" if node.clock_offset_s is None else f"{node.clock_offset_s * 1e3:+.1f}"
    outcome = "FAIL" if _failures(node, verdict) else "pass"
    return [node.host, *([str(len(node.gpus))] if has_gpus else []), *figures, clock, outcome]


def _failures(node: Node, verdict: Verdict) -> bool:
    return any(problem.fails and problem.host == node.host for problem in verdict.problems)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; names to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines
