"""Anchors: the boxes that the region proposal network starts from, at every cell of every level.

Source: Ren et al., "Faster R-CNN", NIPS 2015, section 3.1.1; one size a level after Lin et al., CVPR 2017, section 4.1.
Sides are rounded to even numbers of pixels and the first anchor's centre is the image's corner, as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEVEL_STRIDES = (4, 8, 16, 32, 64)  # pixels between two cells of P2 to P6 (Lin et al. 2017, section 3)


def cell_anchors(size: float, aspect_ratios: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
    """Anchors of one cell, around (0, 0): (num_ratios, 4), each of about size x size square pixels.

    An aspect ratio is height / width.
    """
    heights = torch.tensor(aspect_ratios, dtype=torch.float32, device=device).sqrt()
    widths = 1 / heights
    sides = torch.stack((-widths, -heights, widths, heights), dim=1) * size
    return (sides / 2).round()


def make_anchors(
    level_shapes: Sequence[tuple[int, int]],
    sizes: Sequence[float],
    aspect_ratios: Sequence[float],
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Anchors of each level, (height * width * num_ratios, 4): row by row, cell by cell, ratio by ratio.

    The distance of two cells is the level's stride. torchvision divides the image's side by the level's and rounds
    down, which is the same where 64 divides the side, and elsewhere lets the anchors drift away from their cells.

    Args:
        level_shapes: (height, width) of each level's features, P2 first.
        sizes: of the anchors of each level, in pixels.
        aspect_ratios: height / width, at each level.
        device: where to make them.
    """
    anchors = []
    for (height, width), stride, size in zip(level_shapes, LEVEL_STRIDES, sizes, strict=True):
        y = torch.arange(height, dtype=torch.float32, device=device) * stride
        x = torch.arange(width, dtype=torch.float32, device=device) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
        anchors.append((centres + cell_anchors(size, aspect_ratios, device)).reshape(-1, 4))
    return anchors
