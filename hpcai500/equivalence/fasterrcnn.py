"""What the proof trains and looks at for Faster R-CNN, without a choice at random or by rank.

A training step of the detector samples anchors and regions at random, and takes its regions from the best proposals.
Another framework draws other numbers, and a rounding may exchange two proposals. So the proof learns from all anchors,
and from published regions in place of proposals. Proposals and suppression show in the detections.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from hpcai500.edition import Size
from hpcai500.equivalence import published
from hpcai500.equivalence.definition import ProofSize
from hpcai500.models.faster_rcnn import FasterRCNN
from hpcai500.models.rpn import Proposals
from hpcai500.workloads.fasterrcnn import FasterRCNNWorkload


class RegionBatch(NamedTuple):
    """Published fields with objects, and the regions that stand in for proposals.

    ``images`` (n, channels, height, width), ``boxes`` (n, m, 4) in pixels, ``labels`` (n, m) as class + 1,
    ``regions`` (n, k, 4) in pixels.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    regions: Tensor


class FasterRCNNTask:
    """Published fields with objects of no meaning, which the model learns by heart."""

    def __init__(self, workload: FasterRCNNWorkload, proof_size: ProofSize, size: Size) -> None:
        self._workload, self._proof_size, self._size = workload, proof_size, size

    def batch(self, name: str) -> RegionBatch:
        """The published batch of that name."""
        own = self._proof_size
        shape = (own.batch_size, self._size.input["channels"], own.height, own.width)
        objects = published.objects(
            name,
            own.batch_size,
            num_objects=own.num_objects,
            num_classes=self._size.num_classes,
            height=own.height,
            width=own.width,
        )
        parts = (published.images(f"{name}/images", shape), *objects)
        return RegionBatch(*(torch.from_numpy(part).to(self._workload.device) for part in parts))

    def losses(self, model: nn.Module, batch: RegionBatch) -> dict[str, Tensor]:
        """The four losses of a training step, with the published regions in place of proposals."""
        detector = cast("FasterRCNN", model)
        levels = detector.backbone(batch.images)
        _, losses = detector.rpn(levels, _size(batch.images), batch.boxes, batch.labels)
        proposals = Proposals(batch.regions, torch.ones_like(batch.regions[..., 0], dtype=torch.bool))
        return {**losses, **detector.roi_heads.losses(levels, proposals, batch.boxes, batch.labels)}

    def outputs(self, model: nn.Module, batch: RegionBatch) -> dict[str, Tensor]:
        """What both heads predict, at all anchors and at the published regions, and how probable the detections are."""
        detector = cast("FasterRCNN", model)
        levels = detector.backbone(batch.images)
        logits, codes = detector.rpn.head(levels)
        scores, box_codes = detector.roi_heads.predict(levels, batch.regions)
        return {
            "objectness": torch.cat(logits, dim=1),
            "proposal_codes": torch.cat(codes, dim=1),
            "class_scores": scores,
            "box_codes": box_codes,
            "detection_scores": self._workload.detect(model, batch.images).scores,
        }


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
