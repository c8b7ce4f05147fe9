"""Non-maximum suppression and RoIAlign: torchvision's where it can be imported, else ours, which give the same.

One exception: on a processor RoIAlign is always ours, since it is much faster there. ``suppress_boxes`` and
``align_regions`` are the ones in use; call them through this module, so that tests and benchmarks can set them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hpcai500.models.boxes import suppress


def _load_torchvision() -> Any:
    """torchvision.ops if its operators work, else None: built for another torch, it fails in one of many ways."""
    try:
        ops = importlib.import_module("torchvision.ops")
        ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (ImportError, RuntimeError, AttributeError, OSError):
        return None
    return ops


_torchvision_ops = _load_torchvision()
HAS_TORCHVISION = _torchvision_ops is not None


def align_regions_torch(
    levels: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    box_levels: Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    """RoIAlign (He et al., "Mask R-CNN", ICCV 2017, section 3) over the levels of a pyramid, as one weighted sum.

    A region is cut into output_size x output_size cells; each is the mean of sampling_ratio x sampling_ratio points,
    and each point is interpolated between four cells of the features. So a cell of the output is a sum of
    4 sampling_ratio^2 feature vectors with known weights: all levels and images become one table of vectors, and
    ``embedding_bag`` adds them up. As torchvision's with aligned=False: coordinates are not shifted by half a cell,
    and a side is at least one cell.

    Args:
        levels: (batch, channels, height_i, width_i), in float32 or float64.
        boxes: (r, 4) in pixels of the image.
        images: int64 (r), index into the batch.
        box_levels: int64 (r), index into ``levels``.
        strides: pixels between two cells of each level.
        output_size: cells along a side.
        sampling_ratio: points along a side of a cell.

    Returns:
        (r, channels, output_size, output_size).
    """
    num_images, channels = levels[0].shape[:2]
    table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in levels])
    shapes = torch.tensor([level.shape[2:] for level in levels], device=boxes.device)
    sizes = shapes.prod(dim=1)
    begins = num_images * (sizes.cumsum(0) - sizes)
    height, width = shapes[box_levels].unbind(1)
    begin = begins[box_levels] + images * sizes[box_levels]
    scaled = boxes / torch.tensor(strides, dtype=boxes.dtype, device=boxes.device)[box_levels].unsqueeze(1)
    columns, column_weights = _axis_points(scaled[:, 0], scaled[:, 2], width, output_size, sampling_ratio)
    rows, row_weights = _axis_points(scaled[:, 1], scaled[:, 3], height, output_size, sampling_ratio)
    starts = begin[:, None, None] + rows * width[:, None, None]
    indices = starts[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    num_terms = rows.shape[2] * columns.shape[2]
    cells = functional.embedding_bag(
        indices.view(-1, num_terms), table, mode="sum", per_sample_weights=weights.view(-1, num_terms).to(table.dtype)
    )
    return cells.view(len(boxes), output_size, output_size, channels).permute(0, 3, 1, 2)


def _axis_points(
    begin: Tensor, end: Tensor, length: Tensor, output_size: int, sampling_ratio: int
) -> tuple[Tensor, Tensor]:
    """Which features the points along one axis lie between, and their weights.

    Takes the edges of each region, in cells of its features, and the number of these, all (r). Gives indices, int64,
    and weights, both (r, output_size, 2 * sampling_ratio): for each point its lower and its upper neighbour.
    """
    cell = (end - begin).clamp(min=1.0) / output_size
    cells = torch.arange(output_size, dtype=begin.dtype, device=begin.device)
    parts = torch.arange(sampling_ratio, dtype=begin.dtype, device=begin.device) + 0.5
    # Added up in the order of torchvision, so that both round alike.
    corners = begin[:, None] + cells * cell[:, None]
    points = (corners[:, :, None] + (parts * cell[:, None] / sampling_ratio)[:, None]).flatten(1)
    last = length[:, None] - 1
    inside = (points >= -1) & (points <= length[:, None])  # torchvision: further out there is nothing, not the border
    points = torch.minimum(points.clamp(min=0), last)
    lower = points.long().clamp_(min=0).minimum(last)  # in range even for boxes that are not finite
    upper = (lower + 1).minimum(last)
    fraction = points - lower
    share = inside / sampling_ratio
    weights = torch.stack(((1 - fraction) * share, fraction * share), dim=-1)
    indices = torch.stack((lower, upper), dim=-1)
    shape = (len(begin), output_size, 2 * sampling_ratio)
    return indices.view(shape), weights.view(shape)


def align_regions_torchvision(
    levels: Sequence[Tensor],
    boxes: Tensor,
    images: Tensor,
    box_levels: Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    """``align_regions_torch`` with torchvision's operator, level by level."""
    regions = torch.cat((images.unsqueeze(1).to(boxes.dtype), boxes), dim=1)
    output = levels[0].new_zeros((len(boxes), levels[0].shape[1], output_size, output_size))
    for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        chosen = (box_levels == index).nonzero().squeeze(1)
        cells = _torchvision_ops.roi_align(
            level, regions[chosen], output_size, 1 / stride, sampling_ratio, aligned=False
        )
        output = output.index_put((chosen,), cells)
    return output


def suppress_torchvision(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """``hpcai500.models.boxes.suppress`` with torchvision's operator, one row of the batch after the other."""
    keep = torch.zeros_like(valid)
    for row, (row_boxes, row_valid) in enumerate(zip(boxes, valid, strict=True)):
        indices = row_valid.nonzero().squeeze(1)
        descending = torch.arange(len(indices), 0, -1, dtype=boxes.dtype, device=boxes.device)
        keep[row, indices[_torchvision_ops.nms(row_boxes[indices], descending, iou_threshold)]] = True
    return keep


def align_regions_fastest(levels: Sequence[Tensor], *regions: Tensor, **constants: Any) -> Tensor:
    """On a GPU torchvision's; on a processor ours, which is several times as fast there.

    benchmarks/detection_operators.rst has the figures.
    """
    align = align_regions_torchvision if HAS_TORCHVISION and levels[0].is_cuda else align_regions_torch
    return align(levels, *regions, **constants)


AlignRegions = Callable[..., Tensor]
SuppressBoxes = Callable[[Tensor, Tensor, float], Tensor]
align_regions: AlignRegions = align_regions_fastest
suppress_boxes: SuppressBoxes = suppress_torchvision if HAS_TORCHVISION else suppress
