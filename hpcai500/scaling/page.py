"""A plan as one HTML page that needs nothing else, in the look of a report."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hpcai500.report import amounts
from hpcai500.report.curves import WIDTH
from hpcai500.report.page import FILTERS
from hpcai500.report.svg import About
from hpcai500.scaling.calibration import Calibration
from hpcai500.scaling.drawings import RATES, TIMES_S, WIDE, Line, Mark, draw_over_nodes, draw_shares
from hpcai500.scaling.job import Job
from hpcai500.scaling.prediction import PARTS, Planned
from hpcai500.scaling.text import grouped, notes, sentences
from hpcai500.version import __version__

HEAD = "Nodes|Ranks|A rank's batch|Global batch|Step|Samples/s|Efficiency|Run|To the quality|Epochs to it|Start-up|"
HEAD += "Node-hours|Energy of a run|Storage"


def render_plan(job: Job, calibration: Calibration, planned: Sequence[Planned], sizes: Sequence[int]) -> str:
    """The page."""
    loader = ChoiceLoader([PackageLoader("hpcai500.scaling"), PackageLoader("hpcai500.report")])
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters.update(FILTERS)
    style, _, _ = loader.get_source(environment, "style.css")
    has_quality = any(one.run.quality_s is not None for one in planned)
    page: str = environment.get_template("plan.html").render(
        job=job,
        style=Markup(style),  # noqa: S704, the style sheet is ours
        version=__version__,
        sentences=sentences(job, planned, sizes),
        notes=[*calibration.notes, *notes(job, calibration, planned)],
        until="Until the quality is reached" if has_quality else "Of a whole run",
        times=_times(planned) if planned else "",
        rates=_rates(planned) if planned else "",
        shares=_shares(planned, "shares", WIDE),
        narrow_shares=_shares(planned, "narrow-shares", WIDTH),
        meanings=list(PARTS.items()),
        table={"head": HEAD.split("|"), "rows": [_cells(one) for one in planned]},
    )
    return page


def _times(planned: Sequence[Planned]) -> Markup:
    runs = [
        Mark(one.run.num_nodes, one.run.clock_s, one.spread.clock_s.low, one.spread.clock_s.high) for one in planned
    ]
    reached = [
        Mark(one.run.num_nodes, one.run.quality_s, one.spread.quality_s.low, one.spread.quality_s.high)
        for one in planned
        if one.run.quality_s is not None and one.spread.quality_s is not None
    ]
    lines = [Line("whole run", runs), Line("to the quality", reached)]
    about = About("times", "Time over nodes", "The time of a run and the time to the quality fall with the nodes.")
    return draw_over_nodes(about, lines, y_label="time on the ranked clock", text=_time, ticks=TIMES_S, falls=True)


def _time(value_s: float) -> str:
    """A round time in its unit alone."""
    for unit_s, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if value_s >= unit_s:
            return f"{value_s / unit_s:,g} {unit}"
    return amounts.seconds_text(value_s)


def _rates(planned: Sequence[Planned]) -> Markup:
    marks = []
    for one in planned:
        spread = one.spread.samples_per_s
        label = amounts.share_text(one.efficiency)
        marks.append(Mark(one.run.num_nodes, one.run.samples_per_s, spread.low, spread.high, label))
    about = About(
        "rates", "Samples/s over nodes", "Samples per second rise with the nodes; beside each the efficiency."
    )
    return draw_over_nodes(
        about,
        [Line("planned", marks)],
        y_label="samples/s",
        text=lambda value: f"{value:,g}" if value < 1e4 else amounts.flops_text(value, ""),
        ticks=RATES,
        falls=False,
    )


def _shares(planned: Sequence[Planned], name: str, width: float) -> Markup:
    about = About(name, "Where the time would go", "Of each number of nodes, the parts of its time.")
    return draw_shares(about, [(f"{one.run.num_nodes:,}", one.run.parts_s) for one in planned], width)


def _cells(one: Planned) -> list[str]:
    run = one.run
    epochs = "-" if run.epochs_to_quality is None else f"{run.epochs_to_quality:.1f}"
    return [
        f"{run.num_nodes:,}",
        f"{run.num_ranks:,}",
        f"{run.batch_size:,}",
        f"{run.global_batch:,}",
        amounts.seconds_text(run.step.total_s),
        grouped(run.samples_per_s, 4),
        amounts.share_text(one.efficiency),
        amounts.seconds_text(run.clock_s),
        amounts.seconds_text(run.quality_s),
        epochs,
        amounts.seconds_text(run.start_up_s),
        grouped(run.node_hours, 3),
        amounts.prefixed(one.energy_j, "J"),
        amounts.prefixed(one.storage_bytes_per_s or None, "B/s"),
    ]
