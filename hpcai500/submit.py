"""Plan a submission, train its runs on this machine, assemble it and verify it.

Run as ``hpcai500 submit ...`` or ``python -m hpcai500.submit ...``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hpcai500.command import INTERRUPTED_EXIT_CODE, run_command
from hpcai500.errors import RunError, UsageError
from hpcai500.plan import Plan, make_plan
from hpcai500.submission import RunConfig, assemble_submission, write_json
from hpcai500.verify import print_verdict, verify_submission

EPILOG = """examples:
  hpcai500 submit --size mini --data data/mini.h5 --ranks 2
  hpcai500 submit --data imagenet.h5 --ranks 8 --set batch_size_per_rank=128 --dry-run

Every setting, its default and the levels that may change it stand in rules/workloads/resnet50.toml."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("--workload", default="resnet50", help="what to train (default: %(default)s)")
    parser.add_argument("--level", default="free", help="hardware, system or free (default: %(default)s)")
    parser.add_argument("--size", default="official", help="official, mini or smoke (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="HDF5 file, made by `hpcai500 data prepare`")
    parser.add_argument("--ranks", type=int, help="processes to train with (default: one a GPU, else one)")
    parser.add_argument("--runs", type=int, help="runs, each with a seed of its own (default: as the size demands)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first run; the next count up (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to train (default: cuda if there is any)")
    parser.add_argument("--output", type=Path, help="new folder of the submission (default: runs/NAME-DATE)")
    parser.add_argument("--submitter", help="who submits, as the ranking shall show it")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the workload, as far as the level allows; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop")


def run(args: argparse.Namespace) -> int:
    """Plan, train, assemble, verify; returns 0 if the submission is valid."""
    plan = make_plan(args)
    print(plan.describe(), flush=True)
    if args.dry_run:
        return 0
    make_folders(plan)
    for number, config in enumerate(plan.configs, start=1):
        train_run(
            config, run_folder(plan, number), title=f"run {number}/{len(plan.configs)}", num_epochs=plan.size.epochs
        )
    return judge(plan, submitter=args.submitter)


def run_folder(plan: Plan, number: int) -> Path:
    return plan.folder / f"run-{number}"


def make_folders(plan: Plan) -> None:
    """Make the submission's folder with a configured folder a run.

    Raises:
        UsageError: it exists already, or cannot be made; nothing is overwritten.
    """
    try:
        plan.folder.mkdir(parents=True)
        for number, config in enumerate(plan.configs, start=1):
            (run_folder(plan, number) / "ledger").mkdir(parents=True)
            write_json(run_folder(plan, number) / "config.json", config)
    except FileExistsError:
        raise UsageError(
            f"--output {str(plan.folder)!r} exists already and nothing is ever overwritten; name a new folder"
        ) from None
    except OSError as error:
        raise UsageError(f"--output {str(plan.folder)!r} cannot be written; name another folder") from error


def train_run(config: RunConfig, folder: Path, *, title: str, num_epochs: int) -> None:
    """Train one run on local ranks, showing how far it is.

    Raises:
        RunError: the run failed; its folder keeps what it recorded.
        KeyboardInterrupt: the run was interrupted; likewise.
    """
    from hpcai500.launch.local import run_ranks
    from hpcai500.progress import ProgressDisplay, RunFollower

    follower = RunFollower(folder, num_epochs=num_epochs, num_ranks=config.num_ranks)
    with ProgressDisplay(follower, title=title):
        exit_code = run_ranks(
            str(config.settings["communicator"]),
            config.num_ranks,
            [sys.executable, "-m", "hpcai500.train", str(folder)],
        )
    if exit_code == INTERRUPTED_EXIT_CODE:
        raise KeyboardInterrupt
    if exit_code != 0:
        raise RunError(
            f"{title} ended with exit code {exit_code}; the reason stands above, "
            f"and what it recorded lies in {str(folder)!r}"
        )


def judge(plan: Plan, *, submitter: str | None) -> int:
    """Assemble the submission from its runs, verify it and say where everything lies."""
    path = plan.folder / "submission.json"
    folders = [run_folder(plan, number) for number in range(1, len(plan.configs) + 1)]
    assemble_submission(folders, path, submitter=submitter)
    verdict = verify_submission(path)
    print()
    print_verdict(verdict)
    shown = os.path.relpath(path)
    print(f"\nsubmission: {shown}\nverify it: hpcai500-verify {shown}")
    return 0 if verdict.valid else 1


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.submit``."""
    return run_command("python -m hpcai500.submit", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
