"""One rank of one run: trains what the run folder's config.json says and records it there.

Started on every rank by ``hpcai500 submit`` or by a job's driver:
``mpiexec -n 2 python -m hpcai500.train RUN_FOLDER``. A run that was begun before and is not complete is gone on with.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hpcai500.allocator import keep_freed_memory
from hpcai500.code_digest import code_sha256
from hpcai500.comm.communicator import open_communicator
from hpcai500.comm.launchers import find_place
from hpcai500.command import run_command
from hpcai500.deferred_dynamo import defer_dynamo
from hpcai500.edition import Size, Workload, load_edition
from hpcai500.ending import Ending, ignore_interrupts
from hpcai500.errors import DataError, HpcAi500Error, RecordError, StoppedError
from hpcai500.launch.binding import bind_rank
from hpcai500.launch.topology import format_cpu_list
from hpcai500.ledger import LedgerWriter, create_ledger
from hpcai500.record import ledger_path
from hpcai500.staging import Stage, collect
from hpcai500.start_up import StartUpTimer
from hpcai500.submission import RunConfig, read_config, result_from_ledgers, write_json
from hpcai500.version import __version__
from hpcai500.workloads import data_module

if TYPE_CHECKING:
    from hpcai500.comm.communicator import Communicator
    from hpcai500.comm.lifeline import Lifeline
    from hpcai500.comm.nodes import NodePlace
    from hpcai500.pauses import StopRequests
    from hpcai500.pipelines.pipeline import Pipeline
    from hpcai500.resume import SegmentPlan

T = TypeVar("T")
EPILOG = """example:
  mpiexec -n 2 python -m hpcai500.train runs/resnet50-mini-free/run-1"""


@dataclass(frozen=True)
class Rank:
    """A rank and what it was started for."""

    run_folder: Path
    config: RunConfig
    config_sha256: str
    plan: SegmentPlan
    comm: Communicator
    node: NodePlace
    cores: str
    num_cores: int
    stage: Stage | None
    ipmi_accuracy: float | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("run_folder", type=Path, help="folder with the run's config.json, made by `hpcai500 submit`")
    parser.add_argument("--replay", action="store_true", help="train only the steps that its replay.json names")
    parser.add_argument("--stage", type=Path, metavar="DIR", help="copy the data file to this folder of the node first")
    parser.add_argument(
        "--on-full-disk",
        choices=("fallback", "stop"),
        default="fallback",
        help="if the copy does not fit there: read the original with a warning, or stop (default: %(default)s)",
    )
    parser.add_argument(
        "--ipmi-accuracy",
        type=float,
        metavar="PART",
        help="read the nodes' power by IPMI, which is in error by this part of the reading at most, for example 0.03",
    )


def run(args: argparse.Namespace) -> int:
    """Train this rank's part of the run; returns the exit status."""
    timer = StartUpTimer()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # launchers pass Ctrl-C on to the ranks as SIGTERM
    config, config_sha256 = read_config(args.run_folder)
    place = find_place()
    num_cores = len(os.sched_getaffinity(0))  # of the job on this node; binding takes a part of them
    cores = format_cpu_list(bind_rank(place.local_rank, place.local_size, config.device).cores)
    stage = None
    if args.stage is not None and place.local_rank == 0:
        size = load_edition().workload(config.workload).size(config.size)
        files = data_module(config.workload).staged_files(size)
        stage = Stage(Path(config.data.path), args.stage, files=files, on_full_disk=args.on_full_disk)
        stage.start()  # it copies while torch is imported
    from hpcai500.pauses import StopRequests

    requests = StopRequests()
    if config.device == "cpu":
        keep_freed_memory()
    if not config.settings.get("torch_compile"):
        defer_dynamo()
    from hpcai500.comm.lifeline import Lifeline
    from hpcai500.comm.nodes import find_node
    from hpcai500.lease import RunLease
    from hpcai500.resume import finish_trained_run, plan_replay, plan_segment

    timer.lap("import")
    comm = open_communicator(config.settings["communicator"], device=config.device)
    with comm, ExitStack() as held:
        ending = Ending(args.run_folder, comm)
        lifeline = held.enter_context(Lifeline(comm, ending.lose_rank))

        def begin() -> SegmentPlan | None:
            held.enter_context(closing(RunLease(args.run_folder, job=os.environ.get("SLURM_JOB_ID", ""))))
            if args.replay:
                return plan_replay(args.run_folder)
            if finish_trained_run(args.run_folder, config, load_edition()):
                return None
            return plan_segment(args.run_folder, config, num_ranks=comm.size)

        plan = told_by_rank_0(comm, lifeline, begin)
        if plan is None:
            return 0
        timer.lap("rendezvous")
        node = find_node(comm, socket.gethostname())
        rank = Rank(
            args.run_folder, config, config_sha256, plan, comm, node, cores, num_cores, stage, args.ipmi_accuracy
        )
        try:
            with recorded(rank, lifeline, ending) as ledger:
                train_rank(rank, ledger, requests, timer)
        except StoppedError as stopped:
            if comm.rank == 0:
                print(f"hpcai500 train: {stopped}", file=sys.stderr, flush=True)
            put_steps_into_columns(rank)
            comm.barrier()  # a launcher ends all ranks once one has left
            return stopped.exit_code
        comm.barrier()  # every rank's ledger is closed before rank 0 reads them all
        if comm.rank == 0 and plan.num_steps is None:
            write_json(args.run_folder / "result.json", result_from_ledgers(args.run_folder, load_edition()))
        put_steps_into_columns(rank)
        comm.barrier()
    return 0


def told_by_rank_0(comm: Communicator, lifeline: Lifeline, decide: Callable[[], T]) -> T:
    """What rank 0 decides, on all ranks; if it cannot, it says why and all ranks leave together."""
    answer: tuple[T | None, int] = (None, 0)
    if comm.rank == 0:
        try:
            answer = decide(), 0
        except HpcAi500Error as error:
            answer = None, error.exit_code
            print(f"hpcai500 train: {error}", file=sys.stderr, flush=True)
    decision, exit_code = comm.broadcast(answer)
    if exit_code:
        lifeline.close()
        sys.exit(exit_code)
    return cast("T", decision)


def train_rank(rank: Rank, ledger: LedgerWriter, requests: StopRequests, timer: StartUpTimer) -> None:
    """Open data, workload and engine, and train what is left to train.

    Raises:
        StoppedError: the run was asked to stop and can be gone on with.
        HpcAi500Error: whatever else stops the run; see hpcai500.errors.
    """
    from hpcai500.checkpoint import Checkpoints, load_checkpoint
    from hpcai500.collector import StepRecorder
    from hpcai500.engine import Engine, Schedule
    from hpcai500.workloads import open_workload

    run_folder, config, plan, comm = rank.run_folder, rank.config, rank.plan, rank.comm
    rules = load_edition().workload(config.workload)
    size = rules.size(config.size)
    suffix = f"-{plan.number:03d}" if plan.number else ""
    settings = adapted_settings(config, comm)
    timer.lap("import")
    describe_system(rank, suffix)
    path, staged = collect(rank.stage, comm, Path(config.data.path))
    if staged is not None:
        ledger.write("staging", staged.event())
        if staged.fell_back:
            print(f"hpcai500 train: {socket.gethostname()}: {staged.fell_back}; it reads {path}", file=sys.stderr)
    with closing(open_data(rank, path, settings, rules, size)) as pipeline:
        record_data(ledger, pipeline)
        timer.lap("data_open")
        workload = open_workload(config.workload, settings, size=size, num_ranks=comm.size, device=comm.device)
        flop = comm.broadcast(workload.count_flop() if comm.rank == 0 else None)  # seconds of processor time
        assert flop is not None
        checkpoints = Checkpoints(
            run_folder / "checkpoints", every_s=float(settings["checkpoint_every_s"]), segment=plan.number
        )
        engine = Engine(
            Schedule(
                num_epochs=size.epochs,
                evaluation_period_epochs=size.evaluation_period_epochs,
                report_steps=settings["report_steps"],
                seed=config.seed,
                quality=rules.quality,
            ),
            workload=workload,
            pipeline=pipeline,
            comm=comm,
            ledger=ledger,
            recorder=StepRecorder(run_folder, comm, node=rank.node, segment=plan.number),
            checkpoints=checkpoints,
            stop_requests=requests,
        )
        if plan.checkpoint.path:
            engine.restore(plan.checkpoint.position, load_checkpoint(checkpoints.folder / plan.checkpoint.path))
        model = {
            "num_parameters": sum(parameter.numel() for parameter in engine.model.parameters()),
            "flop_forward_per_sample": flop.forward,
            "flop_training_per_sample": flop.training,
            "input_shape": list(workload.input_shape),
            "num_classes": pipeline.num_classes,
        }
        ledger.write("model_built", model)
        timer.lap("model")
        comm.barrier()
        timer.lap("wait")
        ledger.write("start_up", timer.event())
        if plan.num_steps is None:
            with metered(ledger, comm, rank.ipmi_accuracy):
                engine.train()
        else:
            engine.replay(plan.num_steps)
        if comm.rank == 0 and engine.evaluation is not None:
            engine.evaluation.write_details(run_folder, pipeline)


def put_steps_into_columns(rank: Rank) -> None:
    """Turn the step times of a node into its HDF5 file, on its first rank; a run that is over does not fail by it."""
    from hpcai500.step_files import raw_path, turn_into_columns

    if rank.comm.rank == rank.node.first_rank:
        try:
            turn_into_columns(raw_path(rank.run_folder, rank.plan.number, rank.node.number))
        except RecordError as error:
            print(f"hpcai500 train: {socket.gethostname()}: {error}", file=sys.stderr, flush=True)


@contextmanager
def metered(ledger: LedgerWriter, comm: Communicator, ipmi_accuracy: float | None = None) -> Iterator[None]:
    """Write down what the devices of this node draw meanwhile, on its first rank, unless training fails."""
    from hpcai500.energy.recorder import EnergyMeter
    from hpcai500.energy.sources import open_sources

    on_cuda = comm.device.startswith("cuda")
    sources = open_sources(local_rank=comm.local_rank, rank=comm.rank, on_cuda=on_cuda, ipmi_accuracy=ipmi_accuracy)
    meter = EnergyMeter(sources)
    comm.barrier()  # first readings take some ranks longer, and the clock is to start on all at once
    meter.begin()
    yield
    for value in meter.stop():
        ledger.write("energy", value)


def adapted_settings(config: RunConfig, comm: Communicator) -> dict[str, Any]:
    """The run's settings, with the batch of a rank such that the global batch stays what it was configured to be."""
    global_batch = int(config.settings["batch_size_per_rank"]) * config.num_ranks
    return {**config.settings, "batch_size_per_rank": global_batch // comm.size}


def record_data(ledger: LedgerWriter, pipeline: Pipeline) -> None:
    """Write the event data_open."""
    value = {
        "dataset_sha256": pipeline.dataset_sha256,
        "source": pipeline.provenance["source"],
        "num_train_samples": pipeline.num_train_samples,
        "num_validation_samples": pipeline.num_validation_samples,
        "num_classes": pipeline.num_classes,
        "steps_per_epoch": pipeline.num_steps_per_epoch,
        "dropped_per_epoch": pipeline.num_dropped_per_epoch,
        "train_bytes": pipeline.train_bytes,
    }
    ledger.write("data_open", value)


def open_data(rank: Rank, path: Path, settings: dict[str, Any], rules: Workload, size: Size) -> Pipeline:
    """Open the run's pipeline on this rank.

    Raises:
        DataError: the data is damaged, or is not that which the run was made for.
    """
    from hpcai500.workloads.data_source import DataPlace

    config, comm = rank.config, rank.comm
    place = DataPlace(path, rank=comm.rank, num_ranks=comm.size, seed=config.seed, device=comm.device)
    pipeline = data_module(config.workload).open_data(place, settings, rules, size)
    if pipeline.dataset_sha256 != config.data.dataset_sha256:
        pipeline.close()
        raise DataError(
            f"{str(path)!r} holds data set {pipeline.dataset_sha256[:12]}... and the run was made for "
            f"{config.data.dataset_sha256[:12]}...; put the right data there or make a new run"
        )
    return pipeline


def describe_system(rank: Rank, suffix: str) -> None:
    """Write system.json on rank 0, or the later segment's own: each node by its first rank, and rank 0's software."""
    from hpcai500.system import describe_node, describe_software

    comm = rank.comm
    nodes = comm.gather(describe_node(rank.num_cores) if comm.local_rank == 0 else None)
    if nodes is not None:
        path = rank.run_folder / "system.json"  # missing where earlier segments did not get as far
        write_json(
            path.with_name(f"system{suffix}.json") if path.exists() else path,
            {"nodes": [node for node in nodes if node], **describe_software()},
        )


@contextmanager
def recorded(rank: Rank, lifeline: Lifeline, ending: Ending) -> Iterator[LedgerWriter]:
    """Open this rank's ledger and close it with what became of the run; on any failure all ranks are ended."""
    config, plan, comm = rank.config, rank.plan, rank.comm
    path = ledger_path(rank.run_folder, plan.number, rank.node.number)
    if rank.node.first_rank == comm.rank:
        create_ledger(path)
    comm.barrier()
    ledger = LedgerWriter(path, comm.rank, plan.heads.get(comm.rank))
    ledger.write(
        "run_open",
        {
            "format": 1,
            "run_id": config.run_id,
            "segment": plan.number,
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "rank": comm.rank,
            "num_ranks": comm.size,
            "local_rank": comm.local_rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "cores": rank.cores,
            "config_sha256": rank.config_sha256,
            "wall_ns": ledger.wall_ns,
            "monotonic_ns": ledger.monotonic_ns,
            "package_version": __version__,
            "code_sha256": code_sha256(),
            "ticket_sha256": config.announced.ticket_sha256 if config.announced else None,
        },
    )
    if plan.number:
        point = {"path": plan.checkpoint.path, "sha256": plan.checkpoint.sha256}
        point |= {"ledgers_sha256": plan.ledgers_sha256}
        ledger.write("resume", {**plan.checkpoint.position._asdict(), **point})
        announce(plan, comm)
    ending.segment, ending.ledger = plan.number, ledger
    try:
        yield ledger
    except StoppedError as stopped:
        ledger.close("interrupted", str(stopped))
        raise
    except (KeyboardInterrupt, Exception) as error:
        ignore_interrupts()
        lifeline.settle(error)  # does not return if another rank is the cause
        ending.fail(error)
    if plan.num_steps is None:
        ledger.close("completed", "all epochs done")
    else:
        ledger.close("interrupted", f"{plan.num_steps} steps were replayed")


def announce(plan: SegmentPlan, comm: Communicator) -> None:
    """Say on rank 0 from where the run goes on, and which checkpoints were damaged."""
    if comm.rank != 0:
        return
    for path in plan.checkpoint.damaged:
        print(f"hpcai500 train: checkpoint {path!r} is damaged, so the one before it is used", file=sys.stderr)
    epoch, step = plan.checkpoint.position
    where = f"epoch {epoch}, step {step}" if plan.checkpoint.path else "the beginning, since there is no checkpoint"
    print(f"hpcai500 train: segment {plan.number} of the run goes on from {where}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.train``."""
    return run_command("python -m hpcai500.train", sys.modules[__name__], argv)


if __name__ == "__main__":
    from hpcai500.comm.communicator import run_rank

    run_rank(main)
