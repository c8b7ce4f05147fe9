"""Show what runs or submissions did, as one page that opens anywhere, prints and needs no network.

Run as ``hpcai500 report ...`` or ``python -m hpcai500.report.command ...``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hpcai500.command import run_command
from hpcai500.edition import load_edition
from hpcai500.errors import UsageError
from hpcai500.register.trusted import find_trusted_keys
from hpcai500.report.page import MAX_SUBJECTS, render_subjects
from hpcai500.report.subject import read_subject
from hpcai500.verify import write_text

REPORT_NAME = "report.html"
EPILOG = """examples:
  hpcai500 report runs/NAME                          a submission: writes report.html
  hpcai500 report runs/NAME/run-1                    a run, also one that is still running
  hpcai500 report runs/A runs/B --output compared.html
  hpcai500 report runs/NAME --csv runs.csv --json figures.json

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
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write a table with a line for each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures, for programs")


def run(args: argparse.Namespace) -> int:
    """Write the page, and tables where they are asked for; returns 0 whatever the verdict.

    Raises:
        UsageError: a path with nothing to report on, or too many.
        RecordError: a file cannot be read or written.
    """
    if len(args.paths) > MAX_SUBJECTS:
        raise UsageError(f"{len(args.paths)} are too many to stand side by side; name at most {MAX_SUBJECTS}")
    edition, trusted = load_edition(), find_trusted_keys()
    subjects = [read_subject(path, edition, trusted=trusted) for path in args.paths]
    write_text(args.output, render_subjects(subjects))
    written = [args.output]
    if args.csv or args.json:
        from hpcai500.report import tables  # pandas takes a while to import

        for path, make in ((args.csv, tables.as_csv), (args.json, tables.as_json)):
            if path is not None:
                write_text(path, make(subjects))
                written.append(path)
    for path in written:
        print(f"wrote {os.path.relpath(path)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.report.command``."""
    return run_command("python -m hpcai500.report.command", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
