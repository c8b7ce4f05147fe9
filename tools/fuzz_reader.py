#!/usr/bin/env python3
"""Fuzz the verifier's readers with atheris: lines of ledgers and every record, until told to stop.

    python tools/fuzz_reader.py -max_total_time=60 -rss_limit_mb=1000

Needs atheris. A finding of libFuzzer is a bug: readers answer with findings or a RecordError, whatever they are given.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["hpcai500"]):
    from hpcai500.errors import RecordError
    from hpcai500.formats import RunConfig, RunResult, SignedTicket, Submission, System, decode
    from hpcai500.ledger import scan_ledger

FORMS = (Submission, RunConfig, RunResult, System, SignedTicket)
LEDGER = Path(tempfile.mkdtemp(prefix="hpcai500-fuzz-")) / "rank-00000.jsonl"


def test_one_input(content: bytes) -> None:
    """The first byte chooses the reader."""
    reader, rest = content[:1], content[1:]
    if not reader or reader[0] % (len(FORMS) + 1) == len(FORMS):
        LEDGER.write_bytes(rest)
        for item in scan_ledger(LEDGER):
            str(item)
        return
    try:
        decode(rest, FORMS[reader[0] % (len(FORMS) + 1)])
    except RecordError as error:
        str(error)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
