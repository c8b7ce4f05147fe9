"""What the engine asks of a workload: a model, its loss, its optimizer, its learning rates and its evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from hpcai500.flop import FlopCount
from hpcai500.pipelines.pipeline import Pipeline


class Shard(NamedTuple):
    """What an evaluation counted on one rank's shard, as sums, so that shards of any size add up exactly.

    Attributes:
        samples: evaluated by the rank.
        counts: whole numbers that the workload's quality is computed from (hpcai500/qualities.py).
        loss_sum: over samples; None where the evaluation computes no loss.
    """

    samples: int
    counts: dict[str, list[int]]
    loss_sum: float | None

    def plus(self, other: Shard) -> Shard:
        """Both together."""
        counts = {
            name: [mine + theirs for mine, theirs in zip(numbers, other.counts[name], strict=True)]
            for name, numbers in self.counts.items()
        }
        has_loss = self.loss_sum is not None and other.loss_sum is not None
        loss_sum = (self.loss_sum or 0.0) + (other.loss_sum or 0.0) if has_loss else None
        return Shard(self.samples + other.samples, counts, loss_sum)


class Evaluation(Protocol):
    """One evaluation on one rank; a new one is begun each time."""

    def add(self, model: nn.Module, batch: Any) -> None:
        """Evaluate a validation batch. Called under ``torch.inference_mode``."""

    def shard(self) -> Shard:
        """What was counted on this rank; there may have been no batch."""

    def detail(self) -> Any:
        """What rank 0 needs of this rank beyond the shard, something that can be pickled; None if nothing."""

    def curves(self, total: Shard, details: list[Any]) -> list[list[float]]:
        """On rank 0: what the quality follows from beside the counts; else empty.

        Args:
            total: the shards of all ranks together.
            details: of all ranks.
        """

    def write_details(self, folder: Path, pipeline: Pipeline) -> None:
        """On rank 0, after ``curves`` of the last evaluation and off the clock: write what people want to look at."""


class Workload(Protocol):
    """One training task. All of its state is in the model and the optimizer it builds."""

    settings: dict[str, Any]
    device: str
    input_shape: tuple[int, ...]
    """Of one training sample."""

    def build_model(self) -> nn.Module:
        """Make the model on the device, initialised from torch's global random state."""

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """Make the optimizer of the model's parameters."""

    def learning_rate(self, step: int, *, steps_per_epoch: int, num_epochs: int) -> float:
        """Learning rate of a step of the run; ``step`` counts from 0 over all epochs."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of a batch, a scalar tensor with its graph."""

    def begin_evaluation(self) -> Evaluation:
        """Begin to evaluate; the quality is that which the workload's rules name."""

    def count_flop(self) -> FlopCount:
        """FLOP of one training sample at the resolution it is trained at."""
