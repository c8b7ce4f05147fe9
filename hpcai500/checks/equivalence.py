"""Equivalence: code that is not the released one is proven to compute what the reference computes.

Not covered: a proof that somebody wrote from the reference's own numbers, which are published.
"""

from __future__ import annotations

from hpcai500.checks.case import Case
from hpcai500.checks.code import code_of, is_released
from hpcai500.checks.form import check_listed, is_inside
from hpcai500.deviations import CODE_LAYER
from hpcai500.equivalence.definition import load_proof_rules
from hpcai500.equivalence.proof import PROOF_NAME, Proof, compare_proofs, read_reference
from hpcai500.errors import RecordError
from hpcai500.finding import Finding
from hpcai500.formats import decode, read_bytes

POLICY_LAYER = 8  # hyper-parameters and policies: a level that opens them leaves nothing to be equivalent to


def check_proof_file(case: Case) -> list[Finding]:
    """The proof beside a submission is the one that it lists."""
    listed = case.submission.equivalence
    return check_listed(case.path.parent, PROOF_NAME, listed, PROOF_NAME) if listed is not None else []


def check_equivalence(case: Case) -> list[Finding]:
    """Where the level opens the code and not the policies, code that is not a release's comes with a proof."""
    layers = case.edition.level(case.submission.level).open_layers
    if CODE_LAYER not in layers or POLICY_LAYER in layers or is_released(case):
        return []
    if case.submission.equivalence is None:
        expected = f"{PROOF_NAME}, since the code that ran is not that of a release"
        return [Finding("level.equivalence", f"{case.place}:equivalence", expected, "nothing")]
    proof = _read_proof(case)
    if isinstance(proof, list):
        return proof
    findings = []
    digests = [digest for run in case.completed for digest in code_of(run)]
    if set(digests) != {proof.code_sha256}:
        expected = f"{proof.code_sha256 or 'no digest'}, the code of the proof"
        found = ", ".join(sorted({digest or "none" for digest in digests})[:4])
        findings.append(Finding("level.equivalence", f"{case.place}:runs.code_sha256", expected, found))
    reference = read_reference(case.workload.name, case.size.name)
    for difference in compare_proofs(proof, reference, load_proof_rules().bounds):
        place = f"{PROOF_NAME}:{difference.part}"
        findings.append(Finding("level.equivalence", place, difference.expected, difference.found))
    return findings


def _read_proof(case: Case) -> Proof | list[Finding]:
    if not is_inside(case.path.parent, PROOF_NAME):
        return []  # check_proof_file says so
    try:
        proof = decode(read_bytes(case.path.parent / PROOF_NAME), Proof)
    except RecordError as error:
        return [Finding("level.equivalence", PROOF_NAME, "a proof in JSON", str(error))]
    if isinstance(proof, list):
        return [Finding("level.equivalence", PROOF_NAME, "the form of a proof", problem) for problem in proof]
    return proof
