"""What the page says of energy: the figure with its label and what it is of, each source and node, what is missing."""

from __future__ import annotations

from typing import Any

from hpcai500.energy.figures import NAMES, Headline, headline_of
from hpcai500.formats import EnergyResult
from hpcai500.report import amounts
from hpcai500.report.run_figures import RunFigures
from hpcai500.report.subject import Subject

MAX_ROWS = 100
LABELS = {
    "measured": "at the wall: all nodes read at least once a second by something whose accuracy is stated",
    "informative": "no measurement of the machine: what its parts say of themselves, or readings too seldom for more",
}


def energy_headline(subject: Subject) -> Headline | None:
    """The energy of a subject's completed runs; None where not all of them have it from the same sources."""
    config, completed = subject.config, subject.completed
    if config is None or not completed:
        return None
    return headline_of([run.result for run in completed], on_accelerators=config.device.startswith("cuda"))


def power_note(subject: Subject, headline: Headline) -> str:
    """VFLOPS per watt of the submission, the label, and of what."""
    return f"{_per_watt_text(subject, headline)}; {headline.label}, of {headline.scope}"


def _per_watt_text(subject: Subject, headline: Headline) -> str:
    vflops = subject.summary.vflops if subject.summary is not None else None
    return amounts.prefixed(vflops / headline.power_w if vflops is not None else None, "VFLOPS/W")


def energy_view(subject: Subject) -> dict[str, Any]:
    """What the template needs: a sentence, rows of sources and of nodes, and what is missing."""
    runs = [run for run in subject.runs[:MAX_ROWS] if run.result.energy]
    headline = energy_headline(subject)
    nodes = [row for run in runs for row in _node_rows(run)]
    lacks = [
        (run.label, NAMES[one.source], text) for run in runs for one in run.result.energy or () for text in one.lacks
    ]
    return {
        "sentence": _sentence(subject, headline) if headline else "",
        "meaning": LABELS[headline.label] if headline else "",
        "sources": [_source_row(run, one) for run in runs for one in run.result.energy or ()][:MAX_ROWS],
        "nodes": nodes[:MAX_ROWS],
        "num_more_nodes": max(0, len(nodes) - MAX_ROWS),
        "lacks": lacks[:MAX_ROWS],
    }


def _sentence(subject: Subject, headline: Headline) -> str:
    samples = [run.result.samples for run in subject.completed]
    each = headline.energy_j / (sum(samples) / len(samples)) if sum(samples) else None
    return (
        f"{headline.label.capitalize()}: {amounts.prefixed(headline.energy_j, 'J')} a run, "
        f"{amounts.prefixed(headline.power_w, 'W')} in the mean and {amounts.prefixed(each, 'J')} a training sample, "
        f"{_per_watt_text(subject, headline)}, of {headline.scope}."
    )


def _source_row(run: RunFigures, one: EnergyResult) -> tuple[str, ...]:
    reader = f" by {one.plugin}" if one.plugin else ""
    of_what = f"{one.num_devices:,} on " if one.source in ("nvml", "rapl") else ""
    apart = f"{one.num_readings:,}, at most {amounts.seconds_text(one.longest_gap_s)} apart"
    return (
        run.label,
        f"{NAMES[one.source]}{reader}",
        one.label or "no figure",
        f"{of_what}{one.num_nodes:,} of {run.config.num_nodes:,} nodes",
        amounts.prefixed(one.energy_j, "J"),
        amounts.prefixed(one.power_w, "W"),
        amounts.prefixed(one.joules_per_sample, "J"),
        amounts.prefixed(one.vflops_per_w, "VFLOPS/W"),
        apart if one.num_readings else amounts.NOTHING,
        amounts.NOTHING if one.accuracy is None else f"{100 * one.accuracy:g} %",
    )


def _node_rows(run: RunFigures) -> list[tuple[str, ...]]:
    """The energy of each node, where there are several."""
    if len({one.hosts for one in run.energy}) < 2:
        return []
    return [
        (
            run.label,
            one.hosts,
            NAMES[one.source],
            amounts.prefixed(one.energy_j, "J"),
            amounts.prefixed(one.power_w, "W"),
        )
        for one in run.energy
    ]
