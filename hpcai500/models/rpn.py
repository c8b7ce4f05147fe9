"""Region proposal network: Ren et al., "Faster R-CNN", NIPS 2015, section 3, over a pyramid (Lin et al. 2017, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcai500.models import operators
from hpcai500.models.anchors import make_anchors
from hpcai500.models.boxes import are_large, clip_boxes, decode_boxes, encode_boxes, pairwise_iou
from hpcai500.models.faster_rcnn_config import FasterRCNNConfig
from hpcai500.models.matching import match_boxes, sample_boxes, take


class Proposals(NamedTuple):
    """Where objects may be, the best first.

    Attributes:
        boxes: float32 (batch, k, 4).
        valid: bool (batch, k); others are padding, at the end of their row.
    """

    boxes: Tensor
    valid: Tensor


class RPNHead(nn.Module):
    """A 3x3 convolution, and from it the objectness and the box code of each anchor; the same for all levels."""

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        # Sequences in a sequence, for torchvision's names.
        self.conv = nn.Sequential(nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)))
        self.cls_logits = nn.Conv2d(channels, num_anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.normal_(module.weight, std=0.01)  # Ren et al. 2015, section 3.1.3
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features of each level to logits (batch, k_i) and codes (batch, k_i, 4) in the order of its anchors."""
        logits, codes = [], []
        for features in levels:
            hidden = self.conv(features)
            logits.append(self.cls_logits(hidden).permute(0, 2, 3, 1).flatten(1))
            code = self.bbox_pred(hidden).permute(0, 2, 3, 1)
            codes.append(code.reshape(len(code), -1, 4))
        return logits, codes


class RegionProposalNetwork(nn.Module):
    """Proposes boxes and learns from the objects' true ones."""

    def __init__(self, config: FasterRCNNConfig) -> None:
        super().__init__()
        self.config = config
        self.head = RPNHead(config.fpn_channels, len(config.anchor_aspect_ratios))

    def forward(
        self, levels: Sequence[Tensor], image_size: tuple[int, int], boxes: Tensor | None, labels: Tensor | None
    ) -> tuple[Proposals, dict[str, Tensor]]:
        """Proposals and, if there are objects to learn from, losses.

        Args:
            levels: features of P2 to P6.
            image_size: height and width in pixels.
            boxes: (batch, m, 4), the objects.
            labels: int64 (batch, m); 0 is padding.

        Returns:
            The proposals, without gradients; "loss_objectness" and "loss_rpn_box_reg" in float32.
        """
        config = self.config
        logits, codes = self.head(levels)
        with torch.autocast(levels[0].device.type, enabled=False):
            logits = [level.float() for level in logits]
            codes = [level.float() for level in codes]
            shapes = [(level.shape[2], level.shape[3]) for level in levels]
            anchors = make_anchors(shapes, config.anchor_sizes, config.anchor_aspect_ratios, levels[0].device)
            proposals = self._propose(anchors, logits, codes, image_size)
            if boxes is None or labels is None:
                return proposals, {}
            losses = self._losses(torch.cat(anchors), torch.cat(logits, 1), torch.cat(codes, 1), boxes, labels > 0)
        return proposals, losses

    @torch.no_grad()
    def _propose(
        self, anchors: list[Tensor], logits: list[Tensor], codes: list[Tensor], image_size: tuple[int, int]
    ) -> Proposals:
        """The best boxes of each level, without those that a better one of the same level overlaps."""
        config = self.config
        candidates, scores = [], []
        for level_anchors, level_logits, level_codes in zip(anchors, logits, codes, strict=True):
            num_best = min(self._pre_nms_top_n, level_logits.shape[1])
            best, indices = level_logits.topk(num_best, dim=1)
            boxes = decode_boxes(
                take(level_codes, indices),
                level_anchors[indices],
                config.rpn_box_weights,
                max_log_scale=config.max_log_scale,
            )
            boxes = clip_boxes(boxes, *image_size)
            # Probabilities, since torchvision orders by them, and different logits may have the same.
            score = best.sigmoid()
            valid = are_large(boxes, config.rpn_min_box_size) & (score >= config.rpn_score_threshold)
            keep = operators.suppress_boxes(boxes, valid, config.rpn_nms_iou)
            candidates.append(boxes)
            scores.append(score.masked_fill(~keep, -1.0))
        score, order = torch.cat(scores, 1).sort(dim=1, descending=True, stable=True)
        num_kept = min(self._post_nms_top_n, order.shape[1])
        return Proposals(take(torch.cat(candidates, 1), order[:, :num_kept]), score[:, :num_kept] >= 0)

    def _losses(
        self, anchors: Tensor, logits: Tensor, codes: Tensor, boxes: Tensor, is_object: Tensor
    ) -> dict[str, Tensor]:
        """Ren et al. 2015, equation 1; as in torchvision both terms are divided by the number of anchors sampled."""
        config = self.config
        matches = match_boxes(
            pairwise_iou(boxes, anchors),
            is_object,
            positive_iou=config.rpn_positive_iou,
            negative_iou=config.rpn_negative_iou,
            keep_best_of_object=True,
        )
        sample = sample_boxes(
            matches.kinds,
            num_samples=config.rpn_batch_size_per_image,
            positive_fraction=config.rpn_positive_fraction,
        )
        num_sampled = sample.is_sampled.sum().clamp(min=1)
        objectness = functional.binary_cross_entropy_with_logits(
            logits.gather(1, sample.indices),
            sample.is_positive.float(),
            weight=sample.is_sampled.float(),
            reduction="sum",
        )
        positive = sample.is_positive.unsqueeze(-1)
        references = anchors[sample.indices]
        truth = torch.where(positive, take(boxes, matches.objects.gather(1, sample.indices)), references)
        box_loss = functional.smooth_l1_loss(
            take(codes, sample.indices) * positive,
            encode_boxes(truth, references, config.rpn_box_weights),  # 0 where there is no object
            beta=config.rpn_smooth_l1_beta,
            reduction="sum",
        )
        return {"loss_objectness": objectness / num_sampled, "loss_rpn_box_reg": box_loss / num_sampled}

    @property
    def _pre_nms_top_n(self) -> int:
        return self.config.rpn_pre_nms_top_n_training if self.training else self.config.rpn_pre_nms_top_n_testing

    @property
    def _post_nms_top_n(self) -> int:
        return self.config.rpn_post_nms_top_n_training if self.training else self.config.rpn_post_nms_top_n_testing
