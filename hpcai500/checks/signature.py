"""Signature: what vouches for a submission was made over this very file, with the key that it names.

Not covered: whose key that is; the verdict names whom the reader knows by it (hpcai500/register/trusted.py).
"""

from __future__ import annotations

import hashlib

from hpcai500.checks.case import Case
from hpcai500.errors import RecordError
from hpcai500.finding import Finding
from hpcai500.formats import read_bytes
from hpcai500.signature import is_sealed, read_signature, signature_path


def check_signature(case: Case) -> list[Finding]:
    """A signature, if there is one, has its form, is of its key, and over this file (rules signature.*)."""
    place = signature_path(case.path).name
    try:
        signature = read_signature(case.path)
    except RecordError as error:
        return [Finding("signature.form", place, "a signature in JSON", str(error))]
    if signature is None:
        return []
    if isinstance(signature, list):
        return [Finding("signature.form", place, "a signature", problem) for problem in signature]
    findings = []
    digest = hashlib.sha256(read_bytes(case.path)).hexdigest()
    if signature.vouched.submission_sha256 != digest:
        expected = f"{digest} (of {case.place})"
        found = signature.vouched.submission_sha256
        findings.append(Finding("signature.digest", f"{place}:vouched.submission_sha256", expected, found))
    if not is_sealed(signature):
        expected = f"a signature by key {signature.vouched.public_key}"
        findings.append(Finding("signature.key", f"{place}:signature", expected, "one that is not"))
    return findings
