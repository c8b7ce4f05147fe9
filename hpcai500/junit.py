"""Verdicts as a JUnit report, which continuous integration shows: a suite a submission, a test case a rule.

There is no standard of it; elements and attributes are those that Jenkins, GitLab and GitHub actions read: testsuites,
testsuite, testcase with failure, error or skipped, and system-out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree  # only writes here

from hpcai500.applied_rules import appliers_of
from hpcai500.rulebook import RULEBOOK
from hpcai500.verdict import MAX_SHOWN, Verdict, printable


def junit_report(verdicts: Iterable[tuple[Path, Verdict]], unreadable: Iterable[tuple[Path, str]]) -> str:
    """The report of one call of the verifier as XML.

    A rule fails with an error of its own, is skipped where no check applied it, since what comes before is broken or
    nobody asked for a replay, and passes else; its warnings are output.

    Args:
        verdicts: of submissions, each with the path of its submission.json.
        unreadable: submissions that could not be judged, each with the reason.
    """
    root = ElementTree.Element("testsuites", name="hpcai500-verify")
    for path, verdict in verdicts:
        _add_suite(root, path, verdict)
    for path, error in unreadable:
        suite = ElementTree.SubElement(root, "testsuite", name=printable(str(path)), tests="1", errors="1")
        case = ElementTree.SubElement(suite, "testcase", classname="hpcai500", name="it can be read")
        ElementTree.SubElement(case, "error", type="RecordError", message=printable(error))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_suite(root: ElementTree.Element, path: Path, verdict: Verdict) -> None:
    num_failed = num_skipped = 0
    suite = ElementTree.SubElement(root, "testsuite", name=printable(str(path)), tests=str(len(RULEBOOK)), errors="0")
    for rule, entry in RULEBOOK.items():
        case = ElementTree.SubElement(suite, "testcase", classname=f"hpcai500.{rule.partition('.')[0]}", name=rule)
        lines = [printable(str(finding)) for finding in verdict.findings if finding.rule == rule]
        text = "\n".join([*lines[:MAX_SHOWN], *([f"... and more, {len(lines)} in all"] if lines[MAX_SHOWN:] else [])])
        appliers = appliers_of(rule)
        if lines and entry.severity == "error":
            num_failed += 1
            ElementTree.SubElement(case, "failure", type=rule, message=entry.sentence).text = text
        elif lines:
            ElementTree.SubElement(case, "system-out").text = text
        elif appliers and not set(appliers).intersection(verdict.checks):
            num_skipped += 1
            ElementTree.SubElement(case, "skipped", message="what it needs is broken or was not asked for")
    suite.set("failures", str(num_failed))
    suite.set("skipped", str(num_skipped))
