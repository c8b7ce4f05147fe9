"""What is to be trained: of the rules, how much there is to do, and how many epochs a batch size takes to the quality.

Epochs to a quality grow with the batch size. Here they are what to expect, and not a bound for anybody as in
hpcai500.convergence: all reference points count, joined by straight lines. Below the smallest batch size of the points
and above the largest it is said there what holds; above, a plan also assumes that steps fall no more, so that epochs
grow in proportion to the batch size (Shallue et al., JMLR 20, 2019, section 4.1: beyond some batch size more samples
a step save no steps).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hpcai500.convergence import Point, Reference
from hpcai500.edition import Edition, SettingValue

GRADIENT_BYTES = {"none": 4, "bf16": 2}  # of a parameter, by gradient_compression; weights are fp32
SMALLEST_BATCH = 8  # of a rank; that of the largest published runs (MLPerf v2.0, 4,096 TPU v4: 32,768 a step)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of a workload.

    Attributes:
        name: workload and size.
        num_epochs: that a run trains, whatever its quality.
        evaluation_period_epochs: an evaluation follows every so many.
        num_train_samples, num_validation_samples: of an epoch, of an evaluation.
        gradient_bytes: that a step sums over the ranks.
        backward_share: part of the FLOP of training that is the backward pass.
        flop_training_per_sample: as the rules count it.
        sample_bytes: of a stored training sample; 0 where that is not known.
        checkpoint_every_s: seconds between two checkpoints; 0 for none.
        largest_batch: of a rank that is known to fit.
        observed_epochs: to the quality, as a run took them; None if none is known.
        points: reference convergence points of one quality, by batch size; empty if there are none.
        below_smallest: what a smaller batch needs no less of: epochs or steps.
        points_source: where the points are from.
    """

    name: str
    num_epochs: int
    evaluation_period_epochs: int
    num_train_samples: int
    num_validation_samples: int
    gradient_bytes: int
    backward_share: float
    flop_training_per_sample: int
    sample_bytes: float
    checkpoint_every_s: float
    largest_batch: int
    observed_epochs: float | None = None
    points: tuple[Point, ...] = ()
    below_smallest: str = "epochs"
    points_source: str = ""

    @property
    def smallest_batch(self) -> int:
        """Samples of a rank below which none is planned: normalisation needs some."""
        return min(SMALLEST_BATCH, self.largest_batch)

    def epochs_to_quality(self, global_batch: int) -> float | None:
        """Epochs to expect, those of the run itself at least; None where no reference point tells."""
        if not self.points:
            return self.observed_epochs
        return max(expected_epochs(self.points, global_batch, self.below_smallest), self.observed_epochs or 0.0)

    def relative_std_epochs(self) -> float:
        """Standard deviation of the epochs to the quality from seed to seed, as a part of them."""
        parts = [point.std_epochs / point.mean_epochs for point in self.points]
        return sum(parts) / len(parts) if parts else 0.0

    def is_reached(self, global_batch: int) -> bool:
        """Whether the quality is expected within the epochs of a run, as far as anybody knows."""
        epochs = self.epochs_to_quality(global_batch)
        return epochs is None or epochs <= self.num_epochs


def expected_epochs(points: tuple[Point, ...], global_batch: int, below_smallest: str = "epochs") -> float:
    """Epochs to a quality at a batch size; points are of different batch sizes, in their order."""
    first, last = points[0], points[-1]
    if global_batch >= last.batch_size:
        return last.mean_epochs * global_batch / last.batch_size
    if global_batch <= first.batch_size:
        return first.mean_epochs * (global_batch / first.batch_size if below_smallest == "steps" else 1.0)
    left, right = next(pair for pair in pairwise(points) if global_batch <= pair[1].batch_size)
    weight = (global_batch - left.batch_size) / (right.batch_size - left.batch_size)
    return (1 - weight) * left.mean_epochs + weight * right.mean_epochs


def find_reference(edition: Edition, workload: str, size: str) -> Reference | None:
    """Of the references of a workload's size the one with most points; None if none has any."""
    found = [one for one in edition.convergence.references if (one.workload, one.size) == (workload, size)]
    best = max(found, key=lambda one: len(one.points), default=None)
    return best if best is not None and best.points else None


def make_job(
    edition: Edition,
    workload: str,
    size_name: str,
    settings: dict[str, SettingValue],
    *,
    train_bytes: int | None = None,
    observed_epochs: float | None = None,
) -> Job:
    """The job of a workload's size.

    Raises:
        UnknownNameError: there is no such workload or size.
    """
    size = edition.workload(workload).size(size_name)
    compression = str(settings.get("gradient_compression", "none"))
    reference = find_reference(edition, workload, size_name)
    quality = max(point.quality for point in reference.points) if reference else None
    points = [point for point in reference.points if point.quality == quality] if reference else []
    return Job(
        name=f"{workload}, {size_name} size",
        num_epochs=size.epochs,
        evaluation_period_epochs=size.evaluation_period_epochs,
        num_train_samples=size.num_train_samples,
        num_validation_samples=size.num_validation_samples,
        gradient_bytes=GRADIENT_BYTES[compression] * size.num_parameters,
        backward_share=1 - size.flop_forward_per_sample / size.flop_training_per_sample,
        flop_training_per_sample=size.flop_training_per_sample,
        sample_bytes=train_bytes / size.num_train_samples if train_bytes else 0.0,
        checkpoint_every_s=float(settings.get("checkpoint_every_s", 0.0)),
        largest_batch=int(settings["batch_size_per_rank"]),
        observed_epochs=observed_epochs,
        points=tuple(sorted(points, key=lambda point: point.batch_size)),
        below_smallest=reference.below_smallest if reference else "epochs",
        points_source=reference.source if reference else "",
    )
