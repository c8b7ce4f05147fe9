"""Plan a submission, train its runs here or on a cluster, assemble it and verify it.

Run as ``hpcai500 submit ...`` or ``python -m hpcai500.submit ...``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import uuid
from pathlib import Path

from hpcai500.command import INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE, run_command
from hpcai500.errors import HpcAi500Error, RunError, UsageError
from hpcai500.formats import SUBMISSION_NAME
from hpcai500.last_words import saved_position
from hpcai500.launch.launch_config import read_launch_config, write_launch_config
from hpcai500.launch.layout import number_or_auto
from hpcai500.launches import Outcome, note_end, note_launch, note_start, note_submission
from hpcai500.over import show_verdict, submitted_folders, submitter_of
from hpcai500.plan import DEFAULT_LEVEL, DEFAULT_SEED, DEFAULT_SIZE, DEFAULT_WORKLOAD, Plan, make_plan
from hpcai500.register.ticket import TICKET_NAME
from hpcai500.submission import assemble_submission, write_json

EPILOG = """examples:
  hpcai500 submit --size mini --data data/mini.h5 --ranks 2              on this machine
  hpcai500 submit --data imagenet.h5 --ranks 8 --set batch_size_per_rank=128 --dry-run
  hpcai500 submit --nodes 64 --gpus-per-node 4 --time 12:00:00 --wait    on a cluster with Slurm and a site.toml
  hpcai500 submit --resume runs/resnet50-official-free-20261124-101500   go on with what was stopped
  hpcai500 submit --ticket ticket.json --data imagenet.h5 --nodes 64     runs that `hpcai500 register` announced

Every setting, its default and the levels that may change it stand in rules/workloads/resnet50.toml."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words; a word that was not typed is None, so that a site file can decide."""
    parser.add_argument("--workload", help=f"what to train (default: {DEFAULT_WORKLOAD})")
    parser.add_argument("--level", help=f"hardware, system or free (default: {DEFAULT_LEVEL})")
    parser.add_argument("--size", help=f"official, mini or smoke (default: {DEFAULT_SIZE})")
    parser.add_argument("--data", type=Path, help="HDF5 file, made by `hpcai500 data prepare` (default: site.toml's)")
    parser.add_argument("--runs", type=int, help="runs, each with a seed of its own (default: as the size demands)")
    parser.add_argument("--seed", type=int, help=f"seed of the first run; the next count up (default: {DEFAULT_SEED})")
    parser.add_argument("--output", type=Path, help="new folder of the submission (default: runs/NAME-DATE)")
    parser.add_argument("--submitter", help="who submits, as the ranking shall show it")
    parser.add_argument("--ticket", type=Path, metavar="FILE", help="make the runs that `hpcai500 register` announced")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the workload, as far as the level allows; may be repeated",
    )
    parser.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with a submission that was stopped")
    parser.add_argument(
        "--assemble", action="store_true", help="with --resume: train no more, and submit the runs as they stand"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan, and the script for sbatch; then stop")
    _add_place_arguments(parser.add_argument_group("where it runs"))
    _add_cluster_arguments(parser.add_argument_group("on a cluster (what is not given comes from site.toml)"))


def _add_place_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--cluster",
        choices=("slurm", "local", "allocation"),
        help="slurm: submit to the queue; local: on this machine; allocation: within the job of a job script "
        "(default: slurm if --nodes is given, else local)",
    )
    group.add_argument("--nodes", type=int, help="nodes of a run (default: 1)")
    group.add_argument(
        "--ranks-per-node",
        type=number_or_auto,
        metavar="N",
        help="processes a node (default: one a GPU, else one); auto: on processors, as many as train fastest, which "
        "is measured for some seconds on this machine",
    )
    group.add_argument("--ranks", type=int, metavar="N", help="processes in all, instead of --ranks-per-node")
    group.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs a node (default: all of this machine)")
    group.add_argument("--device", choices=("cpu", "cuda"), help="where to train (default: cuda if there are GPUs)")
    group.add_argument(
        "--stage", dest="stage_dir", metavar="DIR", help="copy the data to this folder of each node first"
    )
    group.add_argument(
        "--on-full-disk",
        choices=("fallback", "stop"),
        help="if the data does not fit there: read it where it lies, or stop (default: fallback)",
    )


def _add_cluster_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--site", type=Path, metavar="FILE", help="site file (default: see `hpcai500 site`)")
    group.add_argument("--partition", help="partition")
    group.add_argument("--account", help="account that pays")
    group.add_argument("--time", metavar="LIMIT", help="time limit of a job: 90 (minutes), 1:30:00 or 1-12:00:00")
    group.add_argument(
        "--software",
        dest="software_archive",
        metavar="FILE",
        help="archive that `hpcai500 software` made; ranks start from copies of it on their nodes",
    )
    group.add_argument("--launcher", choices=("srun", "mpirun"), help="what starts the ranks in a job (default: srun)")
    group.add_argument(
        "--runs-at-once", type=int, metavar="N", help="runs that may be trained at the same time (default: 1)"
    )
    group.add_argument(
        "--selfcheck",
        choices=("require", "warn", "off"),
        help="refuse a sick machine, only say so, or do not look (default: require)",
    )
    group.add_argument("--no-selfcheck", action="store_true", help="the same as --selfcheck off")
    group.add_argument("--wait", action="store_true", help="show how far the jobs are, until they have ended")


def run(args: argparse.Namespace) -> int:
    """Plan, start, and where this process sees the end: assemble and verify. Returns 0 if all is well."""
    if args.assemble:
        return assemble_as_it_stands(args)
    plan = _plan(args)
    print(plan.describe(), flush=True)
    if args.dry_run:
        if plan.launch.cluster == "slurm":
            from hpcai500.launch.slurm import sbatch_script

            print()
            print(sbatch_script(plan.folder, plan.launch, job_name=plan.job_name, num_runs=len(plan.runs)), end="")
        return 0
    make_folders(plan)
    note_submission(plan.folder)
    if not plan.runs:
        return judge(plan)
    if plan.launch.cluster == "slurm":
        return submit_to_queue(plan, wait=args.wait)
    return train_in_job(plan) if plan.launch.cluster == "allocation" else train_here(plan)


def _plan(args: argparse.Namespace) -> Plan:
    from hpcai500.unfinished import is_own, plan_rest, plan_restart

    if args.resume is not None:
        return plan_rest(args)
    plan = make_plan(args)
    if plan.launch.cluster == "allocation" and is_own(plan.folder):
        return plan_restart(plan.folder)
    return plan


def assemble_as_it_stands(args: argparse.Namespace) -> int:
    """Assemble and verify a submission some of whose runs will never be complete.

    Raises:
        UsageError: no submission is named, or it is over or still worked on.
        RecordError: no run is complete, or a folder cannot be read.
    """
    from hpcai500.unfinished import end_unfinished

    if args.resume is None:
        raise UsageError("--assemble needs the submission that it ends; name its folder with --resume FOLDER")
    folder = args.resume.absolute()
    end_unfinished(folder)
    assemble_submission(submitted_folders(folder), folder / SUBMISSION_NAME, submitter=submitter_of(folder))
    return 0 if show_verdict(folder / SUBMISSION_NAME) else 1


def run_folder(plan: Plan, number: int) -> Path:
    return plan.folder / f"run-{number}"


def make_folders(plan: Plan) -> None:
    """Make the submission's folder with a configured folder a run, all at once or not at all.

    For a submission that is gone on with, only the way it is started from now on is written.

    Raises:
        UsageError: it exists already, or cannot be made; nothing is overwritten.
    """
    if not plan.is_new:
        if plan.launch != read_launch_config(plan.folder):
            write_launch_config(plan.folder, plan.launch)
        return
    exists = UsageError(
        f"--output {str(plan.folder)!r} exists already and nothing is ever overwritten; name a new folder"
    )
    if plan.folder.exists():
        raise exists
    made = plan.folder.with_name(f".{plan.folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        made.mkdir(parents=True)
        write_launch_config(made, plan.launch)
        if plan.ticket is not None:
            write_json(made / TICKET_NAME, plan.ticket)
        for number, config in enumerate(plan.configs, start=1):
            (made / f"run-{number}" / "ledger").mkdir(parents=True)
            write_json(made / f"run-{number}" / "config.json", config)
        made.rename(plan.folder)
    except FileExistsError:
        raise exists from None
    except OSError as error:
        raise UsageError(f"--output {str(plan.folder)!r} cannot be written; name another folder") from error
    finally:
        if made.exists():
            shutil.rmtree(made)


def submit_to_queue(plan: Plan, *, wait: bool) -> int:
    """Submit the runs to Slurm, and say how to find them again."""
    from hpcai500.launch.slurm import submit_runs

    try:
        job, elements = submit_runs(plan.folder, plan.launch, plan.runs, job_name=plan.job_name)
    except HpcAi500Error:
        if plan.is_new:  # nothing was started, so nothing is lost
            shutil.rmtree(plan.folder)
        raise
    note_launch(plan.folder, job=job, runs={index: [number] for index, number in elements.items()})
    folder = os.path.relpath(plan.folder)
    runs = f"runs {plan.runs[0]} to {plan.runs[-1]}" if len(plan.runs) > 1 else f"run {plan.runs[0]}"
    print(f"\nsubmitted {runs} as job {job}")
    print(f"follow: hpcai500 watch {folder}\nstate:  hpcai500 status {folder}\ncancel: scancel {job}", flush=True)
    if not wait:
        return 0
    from hpcai500.watch import watch

    return watch(plan.folder)


def train_in_job(plan: Plan) -> int:
    """Drive the runs one after the other in the job that this process is part of.

    A run that failed takes the others not with it: each has a seed of its own. One that is to go on later, after the
    scheduler has started the job again, ends the work here. The last one assembles the submission.
    """
    from hpcai500.job import run_job

    note_launch(plan.folder, job=os.environ["SLURM_JOB_ID"], runs={"": plan.runs})
    worst = 0
    for number in plan.runs:
        code = run_job(plan.folder, number)
        if code not in (0, 1):
            return code
        worst = max(worst, code)
    return worst


def train_here(plan: Plan) -> int:
    """Train the runs on this machine, one after the other."""
    note_launch(plan.folder, job="", runs={"": plan.runs})
    for number in plan.runs:
        train_run(plan, number)
    return judge(plan)


def train_run(plan: Plan, number: int) -> None:
    """Train one run on local ranks, showing how far it is.

    Raises:
        RunError: the run failed; its folder keeps what it recorded.
        KeyboardInterrupt: the run was interrupted; likewise.
    """
    from hpcai500.launch.local import run_ranks
    from hpcai500.progress import ProgressDisplay, RunFollower

    config, folder = plan.configs[number - 1], run_folder(plan, number)
    title = f"run {number}/{len(plan.configs)}"
    follower = RunFollower(folder, num_epochs=plan.size.epochs, num_ranks=plan.launch.num_ranks)
    position = saved_position(folder)
    note_start(plan.folder, number, nodes=[os.uname().nodename], position=(position.epoch, position.step))
    with ProgressDisplay(follower, title=title):
        exit_code = run_ranks(str(config.settings["communicator"]), plan.launch.num_ranks, rank_words(plan, folder))
    position = saved_position(folder)
    reason = "all epochs done" if exit_code == 0 else f"its ranks ended with exit code {exit_code}"
    note_end(
        plan.folder,
        number,
        outcome=_outcome(exit_code),
        exit_code=exit_code,
        reason=reason,
        position=(position.epoch, position.step),
    )
    if exit_code != 0:
        again = f"go on with `hpcai500 submit --resume {os.path.relpath(plan.folder)}`"
        if exit_code == INTERRUPTED_EXIT_CODE:
            print(f"to {again}", file=sys.stderr)
            raise KeyboardInterrupt
        if exit_code == STOPPED_EXIT_CODE:
            raise RunError(f"{title} was stopped with a checkpoint; {again}")
        raise RunError(
            f"{title} ended with exit code {exit_code}; the reason stands above, and what it recorded lies in "
            f"{str(folder)!r}; when the cause is mended {again}"
        )


def _outcome(exit_code: int) -> Outcome:
    """What became of a run; a rank that was killed, or that lost another one, can be gone on with."""
    outcomes: dict[int, Outcome] = {0: "completed", 1: "failed", 2: "failed", INTERRUPTED_EXIT_CODE: "interrupted"}
    return outcomes.get(exit_code, "stopped")


def rank_words(plan: Plan, folder: Path) -> list[str]:
    """The command of each rank on this machine."""
    words = [sys.executable, "-m", "hpcai500.train", str(folder)]
    if plan.launch.stage_dir is not None:
        words += ["--stage", plan.launch.stage_dir, "--on-full-disk", plan.launch.on_full_disk]
    if plan.launch.ipmi_accuracy is not None:
        words += ["--ipmi-accuracy", str(plan.launch.ipmi_accuracy)]
    return words


def judge(plan: Plan) -> int:
    """Assemble the submission from its runs, verify it and say where everything lies."""
    path = plan.folder / SUBMISSION_NAME
    folders = [run_folder(plan, number) for number in range(1, len(plan.configs) + 1)]
    assemble_submission(folders, path, submitter=plan.launch.submitter)
    return 0 if show_verdict(path) else 1


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.submit``."""
    return run_command("python -m hpcai500.submit", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
