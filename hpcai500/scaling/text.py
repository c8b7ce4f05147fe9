"""Shows a plan: as a table in a terminal, as sentences on what limits it, and as JSON."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hpcai500.report.amounts import prefixed, seconds_text, share_text
from hpcai500.scaling.calibration import Calibration
from hpcai500.scaling.job import Job
from hpcai500.scaling.model import Machine
from hpcai500.scaling.prediction import PARTS, Interval, Planned

FORMAT = 1
WIDTH = 120
HEAD = ("nodes", "ranks", "batch", "step", "samples/s", "effic.", "run", "to quality", "node-hours", "limit")


def as_table(job: Job, calibration: Calibration, planned: Sequence[Planned], sizes: Sequence[int]) -> str:
    """The table, then what limits the job from which size, then what the reader must know."""
    lines = [f"{job.name}: {job.num_epochs} epochs of {job.num_train_samples:,} samples", ""]
    lines += _aligned([HEAD, *map(_cells, planned)]) if planned else []
    lines.append("")
    for sentence in sentences(job, planned, sizes):
        lines += textwrap.wrap(sentence, WIDTH, subsequent_indent="  ")
    lines.append("")
    for note in (*calibration.notes, *notes(job, calibration, planned)):
        lines += textwrap.wrap(f"note: {note}", WIDTH, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _cells(one: Planned) -> list[str]:
    run = one.run
    name, share = run.limits[0]
    return [
        f"{run.num_nodes:,}",
        f"{run.num_ranks:,}",
        f"{run.global_batch:,}" + ("" if one.is_valid else " !"),
        seconds_text(run.step.total_s),
        grouped(run.samples_per_s, 4),
        share_text(one.efficiency),
        with_interval(run.clock_s, one.spread.clock_s),
        with_interval(run.quality_s, one.spread.quality_s),
        grouped(run.node_hours, 3),
        f"{name} {share_text(share)}",
    ]


def grouped(value: float, num_digits: int) -> str:
    """A number with so many digits; from 1,000 on with all before the point."""
    return f"{value:,.{num_digits}g}" if value < 1000 else f"{value:,.0f}"


def with_interval(value: float | None, interval: Interval | None) -> str:
    """A time, and by how much it is uncertain: half the interval as a part of it."""
    if value is None or interval is None:
        return seconds_text(value)
    return f"{seconds_text(value)} +-{100 * (interval.high - interval.low) / 2 / value:.0f}%"


def sentences(job: Job, planned: Sequence[Planned], sizes: Sequence[int]) -> list[str]:
    """What limits the job from which size on, which size is fastest, and for which sizes there is no plan."""
    found = []
    before = None
    for one in planned:
        name = one.run.limits[0][0]
        if name != before:
            found.append(f"from {_nodes(one)} the largest part of the time is {name}: {PARTS[name]}")
        before = name
    bites = _first_bites(planned)
    if bites:
        found.append("a tenth of the time is lost to " + ", ".join(f"{name} from {where}" for name, where in bites))
    if planned:
        best = min(planned, key=lambda one: one.run.start_up_s + (one.run.quality_s or one.run.clock_s))
        time_s = best.run.start_up_s + (best.run.quality_s or best.run.clock_s)
        found.append(f"first of these sizes at the end: {_nodes(best)}, after {seconds_text(time_s)} with the start-up")
    missing = sorted(set(sizes) - {one.run.num_nodes for one in planned})
    if missing:
        found.append(
            f"left out: {', '.join(f'{size:,}' for size in missing)} node{'s' if missing != [1] else ''}, where no "
            f"batch size is known to reach the quality within {job.num_epochs} epochs, or a step has more samples than "
            "an epoch; --batch-size-per-rank shows the rest of the figures"
        )
    return found


def _nodes(one: Planned) -> str:
    return f"{one.run.num_nodes:,} node{'s' if one.run.num_nodes > 1 else ''}"


def _first_bites(planned: Sequence[Planned]) -> list[tuple[str, str]]:
    """Of each loss the first size at which it takes a tenth of the time."""
    found = []
    for name in PARTS:
        first = next((one for one in planned if dict(one.run.limits)[name] >= 0.1), None)
        if first is not None and name != "compute":
            found.append((name, _nodes(first)))
    return found


def notes(job: Job, calibration: Calibration, planned: Sequence[Planned]) -> list[str]:
    """What is assumed for want of knowledge."""
    found = []
    if not job.points:
        found.append("nobody has published how many epochs a batch size takes here; the batch size is the measured one")
    elif job.observed_epochs is None:
        found.append(
            f"epochs to the quality are those of reference points ({job.points_source}), since no measured run reached "
            "it; a recipe that was not tuned for few epochs takes more, up to the whole run"
        )
    if any(not one.is_valid for one in planned):
        found.append("! marks batch sizes with which the quality is not expected within the run")
    if job.sample_bytes:
        most = max(planned, key=lambda one: one.storage_bytes_per_s, default=None)
        if most is not None:
            rate = prefixed(most.storage_bytes_per_s, "B/s")
            found.append(f"the storage must give up to {rate} (at {_nodes(most)})")
    if calibration.machine.power_w is None:
        found.append("no energy was measured, so none is planned")
    else:
        found += [
            f"{_nodes(one)} draw {prefixed(one.energy_j, 'J')} over a run, by the counters of the measured run"
            for one in planned[-1:]
        ]
    found.append("+- is half the interval from the 5th to the 95th percentile")
    return found


def as_json(job: Job, calibration: Calibration, planned: Sequence[Planned]) -> str:
    """All figures; times in seconds, rates in samples/s and bytes/s, null for what takes no time or is not known."""
    content = {
        "format": FORMAT,
        "job": {"name": job.name, "num_epochs": job.num_epochs, "num_train_samples": job.num_train_samples},
        "machine": _machine(calibration.machine),
        "notes": list(calibration.notes),
        "sizes": [_size(one) for one in planned],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _machine(machine: Machine) -> dict[str, Any]:
    """Its figures; JSON has no infinite bandwidth."""
    figures = asdict(machine)
    for link in (figures["within"], figures["between"]):
        if link is not None and math.isinf(link["bandwidth_bytes_per_s"]):
            link["bandwidth_bytes_per_s"] = None
    return figures


def _size(one: Planned) -> dict[str, Any]:
    run = one.run
    return {
        "num_nodes": run.num_nodes,
        "num_ranks": run.num_ranks,
        "batch_size_per_rank": run.batch_size,
        "global_batch": run.global_batch,
        "is_valid": one.is_valid,
        "steps_per_epoch": run.steps_per_epoch,
        "step_s": {"total": run.step.total_s, **asdict(run.step)},
        "samples_per_s": run.samples_per_s,
        "efficiency": one.efficiency,
        "clock_s": run.clock_s,
        "epochs_to_quality": run.epochs_to_quality,
        "quality_s": run.quality_s,
        "start_up_s": run.start_up_s,
        "node_hours": run.node_hours,
        "energy_j": one.energy_j,
        "storage_bytes_per_s": one.storage_bytes_per_s,
        "parts_s": run.parts_s,
        "intervals": {
            "step_s": _pair(one.spread.step_s),
            "samples_per_s": _pair(one.spread.samples_per_s),
            "clock_s": _pair(one.spread.clock_s),
            "quality_s": _pair(one.spread.quality_s),
        },
    }


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, figures to the right, the last column to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return lines
