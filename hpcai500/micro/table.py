"""What was measured, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from hpcai500.micro_record import TRIAD, MicroRecord, RankLimits, Rate, Spread, TrainingStep
from hpcai500.roofline import DECODE, PRODUCT, READ, StepRoofline, kernel_seconds, kind_shares, roofline_of
from hpcai500.verdict import format_flops

MAX_NODES = 16  # that have a line of their own; of more the slowest are shown
ADDED = (PRODUCT, TRIAD, READ, DECODE)  # what ranks do each for itself, so that those of a node add up
NODE_HEADS = {PRODUCT: "product", READ: "read", DECODE: "decode"}
MAX_KERNELS = 12


def as_text(record: MicroRecord) -> str:
    """The whole record in tables: rates, then each step with its kinds and its slowest kernels."""
    parts = ["\n".join(_rate_lines(record))]
    parts += ["\n".join(_step_lines(record, step)) for step in record.steps]
    if len(record.ranks) > 1:
        parts.append("\n".join(_node_lines(record)))
    errors = [
        f"FAIL  {rank.host}, rank {rank.rank}, {part}: {text}"
        for rank in record.ranks
        for part, text in rank.errors.items()
    ]
    return "\n\n".join([*parts, *(["\n".join(errors[:40])] if errors else [])])


def _rate_lines(record: MicroRecord) -> Iterator[str]:
    devices = sorted({rank.device for rank in record.ranks})
    ranks, nodes, threads = len(record.ranks), record.num_nodes, record.num_threads
    who = f"{ranks} rank{_s(ranks)} on {nodes} node{_s(nodes)}, {threads} thread{_s(threads)} a rank"
    yield f"{who}: {', '.join(devices)}"
    names: dict[tuple[str, str], list[Rate]] = {}
    for rank in record.ranks:
        for rate in rank.rates:
            names.setdefault((rate.name, rate.subject), []).append(rate)
    rows: list[tuple[str, ...]] = [("of one rank", "", "median", "least", "most")]
    for (name, subject), rates in names.items():
        unit = "FLOPS" if rates[0].unit == "flop/s" else "B/s"
        values = (median(rate.value.median for rate in rates), *_extremes([rate.value for rate in rates]))
        rows.append((name, subject, *(_prefixed(value, unit) for value in values)))
    yield from aligned(rows, num_words=2)


def _extremes(spreads: Sequence[Spread]) -> tuple[float, float]:
    return min(one.least for one in spreads), max(one.most for one in spreads)


def _step_lines(record: MicroRecord, step: TrainingStep) -> Iterator[str]:
    roofline = roofline_of(record, step)
    shape = " x ".join(map(str, step.input_shape))
    yield f"{step.workload}, {step.precision}, {step.batch_size} x {shape}: where a training step goes"
    rows = [("kind", "share", "time", "calls", "FLOPS", "moves", "of the roof")]
    for one in kind_shares(roofline):
        flops = _prefixed(one.flops, "FLOPS") if one.flops else "-"
        row = (f"{one.share:.1%}", _seconds(one.seconds), str(one.num_calls), flops, _prefixed(one.bytes_per_s, "B/s"))
        rows.append((one.kind, *row, f"{one.bound_s / one.seconds:.0%}"))
    yield from aligned(rows)
    yield from _sentences(roofline)
    yield "the slowest kernels"
    slowest = sorted(step.kernels, key=kernel_seconds, reverse=True)[:MAX_KERNELS]
    rows_of_kernels = [("kernel", "operands", "calls", "of one call", "least", "most", "FLOPS", "moves")]
    for kernel in slowest:
        seconds = kernel.seconds
        flops = _prefixed(kernel.flop / seconds.median, "FLOPS") if kernel.flop else "-"
        times = (_seconds(seconds.median), _seconds(seconds.least), _seconds(seconds.most))
        moved = _prefixed(kernel.num_bytes / seconds.median, "B/s")
        rows_of_kernels.append((kernel.name, kernel.operands[:52], str(kernel.num_calls), *times, flops, moved))
    yield from aligned(rows_of_kernels, num_words=2)


def _sentences(roofline: StepRoofline) -> Iterator[str]:
    seconds = roofline.step.seconds
    yield (
        f"sum of kernels {_seconds(roofline.predicted_s)}; whole steps {_seconds(seconds.mean)} in the mean "
        f"({_seconds(seconds.least)} .. {_seconds(seconds.most)}): predicted / measured {roofline.agreement:.2f}"
    )
    limit = roofline.limits[0]
    reached = limit.step_s / seconds.median
    yield (
        f"the roofline allows {_prefixed(roofline.allowed_flops, 'FLOPS')} a rank ({limit.name}); the step reaches "
        f"{_prefixed(roofline.flop / seconds.median, 'FLOPS')}, {reached:.0%} of it"
    )
    intensity = f"{roofline.flop / roofline.num_bytes:.3g} flop a byte moved"
    if roofline.num_ranks > 1:
        intensity += f", {roofline.flop / roofline.sent_bytes:.3g} flop a byte sent"
    others = ", ".join(f"{other.name} {_seconds(other.step_s)}" for other in roofline.limits)
    yield f"least time of a step: {others}; {intensity}"


def _node_lines(record: MicroRecord) -> Iterator[str]:
    """What the ranks of each node reach together, and its slowest rank's steps; the slowest first of many nodes."""
    nodes: dict[str, list[RankLimits]] = {}
    for rank in record.ranks:
        nodes.setdefault(rank.host, []).append(rank)
    hosts = list(nodes)
    if len(nodes) > MAX_NODES:
        hosts.sort(key=lambda host: -max(sum(rank.step_s) for rank in nodes[host]))
    yield "all ranks of a node together" + (f", the {MAX_NODES} slowest nodes" if len(nodes) > MAX_NODES else "")
    columns = list(
        dict.fromkeys((one.name, one.subject, one.unit) for one in record.ranks[0].rates if one.name in ADDED)
    )
    heads = [f"{NODE_HEADS.get(name, name)} {subject.partition(',')[0]}" for name, subject, _ in columns]
    rows = [("node", "ranks", *heads, *(f"step {step.workload} {step.precision}" for step in record.steps))]
    for host in hosts[:MAX_NODES]:
        ranks = nodes[host]
        cells = [_node_rate(ranks, *column) for column in columns]
        slowest = [_seconds(max(rank.step_s[index] for rank in ranks)) for index in range(len(record.steps))]
        rows.append((host, str(len(ranks)), *cells, *slowest))
    yield from aligned(rows)


def _node_rate(ranks: Sequence[RankLimits], name: str, subject: str, unit: str) -> str:
    values = [one.value.median for rank in ranks for one in rank.rates if (one.name, one.subject) == (name, subject)]
    return _prefixed(sum(values), "FLOPS" if unit == "flop/s" else "B/s")


def aligned(rows: Sequence[Sequence[str]], *, num_words: int = 1) -> list[str]:
    """Columns as wide as their widest cell; the first so many, words, to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < num_words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _prefixed(value: float, unit: str) -> str:
    return format_flops(value).removesuffix("FLOPS") + unit


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} us"


def _s(count: int) -> str:
    return "" if count == 1 else "s"
