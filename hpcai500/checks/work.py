"""Work: samples are those that seed and data set imply, learning rates those declared, and evaluations of one truth.

Only completed runs are looked at. Not covered: that a rank which wrote down the right samples has trained on them; that
accumulation, precision and augmentation were as declared. What no ledger can show, running it again can
(``hpcai500-verify --replay``).
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Iterator, Sequence

from hpcai500.checks.case import Case, RunCase
from hpcai500.events import EpochPart, Evaluation, EvaluationShard, Window
from hpcai500.finding import Finding
from hpcai500.learning_rate import learning_rate, peak_learning_rate
from hpcai500.qualities import quality_named
from hpcai500.record import RankLedger

MAX_DIGEST = 2**64 - 1
MANY_SAMPLES = 100_000  # in an epoch; above, two threads sort two epochs at once
# A cosine is right to the last of 53 bits, and near its end the schedule is 1 + cos, a small difference of such.
RATE_TOLERANCE, PEAK_TOLERANCE = 1e-12, 1e-14


class EpochParts:
    """What all ranks say of their parts of one epoch, in columns: of thousands of ranks there are millions."""

    def __init__(self) -> None:
        self.ledgers, self.first_steps, self.steps, self.digests = array("I"), array("Q"), array("Q"), array("Q")
        self.skipped = bytearray()
        self.whole: list[str] = []  # digests of the epoch

    def add(self, ledger: int, part: EpochPart) -> None:
        """Take in a part that stands in the ledger of this number."""
        self.ledgers.append(ledger)
        self.first_steps.append(part.first_step)
        self.steps.append(part.steps)
        self.digests.append(min(int(part.sample_digest), MAX_DIGEST))
        self.skipped.append(part.skipped > 0)
        if isinstance(part.epoch_digest, str):
            self.whole.append(part.epoch_digest)

    def rows(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Ledger, first step, steps, digest and whether samples were skipped, of each part."""
        return zip(self.ledgers, self.first_steps, self.steps, self.digests, self.skipped, strict=True)


def check_digests(case: Case) -> list[Finding]:
    """In each part of each epoch every rank used the samples that seed, epoch and ranks give it, and no others.

    Where samples may be skipped, which no ranked size allows, a part with skipped ones is left out: nothing tells which
    they were.
    """
    findings = []
    for run in case.completed:
        ledgers = [(ledger, segment.num_ranks) for segment in run.record.segments for ledger in segment.ledgers]
        by_epoch: dict[int, EpochParts] = {}
        for number, (ledger, _) in enumerate(ledgers):
            for part in ledger.values(EpochPart):
                if part.epoch < case.size.epochs:  # check_epochs names the others
                    by_epoch.setdefault(part.epoch, EpochParts()).add(number, part)
        epochs = sorted(by_epoch)
        if case.size.num_train_samples < run.global_batch:
            continue  # check_data says so
        check = functools.partial(_check_epoch, case, run, ledgers, by_epoch)
        if case.size.num_train_samples < MANY_SAMPLES:
            found = list(map(check, epochs))
        else:
            from concurrent.futures import ThreadPoolExecutor  # NumPy sorts without the interpreter's lock

            with ThreadPoolExecutor(2) as executor:
                found = list(executor.map(check, epochs))
        findings += [finding for of_epoch in found for finding in of_epoch]
    return findings


def _check_epoch(
    case: Case, run: RunCase, ledgers: Sequence[tuple[RankLedger, int]], by_epoch: dict[int, EpochParts], epoch: int
) -> list[Finding]:
    from hpcai500.sample_order import EpochDigests

    parts, global_batch = by_epoch[epoch], run.global_batch
    digests = EpochDigests(run.config.seed, epoch, num_samples=case.size.num_train_samples, global_batch=global_batch)
    findings = []
    if [int(digest) for digest in parts.whole] != [digests.whole]:
        place = f"{run.place}/ledger:epoch_part[{epoch}].epoch_digest"
        expected = f"{digests.whole}, which seed {run.config.seed} implies, once"
        findings.append(Finding("counts.digests", place, expected, f"{parts.whole[:3]}"))
    may_skip = not case.size.rankable and run.config.settings.get("decode_errors") == "skip"
    wrong: list[tuple[int, str, int]] = []
    for number, first, steps, told, has_skipped in parts.rows():
        ledger, num_ranks = ledgers[number]
        if first + steps > digests.num_steps or ledger.rank >= num_ranks or (has_skipped and may_skip):
            continue  # check_epochs and check_ranks say so
        if global_batch % num_ranks:
            wrong.append((number, f"a number of ranks that divides the global batch of {global_batch}", told))
            continue
        digest = digests.of_part(ledger.rank, num_ranks, first_step=first, steps=steps)
        if digest != told:
            wrong.append((number, f"{digest}, which seed {run.config.seed} implies", told))
    for number, expected, told in wrong[:1]:
        ledger, num_ranks = ledgers[number]
        place = f"{ledger.rank_place}.epoch_part[{epoch}].sample_digest"
        more = f" (and {len(wrong) - 1} more of this epoch)" if len(wrong) > 1 else ""
        findings.append(Finding("counts.digests", place, expected, f"{told} of {num_ranks} ranks{more}"))
    return findings


def check_learning_rates(case: Case) -> list[Finding]:
    """The learning rate of every window's last step, and of every part's first and last, is what the policy says."""
    findings = []
    for run in case.completed:
        global_batch = run.global_batch
        steps_per_epoch = case.size.num_train_samples // global_batch
        if not steps_per_epoch:
            continue  # check_data says so
        workload, settings = case.submission.workload, run.config.settings
        rate_at = functools.cache(
            functools.partial(
                learning_rate,
                workload,
                settings,
                global_batch=global_batch,
                steps_per_epoch=steps_per_epoch,
                num_epochs=case.size.epochs,
            )
        )
        peak = peak_learning_rate(workload, settings, global_batch=global_batch)
        slack = PEAK_TOLERANCE * peak if math.isfinite(peak) else 0.0
        for ledger in run.record.ledgers:
            for name, step, found in _learning_rates(ledger, steps_per_epoch):
                expected = rate_at(step)
                if not math.isclose(expected, found, rel_tol=RATE_TOLERANCE, abs_tol=slack):
                    wanted = f"{expected!r}, that of step {step} of the declared policy"
                    findings.append(Finding("runs.learning_rates", f"{ledger.place}:{name}", wanted, f"{found!r}"))
                    break  # of thousands alike one says enough
    return findings


def _learning_rates(ledger: RankLedger, steps_per_epoch: int) -> Iterator[tuple[str, int, float]]:
    """Where each learning rate of a ledger stands, its step of the run, and what it is; those of lost work too."""
    for entry in ledger.all_entries_of(Window, EpochPart):
        value = entry.value
        if isinstance(value, Window):
            first = value.epoch * steps_per_epoch + value.first_step
            yield f"{entry.line}:learning_rate", first + value.num_steps - 1, value.learning_rate
        elif isinstance(value, EpochPart):
            first = value.epoch * steps_per_epoch + value.first_step
            yield f"{entry.line}:learning_rate_first", first, value.learning_rate_first
            yield f"{entry.line}:learning_rate_last", first + value.steps - 1, value.learning_rate_last


def check_shards_truth(case: Case) -> list[Finding]:
    """What a rank's shard of the validation set holds, as boxes of each class, is the same after every epoch."""
    return [
        finding
        for _, ledger in case.completed_ledgers
        for finding in _check_truth(case, [(ledger.rank_place, shard) for shard in ledger.values(EvaluationShard)])
    ]


def check_truth(case: Case) -> list[Finding]:
    """What the whole validation set holds is the same in all evaluations of all runs."""
    roots = [root for run in case.completed for root in run.record.roots]
    return list(_check_truth(case, [(root.rank_place, whole) for root in roots for whole in root.values(Evaluation)]))


def _check_truth(case: Case, evaluated: Sequence[tuple[str, EvaluationShard | Evaluation]]) -> Iterator[Finding]:
    """A finding for the first evaluation, given with its rank's place, whose truth is not that of the first one."""
    names = quality_named(case.workload.quality).truths
    truths = [{name: one.counts.get(name) for name in names} for _, one in evaluated]
    for (place, one), truth in zip(evaluated, truths, strict=True):
        if truth != truths[0]:
            where = f"{place}.{one.EVENT}[{one.epoch}].counts"
            yield Finding("counts.truth", where, f"{truths[0]}, as in the first evaluation", f"{truth}"[:1000])
            return
