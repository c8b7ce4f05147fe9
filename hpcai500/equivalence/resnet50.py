"""What the proof trains and looks at for ResNet-50."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hpcai500.edition import Size
from hpcai500.equivalence import published
from hpcai500.equivalence.definition import ProofSize
from hpcai500.pipelines.image_pipeline import ImageBatch
from hpcai500.workloads.resnet50 import ResNet50Workload


class ResNet50Task:
    """Published pictures with labels of no meaning, which the model learns by heart."""

    def __init__(self, workload: ResNet50Workload, proof_size: ProofSize, size: Size) -> None:
        self._workload, self._proof_size, self._size = workload, proof_size, size

    def batch(self, name: str) -> ImageBatch:
        """The published batch of that name."""
        batch_size, (channels, height, width) = self._proof_size.batch_size, self._workload.input_shape
        images = torch.from_numpy(published.images(f"{name}/images", (batch_size, channels, height, width)))
        labels = torch.from_numpy(published.labels(f"{name}/labels", batch_size, self._size.num_classes))
        device = self._workload.device
        return ImageBatch(images.to(device), labels.to(device), np.arange(batch_size))

    def losses(self, model: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
        """The loss of a training step."""
        return {"loss": self._workload.loss(model, batch)}

    def outputs(self, model: nn.Module, batch: ImageBatch) -> dict[str, Tensor]:
        """Scores of each picture's classes."""
        return {"class_scores": self._workload.scores(model, batch)}
