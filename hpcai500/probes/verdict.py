"""What the reports of all ranks say of each node: its figures, what is wrong with it, and whether all pass.

The limits are our own choice. A node is compared with the median of the other nodes: from ``named`` worse it is named,
from ``fails`` worse it fails. Networks and file systems are shared with other jobs, so they are given more room.
Speeds of "nodes" that are one machine (containers, virtual nodes) disturb each other and are never a reason to fail.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hpcai500.edition import Edition
from hpcai500.errors import UnknownNameError
from hpcai500.probes.alone import RankReport

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
MAX_CLOCK_DIFFERENCE_S = 0.05
# A healthy GPU gives 0.6 to 0.8 of its dense peak in large products; below this something is wrong.
MIN_SHARE_OF_PEAK = 0.4


@dataclass(frozen=True)
class Figure:
    """One figure of a node.

    Attributes:
        title: its name in the table.
        unit: what it is shown in.
        scale: how many of the base unit (flop/s, bytes/s, s) that is.
        named: share by which a node may be worse before it is named.
        fails: share by which it may be worse before it fails.
        lower_is_better: for times.
    """

    title: str
    unit: str
    scale: float
    named: float
    fails: float
    lower_is_better: bool = False

    def worse_by(self, value: float, reference: float) -> float:
        """By what share the value is worse than the reference; negative if it is better."""
        return value / reference - 1 if self.lower_is_better else 1 - value / reference

    def text(self, value: float) -> str:
        """The value with its unit."""
        return f"{value / self.scale:.4g} {self.unit}"


FIGURES = {
    "fp32": Figure("fp32 product", "GFLOP/s", 1e9, 0.1, 0.25),
    "bf16": Figure("bf16 product", "GFLOP/s", 1e9, 0.1, 0.25),
    "memory": Figure("memory", "GB/s", 1e9, 0.1, 0.25),
    "gpu_memory": Figure("GPU memory", "GB/s", 1e9, 0.1, 0.25),
    "link_latency": Figure("latency", "us", 1e-6, 1.0, 9.0, lower_is_better=True),
    "link_bandwidth": Figure("link", "GB/s", 1e9, 0.2, 0.5),
    "read": Figure("data", "GB/s", 1e9, 0.3, 0.9),
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a node; ``fails`` tells whether it is a reason to refuse it."""

    host: str
    subject: str
    text: str
    fails: bool = True


@dataclass
class Node:
    """What the ranks of one node found together."""

    host: str
    reports: list[RankReport]
    figures: dict[str, float] = field(default_factory=dict)
    worst_device: dict[str, str] = field(default_factory=dict)
    share_of_peak: dict[str, float] = field(default_factory=dict)
    clock_offset_s: float | None = None
    clock_error_s: float | None = None

    @property
    def gpus(self) -> list[dict[str, Any]]:
        """Health of the GPUs."""
        return self.reports[0].gpus


@dataclass
class Verdict:
    """The outcome: pass if no problem is a reason to fail."""

    nodes: list[Node]
    problems: list[Problem]
    sum_bandwidth_bytes_per_s: float | None
    is_one_machine: bool

    @property
    def passed(self) -> bool:
        """Whether the machine is fit to be measured."""
        return not any(problem.fails for problem in self.problems)


def judge(reports: Sequence[RankReport], edition: Edition) -> Verdict:
    """Put the reports of all ranks together and find what is wrong."""
    nodes = _by_node(reports)
    for node in nodes:
        _summarise(node, edition)
    boot_ids = [node.reports[0].boot_id for node in nodes]
    is_one_machine = len(nodes) > 1 and "" not in boot_ids and len(set(boot_ids)) < len(nodes)
    checks: tuple[Iterator[Problem], ...] = (
        _errors(reports),
        _versions(reports),
        _clocks(reports),
        _gpus(nodes),
        _data(nodes),
        _peaks(nodes),
        _outliers(nodes, fails=not is_one_machine),
    )
    problems = [problem for check in checks for problem in check]
    if is_one_machine:
        text = "some nodes are one machine (the same boot id), so their speeds are no reason to fail"
        problems.append(Problem(nodes[0].host, "nodes", text, fails=False))
    sums = [report.figures["sum_bandwidth"]["all"] for report in reports if "sum_bandwidth" in report.figures]
    return Verdict(nodes, problems, min(sums, default=None), is_one_machine)


def _by_node(reports: Sequence[RankReport]) -> list[Node]:
    nodes: dict[str, Node] = {}
    for report in sorted(reports, key=lambda report: report.rank):
        nodes.setdefault(report.host, Node(report.host, [])).reports.append(report)
    return list(nodes.values())


def _summarise(node: Node, edition: Edition) -> None:
    """Processors of a node add up; of GPUs, links and files the node is as fast as the slowest (of links: the best).

    A bad node slows both of its links, a good one only that to a bad neighbour; so the best link tells of the node.
    """
    for name, figure in FIGURES.items():
        rates = [(v, device) for report in node.reports for device, v in report.figures.get(name, {}).items()]
        if not rates:
            continue
        if all(device == "cpu" for _, device in rates):
            node.figures[name] = sum(value for value, _ in rates)
        elif name.startswith("link"):
            node.figures[name] = (min if figure.lower_is_better else max)(value for value, _ in rates)
        else:
            node.figures[name], node.worst_device[name] = min(rates)
    names = {device: name for report in node.reports for device, name in report.devices.items()}
    for precision in ("fp32", "bf16"):
        if precision in node.worst_device:
            try:
                peak = edition.peak_flops(names[node.worst_device[precision]], precision)
            except UnknownNameError:  # a device the rules do not list yet; only a submission needs its peak
                continue
            node.share_of_peak[precision] = node.figures[precision] / peak
    if node.reports[0].clock:
        offset_ns, error_ns = node.reports[0].clock
        node.clock_offset_s, node.clock_error_s = offset_ns * 1e-9, error_ns * 1e-9


def _errors(reports: Sequence[RankReport]) -> Iterator[Problem]:
    for report in reports:
        for part, text in report.errors.items():
            yield Problem(report.host, part, f"rank {report.rank}: {text}")


def _versions(reports: Sequence[RankReport]) -> Iterator[Problem]:
    for name in sorted({name for report in reports for name in report.versions}):
        told = [(report, report.versions.get(name, "none")) for report in reports]
        for report, mine, usual in _deviating(told):
            yield Problem(report.host, "versions", f"rank {report.rank} has {name} {mine}, the others {usual}")


def _clocks(reports: Sequence[RankReport]) -> Iterator[Problem]:
    clocks = [(report, *report.clock) for report in reports if report.clock]
    if not clocks:
        return
    reference_ns = statistics.median_low(offset_ns for _, offset_ns, _ in clocks)
    for report, offset_ns, error_ns in clocks:
        ahead_s, error_s = (offset_ns - reference_ns) * 1e-9, error_ns * 1e-9
        if abs(ahead_s) - error_s > MAX_CLOCK_DIFFERENCE_S:
            way = "ahead of" if ahead_s > 0 else "behind"
            text = f"the clock is {abs(ahead_s) * 1e3:.0f} ms {way} the others (50 ms are allowed); look at its NTP"
            yield Problem(report.host, "clock", text)
        elif error_s > MAX_CLOCK_DIFFERENCE_S:
            text = f"the clock can be told only to {error_s * 1e3:.0f} ms: messages to rank {report.rank} take too long"
            yield Problem(report.host, "clock", text, fails=False)


def _gpus(nodes: Sequence[Node]) -> Iterator[Problem]:
    counts = [(node, len(node.gpus)) for node in nodes if "GPUs" not in node.reports[0].errors]
    for node, num_gpus, usual_num in _deviating(counts):
        yield Problem(node.host, "GPUs", f"{num_gpus} GPUs, the others have {usual_num}")
    for what in ("name", "driver"):
        kinds = [(node, ", ".join(sorted({gpu[what] for gpu in node.gpus}))) for node in nodes if node.gpus]
        for node, mine, usual in _deviating(kinds):
            yield Problem(node.host, "GPUs", f"GPU {what} {mine}, the others have {usual}")
    for node in nodes:
        for gpu in node.gpus:
            for text in gpu["problems"]:
                yield Problem(node.host, "GPUs", f"GPU {gpu['index']} ({gpu['bus_id']}): {text}")


def _data(nodes: Sequence[Node]) -> Iterator[Problem]:
    for path in sorted({entry["path"] for node in nodes for entry in node.reports[0].data}):
        seen = [
            (node, (entry["file_bytes"], entry["head_sha256"]))
            for node in nodes
            for entry in node.reports[0].data
            if entry["path"] == path
        ]
        for node, mine, usual in _deviating(seen):
            differs = f"of {mine[0]:,} bytes and not of {usual[0]:,}" if mine[0] != usual[0] else "with other bytes"
            yield Problem(node.host, "data", f"{path!r} is not the file that the others have: one {differs}")


def _peaks(nodes: Sequence[Node]) -> Iterator[Problem]:
    for node in nodes:
        for precision, share in node.share_of_peak.items():
            if share < MIN_SHARE_OF_PEAK:
                text = f"{node.worst_device[precision]} reaches {share:.0%} of its peak in {precision} products"
                yield Problem(node.host, "product", f"{text}; {MIN_SHARE_OF_PEAK:.0%} are expected")


def _outliers(nodes: Sequence[Node], *, fails: bool) -> Iterator[Problem]:
    for name, figure in FIGURES.items():
        for node in nodes:
            others = [other.figures[name] for other in nodes if other is not node and name in other.figures]
            if name not in node.figures or not others:
                continue
            median = statistics.median(others)
            worse = figure.worse_by(node.figures[name], median)
            if worse > figure.named:
                device = f" of {node.worst_device[name]}" if name in node.worst_device else ""
                text = (
                    f"{figure.title}{device} {figure.text(node.figures[name])}, "
                    f"{worse:.0%} worse than the median of the others, {figure.text(median)}"
                )
                yield Problem(node.host, figure.title, text, fails=fails and worse > figure.fails)


def _deviating(pairs: Sequence[tuple[T, K]]) -> Iterator[tuple[T, K, K]]:
    """Of things and their values: the things whose value is not the most frequent one, with both values."""
    if not pairs:
        return
    usual = Counter(value for _, value in pairs).most_common(1)[0][0]
    for thing, value in pairs:
        if value != usual:
            yield thing, value, usual
