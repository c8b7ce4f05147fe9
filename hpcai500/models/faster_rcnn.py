"""Faster R-CNN with a ResNet-50 body and a feature pyramid, trained from scratch on images of any number of channels.

Sources: Ren et al., "Faster R-CNN", NIPS 2015 (arXiv 1506.01497); Lin et al., CVPR 2017 (arXiv 1612.03144). Parameter
names and shapes are those of torchvision's ``fasterrcnn_resnet50_fpn``; its normalisation is frozen, ours is trained.

Batches are tensors, padded where images have different numbers of boxes. Where reduced precision is on (autocast), the
convolutions and the box head use it; boxes, suppression and losses are in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpcai500.models.faster_rcnn_config import FasterRCNNConfig
from hpcai500.models.fpn import FeaturePyramidNetwork
from hpcai500.models.resnet import EXPANSION, STAGE_WIDTHS, ResNet50
from hpcai500.models.roi import Detections, RoIHeads
from hpcai500.models.rpn import RegionProposalNetwork

__all__ = ["Backbone", "Detections", "FasterRCNN", "FasterRCNNConfig", "FlopProbe"]


class Backbone(nn.Module):
    """ResNet-50 v1.5 and the pyramid on it: (batch, in_channels, height, width) to the features of P2 to P6."""

    def __init__(self, in_channels: int, fpn_channels: int) -> None:
        super().__init__()
        self.body = ResNet50(in_channels=in_channels, num_classes=None)
        self.fpn = FeaturePyramidNetwork([width * EXPANSION for width in STAGE_WIDTHS], fpn_channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        levels: list[Tensor] = self.fpn(self.body.stages(images))
        return levels


class FasterRCNN(nn.Module):
    """The whole detector.

    ``model(images, boxes, labels)`` gives losses while training, ``model(images)`` gives detections in evaluation.
    """

    def __init__(self, config: FasterRCNNConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config.in_channels, config.fpn_channels)
        self.rpn = RegionProposalNetwork(config)
        self.roi_heads = RoIHeads(config)

    def forward(
        self, images: Tensor, boxes: Tensor | None = None, labels: Tensor | None = None
    ) -> dict[str, Tensor] | Detections:
        """Losses while training, else detections.

        Args:
            images: (batch, in_channels, height, width), normalised.
            boxes: float32 (batch, m, 4), the objects as (x1, y1, x2, y2) in pixels; needed while training.
            labels: int64 (batch, m), class + 1; 0 is padding. An image may have no object at all.

        Returns:
            While training "loss_objectness", "loss_rpn_box_reg", "loss_classifier" and "loss_box_reg", float32 scalars
            to be added up; in evaluation the detections.
        """
        if not self.training:
            return self.detect(images)
        assert boxes is not None, "training needs boxes"
        assert labels is not None, "training needs labels"
        return self.losses(images, boxes, labels)

    def losses(self, images: Tensor, boxes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        levels = self.backbone(images)
        proposals, losses = self.rpn(levels, _size(images), boxes, labels)
        return {**losses, **self.roi_heads.losses(levels, proposals, boxes, labels)}

    def detect(self, images: Tensor) -> Detections:
        levels = self.backbone(images)
        proposals, _ = self.rpn(levels, _size(images), None, None)
        return self.roi_heads.detect(levels, proposals, _size(images))


class FlopProbe(nn.Module):
    """What costs FLOP in a training step, connected as there, for ``hpcai500.flop.count_flop``.

    Proposals depend on data, which the meta device has not. So the box head runs on the number of regions that a step
    samples from each image, and each region is the mean of the features: RoIAlign costs no product either, and
    gradients flow back into the same levels.
    """

    def __init__(self, config: FasterRCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.model = FasterRCNN(config)

    def forward(self, images: Tensor) -> Tensor:
        """Images to all outputs of the network in one vector."""
        config, heads = self.config, self.model.roi_heads
        levels = self.model.backbone(images)
        logits, codes = self.model.rpn.head(levels)
        mean = torch.stack([level.mean(dim=(2, 3)) for level in levels[:-1]]).sum(dim=0)
        shape = (config.box_batch_size_per_image, config.roi_output_size, config.roi_output_size)
        regions = mean[:, None, :, None, None].expand(-1, shape[0], -1, *shape[1:]).flatten(0, 1)
        scores, box_codes = heads.box_predictor(heads.box_head(regions))
        return torch.cat([part.flatten() for part in (*logits, *codes, scores, box_codes)])


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
