"""Verdicts as a SARIF log, which code-review sites and editors show beside the files that the findings are in.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) version 2.1.0, the sections named below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hpcai500.finding import Finding
from hpcai500.rulebook import RULEBOOK
from hpcai500.verdict import Verdict, encodable, place_of
from hpcai500.version import __version__

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
NUMBERS = {rule: number for number, rule in enumerate(RULEBOOK)}


def sarif_log(verdicts: Iterable[tuple[Path, Verdict]], unreadable: Iterable[tuple[Path, str]]) -> dict[str, Any]:
    """The log of one call of the verifier.

    Args:
        verdicts: of submissions, each with the path of its submission.json.
        unreadable: submissions that could not be judged, each with the reason.
    """
    notifications = [
        {"level": "error", "message": {"text": encodable(error)}, "locations": [_location(path, None, None)]}
        for path, error in unreadable
    ]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "hpcai500-verify", "version": __version__, "rules": list(_rules())}},
                "invocations": [  # section 3.20
                    {"executionSuccessful": not notifications, "toolExecutionNotifications": notifications}
                ],
                "results": [_result(path, finding) for path, verdict in verdicts for finding in verdict.findings],
            }
        ],
    }


def _rules() -> Iterator[dict[str, Any]]:
    """The rulebook (section 3.49)."""
    for rule, entry in RULEBOOK.items():
        yield {
            "id": rule,
            "shortDescription": {"text": entry.sentence},
            "fullDescription": {"text": f"{entry.sentence} {entry.why}"},
            "help": {"text": f"{entry.why} What to do: {entry.advice}."},
            "defaultConfiguration": {"level": entry.severity},
        }


def _result(path: Path, finding: Finding) -> dict[str, Any]:
    """One finding (section 3.27)."""
    place = place_of(finding)
    return {
        "ruleId": finding.rule,
        "ruleIndex": NUMBERS[finding.rule],
        "level": finding.severity,
        "message": {"text": encodable(f"expected {finding.expected}, found {finding.found}")},
        "locations": [_location(path.parent / place.file, place.line, place.field)],
    }


def _location(path: Path, line: int | None, field: str | None) -> dict[str, Any]:
    """A place in a file (section 3.28); lines count from 1, as in ``Place``."""
    uri = quote(encodable(path.as_posix()))
    physical: dict[str, Any] = {"artifactLocation": {"uri": f"file://{uri}" if path.is_absolute() else uri}}
    if line:
        physical["region"] = {"startLine": line}
    logical = {"logicalLocations": [{"fullyQualifiedName": field}]} if field else {}
    return {"physicalLocation": physical, **logical}
