"""Measure what this machine allows: the operations of the workloads' training steps one by one, and its limits.

Start it as ranks, one a processor or GPU as a run would be, or alone on one machine. It records which operations a
training step calls and with which shapes, measures each of them alone, and measures products, memory, copies, messages,
reading and decoding. What is found is printed as tables and written to micro.json, which `hpcai500 report` draws.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hpcai500.allocator import keep_freed_memory
from hpcai500.comm.launchers import find_place
from hpcai500.command import LOST_RANK_EXIT_CODE, run_command
from hpcai500.edition import load_edition
from hpcai500.errors import UsageError
from hpcai500.formats import write_json
from hpcai500.micro.table import as_text
from hpcai500.micro_record import MICRO_NAME, Kernel, MicroRecord, RankLimits, TrainingStep, joined
from hpcai500.version import __version__

if TYPE_CHECKING:
    import torch

    from hpcai500.comm.communicator import Communicator
    from hpcai500.micro.steps import StepChoice
    from hpcai500.micro_record import Rate
    from hpcai500.probes.alone import RankReport

EPILOG = """examples:
  hpcai500 micro --quick                               half a minute, small shapes: shows that it works
  hpcai500 micro --workload resnet50 --precision bf16
  hpcai500 micro --workload resnet50 --batch 64 --data imagenet.h5
  srun --ntasks-per-node=4 python -m hpcai500.micro --data imagenet.h5 --output micro.json
  hpcai500 report runs/NAME --micro micro.json

exit status: 0 all was measured, 1 something could not be, 2 wrong use"""
WORKLOADS = ("resnet50", "fasterrcnn")
PRECISIONS = ("fp32", "bf16", "fp16")
LIMIT_S = 1800.0  # of one training step with all it calls
TIMEOUT_S = 3600.0  # for which ranks wait for the slowest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("--quick", action="store_true", help="the mini size and few repeats: half a minute")
    parser.add_argument(
        "--workload", choices=WORKLOADS, action="append", help="whose training step to measure (both); may be repeated"
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        action="append",
        help="in which to measure it (all that the device multiplies in hardware); may be repeated",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="samples of a rank (the rules'; on processors 16 and 1)")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="file of pictures or folder of fields to read, so that storage is among the limits; may be repeated",
    )
    parser.add_argument(
        "--communicator",
        choices=("serial", "torchdist", "mpi", "horovod"),
        help="how ranks talk (serial if this is the only one, else torchdist)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path(MICRO_NAME), metavar="FILE", help="what is written (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, tell on rank 0 and return the exit status, the same on all ranks.

    Raises:
        UsageError: the file to write exists, or the batch size is not possible.
        RecordError: the file cannot be written.
    """
    from hpcai500.launch.binding import bind_rank, visible_gpus

    _check(args)
    place = find_place()
    kind = "cuda" if visible_gpus(os.environ)[0] else "cpu"
    bind_rank(place.local_rank, place.local_size, kind)  # sets the number of threads, so before torch is imported
    keep_freed_memory()  # as the ranks of a run
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "1")  # ms; the training default for processors would measure itself
    import torch

    from hpcai500.comm.communicator import open_communicator, own_gpu

    has_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= place.local_size
    device = torch.device(own_gpu(place.local_rank) if has_gpus else "cpu")
    name = args.communicator or ("serial" if place.size == 1 else "torchdist")
    with open_communicator(name, device="cuda" if has_gpus and place.size > 1 else "cpu", timeout_s=TIMEOUT_S) as comm:
        record = measure(comm, device, args)
        failed = comm.broadcast(record is not None and any(rank.errors for rank in record.ranks))
    if record is not None:
        print(as_text(record), flush=True)
        write_json(args.output, record)
        print(f"wrote {args.output}", flush=True)
    return 1 if failed else 0


def _check(args: argparse.Namespace) -> None:
    if args.output.exists():
        raise UsageError(f"{str(args.output)!r} exists and is not written over; name another file with --output")
    if args.batch is not None and args.batch < 1:
        raise UsageError(f"a batch of {args.batch} is not possible; valid are 1 and more")


def measure(comm: Communicator, device: torch.device, args: argparse.Namespace) -> MicroRecord | None:
    """Measure everything on all ranks at once; collective.

    Returns:
        The record on rank 0, None on the others.
    """
    from hpcai500.comm.lifeline import Lifeline
    from hpcai500.probes.alone import new_report

    report = new_report(comm.rank, comm.local_rank)
    with Lifeline(comm, _end):
        rates, picture_bytes = _rates(comm, device, args, report)
        steps = [_step(comm, device, choice, report, quick=args.quick) for choice in choices(args, device)]
        steps = [_with_sample(step, picture_bytes) for step in steps]
        found = comm.gather((report, _device_name(device), rates, steps))
    if found is None:
        return None
    import torch

    measured = [index for index in range(len(steps)) if all(one[3][index] is not None for one in found)]
    own_steps = [[step for index in measured if (step := one[3][index]) is not None] for one in found]
    return MicroRecord(
        version=__version__,
        created=int(time.time()),
        is_quick=args.quick,
        communicator=comm.name,
        num_threads=torch.get_num_threads(),
        ranks=[
            RankLimits(
                rank=one.rank,
                host=one.host,
                device=name,
                rates=own_rates,
                step_s=[sum(kernel.num_calls * kernel.seconds.mean for kernel in step.kernels) for step in own],
                errors=one.errors,
            )
            for (one, name, own_rates, _), own in zip(found, own_steps, strict=True)
        ],
        steps=[_joined_steps(steps_of_all) for steps_of_all in zip(*own_steps, strict=True)],
    )


def choices(args: argparse.Namespace, device: torch.device) -> list[StepChoice]:
    """Which steps the command's words ask for on this device."""
    from hpcai500.micro.steps import StepChoice
    from hpcai500.probes.compute import has_bf16

    usual = ["fp32", *(["bf16"] if has_bf16(device) else []), *(["fp16"] if device.type == "cuda" else [])]
    size = "mini" if args.quick else "official"
    return [
        StepChoice(workload, size, precision, args.batch)
        for workload in args.workload or WORKLOADS
        for precision in args.precision or usual
    ]


def _rates(
    comm: Communicator, device: torch.device, args: argparse.Namespace, report: RankReport
) -> tuple[list[Rate], float | None]:
    """All rates, and the mean bytes of a picture if there is a file of pictures.

    What a rank can measure alone is attempted, so that no other waits in vain.
    """
    from hpcai500.micro import rates

    sizes = rates.QUICK if args.quick else rates.LONG
    pictures = next((path for path in args.data if not path.is_dir()), None)
    folder = next((path for path in args.data if path.is_dir()), None)
    size = load_edition().workload("fasterrcnn").size("mini" if args.quick else "official").input
    shape = (size["channels"], size["height"], size["width"])
    _say(comm, "products, memory, messages")
    comm.barrier()
    found = report.attempt("device", lambda: list(rates.device_rates(device, sizes))) or []
    found += rates.message_rates(comm, sizes)
    _say(comm, "reading, decoding")
    comm.barrier()
    of_pictures = report.attempt("pictures", partial(rates.picture_rates, pictures, sizes, place=comm.rank))
    comm.barrier()
    of_fields = report.attempt("fields", partial(rates.field_rates, folder, shape, sizes, place=comm.rank))
    picture_rates, picture_bytes = of_pictures or ([], None)
    return [*found, *picture_rates, *(of_fields or [])], picture_bytes


def _step(
    comm: Communicator, device: torch.device, choice: StepChoice, report: RankReport, *, quick: bool
) -> TrainingStep | None:
    """One training step; None if it cannot be measured on this rank."""
    from hpcai500.micro import steps
    from hpcai500.micro.timing import Timer

    _say(comm, choice.text)
    comm.barrier()
    repeats = steps.QUICK if quick else steps.LONG
    work = partial(steps.measure_step, choice, load_edition(), device, repeats, Timer(device))
    return report.attempt(choice.text, work, limit_s=LIMIT_S)


def _with_sample(step: TrainingStep | None, picture_bytes: float | None) -> TrainingStep | None:
    """The step with what a picture takes in the file, if it learns from pictures."""
    import msgspec

    if step is None or step.workload != "resnet50":
        return step
    return msgspec.structs.replace(step, sample_bytes=picture_bytes)


def _joined_steps(steps: Sequence[TrainingStep]) -> TrainingStep:
    """The same step of all ranks."""
    import msgspec

    kernels = [_joined_kernels(kernels) for kernels in zip(*(step.kernels for step in steps), strict=False)]
    seconds = joined([step.seconds for step in steps])
    return msgspec.structs.replace(steps[0], seconds=seconds, kernels=kernels)


def _joined_kernels(kernels: Sequence[Kernel]) -> Kernel:
    import msgspec

    return msgspec.structs.replace(kernels[0], seconds=joined([kernel.seconds for kernel in kernels]))


def _device_name(device: torch.device) -> str:
    import torch

    from hpcai500.system import describe_node

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(describe_node()["processor"])


def _say(comm: Communicator, what: str) -> None:
    if comm.rank == 0:
        print(f"measuring {what}", file=sys.stderr, flush=True)


def _end(message: str) -> NoReturn:
    """End this rank because another is gone."""
    sys.stderr.write(f"hpcai500 micro: {message}\n")
    sys.stderr.flush()
    os._exit(LOST_RANK_EXIT_CODE)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.micro``."""
    return run_command("python -m hpcai500.micro", sys.modules[__name__], argv)
