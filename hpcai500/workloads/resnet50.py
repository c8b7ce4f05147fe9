"""ResNet-50 on pictures: the image classification workload of HPC AI500.

Every constant is a setting of rules/workloads/resnet50.toml, with its source there. The recipe is that of NVIDIA's
ResNet-50 v1.5 of 2019, which the code published with HPC AI500 copies; where that code and its description differ
(weight decay on normalisation parameters) the description is followed.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from hpcai500.edition import Size
from hpcai500.errors import UsageError
from hpcai500.flop import FlopCount, count_flop
from hpcai500.models.resnet import ResNet50
from hpcai500.pipelines.image_pipeline import ImageBatch
from hpcai500.pipelines.pipeline import Pipeline
from hpcai500.workloads.workload import Evaluation, Shard

REFERENCE_BATCH = 256  # pictures; the recipe states its learning rate per 256 (Goyal et al. 2017, section 2.1)
AUTOCAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class ResNet50Workload:
    """ResNet-50 with SGD, label smoothing and a warmed-up cosine learning rate."""

    def __init__(self, settings: dict[str, Any], *, size: Size, num_ranks: int, device: str) -> None:
        self.settings = settings
        self.num_classes = size.num_classes
        self.input_shape = (3, settings["train_image_size"], settings["train_image_size"])
        self.device = device
        self.global_batch_size = settings["batch_size_per_rank"] * num_ranks
        self.memory_format = (
            torch.channels_last if settings["memory_format"] == "channels_last" else torch.preserve_format
        )
        self.autocast_dtype = AUTOCAST_DTYPES[settings["precision"]]
        if settings["precision"] == "fp16" and not device.startswith("cuda"):
            raise UsageError(
                f"precision 'fp16' needs a CUDA device and this run uses {device!r}; use --set precision=bf16 or fp32"
            )

    def build_model(self) -> nn.Module:
        model: nn.Module = self._make_model().to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if self.settings["torch_compile"]:
            model.compile()
        return model

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """SGD with momentum; weight decay on matrices and kernels only.

        Normalisation parameters and biases, all of one dimension, are not decayed (He et al., "Bag of Tricks",
        CVPR 2019, section 3.1) unless the setting asks for it.
        """
        weight_decay = self.settings["weight_decay"]
        decay_all = self.settings["weight_decay_on_norm_and_bias"]
        decayed = [p for p in model.parameters() if p.ndim > 1 or decay_all]
        others = [p for p in model.parameters() if p.ndim <= 1 and not decay_all]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return SGD([group for group in groups if group["params"]], lr=0.0, momentum=self.settings["momentum"])

    def learning_rate(self, step: int, *, steps_per_epoch: int, num_epochs: int) -> float:
        """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter, ICLR 2017, equation 5, one period).

        The peak scales linearly with the global batch (Goyal et al. 2017, section 2.1).
        """
        peak = self.settings["learning_rate_per_256"] * self.global_batch_size / REFERENCE_BATCH
        warmup_steps = self.settings["warmup_epochs"] * steps_per_epoch
        if step < warmup_steps:
            return float(peak * (step + 1) / warmup_steps)
        progress = (step - warmup_steps) / max(1.0, num_epochs * steps_per_epoch - warmup_steps)
        return float(0.5 * peak * (1.0 + math.cos(math.pi * progress)))

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
        device_type = "cuda" if self.device.startswith("cuda") else "cpu"
        with torch.autocast(device_type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            scores: Tensor = model(batch.images)
        return scores.float()


class TopOneEvaluation:
    """Counts top-1 hits; the loss is cross-entropy without smoothing."""

    def __init__(self, workload: ResNet50Workload) -> None:
        self._workload = workload
        self._shard = Shard(0, {"correct": [0]}, 0.0)

    def add(self, model: nn.Module, batch: ImageBatch) -> None:
        scores = self._workload.scores(model, batch)
        correct = int((scores.argmax(dim=1) == batch.labels).sum())
        loss_sum = float(functional.cross_entropy(scores, batch.labels, reduction="sum"))
        self._shard = self._shard.plus(Shard(len(batch.labels), {"correct": [correct]}, loss_sum))

    def shard(self) -> Shard:
        return self._shard

    def detail(self) -> None:
        """Nothing: the counts say all."""

    def curves(self, details: list[Any]) -> list[list[float]]:
        return []

    def write_details(self, folder: Path, pipeline: Pipeline) -> None:
        """Nothing: one number says all."""
