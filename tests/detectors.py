"""Configurations of Faster R-CNN that tests use."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hpcai500.models.faster_rcnn_config import FasterRCNNConfig

# torchvision's fasterrcnn_resnet50_fpn, for 16 channels and 4 classes.
OFFICIAL = FasterRCNNConfig(
    in_channels=16,
    num_classes=4,
    fpn_channels=256,
    anchor_sizes=(32, 64, 128, 256, 512),
    anchor_aspect_ratios=(0.5, 1.0, 2.0),
    rpn_positive_iou=0.7,
    rpn_negative_iou=0.3,
    rpn_batch_size_per_image=256,
    rpn_positive_fraction=0.5,
    rpn_pre_nms_top_n_training=2000,
    rpn_pre_nms_top_n_testing=1000,
    rpn_post_nms_top_n_training=2000,
    rpn_post_nms_top_n_testing=1000,
    rpn_nms_iou=0.7,
    rpn_score_threshold=0.0,
    rpn_min_box_size=1e-3,
    rpn_box_weights=(1.0, 1.0, 1.0, 1.0),
    rpn_smooth_l1_beta=1 / 9,
    roi_output_size=7,
    roi_sampling_ratio=2,
    roi_canonical_size=224,
    roi_canonical_level=4,
    box_head_width=1024,
    box_positive_iou=0.5,
    box_negative_iou=0.5,
    box_batch_size_per_image=512,
    box_positive_fraction=0.25,
    box_weights=(10.0, 10.0, 5.0, 5.0),
    box_smooth_l1_beta=1 / 9,
    box_score_threshold=0.05,
    box_nms_iou=0.5,
    box_min_size=1e-2,
    detections_per_image=100,
    max_log_scale=math.log(1000 / 16),
)


def small_config(**changes: Any) -> FasterRCNNConfig:
    """The official network with few sampled regions, quick on a small image."""
    few = {
        "rpn_pre_nms_top_n_training": 100,
        "rpn_pre_nms_top_n_testing": 100,
        "rpn_post_nms_top_n_training": 100,
        "rpn_post_nms_top_n_testing": 100,
        "box_batch_size_per_image": 16,
    }
    return dataclasses.replace(OFFICIAL, **(few | changes))
