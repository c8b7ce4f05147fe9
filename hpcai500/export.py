"""Write what others read: MLPerf's logs of a submission's runs, and the JSON Schemas of all records.

Logs have the keys of MLPerf Training's ruleset 4.0.0, benchmark resnet, which its compliance checker reads. Every value
is the run's own. By the checks of the open division a run passes; by those of the closed one it cannot: its learning
rate ends at 0 along a cosine, where they demand 0.0001 along a polynomial. What else differs is named at the end of
each log.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcai500.edition import load_edition
from hpcai500.errors import RecordError, UsageError
from hpcai500.formats import Submission, read_record
from hpcai500.mllog import DEMANDS, INIT_LIMIT_MS, RULESET, Division, log_of_run
from hpcai500.schemas import write_schemas

_DEMANDS = "\n".join(f"  {key}: {demand.rule}; {demand.why}" for key, demand in DEMANDS.items())
EPILOG = f"""examples:
  hpcai500 export --mllog logs runs/NAME/submission.json
  hpcai500 export --mllog logs --division closed --status onprem runs/NAME/submission.json
  hpcai500 export --schemas schemas

what the checks of the closed division demand and a run may have otherwise:
{_DEMANDS}

check a log with: python -m mlperf_logging.compliance_checker --ruleset {RULESET} logs/result_0.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("submission", type=Path, nargs="?", help="the submission.json whose runs are exported")
    parser.add_argument("--mllog", type=Path, metavar="DIRECTORY", help="write a result_N.txt of each completed run")
    parser.add_argument(
        "--division", choices=sorted(INIT_LIMIT_MS), default="open", help="whose checks the logs ask for (open)"
    )
    parser.add_argument(
        "--status",
        choices=("cloud", "onprem", "preview", "research"),
        default="research",
        help="availability of the machine in MLPerf's words (research)",
    )
    parser.add_argument("--schemas", type=Path, metavar="DIRECTORY", help="write the JSON Schemas of all records")


def run(args: argparse.Namespace) -> int:
    """Write the files; returns 0.

    Raises:
        UsageError: nothing is to be written, or the workload has no log.
        RecordError: the submission cannot be read, or a file not written.
    """
    if args.mllog is None and args.schemas is None:
        raise UsageError("nothing to write; use --mllog DIRECTORY submission.json or --schemas DIRECTORY")
    if args.mllog is not None and args.submission is None:
        raise UsageError("--mllog needs a submission, as in `hpcai500 export --mllog logs runs/NAME/submission.json`")
    written = [] if args.schemas is None else write_schemas(args.schemas)
    if args.mllog is not None:
        written += export_logs(args.submission, args.mllog, division=args.division, status=args.status)
    for path in written:
        print(path)
    return 0


def export_logs(path: Path, folder: Path, *, division: Division = "open", status: str = "research") -> list[Path]:
    """Write a log of each completed run of a submission, in its order, as result_0.txt and so on.

    Args:
        path: of submission.json.
        folder: where the logs go; is made, and no file in it overwritten.
        division: whose checks the logs ask for.
        status: as MLPerf has it: "cloud", "onprem", "preview" or "research".

    Raises:
        UsageError: the workload is none of MLPerf's.
        RecordError: the submission cannot be read, or a log not written.
    """
    submission = read_record(path, Submission)
    completed = [run for run in submission.runs if run.status == "completed"]
    logs = [
        log_of_run(path.parent, submission, run, load_edition(), division=division, status=status) for run in completed
    ]
    written = [folder / f"result_{number}.txt" for number in range(len(logs))]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, log in zip(written, logs, strict=True):
            with target.open("x", encoding="utf-8") as file:
                file.write(log)
    except FileExistsError as error:
        raise RecordError(f"{error.filename!r} exists and is never overwritten; name another folder") from None
    except OSError as error:
        raise RecordError(f"cannot write into {str(folder)!r} ({error.strerror}); name another folder") from None
    return written
