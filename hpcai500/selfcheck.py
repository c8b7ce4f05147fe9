"""Check whether this machine is fit to be measured: all nodes at once, each against the others.

Start it as ranks, one or more a node, or alone on one machine. Versions must be equal, clocks agree, GPUs be healthy,
data be readable; a node that is slower than the others is named.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hpcai500.comm.launchers import LAST_WORDS_VARIABLE
from hpcai500.command import run_command
from hpcai500.errors import RecordError

if TYPE_CHECKING:
    from hpcai500.comm.communicator import Communicator
    from hpcai500.probes.alone import RankReport
    from hpcai500.probes.verdict import Verdict

EPILOG = """examples:
  hpcai500 selfcheck
  srun --ntasks-per-node=1 python -m hpcai500.selfcheck --quick --data imagenet.h5 --json selfcheck.json

exit status: 0 all nodes pass, 1 a node fails, 2 wrong use"""
STDOUT = "-"
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class CheckOptions:
    """What is checked besides what always is.

    Attributes:
        data: files that every node must be able to read.
        quick: about 3 s of measuring instead of about 20.
    """

    data: Sequence[Path] = ()
    quick: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("--quick", action="store_true", help="measure for about 3 s only; jobs do")
    parser.add_argument(
        "--data", type=Path, action="append", default=[], metavar="FILE", help="must be readable on every node"
    )
    parser.add_argument(
        "--communicator",
        choices=("serial", "torchdist", "mpi", "horovod"),
        help="how ranks talk (serial if this is the only one, else torchdist)",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="write what was found as JSON (to the output by default)",
    )


def run(args: argparse.Namespace) -> int:
    """Check, tell on rank 0 and return the exit status, the same on all ranks."""
    from hpcai500.comm.communicator import open_communicator
    from hpcai500.comm.launchers import find_place

    os.environ.setdefault("HOROVOD_CYCLE_TIME", "1")  # ms; the training default for processors would measure itself
    name = args.communicator or ("serial" if find_place().size == 1 else "torchdist")
    with open_communicator(name, device=_device(name), timeout_s=TIMEOUT_S) as comm:
        verdict = check_machine(comm, CheckOptions(data=args.data, quick=args.quick))
        exit_code = comm.broadcast(0 if verdict is None or verdict.passed else 1)
    if verdict is not None:
        _tell(verdict, args.json)
    return exit_code


def check_machine(
    comm: Communicator, options: CheckOptions, *, clock_ns: Callable[[], int] | None = None
) -> Verdict | None:
    """Check all nodes; collective.

    Args:
        comm: ranks on all nodes.
        options: what to check.
        clock_ns: this rank's wall clock, if not the system's.

    Returns:
        The verdict on rank 0, None on the others.
    """
    from hpcai500.comm.lifeline import Lifeline
    from hpcai500.edition import load_edition
    from hpcai500.probes.alone import new_report
    from hpcai500.probes.verdict import judge

    report = new_report(comm.rank, comm.local_rank)
    # A launcher that has lost a rank ends the others: as an interrupt, for which the lifeline first says who was lost.
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Lifeline(comm, partial(_end, comm.rank)):
        _check_alone(report, comm, options)
        _check_together(report, comm, options, clock_ns)
        reports = comm.gather(report)
    signal.signal(signal.SIGTERM, previous)
    return judge(reports, load_edition()) if reports is not None else None


def _end(rank: int, message: str) -> None:
    """End this rank because another is gone; one of those that are left says so."""
    if rank == 0 or message.startswith("rank 0 "):
        line = f"FAIL  {message}\n"
        if path := os.environ.get(LAST_WORDS_VARIABLE):
            Path(path).write_text(line, encoding="utf-8")
        else:
            sys.stderr.write(line)
            sys.stderr.flush()
    os._exit(1)


def _check_alone(report: RankReport, comm: Communicator, options: CheckOptions) -> None:
    """Everything a rank can find by itself; failures go into the report, so that no other rank waits in vain."""
    from hpcai500.probes import compute, gpus, storage
    from hpcai500.probes.alone import read_versions

    report.versions = report.attempt("versions", lambda: read_versions(comm.name)) or {}
    comm.barrier()  # all nodes measure at once: what they share is shared then
    sizes = compute.QUICK if options.quick else compute.LONG
    compute.measure_devices(report, comm.local_size, sizes)
    if comm.local_rank == 0:
        report.gpus = report.attempt("GPUs", gpus.read_gpus) or []  # after work, when heat and errors show
        size = storage.QUICK if options.quick else storage.LONG
        for path in options.data:
            part = f"data {path}"
            if read := report.attempt(part, partial(storage.read_file, path, size, place=comm.rank)):
                report.data.append(read)
                report.add_rate("read", str(path), read["bytes_per_s"])


def _check_together(
    report: RankReport, comm: Communicator, options: CheckOptions, clock_ns: Callable[[], int] | None
) -> None:
    """What ranks can find only with others; collective."""
    import time

    from hpcai500.probes import clocks, network

    comm.barrier()
    report.clock = clocks.measure_clock(comm, clock_ns or time.time_ns)
    first_ranks = [rank for rank, local_rank in enumerate(comm.allgather(comm.local_rank)) if local_rank == 0]
    places = first_ranks if len(first_ranks) > 1 else list(range(comm.size))
    network.measure_network(report, comm, places, network.QUICK if options.quick else network.LONG)


def _device(communicator: str) -> str:
    """Where the communicator's messages are: on GPUs if each rank can have one of its own."""
    import torch

    from hpcai500.comm.launchers import find_place

    has_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= find_place().local_size
    return "cuda" if has_gpus and communicator != "serial" else "cpu"


def _tell(verdict: Verdict, json_file: str | None) -> None:
    from hpcai500.probes.report import as_dictionary, as_table

    text = json.dumps(as_dictionary(verdict), indent=2)
    if json_file == STDOUT:
        print(text)
        print(as_table(verdict), file=sys.stderr)
        return
    if json_file is not None:
        try:
            Path(json_file).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise RecordError(f"cannot write {json_file!r}") from error
    print(as_table(verdict), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.selfcheck``."""
    return run_command("python -m hpcai500.selfcheck", sys.modules[__name__], argv)


if __name__ == "__main__":
    from hpcai500.comm.communicator import run_rank

    run_rank(main)
