"""Figures: everything that was derived is derived again from the ledgers and compared.

Numbers agree within a relative difference of 1e-9: far above what the order of a sum changes, far below what anybody
could gain. Not covered: a forger who changes ledgers, figures and digests all alike.
"""

from __future__ import annotations

import functools
import math

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
        shards: dict[int, list[EvaluationShard]] = {}
        for ledger in run.record.ledgers:
            for shard in ledger.values(EvaluationShard):
                shards.setdefault(shard.epoch, []).append(shard)
        for root, evaluation in ((ledger, value) for ledger in run.record.roots for value in ledger.values(Evaluation)):
            parts = shards.get(evaluation.epoch, [])
            samples, counts = sum(part.samples for part in parts), _sum_counts(parts)
            losses = [part.loss_sum for part in parts if part.loss_sum is not None]
            place = f"{root.rank_place}.evaluation[{evaluation.epoch}]"
            problems = quality.problems(samples, counts, evaluation.curves, case.size.num_classes)
            findings += [Finding("figures.quality", place, wanted, found) for wanted, found in problems]
            if 0 < len(losses) < len(parts):
                found = f"those of {len(losses)} of {len(parts)}"
                findings.append(Finding("figures.quality", place, "loss_sum of all shards or of none", found))
            expected = msgspec.structs.replace(
                evaluation,
                samples=samples,
                counts=counts,
                quality=0.0 if problems else quality.compute(samples, counts, evaluation.curves),
                loss=sum(losses) / samples if samples and len(losses) == len(parts) else None,
            )
            findings += _compare("figures.quality", place, expected, evaluation)
    return findings


def _sum_counts(parts: list[EvaluationShard]) -> dict[str, list[int]]:
    """The counts of all shards together; shards whose numbers differ in shape have findings of their own."""
    total: dict[str, list[int]] = {}
    for part in parts:
        for name, numbers in part.counts.items():
            before = total.get(name, [0] * len(numbers))
            total[name] = [one + other for one, other in zip(before, numbers, strict=False)]
    return total


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
