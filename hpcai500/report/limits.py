"""What a measured machine allows a run, from a micro.json beside it: the rooflines, the next limit, the hot kernels."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from hpcai500.flop_forms import flop_form
from hpcai500.formats import RunResult
from hpcai500.micro_record import MicroRecord, TrainingStep
from hpcai500.report import amounts
from hpcai500.report.curves import draw_axes
from hpcai500.report.subject import Subject
from hpcai500.report.svg import About, Drawing, Scale, spread_labels
from hpcai500.roofline import StepRoofline, kernel_seconds, kind_shares, matching_step, roofline_of

MAX_KERNELS = 15
LIMIT_NAMES = {
    "device": "devices (arithmetic and memory)",
    "network": "network",
    "storage": "storage",
    "decoding": "decoding of pictures",
}
NOT_COMPLETED = "No run completed, so nothing can be compared with what the machine allows."


class Dot(NamedTuple):
    """A point of a roofline: its name, its flop a byte and the flop/s it reached."""

    label: str
    intensity: float
    flops: float
    is_run: bool = False


class Roof(NamedTuple):
    """A limit of a roofline: bytes/s of a slope, or flop/s of a level."""

    label: str
    value: float
    is_slope: bool = False


def limits_view(subject: Subject, prefix: str) -> dict[str, Any] | None:
    """All that the template needs; None where no micro.json was given or lies there."""
    if subject.micro is None:
        return {"sentence": subject.micro_note, "plots": []} if subject.micro_note else None
    record, step = subject.micro, _step_of(subject, subject.micro)
    if step is None:
        known = ", ".join(sorted({f"{one.workload} {one.size} in {one.precision}" for one in record.steps}))
        return {"sentence": f"micro.json holds no training step like this run's; it has {known}.", "plots": []}
    assert subject.config is not None
    roofline = roofline_of(record, step, num_ranks=subject.config.num_ranks)
    rates = _reached_samples_per_s([run.result for run in subject.completed])
    run_rate = statistics.median(rates) if rates else None
    node_rate = run_rate / subject.config.num_nodes if run_rate is not None else None
    return {
        "sentence": _sentence(roofline, run_rate),
        "plots": [plot for plot in (_node_plot(record, roofline, node_rate, prefix),) if plot]
        + [plot for plot in (_job_plot(roofline, run_rate, prefix),) if plot],
        "limits": _limit_rows(roofline, run_rate),
        "kinds": _kind_rows(roofline),
        "kernels": _kernel_rows(step),
        "agreement": _agreement(roofline),
        "notes": list(_notes(subject, record, roofline)),
    }


def _step_of(subject: Subject, record: MicroRecord) -> TrainingStep | None:
    config, size = subject.config, subject.size
    if config is None or size is None:
        return None
    try:
        shape = flop_form(config.workload, config.settings, size).input_shape
        batch_size = int(config.settings["batch_size_per_rank"])
    except (KeyError, TypeError, ValueError):  # settings of strangers
        return None
    precision = str(config.settings.get("precision"))
    return matching_step(
        record, workload=config.workload, precision=precision, input_shape=shape, batch_size=batch_size
    )


def _reached_samples_per_s(results: Sequence[RunResult]) -> list[float]:
    """Of each run, all ranks together, while it trained: evaluation, checkpoints and pauses left out."""
    rates = []
    for result in results:
        parts = result.parts
        if parts is not None:
            training_s = parts.data_wait_s + parts.forward_backward_s + parts.communication_s + parts.optimizer_s
            if training_s > 0:
                rates.append(result.samples / training_s)
    return rates


def _sentence(roofline: StepRoofline, run_rate: float | None) -> str:
    """In one look: how far, and what would come next."""
    allowed = roofline.num_ranks * roofline.allowed_samples_per_s
    first = LIMIT_NAMES[roofline.limits[0].name]
    allows = f"this machine allows, {amounts.rate_text(allowed, 'samples/s')}, limited by its {first}"
    if run_rate is None:
        return f"{NOT_COMPLETED} A run would reach at most what {allows}."
    reached = f"While training the median run reaches {amounts.share_text(run_rate / allowed)} of what {allows}"
    if len(roofline.limits) < 2:
        return f"{reached}; no other limit was measured."
    following = roofline.limits[1]
    times = roofline.limits[0].step_s / following.step_s
    return f"{reached}; the next limit is the {LIMIT_NAMES[following.name]}, at {times:.3g} times that speed."


def _limit_rows(roofline: StepRoofline, run_rate: float | None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for limit in roofline.limits:
        rate = roofline.num_ranks * roofline.step.batch_size / limit.step_s
        flops = roofline.num_ranks * roofline.flop / limit.step_s
        row = (LIMIT_NAMES[limit.name], amounts.seconds_text(limit.step_s), amounts.rate_text(rate, "samples/s"))
        rows.append((*row, amounts.flops_text(flops), amounts.share_text(run_rate / rate if run_rate else None)))
    return rows


def _kind_rows(roofline: StepRoofline) -> list[tuple[str, ...]]:
    return [
        (
            one.kind,
            amounts.share_text(one.share),
            amounts.seconds_text(one.seconds),
            f"{one.num_calls:,}",
            amounts.flops_text(one.flops or None),
            amounts.prefixed(one.bytes_per_s, "B/s"),
            amounts.share_text(one.bound_s / one.seconds),
        )
        for one in kind_shares(roofline)
    ]


def _kernel_rows(step: TrainingStep) -> list[tuple[str, ...]]:
    slowest = sorted(step.kernels, key=kernel_seconds, reverse=True)[:MAX_KERNELS]
    return [
        (
            one.name,
            one.operands[:120],
            f"{one.num_calls:,}",
            amounts.seconds_text(one.seconds.median),
            f"{amounts.seconds_text(one.seconds.least)} to {amounts.seconds_text(one.seconds.most)}",
            amounts.flops_text(one.flop / one.seconds.median if one.flop else None),
            amounts.prefixed(one.num_bytes / one.seconds.median, "B/s"),
        )
        for one in slowest
    ]


def _agreement(roofline: StepRoofline) -> str:
    whole = amounts.seconds_text(roofline.step.seconds.mean)
    return (
        f"The kernels, each measured alone, add up to a training step of {amounts.seconds_text(roofline.predicted_s)}; "
        f"whole steps took {whole} in the mean, so the sum is {amounts.share_text(roofline.agreement)} of it."
    )


def _notes(subject: Subject, record: MicroRecord, roofline: StepRoofline) -> list[str]:
    config, step = subject.config, roofline.step
    assert config is not None
    ranks = f"{len(record.ranks):,} rank{'' if len(record.ranks) == 1 else 's'}"
    nodes = f"{record.num_nodes:,} node{'' if record.num_nodes == 1 else 's'}"
    devices = ", ".join(sorted({rank.device for rank in record.ranks})[:3])
    notes = [
        f"Measured on {ranks} on {nodes} ({devices}) by hpcai500 micro {record.version}; figures are the median's."
    ]
    batch_size = config.settings["batch_size_per_rank"]
    if batch_size != step.batch_size:
        notes.append(
            f"The run trained {batch_size} samples a rank and step, the kernels were measured with "
            f"{step.batch_size}; they are compared by samples."
        )
    system = subject.system
    hosts = {node.host for node in system.nodes} if system else set()
    if hosts and not hosts & {rank.host for rank in record.ranks}:
        notes.append("None of the run's nodes is among those that were measured.")
    if config.num_ranks > 1 and roofline.network_bytes_per_s is None:
        notes.append("One rank measured alone, so the network is not among the limits.")
    return notes


def _node_plot(record: MicroRecord, roofline: StepRoofline, node_rate: float | None, prefix: str) -> Markup:
    """All ranks of a node: flop for each byte of memory moved.

    Args:
        record: of the machine.
        roofline: of the run's step.
        node_rate: samples/s of the run on one of its nodes.
        prefix: of ids.
    """
    ranks = len(record.ranks) / record.num_nodes
    steps = [roofline_of(record, step) for step in record.steps if step.input_shape == roofline.step.input_shape]
    dots = [
        Dot(f"step, {one.step.precision}", one.flop / one.num_bytes, ranks * one.flop / one.step.seconds.median)
        for one in steps
    ]
    for kind in kind_shares(roofline):
        if kind.flops:
            dots.append(Dot(kind.kind, kind.flops / kind.bytes_per_s, ranks * kind.flops))
    if node_rate is not None:
        reached = node_rate * roofline.flop_per_sample
        dots.append(Dot("the run", roofline.flop / roofline.num_bytes, reached, is_run=True))
    roofs = [
        Roof(f"{precision} {amounts.flops_text(ranks * peak)}", ranks * peak)
        for precision, peak in roofline.peak_flops.items()
    ]
    memory = ranks * roofline.memory_bytes_per_s
    roofs.append(Roof(f"memory {amounts.prefixed(memory, 'B/s')}", memory, is_slope=True))
    about = About(f"{prefix}node-roofline", "Measured roofline of one node", _description(roofs, dots))
    return draw_measured_roofline(
        about, roofs, dots, x_label="flop for each byte of memory moved", y_label="flop/s of one node"
    )


def _job_plot(roofline: StepRoofline, run_rate: float | None, prefix: str) -> Markup:
    """All ranks: flop for each byte a rank sends, the multi-node axis."""
    if not roofline.network_bytes_per_s or not roofline.sent_bytes:
        return Markup()
    ranks, flop = roofline.num_ranks, roofline.flop
    roofs = [
        Roof(f"{limit.name} {amounts.flops_text(ranks * flop / limit.step_s)}", ranks * flop / limit.step_s)
        for limit in roofline.limits
        if limit.name != "network"
    ]
    network = ranks * roofline.network_bytes_per_s
    roofs.append(Roof(f"network {amounts.prefixed(network, 'B/s')}", network, is_slope=True))
    intensity = flop / roofline.sent_bytes
    dots = [Dot("a step without network", intensity, ranks * flop / roofline.step.seconds.median)]
    if run_rate is not None:
        dots.append(Dot("the run", intensity, run_rate * roofline.flop_per_sample, is_run=True))
    about = About(f"{prefix}job-roofline", "Measured roofline of the whole job", _description(roofs, dots))
    return draw_measured_roofline(
        about, roofs, dots, x_label="flop for each byte that a rank sends", y_label="flop/s of all ranks"
    )


def _description(roofs: Sequence[Roof], dots: Sequence[Dot]) -> str:
    reached = "; ".join(
        f"{dot.label}: {amounts.flops_text(dot.flops)} at {dot.intensity:.3g} flop a byte" for dot in dots
    )
    return f"Limits, on logarithmic axes: {', '.join(roof.label for roof in roofs)}. Beneath them {reached}."


def draw_measured_roofline(
    about: About, roofs: Sequence[Roof], dots: Sequence[Dot], *, x_label: str, y_label: str
) -> Markup:
    """Slopes and levels on logarithmic axes, with points beneath them.

    Args:
        about: the drawing.
        roofs: at least one slope and one level.
        dots: what was reached; at least one.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
    """
    slope = max(roof.value for roof in roofs if roof.is_slope)
    levels = [roof.value for roof in roofs if not roof.is_slope]
    ridge = max(levels) / slope
    drawing = Drawing(about, 480, 290)
    intensities = [dot.intensity for dot in dots]
    x_scale = Scale(min(min(intensities) / 6, ridge / 40), max(*intensities, ridge) * 8, 58, 456, is_log=True)
    y_scale = Scale(min([*(dot.flops for dot in dots), *levels]) / 6, max(levels) * 3, 252, 26, is_log=True)
    draw_axes(drawing, x_scale, y_scale, x_label=x_label, y_label=y_label)
    _draw_roofs(drawing, x_scale, y_scale, roofs, slope)
    ordered = sorted(dots, key=lambda dot: -dot.flops)
    places = spread_labels([y_scale(dot.flops) for dot in ordered], gap=13.0, low=36, high=248)
    for index, (dot, place) in enumerate(zip(ordered, places, strict=True)):
        x, y = x_scale(dot.intensity), y_scale(dot.flops)
        tip = f"{dot.label}: {amounts.flops_text(dot.flops)}, {dot.intensity:.3g} flop a byte"
        colour = "bad" if dot.is_run else f"f{index % 6 + 1}"
        drawing.dot((x, y), colour, radius=5 if dot.is_run else 3.5, tip=tip)
        css = "bad-text" if dot.is_run else f"t{index % 6 + 1}"
        to_left = x > 300
        drawing.text((x + (-9 if to_left else 9), place + 4), dot.label, css, anchor="end" if to_left else "start")
    return drawing.render()


def _draw_roofs(drawing: Drawing, x_scale: Scale, y_scale: Scale, roofs: Sequence[Roof], slope: float) -> None:
    levels = sorted((roof for roof in roofs if not roof.is_slope), key=lambda roof: -roof.value)
    for number, roof in enumerate(levels):
        left = max(roof.value / slope, x_scale.low)
        css = "curve l7" if number == 0 else "target"
        drawing.line((x_scale(left), y_scale(roof.value)), (x_scale.end, y_scale(roof.value)), css)
        drawing.text((x_scale.end, y_scale(roof.value) - 5), roof.label, "t7", anchor="end")
    begin = max(x_scale.low, y_scale.low / slope)
    end = levels[0].value / slope
    drawing.path([(x_scale(x), y_scale(x * slope)) for x in (begin, end)], "curve l7")
    beside = begin * (end / begin) ** 0.8  # left of the slope, where no point can be
    label = next(roof.label for roof in roofs if roof.is_slope)
    drawing.text((x_scale(beside) - 6, y_scale(beside * slope) - 4), label, "t7", anchor="end")
