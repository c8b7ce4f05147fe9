"""Finds out by training for some seconds how many ranks a node trains fastest with: ``submit --ranks-per-node auto``.

On processors one rank with all cores and one rank a core both have their price: threads wait for each other in every
operator, ranks for each other's gradients. Which is dearer depends on the model, its size and the machine, so it is
measured: real training steps of the workload with the run's own settings and data, in processes like those of a run.

Each rank of a trial is ``python -m hpcai500.rank_trial FOLDER``.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hpcai500.allocator import keep_freed_memory
from hpcai500.comm.communicator import open_communicator
from hpcai500.comm.launchers import find_place
from hpcai500.command import INTERRUPTED_EXIT_CODE, run_command
from hpcai500.deferred_dynamo import defer_dynamo
from hpcai500.edition import Size, load_edition
from hpcai500.errors import RunError
from hpcai500.formats import write_json
from hpcai500.launch.binding import bind_rank
from hpcai500.launch.local import num_cores, run_ranks

if TYPE_CHECKING:
    from hpcai500.comm.communicator import Communicator

TRIAL_S = 4.0  # of timed steps
MIN_STEPS = 3  # timed, however long they take
NUM_WARM_UP_STEPS = 2  # the first one allocates and starts workers; the second tells how many fit into TRIAL_S
TRIAL_NAME, RATE_NAME = "trial.json", "rate.json"


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What is trained in a trial: workload, size and settings of the run, and where its data lies."""

    workload: str
    size: str
    settings: dict[str, Any]
    data_path: str


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial measured: the median step's samples of all ranks per second, and of how many steps."""

    samples_per_s: float
    num_steps: int


def candidates(cores: int, *, size: Size, batch_size_per_rank: int, joins_ranks: bool) -> list[int]:
    """Numbers of ranks worth trying: divisors of the number of cores, each at least twice the one before.

    Args:
        cores: of the node.
        size: whose samples the ranks must be able to share.
        batch_size_per_rank: of the run.
        joins_ranks: whether the communicator can have more than one rank.
    """
    numbers: list[int] = []
    for number in range(1, cores + 1 if joins_ranks else 2):
        fits = number * batch_size_per_rank <= size.num_train_samples and number <= size.num_validation_samples
        if cores % number == 0 and fits and (not numbers or number >= 2 * numbers[-1]):
            numbers.append(number)
    return numbers or [1]


def best_ranks(numbers: list[int], measure: Callable[[int], float]) -> dict[int, float]:
    """Samples a second of the candidates in their order, until one is slower than the best before it."""
    rates: dict[int, float] = {}
    for number in numbers:
        rates[number] = measure(number)
        if rates[number] < max(rates.values()):
            break
    return rates


def choose_ranks(trial: Trial, *, size: Size) -> tuple[int, str]:
    """Measure on this machine, and return the number of ranks that trained fastest and what was measured, in words.

    Raises:
        RunError: the ranks of a trial failed.
        KeyboardInterrupt: a trial was interrupted.
    """
    cores = num_cores()
    communicator = str(trial.settings["communicator"])
    numbers = candidates(
        cores,
        size=size,
        batch_size_per_rank=int(trial.settings["batch_size_per_rank"]),
        joins_ranks=communicator != "serial",
    )
    if len(numbers) == 1:
        return numbers[0], f"{_ranks(numbers[0], cores)}, the only number that is possible here"

    def measure(number: int) -> float:
        samples_per_s = run_trial(trial, number)
        print(f"measured {_ranks(number, cores)}: {samples_per_s:.4g} samples/s", file=sys.stderr, flush=True)
        return samples_per_s

    rates = best_ranks(numbers, measure)
    best = max(rates, key=rates.__getitem__)
    words = ", ".join(f"{_ranks(number, cores)} {rate:.4g}" for number, rate in rates.items())
    return best, f"{_ranks(best, cores)}, the fastest of those measured (samples/s: {words})"


def _ranks(number: int, cores: int) -> str:
    threads = cores // number
    return f"{number} rank{'s' if number > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"


def run_trial(trial: Trial, num_ranks: int) -> float:
    """Samples a second of so many ranks on this machine."""
    with tempfile.TemporaryDirectory(prefix="hpcai500-trial-") as name:
        folder = Path(name)
        write_json(folder / TRIAL_NAME, trial)
        words = [sys.executable, "-m", "hpcai500.rank_trial", name]
        exit_code = run_ranks(str(trial.settings["communicator"]), num_ranks, words)
        if exit_code == INTERRUPTED_EXIT_CODE:
            raise KeyboardInterrupt
        if exit_code != 0:
            raise RunError(
                f"a trial with {num_ranks} rank{'s' if num_ranks > 1 else ''} ended with exit code {exit_code}, for "
                "the reason above; give the number yourself, --ranks-per-node N"
            )
        return msgspec.json.decode((folder / RATE_NAME).read_bytes(), type=Rate).samples_per_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("folder", type=Path, help="folder with the trial's trial.json, where rate.json goes")


def run(args: argparse.Namespace) -> int:
    """Train this rank's part of a trial; returns the exit status."""
    trial = msgspec.json.decode((args.folder / TRIAL_NAME).read_bytes(), type=Trial)
    place = find_place()
    bind_rank(place.local_rank, place.local_size, "cpu")
    keep_freed_memory()
    if not trial.settings.get("torch_compile"):
        defer_dynamo()
    with open_communicator(trial.settings["communicator"], device="cpu") as comm:
        rate = measure_steps(trial, comm)
        if comm.rank == 0:
            write_json(args.folder / RATE_NAME, rate)
    return 0


def measure_steps(trial: Trial, comm: Communicator) -> Rate:
    """Train some seconds; collective.

    Raises:
        HpcAi500Error: what stops a run, too; see hpcai500.errors.
    """
    import numpy as np
    import torch

    from hpcai500.workloads import data_module, open_workload
    from hpcai500.workloads.data_source import DataPlace

    rules = load_edition().workload(trial.workload)
    size = rules.size(trial.size)
    settings = trial.settings
    place = DataPlace(Path(trial.data_path), rank=comm.rank, num_ranks=comm.size, seed=1, device="cpu")
    with closing(data_module(trial.workload).open_data(place, settings, rules, size)) as pipeline:
        workload = open_workload(trial.workload, settings, size=size, num_ranks=comm.size, device="cpu")
        torch.manual_seed(1)
        model = workload.build_model()
        optimizer = workload.build_optimizer(model)  # of learning rate 0, which takes no less time than another
        exchange = comm.exchange(model, optimizer, compression=settings["gradient_compression"])
        model.train()
        batches = itertools.chain.from_iterable(pipeline.train_batches(epoch) for epoch in itertools.count())

        def step() -> float:
            begin_s = time.perf_counter()
            workload.loss(exchange.module, next(batches)).backward()  # type: ignore[no-untyped-call]
            exchange.finish()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return time.perf_counter() - begin_s

        warm_up_s = [step() for _ in range(NUM_WARM_UP_STEPS)]
        longest_s = float(comm.allreduce(np.array([warm_up_s[-1]]), "max")[0])
        num_steps = max(MIN_STEPS, math.ceil(TRIAL_S / longest_s))
        median_s = statistics.median(step() for _ in range(num_steps))
        median_s = float(comm.allreduce(np.array([median_s]), "max")[0])
    return Rate(samples_per_s=int(settings["batch_size_per_rank"]) * comm.size / median_s, num_steps=num_steps)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.rank_trial``."""
    return run_command("python -m hpcai500.rank_trial", sys.modules[__name__], argv)


if __name__ == "__main__":
    from hpcai500.comm.communicator import run_rank

    run_rank(main)
