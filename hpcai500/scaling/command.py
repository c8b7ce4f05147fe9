"""Say what a job would take on more nodes, before anybody queues it: time, node-hours, energy, and what limits it.

Planned from what was measured: the folders of short runs, and the file of a self-check.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpcai500.command import run_command
from hpcai500.edition import load_edition
from hpcai500.errors import UsageError
from hpcai500.plain_files import open_plain
from hpcai500.scaling.calibration import (
    Calibration,
    calibrate,
    calibrate_selfcheck,
    complete,
    with_ranks_per_node,
    with_selfcheck,
)
from hpcai500.scaling.job import Job, make_job
from hpcai500.scaling.measured import (
    MeasuredRun,
    MeasuredSelfcheck,
    common_job,
    is_selfcheck,
    measure_run,
    measure_selfcheck,
    run_folders,
)
from hpcai500.scaling.model import Link
from hpcai500.scaling.prediction import plan
from hpcai500.scaling.text import as_json, as_table
from hpcai500.verify import write_text

STDOUT = "-"
MAX_NODES = 1_000_000
BEGINNINGS = {"output": "<!DOCTYPE html>", "json": '{\n  "format": 1,\n  "job"'}
NODES = "1,2,4,8,16,32,64,128,256,512,1024"
EPILOG = """examples:
  hpcai500 plan runs/NAME --nodes 1,2,4,8 --latency-us 20 --bandwidth-gb-s 25
  hpcai500 plan runs/NAME selfcheck.json --output plan.html      the network as a self-check of two nodes measured it
  hpcai500 plan runs/A/run-1 runs/B/run-1 --nodes 1              two runs that differ in their batch size
  hpcai500 plan selfcheck.json --workload resnet50 --json        without any run: less sure

The run may be short, and stopped early. How a plan is made, and where it fails: docs/planning.rst."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        type=Path,
        nargs="+",
        help="what was measured: a run's folder, a submission, or a file of `hpcai500 selfcheck --json FILE`",
    )
    parser.add_argument("--nodes", default=NODES, metavar="N,N,...", help="numbers of nodes (default: 1,2,4,...,1024)")
    parser.add_argument("--ranks-per-node", type=int, metavar="N", help="ranks a node (default: as measured)")
    parser.add_argument(
        "--batch-size-per-rank", type=int, metavar="N", help="batch size (default: the fastest valid one of each size)"
    )
    network = parser.add_argument_group("what was not measured")
    network.add_argument("--latency-us", type=float, metavar="US", help="of a small message between nodes, in us")
    network.add_argument(
        "--bandwidth-gb-s", type=float, metavar="GB/S", help="of a node towards the others, in GB/s each way"
    )
    network.add_argument(
        "--storage-gb-s", type=float, metavar="GB/S", help="of the data's storage, for all nodes together"
    )
    network.add_argument("--workload", default="resnet50", help="of a plan without a run (default: resnet50)")
    network.add_argument("--size", default="official", help="of a plan without a run (default: official)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also draw the plan as a page")
    parser.add_argument(
        "--json", nargs="?", const=STDOUT, metavar="FILE", help="write all figures as JSON (to the output by default)"
    )


def run(args: argparse.Namespace) -> int:
    """Plan and show; returns 0.

    Raises:
        UsageError: nothing to plan from, or it does not tell what the plan needs; the message says what would.
        RecordError: a file cannot be read or written.
    """
    sizes = parse_sizes(args.nodes)
    check_options(args)
    job, calibration = _calibrated(args, sizes)
    per_step = (args.batch_size_per_rank or 0) * calibration.machine.ranks_per_node * sizes[0]
    if per_step > job.num_train_samples:
        raise UsageError(
            f"--batch-size-per-rank {args.batch_size_per_rank} makes {per_step:,} samples a step on {sizes[0]:,} "
            f"nodes, but an epoch has {job.num_train_samples:,}; choose a smaller one"
        )
    planned = plan(calibration, job, sizes, args.batch_size_per_rank)
    if args.json == STDOUT:
        print(as_json(job, calibration, planned))
    else:
        print(as_table(job, calibration, planned, sizes))
    if args.json not in (None, STDOUT):
        write_text(Path(args.json), as_json(job, calibration, planned) + "\n")
    if args.output is not None:
        from hpcai500.scaling.page import render_plan

        write_text(args.output, render_plan(job, calibration, planned, sizes))
    return 0


def _calibrated(args: argparse.Namespace, sizes: Sequence[int]) -> tuple[Job, Calibration]:
    """The job, and the machine as everything that was named shows it."""
    edition = load_edition()
    checks = [measure_selfcheck(path) for path in args.paths if is_selfcheck(path)]
    folders = [folder for path in args.paths if not is_selfcheck(path) for folder in run_folders(path)]
    runs = [measure_run(folder, edition) for folder in folders]
    if len(checks) > 1:
        raise UsageError(f"{len(checks)} self-checks are named; name one")
    if runs:
        job, calibration = _from_runs(runs, checks)
    else:
        settings = edition.workload(args.workload).resolve(args.size, "free", {})
        job = make_job(edition, args.workload, args.size, settings)
        calibration = calibrate_selfcheck(checks[0], job, precision=str(settings["precision"]))
    if args.ranks_per_node is not None:
        calibration = with_ranks_per_node(calibration, args.ranks_per_node)
    return job, complete(_with_options(calibration, args), sizes)


def _from_runs(runs: list[MeasuredRun], checks: list[MeasuredSelfcheck]) -> tuple[Job, Calibration]:
    workload, size = common_job(runs)
    taken = [run.epochs_to_quality for run in runs if run.epochs_to_quality is not None]
    job = make_job(
        load_edition(),
        workload,
        size,
        {**runs[0].config.settings, "batch_size_per_rank": max(run.batch_size for run in runs)},
        train_bytes=runs[0].train_bytes,
        observed_epochs=sum(taken) / len(taken) if taken else None,
    )
    calibration = calibrate(runs, job)
    for check in checks:
        calibration = with_selfcheck(calibration, check)
    return job, calibration


def _with_options(calibration: Calibration, args: argparse.Namespace) -> Calibration:
    """The same with what the user says of network and storage."""
    machine = calibration.machine
    if args.latency_us is not None:
        machine = replace(machine, between=Link(args.latency_us * 1e-6, args.bandwidth_gb_s * 1e9))
    if args.storage_gb_s is not None:
        machine = replace(machine, storage_bytes_per_s=args.storage_gb_s * 1e9)
    return replace(calibration, machine=machine)


def check_options(args: argparse.Namespace) -> None:
    """Refuse figures that cannot be, and files that are something else.

    Raises:
        UsageError: one is not more than 0, or stands without the other that belongs to it; or a file to be written is
            there and is no plan.
    """
    for name in ("latency_us", "bandwidth_gb_s", "storage_gb_s", "ranks_per_node", "batch_size_per_rank"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} {value:g} is not possible; it must be more than 0")
    if (args.latency_us is None) != (args.bandwidth_gb_s is None):
        raise UsageError("--latency-us and --bandwidth-gb-s belong together; give both")
    for name, beginning in BEGINNINGS.items():
        value = getattr(args, name)
        if value in (None, STDOUT) or not (path := Path(value)).exists():
            continue
        with open_plain(path) as file:
            if file.read(len(beginning)) != beginning.encode():
                raise UsageError(f"{str(path)!r} exists and was not written by this command; name another file")


def parse_sizes(text: str) -> list[int]:
    """Numbers of nodes, in order.

    Raises:
        UsageError: one of them is none.
    """
    words = text.replace(" ", "").split(",")
    if not all(word.isdecimal() and 0 < int(word) <= MAX_NODES for word in words):
        raise UsageError(f"--nodes {text!r} is not possible; give numbers from 1 to {MAX_NODES:,}, as --nodes 1,2,4,8")
    return sorted({int(word) for word in words})


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.scaling.command``."""
    return run_command("python -m hpcai500.scaling.command", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
