"""What a run of a job takes on a number of nodes, with which batch size, what limits it, and how sure that is."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from hpcai500.scaling.calibration import Calibration
from hpcai500.scaling.job import Job
from hpcai500.scaling.model import Link, Machine, StepTime, step_time

# From the start of a process to that of the run, systems of MLPerf took so much longer for each doubling of the number
# of nodes: 8 s with A100, 15 s with H100 (benchmarks/scaling.rst).
START_UP_PER_DOUBLING_S = 11.0
# Relative standard deviation of the model's error at twice the measured size, growing with the root of the number of
# doublings: by so much it missed the large systems of MLPerf (benchmarks/scaling.rst).
MODEL_ERROR_OF_A_DOUBLING = 0.065
NUM_DRAWS = 200
SEED = 7
BATCH_STEP = 8  # batch sizes that are tried are multiples of it


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A run on a number of nodes.

    Attributes:
        batch_size: samples of a rank in a step.
        steps_per_epoch: of all ranks together.
        step: where the time of one goes.
        evaluation_s: of one evaluation.
        clock_s: of the whole run, as it is ranked.
        epochs_to_quality: to expect; None where nobody knows.
        quality_s: on that clock until the target is reached; None where nobody knows, or it is not within the run.
        start_up_s: before the clock.
        num_epochs: of the whole run.
        parts_s: where the time until the target goes, start-up included (of the whole run where there is no such
            time), by what it is lost to: see ``PARTS``.
    """

    num_nodes: int
    num_ranks: int
    batch_size: int
    steps_per_epoch: int
    step: StepTime
    evaluation_s: float
    clock_s: float
    epochs_to_quality: float | None
    quality_s: float | None
    start_up_s: float
    num_epochs: int
    parts_s: dict[str, float]

    @property
    def global_batch(self) -> int:
        """Samples of all ranks in a step."""
        return self.batch_size * self.num_ranks

    @property
    def samples_per_s(self) -> float:
        """While steps are trained."""
        return self.global_batch / self.step.total_s

    @property
    def node_hours(self) -> float:
        """Of the whole run, start-up included."""
        return self.num_nodes * (self.start_up_s + self.clock_s) / 3600

    @cached_property
    def limits(self) -> list[tuple[str, float]]:
        """What the time goes to and the part of it, most first."""
        total_s = sum(self.parts_s.values())
        return sorted(((name, part_s / total_s) for name, part_s in self.parts_s.items()), key=lambda one: -one[1])


PARTS = {
    "compute": "the samples, in as few epochs as a small batch takes",
    "overhead": "what a step takes whatever its batch size",
    "network": "the all-reduce, as far as the backward pass does not hide it",
    "stragglers": "the wait for the slowest rank",
    "input": "the wait for the storage",
    "evaluation": "evaluations, checkpoints and the beginning of epochs",
    "batch": "more epochs, since the batch is larger",
    "start-up": "before the clock",
}


def predict(machine: Machine, job: Job, *, num_nodes: int, batch_size: int) -> Prediction:
    """A run on so many nodes with so many samples a rank and step; the batch must not be larger than the data set."""
    num_ranks = num_nodes * machine.ranks_per_node
    global_batch = batch_size * num_ranks
    steps = job.num_train_samples // global_batch
    assert steps > 0, "the caller chooses a batch size that the data set has"
    step = step_time(
        machine,
        num_nodes=num_nodes,
        batch_size=batch_size,
        gradient_bytes=job.gradient_bytes,
        backward_share=job.backward_share,
        sample_bytes=job.sample_bytes,
    )
    evaluation_s = evaluation_time(machine, job, num_ranks)
    other_s = machine.epoch_fixed_s + evaluation_s / job.evaluation_period_epochs
    epoch_s = steps * step.total_s + other_s
    checkpoints = 1 + machine.checkpoint_s / job.checkpoint_every_s if job.checkpoint_every_s else 1.0
    epochs = job.epochs_to_quality(global_batch)
    reached = epochs is not None and epochs <= job.num_epochs
    start_up_s = machine.start_up_s + START_UP_PER_DOUBLING_S * max(0.0, math.log2(num_nodes / machine.measured_nodes))
    trained = epochs if epochs is not None and reached else float(job.num_epochs)
    fewest = min(job.epochs_to_quality(job.smallest_batch) or trained, trained) if reached else trained
    parts_s = _parts_s(step, fewest * steps, fewest * (other_s + epoch_s * (checkpoints - 1)))
    parts_s |= {"batch": (trained - fewest) * epoch_s * checkpoints, "start-up": start_up_s}
    return Prediction(
        num_nodes=num_nodes,
        num_ranks=num_ranks,
        batch_size=batch_size,
        steps_per_epoch=steps,
        step=step,
        evaluation_s=evaluation_s,
        clock_s=job.num_epochs * epoch_s * checkpoints,
        epochs_to_quality=epochs,
        quality_s=trained * epoch_s * checkpoints if reached else None,
        start_up_s=start_up_s,
        num_epochs=job.num_epochs,
        parts_s=parts_s,
    )


def _parts_s(step: StepTime, num_steps: float, evaluation_s: float) -> dict[str, float]:
    """Where the time of some steps goes, and that of what is between them."""
    return {
        "compute": num_steps * step.samples_s,
        "overhead": num_steps * step.fixed_s,
        "network": num_steps * step.network_s,
        "stragglers": num_steps * step.stragglers_s,
        "input": num_steps * step.input_s,
        "evaluation": evaluation_s,
    }


def evaluation_time(machine: Machine, job: Job, num_ranks: int) -> float:
    """Of one evaluation, of which each rank has its share."""
    share = math.ceil(job.num_validation_samples / num_ranks)
    return (share * machine.evaluation_per_sample_s + machine.evaluation_fixed_s) * machine.slowdown


def batch_sizes(job: Job, num_ranks: int) -> list[int]:
    """Samples of a rank that are worth a try: what the data set has and a rank is known to hold."""
    largest = min(job.largest_batch, job.num_train_samples // num_ranks)
    sizes = {*range(BATCH_STEP, largest + 1, BATCH_STEP), job.smallest_batch, largest}
    return sorted(size for size in sizes if job.smallest_batch <= size <= largest)


def fastest(machine: Machine, job: Job, num_nodes: int) -> Prediction | None:
    """The run with the batch size that reaches the quality first; None if none is expected to.

    Where nobody knows how many epochs a batch size takes, the batch size that was measured is kept.
    """
    num_ranks = num_nodes * machine.ranks_per_node
    sizes = batch_sizes(job, num_ranks)
    if not job.points:
        sizes = sizes[-1:]
    valid = [size for size in sizes if job.is_reached(size * num_ranks)]
    runs = [predict(machine, job, num_nodes=num_nodes, batch_size=size) for size in valid]
    return min(runs, key=_rank_of, default=None)


def _rank_of(run: Prediction) -> tuple[float, int]:
    """By time, in three digits, and of equals the largest batch: an epoch's rest that is dropped saves no time."""
    return float(f"{run.quality_s or run.clock_s:.3g}"), -run.batch_size


@dataclass(frozen=True)
class Interval:
    """From the 5th to the 95th percentile."""

    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """Intervals of the figures of a prediction; that of the time to quality is None where there is no such time."""

    step_s: Interval
    samples_per_s: Interval
    clock_s: Interval
    quality_s: Interval | None


@dataclass(frozen=True)
class Planned:
    """A prediction, and how sure it is.

    Attributes:
        efficiency: samples/s over those of as many ranks that never wait, with the largest batch.
        energy_j: of the whole run; None where no counter was read.
        storage_bytes_per_s: that the data must be read with.
        is_valid: whether the quality is expected within the run, as far as anybody knows.
    """

    run: Prediction
    efficiency: float
    energy_j: float | None
    storage_bytes_per_s: float
    is_valid: bool
    spread: Spread


def plan(calibration: Calibration, job: Job, sizes: Iterable[int], batch_size: int | None = None) -> list[Planned]:
    """The fastest valid runs on numbers of nodes; sizes for which there is none are left out.

    Args:
        calibration: of the machine.
        job: what to train.
        sizes: numbers of nodes.
        batch_size: of a rank, valid or not; by default the fastest valid one of each size.
    """
    machine = calibration.machine
    best_rate = 1 / (machine.per_sample_s + machine.fixed_s / job.largest_batch) / machine.slowdown
    draws = list(_draws(calibration))
    found = []
    for num_nodes in sizes:
        num_ranks = num_nodes * machine.ranks_per_node
        if batch_size is None:
            run = fastest(machine, job, num_nodes)
        elif batch_size * num_ranks <= job.num_train_samples:
            run = predict(machine, job, num_nodes=num_nodes, batch_size=batch_size)
        else:
            run = None
        if run is None:
            continue
        energy_j = machine.power_w * num_nodes * run.clock_s if machine.power_w is not None else None
        found.append(
            Planned(
                run,
                efficiency=run.samples_per_s / (num_ranks * best_rate),
                energy_j=energy_j,
                storage_bytes_per_s=run.samples_per_s * job.sample_bytes,
                is_valid=job.is_reached(run.global_batch),
                spread=_spread(run, job, draws),
            )
        )
    return found


@dataclass(frozen=True)
class _Draw:
    """One machine that the measurements allow, and by how much the model errs and a run's seed delays it."""

    machine: Machine
    model_error: float
    epochs: float


def _draws(calibration: Calibration) -> Iterable[_Draw]:
    """Machines that the measurements allow: each figure times the exponential of a normal number, seed fixed."""
    generator = random.Random(SEED)
    machine, spread = calibration.machine, calibration.spread

    def factor(relative_std: float) -> float:
        return math.exp(relative_std * generator.gauss(0, 1))

    for _ in range(NUM_DRAWS):
        computation, network = factor(spread.computation), factor(spread.network)
        yield _Draw(
            replace(
                machine,
                per_sample_s=machine.per_sample_s * computation,
                fixed_s=machine.fixed_s * computation,
                noise=machine.noise * factor(spread.noise),
                within=_scaled(machine.within, network),
                between=_scaled(machine.between, network),
                evaluation_per_sample_s=machine.evaluation_per_sample_s * computation,
            ),
            model_error=generator.gauss(0, MODEL_ERROR_OF_A_DOUBLING),
            epochs=generator.gauss(0, 1),
        )


def _scaled(link: Link | None, factor: float) -> Link | None:
    return Link(link.latency_s * factor, link.bandwidth_bytes_per_s / factor) if link else None


def _spread(run: Prediction, job: Job, draws: Sequence[_Draw]) -> Spread:
    """The spread of the figures of a run over the machines that the measurements allow."""
    step_s, rate, clock_s, quality_s = [], [], [], []
    for draw in draws:
        other = predict(draw.machine, job, num_nodes=run.num_nodes, batch_size=run.batch_size)
        doublings = max(0.0, math.log2(run.num_nodes / draw.machine.measured_nodes))
        error = math.exp(draw.model_error * math.sqrt(doublings))
        step_s.append(other.step.total_s * error)
        rate.append(other.samples_per_s / error)
        clock_s.append(other.clock_s * error)
        if other.quality_s is not None:
            of_the_seed = max(0.0, 1 + job.relative_std_epochs() * draw.epochs)
            quality_s.append(min(other.quality_s * of_the_seed, other.clock_s) * error)
    return Spread(interval(step_s), interval(rate), interval(clock_s), interval(quality_s) if quality_s else None)


def interval(values: Sequence[float]) -> Interval:
    """The middle nine tenths of some values."""
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return Interval(cuts[0], cuts[-1])
