"""Writes hpcai500/example_findings.json: a finding of every rule, as the verifier makes it of a broken submission.

Run as ``python tests/example_findings.py`` after a rule has been added; the submissions are those of the verifier's
tests.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from recording import EDITION, Forger, record_submission
from test_verify import MUTATIONS, Mutation

from hpcai500.explain import EXAMPLES
from hpcai500.finding import Finding
from hpcai500.rulebook import RULEBOOK
from hpcai500.verify import verify_submission


def unnamed(forger: Forger) -> None:
    forger.edit_submission(lambda submission: submission.update(workload="resnet"))


def elsewhere(forger: Forger) -> None:
    forger.edit_submission(lambda submission: submission["runs"][0].update(folder="../run-1"))


def no_seed(forger: Forger) -> None:
    forger.edit_submission(lambda submission: submission["runs"][0].pop("seed"))


# Rules that are applied while the files are read, by no check.
WHILE_READING: dict[str, Callable[[Forger], None]] = {
    "form.schema": no_seed,
    "form.names": unnamed,
    "form.folder": elsewhere,
}


def broken_submissions() -> Iterator[list[Finding]]:
    """The findings of every broken submission."""
    reading = [Mutation("", rule, "reading", change, mends="no") for rule, change in WHILE_READING.items()]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        kinds = {False: record_submission(folder / "plain"), True: record_submission(folder / "resumed", resumed_on=2)}
        for number, mutation in enumerate([*reading, *MUTATIONS]):
            path = shutil.copytree(kinds[mutation.resumed].parent, folder / f"copy-{number}") / "submission.json"
            forger = Forger(path)
            mutation.change(forger)
            if mutation.mends != "no":
                forger.forge(configs=mutation.mends == "all", figures=mutation.mends in ("all", "figures"))
            findings = verify_submission(path, EDITION).findings
            yield sorted(findings, key=lambda finding: finding.rule != mutation.rule)
            shutil.rmtree(path.parent)


def main() -> int:
    """Write the examples; returns how many rules have none."""
    examples: dict[str, Finding] = {}
    for findings in broken_submissions():
        if findings:
            examples.setdefault(findings[0].rule, findings[0])
        for finding in findings:
            examples.setdefault(finding.rule, finding)
    content = msgspec.json.encode({rule: examples[rule] for rule in RULEBOOK if rule in examples})
    EXAMPLES.write_bytes(msgspec.json.format(content, indent=2) + b"\n")
    missing = RULEBOOK.keys() - examples.keys()
    for rule in sorted(missing):
        print(f"no broken submission breaks {rule}", file=sys.stderr)
    return len(missing)


if __name__ == "__main__":
    sys.exit(main())
