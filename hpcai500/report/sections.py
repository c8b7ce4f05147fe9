"""What the page says of one subject, section by section: tiles, plots with their sentences, tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from hpcai500.finding import Finding
from hpcai500.formats import System
from hpcai500.report import amounts
from hpcai500.report.bars import draw_roofline
from hpcai500.report.energy import energy_headline, energy_view, power_note
from hpcai500.report.limits import limits_view
from hpcai500.report.run_figures import RunFigures
from hpcai500.report.run_plots import run_plots
from hpcai500.report.subject import Subject
from hpcai500.report.svg import About
from hpcai500.rulebook import RULEBOOK
from hpcai500.submission import NS_PER_S
from hpcai500.verdict import errors_of

MAX_ROWS = 100  # of a table; runs or settings beyond are counted
MAX_FINDINGS = 60
MAX_VARIABLES = 200
FLOP_CONVENTION = (
    "2 flop a multiply-add, convolutions and matrix products only, forward and backward as executed, of the training "
    "samples alone; FLOPS is their sum over the ranked clock"
)


class Tile(NamedTuple):
    """A figure with its name, and what it means in a few words."""

    name: str
    value: str
    note: str = ""


def subject_view(subject: Subject, *, prefix: str) -> dict[str, Any]:
    """All that the template needs.

    Args:
        subject: to show.
        prefix: of the ids of its sections, which must be unique in the page.
    """
    return {
        "prefix": prefix,
        "name": subject.name,
        "title": _title(subject),
        "verdict": _verdict_view(subject),
        "headline": _headline(subject),
        "tiles": list(_tiles(subject)),
        "runs": _run_rows(subject),
        "num_more_runs": max(0, len(subject.runs) - MAX_ROWS),
        "unreadable": subject.unreadable[:MAX_ROWS],
        "plots": run_plots(subject, prefix=prefix),
        "compute": _compute_view(subject, prefix),
        "limits": limits_view(subject, prefix),
        "energy": energy_view(subject),
        "system": _system_view(subject.system),
        "settings": _setting_rows(subject),
        "deviations": _deviation_rows(subject),
        "sheet": next((run for run in subject.runs if run.sheet), None),
        # a data: URI of our own making, which is longer than any text of a stranger may be
        "sheet_uri": Markup(next((run.sheet for run in subject.runs if run.sheet), "")),  # noqa: S704
        "sheet_note": next((run.sheet_note for run in subject.runs if run.sheet_note), ""),
        "is_detector": subject.workload is not None and subject.workload.name == "fasterrcnn",
        "submission": subject.submission,
        "quality_name": subject.workload.quality if subject.workload else "quality",
    }


def _title(subject: Subject) -> str:
    config = subject.config
    if subject.workload is None or config is None:
        return subject.name
    return f"{subject.workload.title}, {config.size} size, {config.level} level"


def _verdict_view(subject: Subject) -> dict[str, Any]:
    verdict = subject.verdict
    if verdict is None:
        return {"word": "NOT JUDGED", "css": "warn", "why": subject.not_judged, "findings": [], "warnings": []}
    errors = errors_of(verdict.findings)
    warnings = [finding for finding in verdict.findings if finding.severity == "warning"]
    return {
        "word": "VALID" if verdict.valid else "INVALID",
        "css": "good" if verdict.valid else "bad",
        "why": "",
        "rankable": verdict.rankable,
        "why_not": verdict.why_not,
        "notes": verdict.notes[:MAX_ROWS],
        "findings": _grouped(errors),
        "warnings": _grouped(warnings),
        "num_findings": len(errors),
        "num_warnings": len(warnings),
        "checks": verdict.checks,
        "registration": verdict.registration,
        "signed_by": verdict.signed_by,
        "edition": verdict.edition,
    }


def _grouped(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings by rule, with its sentence; of many of one rule some are shown."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    each = max(2, MAX_FINDINGS // (len(by_rule) or 1))
    return [
        {
            "rule": rule,
            "sentence": RULEBOOK[rule].sentence,
            "advice": RULEBOOK[rule].advice,
            "shown": group[:each],
            "num_more": max(0, len(group) - each),
        }
        for rule, group in by_rule.items()
    ]


def _headline(subject: Subject) -> dict[str, Any] | None:
    """The score and what it is made of; None where no run completed."""
    summary = subject.summary
    if summary is None:
        return None
    spread = "of one run"
    if summary.num_runs > 1:
        low, high = (amounts.flops_text(bound) for bound in summary.vflops_interval)
        spread = f"median of {summary.num_runs} runs, 95 % interval {low} to {high}"
    return {
        "vflops": amounts.flops_text(summary.vflops, "VFLOPS"),
        "spread": spread,
        "variation": summary.vflops_variation,
        "flops": amounts.flops_text(summary.flops),
        "achieved": amounts.quality_text(summary.achieved_quality),
        "target": f"{summary.target_quality:g}",
        "exponent": f"{summary.vflops_exponent:g}",
        "summary": summary,
    }


def _tiles(subject: Subject) -> Iterator[Tile]:
    """The figures beneath the score; of runs that are not over what is known so far."""
    summary = subject.summary
    if summary is not None:
        yield Tile("Ranked clock", amounts.seconds_text(summary.wall_s), "first training batch to last evaluation")
        yield Tile("Training alone", amounts.seconds_text(summary.train_s), "the second clock, never ranked")
    else:
        yield from _tiles_so_far(subject)
    completed = subject.completed
    if not completed:
        return
    times = [run.result.time_to_quality_s for run in completed]
    reached = [time for time in times if time is not None]
    note = "median of all runs" if len(reached) == len(times) else f"{len(reached)} of {len(times)} runs reached it"
    yield Tile("Time to quality", amounts.seconds_text(statistics.median(reached) if reached else None), note)
    rate = statistics.median(run.result.samples_per_s or 0.0 for run in completed)
    yield Tile("Throughput", amounts.rate_text(rate, "samples/s"), "over the ranked clock")
    machine = subject.machine
    if machine is not None:
        yield Tile("MFU", *_mfu(subject))
    headline = energy_headline(subject)
    if headline is not None:
        yield Tile("Power", amounts.prefixed(headline.power_w, "W"), power_note(subject, headline))


def _tiles_so_far(subject: Subject) -> Iterator[Tile]:
    for run in subject.runs[:6]:
        if run.damage:
            continue
        quality = run.curve[-1].quality if run.curve else None
        target = f"of {run.result.target_quality:g}, in {amounts.seconds_text(run.elapsed_s)}"
        yield Tile(f"Quality so far, {run.name}", amounts.quality_text(quality), target)
        rate = run.stretches[-1].samples_per_s if run.stretches else None
        yield Tile(f"Throughput now, {run.name}", amounts.rate_text(rate, "samples/s"), "in the last windows")


def _mfu(subject: Subject) -> tuple[str, str]:
    """Model FLOPS utilisation, and of which peak; on processors the least that it can be."""
    machine = subject.machine
    assert machine is not None
    shares = [share for run in subject.completed if (share := machine.mfu(run.result)) is not None]
    if not shares:
        return "not known", "the peak of the device is not in the rules"
    reached = amounts.share_text(statistics.median(shares))
    peak = f"{amounts.flops_text(machine.peak_flops)} {machine.peak_name}"
    if machine.is_peak:
        return reached, f"of {machine.num_devices:,} x {peak}"
    return f"at least {reached}", f"the peak is not known; {peak} a node"


def _run_rows(subject: Subject) -> list[RunFigures]:
    return list(subject.runs[:MAX_ROWS])


def _compute_view(subject: Subject, prefix: str) -> dict[str, Any]:
    """The roofline, MFU with its convention, and in plain words what is not known."""
    machine = subject.machine
    if machine is None:
        return {
            "plot": "",
            "rows": [],
            "not_known": ["Nothing is known of the machine."],
            "convention": FLOP_CONVENTION,
        }
    rates = list(_rates(subject))
    rows = [("Device", machine.device), ("Devices that computed", f"{machine.num_devices:,}")]
    if machine.peak_flops:
        name = machine.peak_name[:1].upper() + machine.peak_name[1:]
        rows.append((f"{name}, of one", amounts.flops_text(machine.peak_flops)))
    if machine.memory_bytes_per_s:
        rows.append(("Memory of one, at most", amounts.prefixed(machine.memory_bytes_per_s, "B/s")))
    for label, rate in rates:
        share = f", {amounts.share_text(rate / machine.peak_flops)} of it" if machine.peak_flops else ""
        rows.append((f"Reached {label}, of one", f"{amounts.flops_text(rate)}{share}"))
    built = next(
        (run.result.flop_training_per_sample for run in subject.runs if run.result.flop_training_per_sample), 0
    )
    if built:
        rows.append(("Model, forward and backward", f"{built:,} flop a sample"))
    kind = "dense peak" if machine.is_peak else "bound"
    reached = ", ".join(f"{amounts.flops_text(rate)} {label}" for label, rate in rates) or "nothing"
    description = (
        f"The {kind} of one device, {machine.device}, over arithmetic intensity, on logarithmic axes. "
        f"Beneath it what the median run reached on one device: {reached}."
    )
    plot = draw_roofline(About(f"{prefix}roofline", "Roofline of one device", description), machine, rates)
    return {"plot": plot, "rows": rows, "not_known": machine.not_known, "convention": FLOP_CONVENTION}


def _rates(subject: Subject) -> Iterator[tuple[str, float]]:
    """What one device reached in the median run: while it computed, and over the whole ranked clock."""
    machine, results = subject.machine, [run.result for run in subject.completed]
    assert machine is not None
    computing = [
        result.flop_total / result.parts.forward_backward_s
        for result in results
        if result.flop_total and result.parts and result.parts.forward_backward_s
    ]
    if computing and len(computing) == len(results):
        yield "while computing", statistics.median(computing) / machine.num_devices
    whole = [result.flops for result in results if result.flops]
    if whole:
        yield "over the ranked clock", statistics.median(whole) / machine.num_devices


def _deviation_rows(subject: Subject) -> list[tuple[object, ...]]:
    """What differs from the reference, and from which level on that is allowed."""
    return [
        (one.what, one.found, one.reference, one.layer, f"{one.allowed_from} level" if one.allowed_from else "no level")
        for one in subject.deviations
    ]


def _system_view(system: System | None) -> dict[str, Any] | None:
    """Nodes of one kind in one row, software, and the variables that were noted."""
    if system is None:
        return None
    kinds: dict[tuple[str, ...], list[str]] = {}
    for node in system.nodes:
        cards = [f"{card.name} ({amounts.bytes_text(card.memory_bytes)})" for card in node.accelerators]
        links = [
            f"{link.name}{f' at {link.speed_bits_per_s / NS_PER_S:g} Gbit/s' if link.speed_bits_per_s else ''}"
            for link in node.network
            if link.state == "up"
        ]
        cores = f"{node.num_cores} in {node.num_sockets} socket{'' if node.num_sockets == 1 else 's'}"
        counted = [f"{cards.count(card)} x {card}" for card in dict.fromkeys(cards)]
        key = (
            node.processor,
            cores,
            amounts.bytes_text(node.memory_bytes),
            ", ".join(counted) or "none",
            ", ".join(links[:8]) or "none up",
            " ".join(node.instruction_sets[:12]),
        )
        kinds.setdefault(key, []).append(node.host)
    rows = [(_hosts(hosts), *key) for key, hosts in list(kinds.items())[:MAX_ROWS]]
    software = [("Operating system", system.os), ("Kernel", system.kernel), ("Python", system.python)]
    return {
        "rows": rows,
        "num_nodes": len(system.nodes),
        "num_more_kinds": max(0, len(kinds) - MAX_ROWS),
        "software": [*software, *list(system.libraries.items())[:MAX_ROWS]],
        "environment": [(name, value[:200]) for name, value in list(system.environment.items())[:MAX_VARIABLES]],
    }


def _hosts(hosts: Sequence[str]) -> str:
    shown = ", ".join(host[:64] for host in hosts[:3])
    return shown if len(hosts) <= 3 else f"{len(hosts):,} nodes: {shown}, ..."


def _setting_rows(subject: Subject) -> list[dict[str, str]]:
    """Each setting with its default and what it means, where the rules know it."""
    config, workload = subject.config, subject.workload
    if config is None:
        return []
    rows = []
    for key, value in list(config.settings.items())[:MAX_ROWS]:
        rule = workload.settings.get(key) if workload else None
        default = str(rule.default_at(config.size)) if rule else amounts.NOTHING
        rows.append({"key": key, "value": str(value)[:200], "default": default, "note": rule.note if rule else ""})
    return rows
