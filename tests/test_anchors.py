"""Anchors: their shapes, and that each sits at its cell."""

from __future__ import annotations

import torch

from hpcai500.models.anchors import LEVEL_STRIDES, cell_anchors, make_anchors
from hpcai500.models.boxes import box_areas

SIZES = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)


def test_anchors_of_a_cell_are_torchvisions() -> None:
    # What torchvision's AnchorGenerator.generate_anchors gives for size 32.
    assert cell_anchors(32, RATIOS).tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]


def test_anchors_of_a_cell_have_about_the_same_area() -> None:
    for size in SIZES:
        areas = box_areas(cell_anchors(size, RATIOS)) / size**2
        assert ((areas > 0.97) & (areas < 1.03)).all()


def test_anchors_go_row_by_row_cell_by_cell_ratio_by_ratio() -> None:
    shapes = [(4, 6), (2, 3), (1, 2), (1, 1), (1, 1)]
    levels = make_anchors(shapes, SIZES, RATIOS)
    assert [len(level) for level in levels] == [height * width * 3 for height, width in shapes]
    for (height, width), stride, size, level in zip(shapes, LEVEL_STRIDES, SIZES, levels, strict=True):
        grid = level.view(height, width, 3, 4)
        for row in range(height):
            for column in range(width):
                centre = torch.tensor([column, row, column, row]) * stride
                assert torch.equal(grid[row, column], cell_anchors(size, RATIOS) + centre)


def test_anchors_stay_at_their_cells_where_the_image_is_no_multiple_of_the_stride() -> None:
    # A field of 96 x 144 has 2 x 3 cells at P6; dividing 96 by 2 would put the second at 48.
    last = make_anchors([(24, 36), (12, 18), (6, 9), (3, 5), (2, 3)], SIZES, RATIOS)[-1]
    centres = (last[:, :2] + last[:, 2:]) / 2
    assert centres[::3].tolist() == [[0, 0], [64, 0], [128, 0], [0, 64], [64, 64], [128, 64]]
