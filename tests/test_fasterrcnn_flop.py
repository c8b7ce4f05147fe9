"""FLOP of Faster R-CNN: the published figure, and the closed form beside what torch counts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from detectors import OFFICIAL, small_config
from torch.utils.flop_counter import FlopCounterMode

from hpcai500.flop import count_flop
from hpcai500.flop_forms import fasterrcnn_flop
from hpcai500.models.faster_rcnn import FasterRCNN, FlopProbe


def test_flop_at_the_official_size_are_the_known_ones() -> None:
    counted = count_flop(lambda: FlopProbe(OFFICIAL), (16, 768, 1152))
    assert counted.forward == pytest.approx(364.1e9, rel=1e-4)
    assert counted.training == pytest.approx(1070.1e9, rel=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "in_channels", "num_classes", "regions"),
    [(768, 1152, 16, 4, 512), (96, 144, 16, 4, 64), (128, 192, 16, 4, 32), (101, 67, 3, 9, 7), (65, 130, 1, 1, 1)],
)
def test_the_closed_form_is_what_torch_counts(
    height: int, width: int, in_channels: int, num_classes: int, regions: int
) -> None:
    config = dataclasses.replace(
        OFFICIAL, in_channels=in_channels, num_classes=num_classes, box_batch_size_per_image=regions
    )
    counted = count_flop(lambda: FlopProbe(config), (in_channels, height, width))
    closed = fasterrcnn_flop(height, width, in_channels=in_channels, num_classes=num_classes, regions_per_image=regions)
    assert closed == (counted.forward, counted.training)


def test_the_closed_form_follows_other_widths() -> None:
    config = dataclasses.replace(
        OFFICIAL, fpn_channels=48, anchor_aspect_ratios=(0.5, 2.0), roi_output_size=5, box_head_width=96
    )
    counted = count_flop(lambda: FlopProbe(config), (16, 96, 144))
    widths = {"fpn_channels": 48, "anchors_per_cell": 2, "roi_output_size": 5, "box_head_width": 96}
    closed = fasterrcnn_flop(96, 144, in_channels=16, num_classes=4, regions_per_image=512, **widths)
    assert closed == (counted.forward, counted.training)


def test_a_real_training_step_costs_what_the_probe_says() -> None:
    config = small_config(box_batch_size_per_image=16)
    model = FasterRCNN(config)
    images, boxes = torch.randn(2, 16, 64, 96), torch.tensor([[[8.0, 8, 60, 40]], [[0.0, 0, 0, 0]]])
    with FlopCounterMode(display=False) as counter:
        losses = model(images, boxes, torch.tensor([[1], [0]]))
        torch.autograd.backward(list(losses.values()))
    closed = fasterrcnn_flop(64, 96, in_channels=16, num_classes=4, regions_per_image=16)
    assert counter.get_total_flops() == 2 * closed[1]
