"""The verdict on a submission, and how people and programs read it.

A submission is valid if no finding is an error; warnings are shown apart. ``print_verdict`` is for people,
``verdict_form`` for programs (hpcai500/schemas has its JSON Schema), hpcai500.sarif and hpcai500.junit for CI systems.

A submission is written by strangers: whatever stands in it is printed without control characters and cut to a length,
so that it can neither write a verdict of its own on the terminal nor fill it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from hpcai500.deviations import Deviation
from hpcai500.finding import Finding
from hpcai500.formats import RunResult, Summary
from hpcai500.register.trusted import UNREGISTERED
from hpcai500.rulebook import RULEBOOK, Severity

MAX_SHOWN = 50
MAX_TEXT = 1000  # characters of one printed line; JSON has all


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the verifier says.

    Attributes:
        valid: no finding is an error.
        rankable: valid, and of a size that is ranked.
        why_not: why it is not rankable.
        findings: all that is wrong, errors and warnings.
        notes: what a reader should know and is not wrong, such as runs that failed.
        results: the figures of each run, as recomputed; empty where they cannot be.
        summary: those of the submission, likewise; None where they cannot be.
        workload: with level, size and edition, what was submitted; None where that cannot be read.
        checks: names of the checks that were applied; those of what ledgers say are not where ledgers are damaged.
        registration: who says that the runs were announced before they were made (hpcai500/register/trusted.py).
        deviations: what differs from the reference, with the strictest level that allows it.
        signed_by: who vouches for the submission; None if nobody does, or not truly so.
    """

    valid: bool
    rankable: bool
    why_not: list[str]
    findings: list[Finding]
    notes: list[str]
    results: list[RunResult] = []
    summary: Summary | None = None
    workload: str | None = None
    level: str | None = None
    size: str | None = None
    edition: str | None = None
    checks: list[str] = []
    registration: str = UNREGISTERED
    signed_by: str | None = None
    deviations: list[Deviation] = []


class Place(msgspec.Struct, frozen=True):
    """Where a finding is: a file or folder, relative to the submission's; a line from 1; a field with dots."""

    file: str
    line: int | None = None
    field: str | None = None


class FindingForm(msgspec.Struct, frozen=True, kw_only=True):
    """A finding as programs read it: ``place`` is the text that people see, ``sentence`` what the rule demands."""

    rule: str
    severity: Severity
    place: str
    location: Place
    expected: str
    found: str
    sentence: str


class VerdictForm(Verdict, frozen=True, kw_only=True):
    """A verdict as programs read it; ``submission`` is the path that was verified."""

    format: Literal[1] = 1
    submission: str
    findings: list[FindingForm]  # type: ignore[assignment]


class Unreadable(msgspec.Struct, frozen=True, kw_only=True):
    """What programs read of a submission that cannot be judged: ``error`` says why in a sentence."""

    format: Literal[1] = 1
    submission: str
    valid: Literal[False] = False
    error: str


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """Those that make a submission invalid."""
    return [finding for finding in findings if finding.severity == "error"]


def invalid(findings: list[Finding]) -> Verdict:
    """The verdict on a submission that cannot be looked at any further."""
    return Verdict(valid=False, rankable=False, why_not=["it is not valid"], findings=findings, notes=[])


def place_of(finding: Finding) -> Place:
    """The parts of a finding's place, which is FILE, FILE:FIELD, FILE:LINE or FILE:LINE:FIELD."""
    file, _, rest = encodable(finding.place).partition(":")
    line, _, field = rest.partition(":")
    if not (line.isascii() and line.isdigit() and len(line) < 19):
        line, field = "", rest
    return Place(file, int(line) if line else None, field.lstrip(".") or None)


def finding_form(finding: Finding) -> FindingForm:
    """A finding as programs read it."""
    return FindingForm(
        rule=finding.rule,
        severity=finding.severity,
        place=encodable(finding.place),
        location=place_of(finding),
        expected=encodable(finding.expected),
        found=encodable(finding.found),
        sentence=RULEBOOK[finding.rule].sentence,
    )


def verdict_form(verdict: Verdict, submission: str) -> VerdictForm:
    """A verdict as programs read it, with the path of the submission."""
    fields = {name: getattr(verdict, name) for name in Verdict.__struct_fields__}
    forms = [finding_form(finding) for finding in verdict.findings]
    return VerdictForm(**{**fields, "findings": forms, "submission": encodable(submission)})


def print_verdict(verdict: Verdict) -> None:
    """Print the verdict for people: the word, the figures with their parts, the findings grouped by rule."""
    what = f" {verdict.workload}, {verdict.level} level, size {verdict.size}, edition {verdict.edition}"
    _print(f"{'VALID' if verdict.valid else 'INVALID'}{what if verdict.workload else ''}")
    if verdict.summary is not None:
        _print_summary(verdict.summary)
        _print_results(verdict.results)
    if verdict.workload:
        _print(f"runs: {verdict.registration}")
    if verdict.signed_by is not None:
        _print(f"signed by {verdict.signed_by}")
    for deviation in verdict.deviations:
        _print(f"deviation: {deviation}")
    for reason in verdict.why_not:
        _print(f"not rankable: {reason}")
    for note in verdict.notes:
        _print(f"note: {note}")
    _print_findings("finding", errors_of(verdict.findings))
    _print_findings("warning", [finding for finding in verdict.findings if finding.severity == "warning"])


def encodable(text: str) -> str:
    """Text without the lone surrogates that Python makes of a file name's odd bytes and no JSON can carry."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str) -> str:
    """Text of a stranger on one line: control characters as escapes, and no longer than MAX_TEXT."""
    cut = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text)} characters)"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in cut
    )


def _print(line: str) -> None:
    print(printable(line))


def _print_findings(word: str, findings: Sequence[Finding]) -> None:
    """Print at most MAX_SHOWN, but at least one of every rule, and how many there are beyond."""
    by_rule: dict[str, list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault(finding.rule, []).append(finding)
    shares = _share(MAX_SHOWN, {rule: len(group) for rule, group in by_rule.items()})
    for rule, group in by_rule.items():
        for finding in group[: shares[rule]]:
            _print(f"{word}: {finding}")
        if len(group) > shares[rule]:
            _print(f"  ... and {len(group) - shares[rule]:,} more of rule {rule}")
        _print(f"  {rule}: {RULEBOOK[rule].sentence}")


def _share(total: int, numbers: dict[str, int]) -> dict[str, int]:
    """Give each as much as it has, in turn, until the total is used up; one each at least."""
    shares = dict.fromkeys(numbers, 1)
    while sum(shares.values()) < total and shares != numbers:
        for name in [name for name in numbers if shares[name] < numbers[name]][: total - sum(shares.values())]:
            shares[name] += 1
    return shares


def _print_summary(summary: Summary) -> None:
    low, high = (format_flops(bound) for bound in summary.vflops_interval)
    score = "one run"
    if summary.num_completed > 1:
        score = f"median of {summary.num_completed} runs, 95 % interval {low} to {high}"
    if summary.vflops_variation is not None:
        score += f", variation {100 * summary.vflops_variation:.1f} %"
    print(f"  VFLOPS = {format_flops(summary.vflops)} ({score})")
    print("  of each run: FLOPS x (achieved quality / target quality) ^ n")
    if summary.vflops_2020 is not None and summary.vflops_2020_n10 is not None:
        exponent = f"{summary.vflops_exponent:g}"
        old = (
            f"{format_flops(summary.vflops_2020)} with n = {exponent}, {format_flops(summary.vflops_2020_n10)} with 10"
        )
        print(f"  by the convention of the ranking of 2020 (23 GFLOP a picture), never compare: {old}")


def _print_results(results: list[RunResult]) -> None:
    """One row a run: all parts of its VFLOPS and both clocks."""
    width = max([5, *(len(str(result.seed)) for result in results)])  # announced seeds are long
    columns = "         FLOPS   achieved   target   n         VFLOPS   ranked clock   training   target reached"
    print(f"  {'seed':>{width}} {columns}")
    for result in results:
        seed = f"{result.seed:>{width}}"
        if result.flops is None or result.vflops is None or result.wall_s is None or result.train_s is None:
            print(f"  {seed}   {result.status}")
            continue
        quality = f"{result.achieved_quality:>8.4f}   {result.target_quality:>6.4g}   {result.vflops_exponent:g}"
        reached = "no" if result.time_to_quality_s is None else f"after {result.time_to_quality_s:.1f} s"
        print(
            f"  {seed}   {format_flops(result.flops):>12}   {quality}   {format_flops(result.vflops):>12}"
            f"   {result.wall_s:>10.2f} s {result.train_s:>8.2f} s   {reached}"
        )


def format_flops(value: float) -> str:
    """A rate with an SI prefix and four digits, as "61.23 GFLOPS"."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z")
    power = 0
    while value >= 1000 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.4g} {prefixes[power]}FLOPS"
