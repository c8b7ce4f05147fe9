"""One rank of one run: trains what the run folder's config.json says and records it there.

Started on every rank by ``hpcai500 submit`` or by a job script:
``mpiexec -n 2 python -m hpcai500.train RUN_FOLDER``.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hpcai500.allocator import keep_freed_memory
from hpcai500.command import INTERRUPTED_EXIT_CODE, run_command
from hpcai500.edition import Size, Workload, load_edition
from hpcai500.errors import DataError, HpcAi500Error, RecordError
from hpcai500.ledger import LedgerWriter
from hpcai500.submission import RunConfig, read_config, result_from_ledgers, write_json
from hpcai500.version import __version__

if TYPE_CHECKING:
    from hpcai500.comm.communicator import Communicator
    from hpcai500.pipelines.pipeline import Pipeline

EPILOG = """example:
  mpiexec -n 2 python -m hpcai500.train runs/resnet50-mini-free/run-1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("run_folder", type=Path, help="folder with the run's config.json, made by `hpcai500 submit`")


def run(args: argparse.Namespace) -> int:
    """Train this rank's part of the run; returns the exit status."""
    from hpcai500.comm.communicator import open_communicator

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # launchers pass Ctrl-C on to the ranks as SIGTERM
    config, config_sha256 = read_config(args.run_folder)
    if config.device == "cpu":
        keep_freed_memory()
    comm = open_communicator(config.settings["communicator"], device=config.device)
    with comm:
        if comm.size != config.num_ranks:
            raise RecordError(
                f"run {config.run_id!r} is configured for {config.num_ranks} ranks and {comm.size} were started; "
                f"start {config.num_ranks} or make a new run with `hpcai500 submit --ranks {comm.size}`"
            )
        with recorded(args.run_folder, config, config_sha256, comm) as ledger:
            train_rank(args.run_folder, config, comm, ledger)
        comm.barrier()  # every rank's ledger is closed before rank 0 reads them all
        if comm.rank == 0:
            write_json(args.run_folder / "result.json", result_from_ledgers(args.run_folder, load_edition()))
        comm.barrier()
    return 0


def train_rank(run_folder: Path, config: RunConfig, comm: Communicator, ledger: LedgerWriter) -> None:
    """Open data, workload and engine, and train.

    Raises:
        HpcAi500Error: whatever stops the run; see hpcai500.errors.
    """
    from hpcai500.checkpoint import Checkpoints
    from hpcai500.collector import StepRecorder
    from hpcai500.engine import Engine, Schedule
    from hpcai500.workloads import open_workload

    rules = load_edition().workload(config.workload)
    size = rules.size(config.size)
    describe_system(run_folder, comm)
    with closing(open_data(config, rules, size, comm)) as pipeline:
        ledger.write(
            "data_open",
            {
                "dataset_sha256": pipeline.dataset_sha256,
                "source": pipeline.provenance["source"],
                "num_train_samples": pipeline.num_train_samples,
                "num_validation_samples": pipeline.num_validation_samples,
                "num_classes": pipeline.num_classes,
                "steps_per_epoch": pipeline.num_steps_per_epoch,
                "dropped_per_epoch": pipeline.num_dropped_per_epoch,
            },
        )
        workload = open_workload(
            config.workload, config.settings, num_classes=pipeline.num_classes, num_ranks=comm.size, device=comm.device
        )
        flop = workload.count_flop()
        every_epochs = config.settings["checkpoint_every_epochs"]
        engine = Engine(
            Schedule(
                num_epochs=size.epochs,
                evaluation_period_epochs=size.evaluation_period_epochs,
                report_steps=config.settings["report_steps"],
                seed=config.seed,
            ),
            workload=workload,
            pipeline=pipeline,
            comm=comm,
            ledger=ledger,
            recorder=StepRecorder(run_folder / "steps.h5"),
            checkpoints=Checkpoints(run_folder / "checkpoints", every_epochs=every_epochs),
        )
        ledger.write(
            "model_built",
            {
                "num_parameters": sum(parameter.numel() for parameter in engine.model.parameters()),
                "flop_forward_per_sample": flop.forward,
                "flop_training_per_sample": flop.training,
                "image_size": config.settings["train_image_size"],
                "num_classes": pipeline.num_classes,
            },
        )
        engine.train()


def open_data(config: RunConfig, rules: Workload, size: Size, comm: Communicator) -> Pipeline:
    """Open the run's pipeline on this rank.

    Raises:
        DataError: the file is damaged, or is not the one the run was made for.
    """
    from hpcai500.pipelines.pipeline import ImagePipelineConfig, open_pipeline

    settings = config.settings
    pipeline = open_pipeline(
        settings["pipeline"],
        ImagePipelineConfig(
            path=Path(config.data.path),
            num_train_samples=size.num_train_samples,
            num_validation_samples=size.num_validation_samples,
            train_image_size=settings["train_image_size"],
            validation_image_size=size.validation_image_size,
            validation_resize=size.validation_resize,
            crop_area=(settings["crop_area_min"], settings["crop_area_max"]),
            crop_aspect=(settings["crop_aspect_min"], settings["crop_aspect_max"]),
            horizontal_flip=settings["horizontal_flip"],
            mean=rules.channel_mean,
            std=rules.channel_std,
            batch_size_per_rank=settings["batch_size_per_rank"],
            validation_batch_size=settings["validation_batch_size"],
            rank=comm.rank,
            num_ranks=comm.size,
            seed=config.seed,
            device=comm.device,
            num_workers=settings["num_workers"],
            prefetch=settings["prefetch"],
            channels_last=settings["memory_format"] == "channels_last",
            decode_errors=settings["decode_errors"],
        ),
    )
    if pipeline.dataset_sha256 != config.data.dataset_sha256:
        pipeline.close()
        raise DataError(
            f"{config.data.path!r} holds data set {pipeline.dataset_sha256[:12]}... and the run was made for "
            f"{config.data.dataset_sha256[:12]}...; put the right file there or make a new run"
        )
    return pipeline


def describe_system(run_folder: Path, comm: Communicator) -> None:
    """Write system.json on rank 0: one description a node, by its first rank, and the software of rank 0."""
    from hpcai500.system import describe_node, describe_software

    nodes = comm.gather(describe_node() if comm.local_rank == 0 else None)
    if nodes is not None:
        write_json(run_folder / "system.json", {"nodes": [node for node in nodes if node], **describe_software()})


@contextmanager
def recorded(run_folder: Path, config: RunConfig, config_sha256: str, comm: Communicator) -> Iterator[LedgerWriter]:
    """Open this rank's ledger and close it with what became of the run; on any failure all ranks are ended."""
    ledger = LedgerWriter(run_folder / "ledger" / f"rank-{comm.rank:05d}.jsonl")
    ledger.write(
        "run_open",
        {
            "format": 1,
            "run_id": config.run_id,
            "rank": comm.rank,
            "num_ranks": comm.size,
            "local_rank": comm.local_rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "config_sha256": config_sha256,
            "wall_ns": ledger.wall_ns,
            "monotonic_ns": ledger.monotonic_ns,
            "package_version": __version__,
        },
    )
    try:
        yield ledger
    except KeyboardInterrupt:
        _close_badly(ledger, "interrupted", "interrupted by a signal", comm, INTERRUPTED_EXIT_CODE)
    except HpcAi500Error as error:
        _close_badly(ledger, "failed", str(error), comm, error.exit_code)
    except Exception as error:
        traceback.print_exc()
        _close_badly(ledger, "failed", f"{type(error).__name__}: {error}", comm, 1)
    ledger.close("completed", "all epochs done")


def _close_badly(ledger: LedgerWriter, status: str, reason: str, comm: Communicator, exit_code: int) -> None:
    """Close the ledger as it stands and end all ranks; does not return."""
    print(f"hpcai500 train: rank {comm.rank}: {reason}", file=sys.stderr, flush=True)
    try:
        ledger.close(status, reason)
    except RecordError as error:  # a full disk must not hide why the run ended
        print(f"hpcai500 train: rank {comm.rank}: {error}", file=sys.stderr, flush=True)
    comm.abort(exit_code)
    sys.exit(exit_code)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.train``."""
    return run_command("python -m hpcai500.train", sys.modules[__name__], argv)


if __name__ == "__main__":
    from hpcai500.comm.communicator import end_process

    end_process(main())
