"""Seeds: the runs of a submission are several trainings of one thing, neither copies of each other nor strangers.

Looks at rank 0 of completed runs, whose losses tell a run well enough. That no two runs have the same seed or exactly
the same losses is checked in hpcai500/checks/level.py. Not covered: copies whose noise was drawn anew.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator

from hpcai500 import metrics
from hpcai500.checks.case import Case, RunCase
from hpcai500.checks.learning import SIGMAS, third_differences
from hpcai500.events import Evaluation, Window
from hpcai500.finding import Finding

MAX_RUNS = 20  # whose curves are compared in pairs
MAX_EQUAL = 0.05  # of losses, that two runs may share by chance; real ones share none
MIN_DIFFERENCES = 48  # below, third differences say too little: 48 correlated ones count as some 20
MAX_CORRELATION = 0.9  # of them, over the last three quarters; 0 for runs that are independent, 1 for a scaled copy
SIMILAR_QUALITY = 0.1  # relative difference of quality, within which losses must be similar too
SIMILAR_LOSS = 1.5  # factor; five seeds of mini differ by 1.05

Losses = dict[tuple[int, int], float]


def check_copies(case: Case) -> list[Finding]:
    """No run is another one, with some losses changed, or all of them scaled or shifted."""
    findings = []
    runs = [(run, _losses(run), _qualities(run)) for run in case.completed[:MAX_RUNS]]
    for (one, losses, qualities), (other, others, other_qualities) in itertools.combinations(runs, 2):
        place = f"{other.place}/ledger"
        for problem in _likeness(losses, others, qualities, other_qualities):
            findings.append(Finding("learning.copies", place, f"a training other than {one.place}", problem))
    return findings


def _losses(run: RunCase) -> Losses:
    """Mean loss of every window of rank 0, by epoch and first step."""
    return {
        (window.epoch, window.first_step): window.loss_sum / window.num_steps
        for root in run.record.roots
        for window in root.values(Window)
    }


def _qualities(run: RunCase) -> dict[int, float]:
    return {value.epoch: value.quality for root in run.record.roots for value in root.values(Evaluation)}


def _likeness(
    losses: Losses, others: Losses, qualities: dict[int, float], other_qualities: dict[int, float]
) -> Iterator[str]:
    """In what two runs are too much alike; windows that both have are compared."""
    shared = sorted(losses.keys() & others.keys())
    equal = sum(losses[key] == others[key] for key in shared)
    if equal >= 2 and equal > MAX_EQUAL * len(shared):
        yield f"{equal} of {len(shared)} windows have exactly its loss"
    late = shared[len(shared) // 4 :]
    if len(late) - 3 >= MIN_DIFFERENCES:
        one, other = (third_differences([table[key] for key in late]) for table in (losses, others))
        correlation = metrics.rank_correlation(one, other)
        if correlation is not None and correlation > MAX_CORRELATION:
            yield f"the noise of its losses has a rank correlation of {correlation:.3f} with that one's"
    epochs = qualities.keys() & other_qualities.keys()
    same = sum(qualities[epoch] == other_qualities[epoch] for epoch in epochs)
    if same >= 4 and 2 * same > len(epochs):
        yield f"{same} of {len(epochs)} evaluations have exactly its quality"


def check_related(case: Case) -> list[Finding]:
    """Runs that end with similar quality end with similar training loss: they trained the same thing on the same data.

    A run that did not learn ends with another quality, and nothing is asked of it.
    """
    ends = [end for run in case.completed if (end := _end(run)) is not None]
    if len(ends) < 2:
        return []
    middle = statistics.median(quality for _, quality, _, _ in ends)
    similar = [end for end in ends if abs(end[1] - middle) <= SIMILAR_QUALITY * middle]
    findings = []
    usual = statistics.median([loss for _, _, loss, _ in similar] or [0.0])
    for run, _, loss, samples in similar:
        allowed = SIMILAR_LOSS + SIGMAS / math.sqrt(max(1, samples))
        if not usual / allowed <= loss <= usual * allowed:
            expected = f"about {usual:.4g}, as in the other runs of that quality, up to a factor of {allowed:.2f}"
            place = f"{run.place}/ledger:window.loss_sum"
            findings.append(Finding("learning.related", place, expected, f"{loss:.4g} in the last epoch"))
    return findings


def _end(run: RunCase) -> tuple[RunCase, float, float, int] | None:
    """The last quality of a run, and mean training loss and samples of its last epoch on rank 0."""
    qualities, windows = _qualities(run), [window for root in run.record.roots for window in root.values(Window)]
    if not qualities or not windows:
        return None
    last = max(window.epoch for window in windows)
    windows = [window for window in windows if window.epoch == last]
    loss = sum(window.loss_sum for window in windows) / sum(window.num_steps for window in windows)
    return run, qualities[max(qualities)], loss, sum(window.samples for window in windows)
