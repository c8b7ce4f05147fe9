"""Learning: what the runs say they learnt is what such training can learn, and every loss is one that training leaves.

Hard bounds come first (nothing can pass them), then statistics with limits far from what real runs do: the figures
behind them are in benchmarks/convergence_points.rst. Only completed runs are looked at.

Not covered: curves that a forger draws with noise of their own inside of all bounds; workloads, sizes and recipes for
which nobody has measured reference points (``convergence_notes`` names them).
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Iterator, Sequence

from hpcai500 import metrics
from hpcai500.checks.case import Case, RunCase
from hpcai500.convergence import Reference, smallest_smoothed_loss, smallest_top_1_loss
from hpcai500.events import MAX_INTEGER, Evaluation, EvaluationShard, Window
from hpcai500.finding import Finding
from hpcai500.record import RankLedger

ROUNDING = 1e-4  # losses are computed in fp32, whose steps are 1e-7, and summed
START_PART = 0.4  # of the loss of a guess, that the first steps of random weights leave at the least
RISE = 0.1  # of quality above chance, from which a run has learnt
MAX_CORRELATION = -0.2  # of loss and quality over many evaluations; noise of 90 has a deviation of 0.11
MANY = 8  # evaluations or windows, from which curves are looked at as a whole
LEAST_NOISE = 1e-5  # of the loss; a window of 12,800 pictures has 5e-3
SIGMAS = 6


def references_for(case: Case) -> list[Reference]:
    """The references of rules/convergence.toml that hold for a submission."""
    submission = case.submission
    settings = case.runs[0].config.settings
    differs = any(
        setting.layer == 8
        and key not in case.edition.convergence.not_of_the_recipe
        and settings.get(key) != setting.default_at(case.size.name)
        for key, setting in case.workload.settings.items()
    )
    return [
        reference
        for reference in case.edition.convergence.references
        if (reference.workload, reference.size) == (case.workload.name, case.size.name)
        and submission.level in reference.levels
        and submission.data_source in reference.data_sources
        and (reference.any_recipe or not differs)
    ]


def convergence_notes(case: Case) -> list[str]:
    """Says where the quality curve could not be compared with anything."""
    known = any(
        (reference.workload, reference.size) == (case.workload.name, case.size.name)
        for reference in case.edition.convergence.references
    )
    if any(reference.points for reference in references_for(case)) or not (known or case.size.rankable):
        return []
    return [
        f"there are no reference convergence points for {case.workload.name}, size {case.size.name}, at "
        f"{case.submission.level} level with this recipe and data: how fast it learnt was not judged"
    ]


def _curve(run: RunCase) -> list[Evaluation]:
    """The evaluations of a run, by epoch."""
    values = [value for root in run.record.roots for value in root.values(Evaluation)]
    return sorted(values, key=lambda value: value.epoch)


def check_epochs_to_quality(case: Case) -> list[Finding]:
    """The runs do not reach the qualities of the reference points in implausibly few epochs.

    Tests the mean over all completed runs, and the fastest run alone: slow runs would else make up for one that is
    impossible. A run that did not reach a quality counts with all epochs of the size, so with less than it needs. The
    probabilities are multiplied by the number of tests (Bonferroni).
    """
    findings = []
    rules, curves = case.edition.convergence, [_curve(run) for run in case.completed]
    for reference in references_for(case) if curves else []:
        points = reference.at(case.completed[0].global_batch)
        for point in points:
            needed = [_epochs_to(reference, point.quality, curve, case.size.epochs) for curve in curves]
            of_mean = 2 * len(points) * rules.probability(point, needed)
            of_fastest = 2 * len(points) * len(needed) * rules.probability(point, [min(needed)])
            probability, epochs, whose = min(
                (of_mean, sum(needed) / len(needed), f"the mean of {len(needed)} runs"),
                (of_fastest, min(needed), f"the fastest of {len(needed)} runs"),
            )
            if probability < rules.unusual_below:
                rule = "learning.epochs" if probability < rules.invalid_below else "learning.epochs_unusual"
                expected = (
                    f"about {point.mean_epochs:.4g} epochs to quality {point.quality:g} with a global batch of "
                    f"{point.batch_size} ({point.num_runs} reference runs, {reference.source})"
                )
                found = f"{epochs:.4g}, {whose}; a probability of {probability:.1e}"
                findings.append(Finding(rule, f"{case.place}:runs.evaluation", expected, found))
    return findings


def _epochs_to(reference: Reference, quality: float, curve: Sequence[Evaluation], num_epochs: int) -> float:
    epochs, qualities = [float(value.epoch) for value in curve], [value.quality for value in curve]
    found = reference.epochs_to(quality, epochs, qualities)
    return float(num_epochs) if found is None else found


def check_highest_quality(case: Case) -> list[Finding]:
    """No evaluation has a quality that nobody has ever come to with such training."""
    highest = [one.highest_quality for one in references_for(case) if one.highest_quality is not None]
    findings = []
    for run in case.completed if highest else []:
        best = max(_curve(run), key=lambda value: value.quality, default=None)
        if best is not None and best.quality > min(highest):
            place = f"{run.place}/ledger:evaluation[{best.epoch}].quality"
            expected = f"at most {min(highest):g}, above all that is known"
            findings.append(Finding("learning.quality", place, expected, f"{best.quality:.6g}"))
    return findings


def check_loss_bounds(case: Case) -> list[Finding]:
    """No loss is below the least that is possible: for its labels in training, for its errors in evaluation."""
    findings = []
    for run, ledger in case.completed_ledgers:
        smoothing = float(run.config.settings.get("label_smoothing", 0.0))
        least = smallest_smoothed_loss(smoothing, case.size.num_classes) * (1 - ROUNDING)
        for number, window in enumerate(ledger.values(Window)):
            if window.loss_sum < least * window.num_steps:
                place = f"{ledger.rank_place}.window[{number}].loss_sum"
                expected = f"at least {least:.4g} a step, with labels smoothed by {smoothing:g}"
                findings.append(Finding("learning.loss", place, expected, f"{window.loss_sum / window.num_steps:.4g}"))
                break
        for shard in ledger.values(EvaluationShard) if case.workload.quality == "top-1" else []:
            if shard.loss_sum is None:
                continue
            part = _top_1(shard)
            if shard.loss_sum < smallest_top_1_loss(part) * shard.samples * (1 - ROUNDING):
                place = f"{ledger.rank_place}.evaluation_shard[{shard.epoch}].loss_sum"
                expected = f"at least {smallest_top_1_loss(part):.4g} a sample with a top-1 of {part:.4g}"
                findings.append(Finding("learning.loss", place, expected, f"{shard.loss_sum / shard.samples:.4g}"))
                break
    return findings


def _top_1(shard: EvaluationShard) -> float:
    """Share that is right; 1, of which no bound follows, where the counts have not their form (check_evaluations)."""
    correct = shard.counts.get("correct", [])
    return correct[0] / shard.samples if len(correct) == 1 and shard.samples else 1.0


def check_start(case: Case) -> list[Finding]:
    """The first steps of a run have about the loss of a guess: weights start at random, and none were learnt before."""
    findings = []
    least = START_PART * math.log(case.size.num_classes)
    for run in case.completed if case.workload.quality == "top-1" else []:
        for ledger in run.record.segments[0].ledgers:
            first = ledger.value(Window)
            if first is not None and first.loss_sum < least * first.num_steps:
                place = f"{ledger.rank_place}.window[0].loss_sum"
                expected = f"at least {least:.4g} a step; a guess among {case.size.num_classes} classes has "
                expected += f"{math.log(case.size.num_classes):.4g}"
                findings.append(Finding("learning.start", place, expected, f"{first.loss_sum / first.num_steps:.4g}"))
    return findings


def check_trend(case: Case) -> list[Finding]:
    """Where quality has risen, loss has fallen: from the first steps to the last, and evaluation by evaluation.

    The second only over MANY evaluations, by Spearman's correlation with the mean training loss of the epoch before and
    with the evaluation's own loss. In between the loss of a detector rises while its quality does, so few say nothing.
    """
    findings = []
    for run in case.completed:
        curve = _curve(run)
        if not curve or not _has_learnt(case, curve[-1]):
            continue
        place = f"{run.place}/ledger"
        first, last = (_mean_loss(windows) for windows in _ends(run))
        if last >= first:
            expected = f"below {first:.4g}, that of the first, as quality rose to {curve[-1].quality:.4g}"
            findings.append(Finding("learning.trend", f"{place}:window.loss_sum", expected, f"{last:.4g} in the last"))
        by_epoch = {epoch: _mean_loss(windows) for epoch, windows in _by_epoch(run.record.roots).items()}
        trained = [(by_epoch[value.epoch - 1], value.quality) for value in curve if value.epoch - 1 in by_epoch]
        evaluated = [(value.loss, value.quality) for value in curve if value.loss is not None]
        for name, pairs in (("window.loss_sum", trained), ("evaluation.loss", evaluated)):
            if len(pairs) < MANY:
                continue
            found = metrics.rank_correlation([loss for loss, _ in pairs], [quality for _, quality in pairs])
            if found is None or found > MAX_CORRELATION:
                expected = f"falls as quality rises: a rank correlation of at most {MAX_CORRELATION}"
                text = "it never changes" if found is None else f"{found:.2f}"
                findings.append(Finding("learning.trend", f"{place}:{name}", expected, text))
    return findings


def _has_learnt(case: Case, evaluation: Evaluation) -> bool:
    """Whether a quality is above chance by more than the noise of so few samples."""
    chance = 1 / case.size.num_classes if case.workload.quality == "top-1" else 0.0
    noise = SIGMAS * math.sqrt(chance * (1 - chance) / evaluation.samples)
    return evaluation.quality > chance + max(RISE, noise)


def _ends(run: RunCase) -> tuple[list[Window], list[Window]]:
    """The first and the last window of a run that have steps, on all ranks."""
    segments = [segment for segment in run.record.segments if any(led.values(Window) for led in segment.ledgers)]
    first = [windows[0] for ledger in segments[0].ledgers if (windows := ledger.values(Window))] if segments else []
    last = [windows[-1] for ledger in segments[-1].ledgers if (windows := ledger.values(Window))] if segments else []
    return first, last


def _mean_loss(windows: Sequence[Window]) -> float:
    """Mean loss of a step; no fsum, which raises where a hostile ledger adds up beyond all numbers."""
    steps = sum(window.num_steps for window in windows)
    return sum(window.loss_sum for window in windows) / steps if steps else 0.0


def _by_epoch(ledgers: Sequence[RankLedger]) -> dict[int, list[Window]]:
    """The windows of some ledgers, by epoch."""
    windows: dict[int, list[Window]] = {}
    for ledger in ledgers:
        for window in ledger.values(Window):
            windows.setdefault(window.epoch, []).append(window)
    return windows


def check_noise(case: Case) -> list[Finding]:
    """Losses have the noise of samples that nobody chose: they do not repeat, and lie on no smooth curve.

    The noise is seen in the third differences of the windows' mean losses, in which no trend is left: their median size
    is 3 times the standard deviation of a window.
    """
    findings = []
    for _, ledger in case.completed_ledgers:
        losses = [window.loss_sum / window.num_steps for window in ledger.values(Window)]
        problem = ""
        if len(losses) >= 4 and 2 * losses.count(statistics.mode(losses)) > len(losses):
            problem = f"{statistics.mode(losses):.6g} in {losses.count(statistics.mode(losses))} of {len(losses)}"
        elif len(losses) >= MANY:
            size = statistics.median(map(abs, third_differences(losses)))
            if size < 3 * LEAST_NOISE * statistics.median(losses):
                problem = f"a curve whose noise is {size / 3:.1e}"
        if problem:
            expected = f"losses whose noise is at least {LEAST_NOISE:g} of them"
            findings.append(Finding("learning.noise", f"{ledger.rank_place}.window.loss_sum", expected, problem))
    return findings


def third_differences(values: Sequence[float]) -> list[float]:
    """x[i+3] - 3 x[i+2] + 3 x[i+1] - x[i]: what a smooth curve has almost none of."""
    return [values[at + 3] - 3 * (values[at + 2] - values[at + 1]) - values[at] for at in range(len(values) - 3)]


def check_ranks_alike(case: Case) -> list[Finding]:
    """All ranks train one model, so that in every epoch their mean losses differ no more than their samples do."""
    findings = []
    for run in case.completed:
        for segment in run.record.segments:
            by_epoch: dict[int, EpochLosses] = {}
            for number, ledger in enumerate(segment.ledgers):
                for epoch, windows in _by_epoch([ledger]).items():
                    samples = sum(window.samples for window in windows)
                    by_epoch.setdefault(epoch, EpochLosses()).add(number, _mean_loss(windows), samples)
            findings += list(_strangers(segment.ledgers, by_epoch))
    return findings


class EpochLosses:
    """The mean loss and the samples of each rank in an epoch, in columns: there may be millions."""

    def __init__(self) -> None:
        self.ledgers, self.losses, self.samples = array("I"), array("d"), array("Q")

    def add(self, ledger: int, loss: float, samples: int) -> None:
        """Take in those of the ledger of this number; more samples than any rank has are that many."""
        self.ledgers.append(ledger)
        self.losses.append(loss)
        self.samples.append(min(samples, MAX_INTEGER))


def _strangers(ledgers: Sequence[RankLedger], by_epoch: dict[int, EpochLosses]) -> Iterator[Finding]:
    """A finding for each rank's first epoch whose loss is not that of the others."""
    told = set()
    for epoch, ranks in by_epoch.items():
        middle = statistics.median(ranks.losses)
        for number, loss, samples in zip(ranks.ledgers, ranks.losses, ranks.samples, strict=True):
            allowed = 1.1 + SIGMAS / math.sqrt(max(1, samples))
            if number not in told and not middle / allowed <= loss <= middle * allowed:
                told.add(number)
                expected = f"about {middle:.4g}, as the median of the ranks, up to a factor of {allowed:.2f}"
                place = f"{ledgers[number].rank_place}.window.loss_sum"
                yield Finding("learning.ranks", place, expected, f"{loss:.4g} in epoch {epoch}")
