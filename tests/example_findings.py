"""Writes hpcai500/example_findings.json: a finding of every rule, as the verifier makes it of a broken submission.

Run as ``python tests/example_findings.py`` after a rule has been added: it runs the verifier's tests, which break
submissions in every way, and keeps the shortest finding of each rule. Takes a few minutes; names of test files as words
make it run only those, and keep the other examples.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from unittest import mock

import msgspec
import pytest

import hpcai500.verify
from hpcai500.explain import EXAMPLES
from hpcai500.finding import Finding
from hpcai500.replay import replay
from hpcai500.rulebook import RULEBOOK
from hpcai500.verdict import encodable

TESTS = Path(__file__).parent
FILES = ("test_verify*.py", "test_replay*.py", "test_equivalence*.py")


class Judged(Protocol):
    findings: list[Finding]


def collected(seen: set[Finding], judge: Callable[..., Judged]) -> Callable[..., Judged]:
    """The function, which also collects what it finds."""

    def judge_and_collect(*args: object, **options: object) -> Judged:
        judged = judge(*args, **options)
        seen.update(judged.findings)
        return judged

    return judge_and_collect


def examples_of(seen: set[Finding]) -> dict[str, Finding]:
    """The shortest finding of each rule, of those that name no folder of this machine."""
    findings = [finding for finding in seen if tempfile.gettempdir() not in str(finding)]
    findings = [finding for finding in findings if encodable(str(finding)).isprintable()]
    findings.sort(key=lambda finding: (len(str(finding)), str(finding)))
    return {
        rule: next(finding for finding in findings if finding.rule == rule)
        for rule in RULEBOOK
        if any(finding.rule == rule for finding in findings)
    }


def main(chosen: list[str]) -> int:
    """Write the examples; returns 1 if a rule has none, 2 or more if the tests did not run."""
    seen: set[Finding] = set()
    files = chosen or sorted(str(path) for pattern in FILES for path in TESTS.glob(pattern))
    with (  # before the tests import these names
        mock.patch("hpcai500.verify.verify_submission", collected(seen, hpcai500.verify.verify_submission)),
        mock.patch("hpcai500.replay.replay.replay_submission", collected(seen, replay.replay_submission)),
    ):
        code = pytest.main(["--quiet", "--no-header", "-n", "0", *files])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(code)
    before = msgspec.json.decode(EXAMPLES.read_bytes(), type=dict[str, Finding]) if chosen else {}
    found = before | examples_of(seen)
    examples = {rule: found[rule] for rule in RULEBOOK if rule in found}
    EXAMPLES.write_bytes(msgspec.json.format(msgspec.json.encode(examples), indent=2) + b"\n")
    missing = RULEBOOK.keys() - examples.keys()
    for rule in sorted(missing):
        print(f"no test breaks {rule}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
