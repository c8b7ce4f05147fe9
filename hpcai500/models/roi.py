"""The second half of Faster R-CNN: what is in each proposed region, and where exactly.

Sources: Girshick, "Fast R-CNN", ICCV 2015; over a pyramid after Lin et al., CVPR 2017, section 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcai500.models import operators
from hpcai500.models.anchors import LEVEL_STRIDES
from hpcai500.models.boxes import are_large, box_areas, clip_boxes, decode_boxes, encode_boxes, pairwise_iou
from hpcai500.models.faster_rcnn_config import FasterRCNNConfig
from hpcai500.models.matching import IGNORED, match_boxes, sample_boxes, take
from hpcai500.models.rpn import Proposals

FINEST_LEVEL, COARSEST_LEVEL = 2, 5  # regions are pooled from P2 to P5 (Lin et al. 2017, section 4.2)
LEVEL_TOLERANCE = 1e-6  # torchvision: a side that is a power of 2 must not fall below it by rounding


class Detections(NamedTuple):
    """Objects found in each image, the most probable first.

    Attributes:
        boxes: float32 (batch, d, 4), pixels.
        scores: float32 (batch, d), probabilities; 0 is padding.
        labels: int64 (batch, d), class + 1; 0 is padding.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class TrainingRegions(NamedTuple):
    """Regions that a step learns from.

    Attributes:
        boxes: (batch, s, 4).
        labels: class + 1 of the object in the region, 0 for background, int64 (batch, s).
        codes: what the box regression should give, (batch, s, 4); 0 for background.
        is_sampled: bool (batch, s); others only fill the row.
    """

    boxes: Tensor
    labels: Tensor
    codes: Tensor
    is_sampled: Tensor


def assign_levels(boxes: Tensor, *, canonical_size: int, canonical_level: int) -> Tensor:
    """Level of the pyramid to pool each box (..., 4) from, 0 for P2: Lin et al. 2017, equation 1."""
    level = torch.floor(canonical_level + torch.log2(box_areas(boxes).sqrt() / canonical_size) + LEVEL_TOLERANCE)
    return level.long().clamp_(FINEST_LEVEL, COARSEST_LEVEL) - FINEST_LEVEL


class BoxHead(nn.Module):
    """Two hidden layers: (r, channels, size, size) to (r, width)."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_features, width)
        self.fc7 = nn.Linear(width, width)

    def forward(self, regions: Tensor) -> Tensor:
        return functional.relu(self.fc7(functional.relu(self.fc6(regions.flatten(1)))))


class BoxPredictor(nn.Module):
    """Class scores (r, num_labels) and, for each label, box codes (r, num_labels, 4); label 0 is the background."""

    def __init__(self, in_features: int, num_labels: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_features, num_labels)
        self.bbox_pred = nn.Linear(in_features, num_labels * 4)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(hidden), self.bbox_pred(hidden).unflatten(1, (-1, 4))


class RoIHeads(nn.Module):
    """Pools proposed regions from the pyramid, classifies them and corrects their boxes."""

    def __init__(self, config: FasterRCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.box_head = BoxHead(config.fpn_channels * config.roi_output_size**2, config.box_head_width)
        self.box_predictor = BoxPredictor(config.box_head_width, config.num_classes + 1)

    def losses(
        self, levels: Sequence[Tensor], proposals: Proposals, boxes: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Girshick 2015, equation 1, averaged over the sampled regions of all images.

        Args:
            levels: features of P2 to P6.
            proposals: of the region proposal network.
            boxes: (batch, m, 4), the objects.
            labels: int64 (batch, m), class + 1; 0 is padding.

        Returns:
            "loss_classifier" and "loss_box_reg" in float32.
        """
        device_type = boxes.device.type
        with torch.autocast(device_type, enabled=False):
            regions = self.choose_regions(proposals, boxes, labels)
        scores, codes = self.predict(levels, regions.boxes)
        with torch.autocast(device_type, enabled=False):
            num_sampled = regions.is_sampled.sum().clamp(min=1)
            target = regions.labels.flatten()
            classifier = functional.cross_entropy(scores, target, reduction="none") * regions.is_sampled.flatten()
            codes_of_target = codes[torch.arange(len(target), device=target.device), target]
            box_loss = functional.smooth_l1_loss(
                codes_of_target * (target > 0).unsqueeze(1),
                regions.codes.flatten(0, 1),
                beta=self.config.box_smooth_l1_beta,
                reduction="sum",
            )
            return {"loss_classifier": classifier.sum() / num_sampled, "loss_box_reg": box_loss / num_sampled}

    @torch.no_grad()
    def choose_regions(self, proposals: Proposals, boxes: Tensor, labels: Tensor) -> TrainingRegions:
        """Sample regions from the proposals and the objects themselves."""
        config = self.config
        is_object = labels > 0
        candidates = torch.cat((proposals.boxes, boxes), dim=1)
        valid = torch.cat((proposals.valid, is_object), dim=1)
        matches = match_boxes(
            pairwise_iou(boxes, candidates),
            is_object,
            positive_iou=config.box_positive_iou,
            negative_iou=config.box_negative_iou,
            keep_best_of_object=False,
        )
        sample = sample_boxes(
            torch.where(valid, matches.kinds, IGNORED),
            num_samples=config.box_batch_size_per_image,
            positive_fraction=config.box_positive_fraction,
        )
        objects = matches.objects.gather(1, sample.indices)
        references = take(candidates, sample.indices)
        positive = sample.is_positive
        unit_box = references.new_tensor((0.0, 0.0, 1.0, 1.0))  # its code is 0, that of padding is not even finite
        codes = encode_boxes(
            torch.where(positive.unsqueeze(-1), take(boxes, objects), unit_box),
            torch.where(positive.unsqueeze(-1), references, unit_box),
            config.box_weights,
        )
        return TrainingRegions(references, labels.gather(1, objects) * positive, codes, sample.is_sampled)

    def detect(self, levels: Sequence[Tensor], proposals: Proposals, image_size: tuple[int, int]) -> Detections:
        """The objects in images of that height and width."""
        num_proposals = max(1, int(proposals.valid.sum(dim=1).max()))  # padding of all images need not be looked at
        boxes, valid = proposals.boxes[:, :num_proposals], proposals.valid[:, :num_proposals]
        scores, codes = self.predict(levels, boxes)
        shape = boxes.shape[:2]
        with torch.autocast(boxes.device.type, enabled=False):
            probabilities = scores.softmax(dim=1).view(*shape, -1)
            found = decode_boxes(
                codes.view(*shape, -1, 4),
                boxes.unsqueeze(2),
                self.config.box_weights,
                max_log_scale=self.config.max_log_scale,
            )
            found = clip_boxes(found, *image_size)
            return self._select(found[:, :, 1:], probabilities[:, :, 1:] * valid.unsqueeze(2))

    def _select(self, boxes: Tensor, scores: Tensor) -> Detections:
        """The best detections of each image; within a class, those that no better one overlaps.

        Args:
            boxes: (batch, k, num_classes, 4).
            scores: (batch, k, num_classes).
        """
        config = self.config
        likely = (scores > config.box_score_threshold) & are_large(boxes, config.box_min_size)
        by_class, order = scores.masked_fill(~likely, -1.0).transpose(1, 2).sort(dim=2, descending=True, stable=True)
        num_candidates = max(1, int(likely.sum(dim=1).max()))
        by_class, order = by_class[:, :, :num_candidates], order[:, :, :num_candidates]
        candidates = boxes.transpose(1, 2).gather(2, order.unsqueeze(-1).expand(-1, -1, -1, 4))
        keep = operators.suppress_boxes(candidates.flatten(0, 1), (by_class >= 0).flatten(0, 1), config.box_nms_iou)
        kept_scores = by_class.masked_fill(~keep.view_as(by_class), 0.0).flatten(1)
        num_missing = config.detections_per_image - kept_scores.shape[1]
        kept_scores = functional.pad(kept_scores, (0, max(0, num_missing)))
        candidates = functional.pad(candidates.flatten(1, 2), (0, 0, 0, max(0, num_missing)))
        best, order = kept_scores.topk(config.detections_per_image, dim=1)
        labels = (order // num_candidates + 1) * (best > 0)
        return Detections(take(candidates, order) * (best > 0).unsqueeze(-1), best, labels)

    def predict(self, levels: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores (batch * k, num_labels) and box codes (batch * k, num_labels, 4) of regions (batch, k, 4)."""
        config = self.config
        flat = boxes.flatten(0, 1)
        images = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
        pooled = levels[: COARSEST_LEVEL - FINEST_LEVEL + 1]
        with torch.autocast(boxes.device.type, enabled=False):
            regions = operators.align_regions(
                [level.float() for level in pooled],
                flat,
                images,
                assign_levels(
                    flat, canonical_size=config.roi_canonical_size, canonical_level=config.roi_canonical_level
                ),
                strides=LEVEL_STRIDES[: len(pooled)],
                output_size=config.roi_output_size,
                sampling_ratio=config.roi_sampling_ratio,
            )
        scores, codes = self.box_predictor(self.box_head(regions))
        return scores.float(), codes.float()
