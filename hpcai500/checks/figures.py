"""Figures: everything that was derived is derived again from the ledgers and compared.

Numbers agree within a relative difference of 1e-9: far above what the order of a sum changes, far below what anybody
could gain. Not covered: a forger who changes ledgers, figures and digests all alike.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import msgspec

from hpcai500.checks.case import Case
from hpcai500.events import Evaluation, EvaluationShard
from hpcai500.finding import Finding
from hpcai500.qualities import quality_named

RELATIVE_TOLERANCE = 1e-9


def _agree(expected: object, found: object) -> bool:
    if isinstance(expected, float) and isinstance(found, int | float) and not isinstance(found, bool):
        return math.isclose(expected, found, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-12)
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        return len(expected) == len(found) and all(map(_agree, expected, found))
    return expected == found


def _compare(rule: str, place: str, expected: msgspec.Struct, found: msgspec.Struct) -> list[Finding]:
    """A finding for each field, nested ones too, in which two records of one type differ."""
    findings = []
    for name in expected.__struct_fields__:
        wanted, there = getattr(expected, name), getattr(found, name)
        if isinstance(wanted, msgspec.Struct) and isinstance(there, msgspec.Struct):
            findings += _compare(rule, f"{place}.{name}", wanted, there)
        elif there is None and name in _optional(type(expected)):
            continue  # a figure that records of earlier versions have not
        elif not _agree(wanted, there):
            findings.append(Finding(rule, f"{place}.{name}", f"{wanted!r} (recomputed)", f"{there!r}"))
    return findings


@functools.cache
def _optional(record: type[msgspec.Struct]) -> frozenset[str]:
    """Fields of a record that may be left out."""
    return frozenset(field.name for field in msgspec.structs.fields(record) if not field.required)


def check_quality(case: Case) -> list[Finding]:
    """Every evaluation is the sum of its shards, and its quality and loss follow from its counts and curves."""
    findings, quality = [], quality_named(case.workload.quality)
    for run in case.completed:
        totals: dict[int, ShardTotal] = {}
        for ledger in run.record.ledgers:
            for shard in ledger.values(EvaluationShard):
                totals.setdefault(shard.epoch, ShardTotal()).add(shard)
        for root, evaluation in ((ledger, value) for ledger in run.record.roots for value in ledger.values(Evaluation)):
            total = totals.get(evaluation.epoch, ShardTotal())
            samples, counts = total.samples, total.counts
            place = f"{root.rank_place}.evaluation[{evaluation.epoch}]"
            problems = quality.problems(samples, counts, evaluation.curves, case.size.num_classes)
            findings += [Finding("figures.quality", place, wanted, found) for wanted, found in problems]
            if 0 < total.num_losses < total.num_shards:
                found = f"those of {total.num_losses} of {total.num_shards}"
                findings.append(Finding("figures.quality", place, "loss_sum of all shards or of none", found))
            expected = msgspec.structs.replace(
                evaluation,
                samples=samples,
                counts=counts,
                quality=0.0 if problems else quality.compute(samples, counts, evaluation.curves),
                loss=total.loss_sum / samples if samples and total.num_losses == total.num_shards else None,
            )
            findings += _compare("figures.quality", place, expected, evaluation)
    return findings


@dataclass
class ShardTotal:
    """The shards of one evaluation together; those whose counts differ in shape have findings of their own."""

    num_shards: int = 0
    samples: int = 0
    counts: dict[str, list[int]] = field(default_factory=dict)
    num_losses: int = 0
    loss_sum: float = 0.0

    def add(self, shard: EvaluationShard) -> None:
        """Count one more in."""
        self.num_shards += 1
        self.samples += shard.samples
        for name, numbers in shard.counts.items():
            before = self.counts.get(name, [0] * len(numbers))
            self.counts[name] = [one + other for one, other in zip(before, numbers, strict=False)]
        if shard.loss_sum is not None:
            self.num_losses += 1
            self.loss_sum += shard.loss_sum


def check_result(case: Case) -> list[Finding]:
    """Every figure of every result.json follows from the ledgers."""
    findings = []
    for run, expected in zip(case.runs, case.results, strict=True):
        if run.result is not None:
            findings += _compare("figures.result", f"{run.place}/result.json:", expected, run.result)
    return findings


def check_summary(case: Case) -> list[Finding]:
    """Every figure of the submission's summary follows from the ledgers."""
    if case.summary is None:
        expected = "at least one run that completed with a clock and an evaluation"
        return [Finding("figures.summary", f"{case.place}:runs", expected, "none")]
    return _compare("figures.summary", f"{case.place}:summary", case.summary, case.submission.summary)
