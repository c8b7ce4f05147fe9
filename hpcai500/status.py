"""Show how far submissions are: their runs, jobs, why they wait, epoch, speed, quality and time left.

Run as ``hpcai500 status ...`` or ``python -m hpcai500.status ...``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from hpcai500.command import run_command
from hpcai500.errors import HpcAi500Error
from hpcai500.formats import SUBMISSION_NAME
from hpcai500.launch.queue import Queue
from hpcai500.launches import list_submissions
from hpcai500.over import assemble_if_over, has_job_left
from hpcai500.run_states import (
    RunView,
    SubmissionFollower,
    SubmissionView,
    begun_at,
    format_duration,
    shown_path,
)

SHOWN = 10  # submissions without --all

EPILOG = """examples:
  hpcai500 status                                  your submissions, from any folder, the newest first
  hpcai500 status runs/resnet50-mini-free-20261124-101500
  hpcai500 status --json | jq '.[0].runs[].state'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="folder of a submission (default: all of yours)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("--all", action="store_true", help=f"not only the {SHOWN} newest")


def run(args: argparse.Namespace) -> int:
    """Print the state of each submission; returns 0, or 1 if one that was named cannot be read."""
    folders = args.folders or list_submissions()
    if not folders:
        print("[]" if args.json else "you have no submissions yet; `hpcai500 submit` makes one")
        return 0
    shown = folders if args.all or args.folders else folders[:SHOWN]
    queue, exit_code, described = Queue(), 0, []
    for folder in shown:
        try:
            view = SubmissionFollower(folder.absolute(), queue).look()
        except HpcAi500Error as error:
            print(f"hpcai500 status: {error}", file=sys.stderr)
            exit_code = 1 if args.folders else exit_code
            continue
        described.append(as_json(view))
        if not args.json:
            print_submission(view)
            has_result = any(run_view.state == "completed" for run_view in view.runs)
            if view.is_over and has_result and not has_job_left(folder.absolute(), queue):
                assemble_if_over(folder.absolute(), queue=queue)
    if args.json:
        print(json.dumps(described, indent=2))
    elif len(shown) < len(folders):
        print(f"and {len(folders) - len(shown)} older; show them with --all")
    return exit_code


def print_submission(view: SubmissionView) -> None:
    """Print a submission and a line for each of its runs."""
    verdict = ", assembled" if (view.folder / SUBMISSION_NAME).exists() else ""
    print(f"{shown_path(view.folder)}   {view.title}, begun {begun_at(view.folder)}{verdict}")
    for run_view in view.runs:
        print(f"  {describe_run(run_view)}")
    if view.problem:
        print(f"  note: {view.problem}")


def describe_run(view: RunView) -> str:
    """A run in a line."""
    job = f" (job {view.job})" if view.job and not view.is_over else ""
    eta_s = view.progress.eta_s if view.state == "running" else None
    left = f", {format_duration(eta_s)} left" if eta_s else ""
    return f"run {view.number}: {view.state}{job}{f', {view.detail}' if view.detail else ''}{left}"


def as_json(view: SubmissionView) -> dict[str, Any]:
    """What ``--json`` gives for a submission."""
    path = view.folder / SUBMISSION_NAME
    return {
        "folder": str(view.folder),
        "title": view.title,
        "begun": begun_at(view.folder),
        "is_over": view.is_over,
        "submission": str(path) if path.exists() else None,
        "problem": view.problem or None,
        "runs": [
            {
                "run": run_view.number,
                "state": run_view.state,
                "detail": run_view.detail,
                "is_over": run_view.is_over,
                "job": run_view.job or None,
                "segment": run_view.progress.segment,
                "epoch": run_view.progress.epoch,
                "num_epochs": run_view.progress.num_epochs,
                "step": run_view.progress.step,
                "num_steps": run_view.progress.num_steps,
                "samples_per_s": run_view.progress.samples_per_s,
                "loss": run_view.progress.loss,
                "quality": run_view.progress.quality,
                "eta_s": run_view.progress.eta_s if run_view.state == "running" else None,
            }
            for run_view in view.runs
        ],
    }


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.status``."""
    return run_command("python -m hpcai500.status", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
