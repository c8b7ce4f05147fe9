"""What the engine asks of a workload: a model, its loss, its optimizer, its learning rates and its evaluation."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from hpcai500.flop import FlopCount
from hpcai500.pipelines.pipeline import Batch


class ShardCounts(NamedTuple):
    """What an evaluation counted on one batch or one rank's shard: sums, so that shards of any size add up exactly."""

    samples: int
    correct: int
    loss_sum: float

    def plus(self, other: ShardCounts) -> ShardCounts:
        return ShardCounts(self.samples + other.samples, self.correct + other.correct, self.loss_sum + other.loss_sum)


class Workload(Protocol):
    """One training task. All of its state is in the model and the optimizer it builds."""

    settings: dict[str, Any]
    device: str

    def build_model(self) -> nn.Module:
        """Make the model on the device, initialised from torch's global random state."""

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """Make the optimizer of the model's parameters."""

    def learning_rate(self, step: int, *, steps_per_epoch: int, num_epochs: int) -> float:
        """Learning rate of a step of the run; ``step`` counts from 0 over all epochs."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of a batch, a scalar tensor with its graph."""

    def evaluate(self, model: nn.Module, batch: Batch) -> ShardCounts:
        """Count what the model gets right on a validation batch. Called under ``torch.inference_mode``."""

    def count_flop(self) -> FlopCount:
        """FLOP of one training sample at the resolution it is trained at."""
