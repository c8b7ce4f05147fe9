"""ResNet-50 on pictures: the image classification workload of HPC AI500.

Every constant is a setting of rules/workloads/resnet50.toml, with its source there. The recipe is that of NVIDIA's
ResNet-50 v1.5 of 2019, which the code published with HPC AI500 copies; where that code and its description differ
(weight decay on normalisation parameters) the description is followed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from hpcai500.edition import Size
from hpcai500.flop import FlopCount, count_flop
from hpcai500.learning_rate import learning_rate
from hpcai500.models.resnet import ResNet50
from hpcai500.pipelines.image_pipeline import ImageBatch
from hpcai500.pipelines.pipeline import Pipeline
from hpcai500.setting_needs import check_device
from hpcai500.workloads.policy import autocast, placed, sgd
from hpcai500.workloads.workload import Evaluation, Shard


class ResNet50Workload:
    """ResNet-50 with SGD, label smoothing and a warmed-up cosine learning rate."""

    def __init__(self, settings: dict[str, Any], *, size: Size, num_ranks: int, device: str) -> None:
        check_device(settings, device)
        self.settings = settings
        self.num_classes = size.num_classes
        self.input_shape = (3, settings["train_image_size"], settings["train_image_size"])
        self.device = device
        self.global_batch_size = settings["batch_size_per_rank"] * num_ranks

    def build_model(self) -> nn.Module:
        model = placed(self._make_model(), self.settings, self.device)
        if self.settings["torch_compile"]:
            # torch names its mode with CUDA graphs by their purpose: a step of few pictures ends sooner on the device
            # than the host can start its kernels one by one.
            model.compile(mode="reduce-overhead" if self.settings["cuda_graphs"] else None)
        return model

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return sgd(model, self.settings)

    def learning_rate(self, step: int, *, steps_per_epoch: int, num_epochs: int) -> float:
        return learning_rate(
            "resnet50",
            self.settings,
            step,
            global_batch=self.global_batch_size,
            steps_per_epoch=steps_per_epoch,
            num_epochs=num_epochs,
        )

    def loss(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Mean cross-entropy with label smoothing (Szegedy et al., CVPR 2016, section 7)."""
        scores = self.scores(model, batch)
        return functional.cross_entropy(scores, batch.labels, label_smoothing=self.settings["label_smoothing"])

    def begin_evaluation(self) -> Evaluation:
        """Of top-1."""
        return TopOneEvaluation(self)

    def count_flop(self) -> FlopCount:
        return count_flop(self._make_model, self.input_shape)

    @property
    def _make_model(self) -> partial[ResNet50]:
        return partial(ResNet50, num_classes=self.num_classes, variant=self.settings["model_variant"])

    def scores(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Class scores (batch, num_classes) in float32; the loss is never computed in reduced precision."""
        with autocast(self.settings, self.device):
            scores: Tensor = model(batch.images)
        return scores.float()


class TopOneEvaluation:
    """Counts top-1 hits; the loss is cross-entropy without smoothing.

    The sums stay on the device until they are asked for: to read them after each batch would have a GPU wait for the
    host that prepares the next.
    """

    def __init__(self, workload: ResNet50Workload) -> None:
        self._workload = workload
        self._num_samples = 0
        self._correct = torch.zeros((), dtype=torch.int64, device=workload.device)
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=workload.device)

    def add(self, model: nn.Module, batch: ImageBatch) -> None:
        scores = self._workload.scores(model, batch)
        self._num_samples += len(batch.labels)
        self._correct += (scores.argmax(dim=1) == batch.labels).sum()
        self._loss_sum += functional.cross_entropy(scores, batch.labels, reduction="sum")

    def shard(self) -> Shard:
        return Shard(self._num_samples, {"correct": [int(self._correct)]}, float(self._loss_sum))

    def detail(self) -> None:
        """Nothing: the counts say all."""

    def curves(self, total: Shard, details: list[Any]) -> list[list[float]]:
        return []

    def write_details(self, folder: Path, pipeline: Pipeline) -> None:
        """Nothing: one number says all."""
