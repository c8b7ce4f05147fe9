"""Code: that all ranks and runs run the same, and at a level that closes layer 7 the released one.

Not covered: a package that was changed to write another digest into its ledgers than that of its own code.
"""

from __future__ import annotations

from hpcai500.checks.case import Case, RunCase
from hpcai500.code_digest import code_sha256
from hpcai500.deviations import CODE_LAYER, Deviation, code_deviations, list_deviations
from hpcai500.edition import Edition
from hpcai500.finding import Finding
from hpcai500.version import __version__


def check_code(case: Case) -> list[Finding]:
    """All ranks and segments of a run run the same code, and it is the released one where the level keeps it."""
    findings = []
    is_open = CODE_LAYER in case.edition.level(case.submission.level).open_layers
    for run in case.completed:
        digests, place = code_of(run), f"{run.place}/ledger:code_sha256"
        if len(digests) > 1:
            expected = "the same code on all ranks and in all segments"
            findings.append(Finding("level.code", place, expected, _listed(digests)))
        if is_open:
            continue
        for version in versions_of(run):
            released = released_code(case.edition, version)
            if released is None:
                expected = f"a version whose code this edition lists; this is {__version__}"
                findings.append(Finding("level.code", f"{run.place}/ledger:package_version", expected, version))
            elif set(digests) != {released}:
                expected = f"{released} (the code of version {version})"
                findings.append(Finding("level.code", place, expected, _listed(digests)))
    return findings


def check_code_of_runs(case: Case) -> list[Finding]:
    """All runs run the same code."""
    digests = list(dict.fromkeys(digest for run in case.completed for digest in code_of(run)))
    if len(digests) <= 1:
        return []
    return [Finding("level.code", f"{case.place}:runs", "the same code in all runs", _listed(digests))]


def is_released(case: Case) -> bool:
    """Whether all completed runs ran the code of a release, so that nothing was implemented again."""
    return all(
        code_of(run) == [released_code(case.edition, version)] for run in case.completed for version in versions_of(run)
    )


def deviations(case: Case) -> list[Deviation]:
    """What the runs of a submission do otherwise than the reference, each once."""
    found: list[Deviation] = []
    for run in case.runs:
        found += list_deviations(case.workload, case.size.name, run.config.settings)
        versions = versions_of(run)
        reference = released_code(case.edition, versions[0]) if versions else None
        found += code_deviations(case.workload, reference, code_of(run))
    return list(dict.fromkeys(found))


def code_of(run: RunCase) -> list[str | None]:
    """Digests of the code that a run's ledgers name; None where one names none."""
    return list(dict.fromkeys(ledger.opened.code_sha256 for ledger in run.record.ledgers if ledger.opened))


def versions_of(run: RunCase) -> list[str]:
    """Versions of the package that a run's ledgers name."""
    return list(dict.fromkeys(ledger.opened.package_version for ledger in run.record.ledgers if ledger.opened))


def released_code(edition: Edition, version: str) -> str | None:
    """Digest of the workload's code of a version: this package's own, or one that the edition lists."""
    return code_sha256() if version == __version__ else edition.releases.get(version)


def _listed(digests: list[str | None]) -> str:
    return ", ".join(digest or "none" for digest in digests[:4]) + (", ..." if len(digests) > 4 else "")
