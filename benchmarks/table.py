"""The table of figures: its file (table.json), what it is compared by, and its form in reStructuredText."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

# What README tells of the table, and in which words.
HEADLINES = {
    ("training_step", "step of 64 x 64, batch 32: engine / bare loop"): "ResNet-50: the engine / a bare loop",
    ("engine_overhead", "engine, ledger and collector, wall time a step"): "engine, ledger and collector, of each step",
    ("image_pipelines", "torch: rate / plain DataLoader"): "JPEG pipeline / plain DataLoader with Pillow",
    ("micro", "resnet50, mini, fp32, batch 16: prediction from kernels is off by"): "a step from its kernels, off by",
    ("collector", "window of 16,384 ranks"): "step times of 16,384 ranks gathered",
    ("verification", "one small submission, start of Python included"): "a small submission is verified",
    ("mutation_suite", "mutants that keep the form, rejected"): "forged submissions of right form rejected",
}
BEGIN, END = ".. figures of make bench\n", ".. end of figures\n"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line: what ``report.figure`` was told, with the values of all rounds."""

    benchmark: str
    what: str
    unit: str
    better: Literal["less", "more"]
    bar: float | None
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def box(self) -> tuple[float, float]:
        """Lower and upper quartile."""
        return quartiles(self.values)

    @property
    def meets_bar(self) -> bool | None:
        """Whether the median does; None where there is no bar."""
        if self.bar is None:
            return None
        return self.median <= self.bar if self.better == "less" else self.median >= self.bar


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """table.json.

    Attributes:
        date: of the begin, as 2026-11-27.
        machine: processor, cores and memory; figures of different machines are not compared.
        versions: of Python and the libraries.
        load: the mean number of running processes in the minute before the first and before the last benchmark.
        num_rounds: how often all benchmarks were run in turn.
        failed: benchmarks that gave no figures, and why.
    """

    format: Literal[1] = 1
    date: str
    machine: dict[str, Any]
    versions: dict[str, str]
    load: tuple[float, float]
    num_rounds: int
    figures: list[Figure]
    failed: dict[str, str]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper quartile, between the values where they fall there; of a single value itself."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def join(rounds: Iterable[tuple[str, str]]) -> list[Figure]:
    """The figures of several rounds, each as the name of a benchmark and the lines it wrote, in order."""
    joined: dict[tuple[str, str], Figure] = {}
    for benchmark, lines in rounds:
        for line in lines.splitlines():
            found = msgspec.convert({"benchmark": benchmark, **json.loads(line)}, Figure)
            before = joined.get((benchmark, found.what))
            values = [*(before.values if before else []), *found.values]
            joined[benchmark, found.what] = msgspec.structs.replace(found, values=values)
    return list(joined.values())


def write_table(path: Path, table: Table) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n")


def read_table(path: Path) -> Table:
    """Raises OSError or msgspec.MsgspecError (a ValueError) where there is no table."""
    return msgspec.json.decode(path.read_bytes(), type=Table)


def to_rst(table: Table) -> str:
    """The table as a page includes it."""
    node = table.machine
    about = (
        f"Measured on {table.date} by ``make bench``: {node['processor']}, {node['num_cores']} cores, "
        f"{node['memory_bytes'] / 2**30:.0f} GiB, "
        + ", ".join(f"{name} {table.versions[name]}" for name in ("Python", "torch", "numpy") if name in table.versions)
        + f"; {table.num_rounds} round{'s' * (table.num_rounds > 1)}, load {table.load[0]:.1f} at the beginning and "
        f"{table.load[1]:.1f} at the end. Medians (lower .. upper quartile); ratios are taken pair by pair of "
        "alternating runs."
    )
    lines = [about, "", ".. list-table::", "   :header-rows: 1", "   :widths: 20 40 24 16", ""]
    lines += _row("benchmark", "what", "median (quartiles)", "bar")
    for one in table.figures:
        low, high = one.box
        median = f"{one.median:.4g} ({low:.4g} .. {high:.4g}) {one.unit}".rstrip()
        lines += _row(one.benchmark, one.what.replace("--", r"\-\-"), median, _bar(one))  # else a dash
    lines += [f"\n``{name}`` failed: {why}." for name, why in table.failed.items()]
    return "\n".join(lines) + "\n"


def with_headlines(readme: str, table: Table) -> str:
    """README with the figures of HEADLINES between its two marks.

    Raises:
        ValueError: a mark is not there.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.rst has not both marks, {BEGIN.strip()!r} and {END.strip()!r}, for its figures")
    figures = {(one.benchmark, one.what): one for one in table.figures}
    rows = [
        (words, f"{figures[key].median:.4g} {figures[key].unit}".strip(), _bar(figures[key]))
        for key, words in HEADLINES.items()
        if key in figures
    ]
    widths = [max(1, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return before + begin + "\n" + "\n".join([rule, *lines, rule]) + "\n\n" + end + after


def _bar(one: Figure) -> str:
    if one.bar is None:
        return ""
    word = "at most" if one.better == "less" else "at least"
    return f"{word} {one.bar:g}: {'met' if one.meets_bar else '**missed**'}"


def _row(*cells: str) -> list[str]:
    return [f"   {'*' if number == 0 else ' '} - {cell}".rstrip() for number, cell in enumerate(cells)]
