"""Arithmetic of boxes: overlap, the code that networks predict, clipping, non-maximum suppression.

A box is (x1, y1, x2, y2) in pixels, float32, with x1 <= x2 and y1 <= y2; its sides are x2 - x1 and y2 - y1. Leading
axes are batch axes throughout, and where their numbers of boxes differ the tensors are padded and a mask says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROWS_AT_ONCE = 128  # of a matrix of overlaps: few enough for the processor's cache, which makes it twice as fast


def box_areas(boxes: Tensor) -> Tensor:
    """Areas in square pixels: (..., k, 4) to (..., k)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair: (..., m, 4) and (..., k, 4) to (..., m, k).

    Two boxes without area give NaN, which is above no threshold.
    """
    x1, y1, x2, y2 = (edge.unsqueeze(-1) for edge in first.unbind(-1))
    other_x1, other_y1, other_x2, other_y2 = (edge.unsqueeze(-2) for edge in second.unbind(-1))
    intersection = (torch.minimum(x2, other_x2) - torch.maximum(x1, other_x1)).clamp_(min=0)
    intersection *= (torch.minimum(y2, other_y2) - torch.maximum(y1, other_y1)).clamp_(min=0)
    union = (box_areas(first).unsqueeze(-1) + box_areas(second).unsqueeze(-2)).sub_(intersection)
    return intersection.div_(union)


def encode_boxes(boxes: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """What a network has to predict at ``references`` to mean ``boxes``: (..., 4) and (..., 4) to (..., 4).

    The shift of the centre in units of the reference's sides and the logarithm of the change of its sides, each times
    its weight (Girshick et al., CVPR 2014, equations 6 to 9; the weights are torchvision's). Sides must be above 0.
    """
    x, y, width, height = _centres_and_sides(boxes)
    reference_x, reference_y, reference_width, reference_height = _centres_and_sides(references)
    return torch.stack(
        (
            weights[0] * (x - reference_x) / reference_width,
            weights[1] * (y - reference_y) / reference_height,
            weights[2] * torch.log(width / reference_width),
            weights[3] * torch.log(height / reference_height),
        ),
        dim=-1,
    )


def decode_boxes(codes: Tensor, references: Tensor, weights: Sequence[float], *, max_log_scale: float) -> Tensor:
    """Inverse of ``encode_boxes``; no side grows by more than exp(``max_log_scale``)."""
    reference_x, reference_y, reference_width, reference_height = _centres_and_sides(references)
    dx, dy, dw, dh = codes.unbind(-1)
    x = dx / weights[0] * reference_width + reference_x
    y = dy / weights[1] * reference_height + reference_y
    half_width = 0.5 * torch.exp((dw / weights[2]).clamp(max=max_log_scale)) * reference_width
    half_height = 0.5 * torch.exp((dh / weights[3]).clamp(max=max_log_scale)) * reference_height
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=-1)


def _centres_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """The part of each box (..., 4) that lies in an image of that height and width."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=-1)


def are_large(boxes: Tensor, min_size: float) -> Tensor:
    """Which boxes (..., 4) have both sides of at least ``min_size`` pixels: bool (...)."""
    return (boxes[..., 2] - boxes[..., 0] >= min_size) & (boxes[..., 3] - boxes[..., 1] >= min_size)


def suppress(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression, exact and without a loop over boxes.

    Greedy suppression keeps box j unless a better box i that is itself kept overlaps it: keep[j] = not any(keep[i] and
    IoU[i, j] > threshold, i < j). All boxes of which this can be told are told at once, and so on with the others:
    a box that no better undecided one overlaps is kept, and a box that a kept one overlaps is not. There are as many
    rounds as the longest chain of overlapping boxes has links.

    Args:
        boxes: (batch, k, 4), each batch of them sorted from the best to the worst.
        valid: bool (batch, k); others are not there: they suppress nothing and are not kept.
        iou_threshold: overlaps above it suppress.

    Returns:
        Which are kept, bool (batch, k).
    """
    better, worse = _overlapping_pairs(boxes, iou_threshold)
    keep = valid.flatten().clone()
    while True:
        undecided = keep[better] & keep[worse]
        better, worse = better[undecided], worse[undecided]
        if len(better) == 0:
            return keep.view_as(valid)
        is_worse = torch.zeros_like(keep)
        is_worse[worse] = True
        keep[worse[~is_worse[better]]] = False


def _overlapping_pairs(boxes: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Pairs of boxes of the same batch that overlap, by their places in the flattened batch: the better, the worse."""
    num_boxes = boxes.shape[1]
    better, worse = [], []
    for begin in range(0, max(1, num_boxes), ROWS_AT_ONCE):
        rows, others = boxes[:, begin : begin + ROWS_AT_ONCE], boxes[:, begin:]
        batch, row, other = (pairwise_iou(rows, others) > iou_threshold).triu_(1).nonzero(as_tuple=True)
        first = batch * num_boxes + begin
        better.append(first + row)
        worse.append(first + other)
    return torch.cat(better), torch.cat(worse)
