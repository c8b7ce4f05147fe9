"""Show what runs or submissions did, as one page that opens anywhere, prints and needs no network.

Run as ``hpcai500 report ...`` or ``python -m hpcai500.report.command ...``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpcai500.command import run_command
from hpcai500.edition import load_edition
from hpcai500.errors import RecordError, UsageError
from hpcai500.micro_record import read_micro
from hpcai500.plain_files import open_plain
from hpcai500.register.trusted import find_trusted_keys
from hpcai500.report.page import MAX_SUBJECTS, render_subjects
from hpcai500.report.subject import Subject, read_subject
from hpcai500.verify import write_text

REPORT_NAME = "report.html"
BEGINNINGS = {"output": "<!DOCTYPE html>", "csv": "subject,run,", "json": '{\n  "format": 1,\n  "percentiles"'}
EPILOG = """examples:
  hpcai500 report runs/NAME                          a submission: writes report.html
  hpcai500 report runs/NAME/run-1                    a run, also one that is still running
  hpcai500 report runs/A runs/B --output compared.html
  hpcai500 report runs/NAME --csv runs.csv --json figures.json
  hpcai500 report runs/NAME --micro micro.json       with what the machine allows (hpcai500 micro)

Of several the first is what the others are compared with. An existing report is written anew."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        type=Path,
        nargs="+",
        help="a submission.json, the folder of a submission, or the folder of a run",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(REPORT_NAME), metavar="FILE", help="the page (default: report.html here)"
    )
    parser.add_argument(
        "--micro",
        type=Path,
        metavar="FILE",
        help="what `hpcai500 micro` measured of the machine (default: micro.json beside the submission or run)",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write a table with a line for each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures, for programs")


def run(args: argparse.Namespace) -> int:
    """Write the page, and tables where they are asked for; returns 0 whatever the verdict.

    Raises:
        UsageError: a path with nothing to report on, too many, or a file to write that is something else already.
        RecordError: a file cannot be read or written.
    """
    if len(args.paths) > MAX_SUBJECTS:
        raise UsageError(f"{len(args.paths)} are too many to stand side by side; name at most {MAX_SUBJECTS}")
    wanted = {kind: path for kind in BEGINNINGS if (path := getattr(args, kind)) is not None}
    for kind, path in wanted.items():
        _refuse_other_file(path, BEGINNINGS[kind])
    edition, trusted = load_edition(), find_trusted_keys()
    subjects = [read_subject(path, edition, trusted=trusted) for path in args.paths]
    if args.micro is not None:
        record = read_micro(args.micro)
        subjects = [replace(subject, micro=record, micro_note="") for subject in subjects]
    for kind, path in wanted.items():
        write_text(path, _render(kind, subjects))
        print(f"wrote {os.path.relpath(path)}")
    return 0


def _render(kind: str, subjects: Sequence[Subject]) -> str:
    if kind == "output":
        return render_subjects(subjects)
    from hpcai500.report import tables  # pandas takes a while to import

    return tables.as_csv(subjects) if kind == "csv" else tables.as_json(subjects)


def _refuse_other_file(path: Path, beginning: str) -> None:
    """A report is written over an older one, and never over a record or anything else of the user's.

    Raises:
        UsageError: the file is there and is no report.
    """
    if not path.exists():
        return
    try:
        with open_plain(path) as file:
            is_report = file.read(len(beginning)) == beginning.encode()
    except RecordError:
        is_report = False
    if not is_report:
        raise UsageError(f"{str(path)!r} exists and was not written by this command; name another file")


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.report.command``."""
    return run_command("python -m hpcai500.report.command", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
