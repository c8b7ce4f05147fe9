"""How well the model of ``hpcai500 plan``, fitted to small published systems, predicts the large ones.

    python benchmarks/scaling_published.py [--kept-aside]

scaling_published.csv holds the ResNet-50 results of MLPerf Training, rounds v2.0, v2.1 and v3.0, a line a system,
computed from the published result logs (github.com/mlcommons/training_results_v2.0, _v2.1 and _v3.0): ``score_min`` is
the score, the mean of the five runs without fastest and slowest; ``gbs`` the global batch; ``max_init_min`` the time
before the clock. For each accelerator two figures are fitted to the systems of at most 64 of them: the fixed and the
per-sample time of a step. All else is stated below. The model was chosen with rounds v2.0 and v2.1; ``--kept-aside``
shows the systems of v3.0, at which nobody looked while choosing.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpcai500.edition import load_edition
from hpcai500.scaling.job import Job, make_job
from hpcai500.scaling.model import Link, Machine, step_time
from hpcai500.scaling.prediction import Prediction, evaluation_time, fastest

DATA = Path(__file__).with_suffix(".csv")
LARGEST_FITTED = 64  # accelerators
DEVELOPMENT, KEPT_ASIDE = ("v2.0", "v2.1"), ("v3.0",)
# Stated, not fitted: 200 Gbit/s of InfiniBand an accelerator, as the NVIDIA systems of these rounds have; the bus
# bandwidth of NVLink on A100 nodes; usual latencies of NCCL; ranks that differ by 2 % from step to step.
BETWEEN_BYTES_PER_S, WITHIN_BYTES_PER_S = 25e9, 230e9
BETWEEN_S, WITHIN_S = 20e-6, 5e-6
NOISE = 0.02
GRADIENT_BYTES = 2  # of a parameter: fp16
EVALUATION_PERIOD_EPOCHS = 4  # MLPerf's rule for ResNet-50
OUTLIER = 0.05  # relative error from which a system counts less in the fit


@dataclass(frozen=True)
class System:
    """One published result; ``epochs`` are those its runs took, in the mean of fewest and most."""

    round: str
    name: str
    accelerator: str
    num_accelerators: int
    num_nodes: int
    global_batch: int
    minutes: float
    epochs: float
    start_up_min: float

    @property
    def per_node(self) -> int:
        """Accelerators of a node."""
        return max(1, self.num_accelerators // self.num_nodes)


def read_systems(rounds: Iterable[str], path: Path = DATA) -> list[System]:
    """The closed-division systems of some rounds; one that was entered again unchanged stands once, in its first."""
    found: dict[tuple[str, ...], System] = {}
    with path.open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["round"])
    for row in rows:
        if row["division"] != "closed" or int(row["accelerators"]) == 0:
            continue
        system = System(
            round=row["round"],
            name=f"{row['org']} {row['system']}",
            accelerator=row["accelerator"],
            num_accelerators=int(row["accelerators"]),
            num_nodes=int(row["nodes"]),
            global_batch=int(row["gbs"].split(";")[-1]),
            minutes=float(row["score_min"]),
            epochs=(float(row["epochs_min"]) + float(row["epochs_max"])) / 2,
            start_up_min=float(row["max_init_min"]),
        )
        again = (row["org"], row["accelerators"], row["mean_images_per_s"], row["gbs"])
        found.setdefault(again, system)
    return [system for system in found.values() if system.round in rounds]


def the_job() -> Job:
    """ResNet-50 as MLPerf trains it: the reference points of the rules, evaluations of MLPerf's."""
    edition = load_edition()
    settings = edition.workload("resnet50").resolve("official", "free", {})
    job = make_job(edition, "resnet50", "official", settings)
    gradient_bytes = job.gradient_bytes // 4 * GRADIENT_BYTES
    return replace(
        job,
        evaluation_period_epochs=EVALUATION_PERIOD_EPOCHS,
        gradient_bytes=gradient_bytes,
        checkpoint_every_s=0.0,
    )


def machine_of(system: System, fixed_s: float, per_sample_s: float, job: Job) -> Machine:
    """A system as the model has it."""
    return Machine(
        ranks_per_node=system.per_node,
        fixed_s=fixed_s,
        per_sample_s=per_sample_s,
        noise=NOISE,
        within=Link(WITHIN_S, WITHIN_BYTES_PER_S),
        between=Link(BETWEEN_S, BETWEEN_BYTES_PER_S * system.per_node),
        evaluation_per_sample_s=(1 - job.backward_share) * per_sample_s,
        evaluation_fixed_s=fixed_s,
    )


def minutes_of(system: System, fixed_s: float, per_sample_s: float, job: Job, epochs: float | None = None) -> float:
    """Minutes to the quality; with the epochs to expect of that batch size, unless they are given."""
    machine = machine_of(system, fixed_s, per_sample_s, job)
    step = step_time(
        machine,
        num_nodes=system.num_nodes,
        batch_size=system.global_batch / system.num_accelerators,
        gradient_bytes=job.gradient_bytes,
        backward_share=job.backward_share,
    )
    epochs = epochs or job.epochs_to_quality(system.global_batch)
    assert epochs is not None, "the rules have reference points of it"
    steps = math.ceil(job.num_train_samples / system.global_batch)
    evaluation_s = evaluation_time(machine, job, system.num_accelerators)
    return epochs * (steps * step.total_s + evaluation_s / EVALUATION_PERIOD_EPOCHS) / 60


def fit(systems: Sequence[System], job: Job) -> tuple[float, float]:
    """Fixed and per-sample time of a step, in seconds, that fit the minutes of some systems and the epochs they took.

    Relative least squares over a grid that closes in, with the weights 1 / (1 + (error / OUTLIER)^2): a few systems are
    far slower than their equals.
    """

    def badness(fixed_s: float, per_sample_s: float) -> float:
        errors = [minutes_of(one, fixed_s, per_sample_s, job, one.epochs) / one.minutes - 1 for one in systems]
        return sum(math.log1p((error / OUTLIER) ** 2) for error in errors)

    best, width = (3e-3, 3e-4), 10.0
    while width > 1.0005:
        factors = [width ** (index / 10) for index in range(-10, 11)]
        pairs = ((best[0] * one, best[1] * other) for one in factors for other in factors)
        best = min(pairs, key=lambda pair: badness(*pair))
        width = width**0.4
    return best


@dataclass(frozen=True)
class Outcome:
    """What the model says of a large system.

    Attributes:
        minutes: with the batch size that its submitters chose.
        choice: the run with the batch size that a plan chooses.
    """

    system: System
    fixed_s: float
    per_sample_s: float
    minutes: float
    choice: Prediction

    @property
    def error(self) -> float:
        """Relative; negative if the model is too fast."""
        return self.minutes / self.system.minutes - 1

    @property
    def doublings(self) -> float:
        """Of the largest number of accelerators that was fitted."""
        return math.log2(self.system.num_accelerators / LARGEST_FITTED)


def outcomes(rounds: Sequence[str], fitted_rounds: Sequence[str] = ()) -> list[Outcome]:
    """Of each accelerator with smaller systems, the larger ones of some rounds.

    Args:
        rounds: of the systems to predict.
        fitted_rounds: of those to fit; the same by default.
    """
    job = the_job()
    small = [one for one in read_systems(fitted_rounds or rounds) if one.num_accelerators <= LARGEST_FITTED]
    large = [one for one in read_systems(rounds) if one.num_accelerators > LARGEST_FITTED]
    found = []
    for accelerator in sorted({one.accelerator for one in large}):
        fitted = [one for one in small if one.accelerator == accelerator]
        if len({one.num_accelerators for one in fitted}) < 2:
            continue  # two figures need two sizes
        fixed_s, per_sample_s = fit(fitted, job)
        held = replace(job, largest_batch=max(one.global_batch // one.num_accelerators for one in fitted))
        for one in large:
            if one.accelerator == accelerator:
                minutes = minutes_of(one, fixed_s, per_sample_s, job)
                choice = fastest(machine_of(one, fixed_s, per_sample_s, job), held, one.num_nodes)
                assert choice is not None, "some batch size reaches the quality on all of these"
                found.append(Outcome(one, fixed_s, per_sample_s, minutes, choice))
    return found


def median_error(found: Sequence[Outcome]) -> float:
    """Median of the absolute relative errors."""
    return statistics.median(abs(one.error) for one in found)


def median_error_of_choices(found: Sequence[Outcome]) -> float:
    """The same where the plan chose the batch size."""
    minutes = [((one.choice.quality_s or math.inf) / 60, one.system.minutes) for one in found]
    return statistics.median(abs(chosen / published - 1) for chosen, published in minutes)


def start_up_per_doubling_s(rounds: Sequence[str], accelerator: str) -> float:
    """Slope of the time before the clock over log2 of the number of nodes, by least squares."""
    systems = [one for one in read_systems(rounds) if one.accelerator == accelerator]
    nodes = [math.log2(one.num_nodes) for one in systems]
    return 60 * statistics.linear_regression(nodes, [one.start_up_min for one in systems]).slope


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kept-aside", action="store_true", help="show the rounds that were kept aside")
    rounds = KEPT_ASIDE if parser.parse_args().kept_aside else DEVELOPMENT
    found = outcomes(rounds, (*DEVELOPMENT, *rounds))
    for one in found:
        system = one.system
        print(
            f"{system.round} {system.accelerator:24} {system.num_accelerators:5} batch {system.global_batch:6}  "
            f"fixed {1e3 * one.fixed_s:5.2f} ms  sample {1e3 * one.per_sample_s:6.4f} ms  "
            f"{system.minutes:6.3f} min  model {one.minutes:6.3f}  {100 * one.error:+6.1f} %   "
            f"a plan's batch {one.choice.global_batch:6}   {system.name}"
        )
    medians = 100 * median_error(found), 100 * median_error_of_choices(found)
    print(f"median error {medians[0]:.1f} % of {len(found)} systems; {medians[1]:.1f} % where the plan chose the batch")


if __name__ == "__main__":
    main()
