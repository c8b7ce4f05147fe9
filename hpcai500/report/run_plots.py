"""The plots of a subject's runs, each with a sentence of what is to be seen and a table of its numbers."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from hpcai500.metrics import STRAGGLER_RATIO
from hpcai500.report import amounts
from hpcai500.report.bars import Bar, Part, SpreadRow, draw_bars, draw_part_rows, draw_spread
from hpcai500.report.curves import Curve, Level, draw_curves
from hpcai500.report.run_figures import PERCENTILES, RunFigures, thinned
from hpcai500.report.subject import Subject
from hpcai500.report.svg import About

MAX_TABLE_ROWS = 240
PARTS = (
    ("data wait", "p-data", "data_wait_s"),
    ("forward and backward", "p-compute", "forward_backward_s"),
    ("exposed communication", "p-communication", "communication_s"),
    ("optimizer", "p-optimizer", "optimizer_s"),
    ("evaluation", "p-evaluation", "evaluation_s"),
    ("checkpoint", "p-checkpoint", "checkpoint_s"),
    ("lost", "p-lost", "lost_s"),
    ("restart", "p-restart", "restart_s"),
    ("other", "p-other", "other_s"),
)
START_UP = (
    ("allocation", "p-other", "allocation"),
    ("launch", "p-optimizer", "launch"),
    ("import", "p-data", "import"),
    ("rendezvous", "p-communication", "rendezvous"),
    ("opening data", "p-evaluation", "data_open"),
    ("building the model", "p-compute", "model"),
    ("wait for ranks", "p-checkpoint", "wait"),
)


class Table(NamedTuple):
    """The numbers of a plot; the first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Plot(NamedTuple):
    """A plot: what the section says of it, the drawing, its numbers, and a drawing for narrow screens if another."""

    sentence: str
    drawing: Markup
    table: Table
    narrow: Markup = Markup()


def run_plots(subject: Subject, *, prefix: str) -> dict[str, Plot | None]:
    """All plots by name; None where there is nothing to draw."""
    runs = [run for run in subject.runs if not run.damage]
    quality = subject.workload.quality if subject.workload else "quality"
    return {
        "quality": _quality(runs, quality, prefix),
        "loss": _loss(runs, prefix),
        "throughput": _throughput(runs, prefix),
        "parts": _parts(runs, prefix),
        "start_up": _start_up(runs, prefix),
        "ranks": _ranks(runs, prefix),
    }


def _quality(runs: Sequence[RunFigures], quality: str, prefix: str) -> Plot | None:
    shown = [run for run in runs if run.curve]
    if not shown:
        return None
    target = shown[0].result.target_quality
    reached = sum(run.curve[-1].quality >= target for run in shown)
    sentence = (
        f"The last evaluation is at or above the target of {target:g} ({quality}) in {reached} of {len(shown)} runs."
    )
    curves = [Curve(run.label, [(point.time_s, point.quality) for point in run.curve], has_dots=True) for run in shown]
    rows = [
        (
            run.label,
            f"{point.epoch}",
            amounts.seconds_text(point.time_s),
            amounts.quality_text(point.quality),
            amounts.NOTHING if point.loss is None else f"{point.loss:.4f}",
        )
        for run in shown
        for point in run.curve
    ]
    drawing = draw_curves(
        About(
            f"{prefix}quality", "Quality over time", f"A line for each run: {quality} at each evaluation. {sentence}"
        ),
        curves,
        y_label=f"quality, {quality}",
        level=Level(f"target {target:g}", target),
    )
    head = ("Run", "Epochs", "Time", "Quality", "Evaluation loss")
    return Plot(sentence, drawing, Table("Quality at each evaluation", head, thinned(rows, MAX_TABLE_ROWS)))


def _loss(runs: Sequence[RunFigures], prefix: str) -> Plot | None:
    shown = [run for run in runs if run.stretches]
    if not shown:
        return None
    firsts, lasts = ([run.stretches[place].loss for run in shown] for place in (0, -1))
    sentence = (
        f"The mean training loss of all ranks went from {statistics.median(firsts):.4g} to "
        f"{statistics.median(lasts):.4g} in the median run."
    )
    curves = [Curve(run.label, [(point.time_s, point.loss) for point in run.stretches]) for run in shown]
    rows = [
        (run.label, amounts.seconds_text(point.time_s), f"{point.loss:.4f}") for run in shown for point in run.stretches
    ]
    drawing = draw_curves(
        About(f"{prefix}loss", "Training loss over time", f"A line for each run. {sentence}"),
        curves,
        y_label="training loss",
    )
    head = ("Run", "Time", "Training loss")
    return Plot(sentence, drawing, Table("Training loss over time", head, thinned(rows, MAX_TABLE_ROWS)))


def _throughput(runs: Sequence[RunFigures], prefix: str) -> Plot | None:
    shown = [run for run in runs if run.stretches]
    if not shown:
        return None
    rates = [point.samples_per_s for run in shown for point in run.stretches]
    sentence = (
        f"While training, all ranks together took {amounts.rate_text(statistics.median(rates), 'samples/s')} in the "
        f"median window, {amounts.rate_text(min(rates), 'samples/s')} in the slowest and "
        f"{amounts.rate_text(max(rates), 'samples/s')} in the fastest."
    )
    curves = [Curve(run.label, [(point.time_s, point.samples_per_s) for point in run.stretches]) for run in shown]
    rows = [
        (run.label, amounts.seconds_text(point.time_s), f"{point.samples_per_s:,.1f}")
        for run in shown
        for point in run.stretches
    ]
    drawing = draw_curves(
        About(f"{prefix}throughput", "Throughput over time", f"A line for each run. {sentence}"),
        curves,
        y_label="training samples/s, all ranks",
        with_zero=True,
    )
    head = ("Run", "Time", "Samples/s")
    return Plot(sentence, drawing, Table("Throughput over time", head, thinned(rows, MAX_TABLE_ROWS)))


def _parts(runs: Sequence[RunFigures], prefix: str) -> Plot | None:
    bars, rows = [], []
    for run in runs:
        if run.parts is not None and run.elapsed_s:
            bars.append(Bar(run.label, [Part(name, css, getattr(run.parts, key)) for name, css, key in PARTS]))
            seconds = [getattr(run.parts, key) for _, _, key in PARTS]
            rows.append((run.label, *_with_shares([*seconds, run.elapsed_s], run.elapsed_s)))
    if not bars:
        return None
    sentence = _largest(bars, "ranked clock")
    drawing = draw_bars(
        About(
            f"{prefix}parts", "Where the time went", f"A bar for each run, of the parts of its ranked clock. {sentence}"
        ),
        bars,
    )
    head = ("Run", *(name.capitalize() for name, _, _ in PARTS), "Ranked clock")
    table = Table("Parts of the ranked clock, mean over ranks", head, thinned(rows, MAX_TABLE_ROWS))
    about = About(f"{prefix}parts-narrow", "Where the time went", f"A row for each part, mean of all runs. {sentence}")
    return Plot(sentence, drawing, table, draw_part_rows(about, bars))


def _start_up(runs: Sequence[RunFigures], prefix: str) -> Plot | None:
    bars, rows = [], []
    for run in runs:
        total_s = sum(run.start_up_s.values())
        if total_s > 0:
            bars.append(Bar(run.label, [Part(name, css, run.start_up_s[key]) for name, css, key in START_UP]))
            seconds = [run.start_up_s[key] for _, _, key in START_UP]
            rows.append((run.label, *_with_shares([*seconds, total_s], total_s)))
    if not bars:
        return None
    sentence = _largest(bars, "start-up")
    drawing = draw_bars(
        About(
            f"{prefix}start-up",
            "Start-up, before the clock",
            f"A bar for each run, of the parts of its start-up. {sentence}",
        ),
        bars,
    )
    head = ("Run", *(name.capitalize() for name, _, _ in START_UP), "In all")
    table = Table("Parts of the start-up, mean over ranks", head, thinned(rows, MAX_TABLE_ROWS))
    about = About(f"{prefix}start-up-narrow", "Start-up", f"A row for each part, mean of all runs. {sentence}")
    return Plot(sentence, drawing, table, draw_part_rows(about, bars))


def _largest(bars: Sequence[Bar], whole: str) -> str:
    """The two largest parts of all bars together."""
    total_s = sum(bar.total_s for bar in bars)
    sums: dict[str, float] = {}
    for bar in bars:
        for part in bar.parts:
            sums[part.name] = sums.get(part.name, 0.0) + max(0.0, part.duration_s)
    names = sorted(sums, key=lambda name: -sums[name])[:2]
    named = " and ".join(f"{name} {amounts.share_text(sums[name] / total_s)}" for name in names)
    return f"The largest parts of the {whole} are {named}."


def _with_shares(seconds: Sequence[float], total_s: float) -> Iterator[str]:
    return (f"{amounts.seconds_text(one)} ({amounts.share_text(one / total_s)})" for one in seconds)


def _ranks(runs: Sequence[RunFigures], prefix: str) -> Plot | None:
    rows = [SpreadRow(run.label, run.ranks) for run in runs if run.ranks is not None]
    if not rows:
        return None
    number = sum(row.spread.num_stragglers for row in rows)
    num_ranks = sum(row.spread.num_ranks for row in rows)
    sentence = (
        f"No rank of {num_ranks:,} in {len(rows)} runs is a straggler."
        if not number
        else f"{number:,} of {num_ranks:,} ranks in {len(rows)} runs are stragglers."
    )
    sentence += (
        " A straggler's own time of a step, without communication, is over "
        f"{STRAGGLER_RATIO:g} times the median of all ranks."
    )
    drawing = draw_spread(
        About(
            f"{prefix}ranks",
            "Step times over the ranks",
            f"For each run the spread of the ranks' median step times, with and without communication. {sentence}",
        ),
        rows,
    )
    head = ("Run", "Ranks", *(_percentile_name(percent) for percent in PERCENTILES), "Whole step, median", "Stragglers")
    table_rows = [
        (
            row.label,
            f"{row.spread.num_ranks:,}",
            *(f"{1000 * value:,.4g} ms" for value in row.spread.own_s),
            f"{1000 * row.spread.step_s[3]:,.4g} ms",
            f"{row.spread.num_stragglers:,}",
        )
        for row in rows
    ]
    return Plot(sentence, drawing, Table("Own time of a step, over ranks", head, thinned(table_rows, MAX_TABLE_ROWS)))


def _percentile_name(percent: int) -> str:
    return {0: "Fastest", 50: "Median", 100: "Slowest"}.get(percent, f"{percent} %")
