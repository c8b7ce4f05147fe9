"""Several submissions or runs side by side: what differs, by how much, and how a machine scales."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hpcai500 import metrics
from hpcai500.formats import RunResult
from hpcai500.report.curves import ScalingPoint
from hpcai500.report.subject import Subject
from hpcai500.verdict import printable

NUM_RESAMPLES = 2000
MAX_DRAWN = 400_000  # values of all resamples together
MAX_DIFFERENCES = 200
NONE = "-"


class Difference(NamedTuple):
    """A thing that is not the same everywhere: its kind, its name and its value in each subject."""

    kind: str
    name: str
    values: tuple[str, ...]


class Ratio(NamedTuple):
    """A figure of a subject over that of the first one, with the 95 % interval."""

    value: float
    low: float
    high: float


class Measure(NamedTuple):
    """A figure of a run that can be compared; ``is_score`` counts runs that did not complete as 0."""

    name: str
    value: Callable[[RunResult], float | None]
    is_score: bool = False


MEASURES = (
    Measure("VFLOPS", lambda result: result.vflops, is_score=True),
    Measure("FLOPS", lambda result: result.flops),
    Measure("samples/s", lambda result: result.samples_per_s),
    Measure("ranked clock", lambda result: result.wall_s),
    Measure("training alone", lambda result: result.train_s),
    Measure("time to quality", lambda result: result.time_to_quality_s),
)


@dataclass(frozen=True)
class Comparison:
    """What several subjects are to each other.

    Attributes:
        warnings: why figures do not compare; where there are any of workload and size, no ratio is given.
        ratios: for each measure one of each subject after the first; None where it cannot be given.
        scaling: a point of each subject, by number of devices; empty unless those differ.
    """

    warnings: tuple[str, ...]
    differences: tuple[Difference, ...]
    ratios: tuple[tuple[str, tuple[Ratio | None, ...]], ...]
    scaling: tuple[ScalingPoint, ...]


def compare(subjects: Sequence[Subject]) -> Comparison:
    """Compare subjects with the first of them."""
    base, others = subjects[0], subjects[1:]
    same_work = len({_work(subject) for subject in subjects}) == 1 and base.size is not None
    ratios = [(measure.name, tuple(ratio(other, base, measure) for other in others)) for measure in MEASURES]
    return Comparison(
        warnings=tuple(_warnings(subjects, same_work=same_work)),
        differences=tuple(differences(subjects)),
        ratios=tuple(ratios) if same_work else (),
        scaling=tuple(scaling(subjects)) if same_work else (),
    )


def _work(subject: Subject) -> tuple[str, str] | None:
    return (subject.workload.name, subject.size.name) if subject.workload and subject.size else None


def _warnings(subjects: Sequence[Subject], *, same_work: bool) -> Iterator[str]:
    if not same_work:
        yield "They are not of one workload and size, so their figures do not compare and no ratio is given."
    editions = {subject.config.edition for subject in subjects if subject.config}
    if len(editions) > 1:
        yield f"They were made under different editions of the rules ({', '.join(sorted(editions))})."
    levels = {subject.config.level for subject in subjects if subject.config}
    if len(levels) > 1:
        yield f"They are of different levels ({', '.join(sorted(levels))}), which allow different changes."
    for subject in subjects:
        if subject.verdict is not None and not subject.verdict.valid:
            yield f"{subject.name} is INVALID: its figures prove nothing."
        if subject.verdict is None:
            yield f"{subject.name} was not judged: {subject.not_judged}."


def values_of(subject: Subject, measure: Measure) -> list[float]:
    """The figure of each run that counts; of a score those of all runs, 0 where one did not complete."""
    if measure.is_score:
        done = [result.vflops if result.status == "completed" else 0.0 for result in subject.results]
        return [value or 0.0 for value in done]
    values = [measure.value(result) for result in subject.results if result.status == "completed"]
    return [] if any(value is None for value in values) else [value for value in values if value is not None]


def ratio(subject: Subject, base: Subject, measure: Measure) -> Ratio | None:
    """A figure over that of the first subject; the interval is a percentile bootstrap over the runs of both.

    Deterministic. With one run each there is no spread to draw from, and the interval is the ratio itself.
    """
    window = base.size.num_runs if base.size and measure.is_score else None
    mine, theirs = values_of(subject, measure), values_of(base, measure)
    if not mine or not theirs or not _middle(theirs, window):
        return None
    source = random.Random(500)
    ratios = []
    # Many runs need fewer draws for an interval as sharp, and take long to draw from
    for _ in range(max(200, min(NUM_RESAMPLES, MAX_DRAWN // (len(mine) + len(theirs))))):
        below = _middle(_resample(theirs, source), window)
        above = _middle(_resample(mine, source), window)
        if below:
            ratios.append(above / below)
    ratios.sort()
    low, high = (ratios[round(part * (len(ratios) - 1))] for part in (0.025, 0.975))
    return Ratio(_middle(mine, window) / _middle(theirs, window), low, high)


def _middle(values: Sequence[float], window: int | None) -> float:
    return metrics.window_median(values, window) if window else metrics.median(values)


def _resample(values: Sequence[float], source: random.Random) -> list[float]:
    return [values[int(source.random() * len(values))] for _ in values]


def scaling(subjects: Sequence[Subject]) -> Iterator[ScalingPoint]:
    """Efficiency of each: VFLOPS of a device over that of the subject with the fewest devices."""
    known = [
        (subject, subject.machine.num_devices, subject.summary)
        for subject in subjects
        if subject.machine is not None and subject.summary is not None and subject.summary.vflops > 0
    ]
    if len({number for _, number, _ in known}) < 2:
        return
    known.sort(key=lambda item: item[1])
    first, fewest = known[0][2], known[0][1]
    for subject, number, summary in known:
        efficiency = (summary.vflops / number) / (first.vflops / fewest)
        yield ScalingPoint(subject.name, number, summary.vflops, *summary.vflops_interval, efficiency)


def differences(subjects: Sequence[Subject]) -> list[Difference]:
    """What is not the same in all: what was run, the machine, its software, the settings."""
    found = []
    for kind, tables in (
        ("run", [dict(_run_facts(subject)) for subject in subjects]),
        ("system", [dict(_system_facts(subject)) for subject in subjects]),
        ("library", [_libraries(subject) for subject in subjects]),
        ("setting", [_settings(subject) for subject in subjects]),
    ):
        names = dict.fromkeys(name for table in tables for name in table)
        for name in names:
            values = tuple(table.get(name, NONE) for table in tables)
            if len(set(values)) > 1:
                found.append(Difference(kind, printable(name), values))
    return found[:MAX_DIFFERENCES]


def _run_facts(subject: Subject) -> Iterator[tuple[str, str]]:
    config = subject.config
    if config is None:
        return
    yield from (("workload", config.workload), ("level", config.level), ("size", config.size))
    yield from (("edition", config.edition), ("device", config.device), ("data source", config.data.source))
    yield from (("nodes", f"{config.num_nodes:,}"), ("ranks", f"{config.num_ranks:,}"))
    yield "data set", config.data.dataset_sha256[:12]
    yield "runs", f"{len(subject.runs)}, {len(subject.completed)} completed"


def _system_facts(subject: Subject) -> Iterator[tuple[str, str]]:
    system = subject.system
    if system is None:
        return
    node = system.nodes[0]
    yield from (("processor", node.processor), ("cores a node", f"{node.num_cores}"))
    yield "memory a node", f"{node.memory_bytes / 2**30:.4g} GiB"
    names = [card.name for card in node.accelerators]
    yield "accelerators a node", ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"
    yield from (("operating system", system.os), ("kernel", system.kernel), ("Python", system.python))


def _libraries(subject: Subject) -> Mapping[str, str]:
    return subject.system.libraries if subject.system else {}


def _settings(subject: Subject) -> Mapping[str, str]:
    return {key: f"{value}" for key, value in subject.config.settings.items()} if subject.config else {}
