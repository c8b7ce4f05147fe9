"""Faster R-CNN on climate fields: the extreme weather workload of HPC AI500.

Every constant is a setting of rules/workloads/fasterrcnn.toml, with its source there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpcai500.edition import Size
from hpcai500.flop import FlopCount, count_flop
from hpcai500.learning_rate import learning_rate
from hpcai500.models.faster_rcnn import Detections, FasterRCNN, FlopProbe
from hpcai500.models.faster_rcnn_config import NUM_LEVELS, FasterRCNNConfig
from hpcai500.pipelines.climate_pipeline import BoxBatch
from hpcai500.setting_needs import check_device
from hpcai500.workloads.detection_evaluation import DetectionEvaluation
from hpcai500.workloads.policy import autocast, placed, sgd
from hpcai500.workloads.workload import Evaluation

CANONICAL_LEVEL = 4  # P4, the third (Lin et al. 2017, equation 1)
MAX_LOG_SCALE = 4.135166556742356  # log(1000 / 16), torchvision's: no box grows by more in one step
MIN_PROPOSAL_SCALE = 1.0  # proposals are coded in units of their anchor (Ren et al. 2015, equation 2)


class FasterRCNNWorkload:
    """Faster R-CNN with SGD and a warmed-up cosine learning rate."""

    def __init__(self, settings: dict[str, Any], *, size: Size, num_ranks: int, device: str) -> None:
        check_device(settings, device)
        self.settings = settings
        self.num_classes = size.num_classes
        self.input_shape = (size.input["channels"], size.input["height"], size.input["width"])
        self.device = device
        self.global_batch_size = settings["batch_size_per_rank"] * num_ranks
        self.model_config = model_config(settings, in_channels=self.input_shape[0], num_classes=size.num_classes)

    def build_model(self) -> nn.Module:
        return placed(self.make_model(), self.settings, self.device)

    def make_model(self) -> FasterRCNN:
        """The model on torch's default device."""
        return FasterRCNN(self.model_config)

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        return sgd(model, self.settings)

    def learning_rate(self, step: int, *, steps_per_epoch: int, num_epochs: int) -> float:
        return learning_rate(
            "fasterrcnn",
            self.settings,
            step,
            global_batch=self.global_batch_size,
            steps_per_epoch=steps_per_epoch,
            num_epochs=num_epochs,
        )

    def loss(self, model: nn.Module, batch: BoxBatch) -> Tensor:
        """Sum of the four losses: proposals and detections, class and box of each (Ren et al. 2015, equation 1)."""
        with autocast(self.settings, self.device):
            losses: dict[str, Tensor] = model(batch.images, batch.boxes, batch.labels)
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def begin_evaluation(self) -> Evaluation:
        """Of mAP@[IoU=0.5]."""
        return DetectionEvaluation(self.detect, num_classes=self.num_classes)

    def detect(self, model: nn.Module, images: Tensor) -> Detections:
        """What the model finds on a batch of fields."""
        with autocast(self.settings, self.device):
            detections: Detections = model(images)
        return detections

    def count_flop(self) -> FlopCount:
        return count_flop(partial(FlopProbe, self.model_config), self.input_shape)


def model_config(settings: dict[str, Any], *, in_channels: int, num_classes: int) -> FasterRCNNConfig:
    """The model's constants as the settings say them."""
    as_they_are = (
        "fpn_channels rpn_positive_iou rpn_negative_iou rpn_batch_size_per_image rpn_positive_fraction "
        "rpn_pre_nms_top_n_training rpn_pre_nms_top_n_testing rpn_post_nms_top_n_training rpn_post_nms_top_n_testing "
        "rpn_nms_iou rpn_score_threshold rpn_min_box_size rpn_smooth_l1_beta roi_output_size roi_sampling_ratio "
        "roi_canonical_size box_head_width box_positive_iou box_negative_iou box_batch_size_per_image "
        "box_positive_fraction box_smooth_l1_beta box_score_threshold box_nms_iou box_min_size detections_per_image"
    )
    aspect, smallest = float(settings["anchor_aspect_max"]), int(settings["anchor_size_min"])
    centre, size = float(settings["box_code_weight_centre"]), float(settings["box_code_weight_size"])
    unit = MIN_PROPOSAL_SCALE
    return FasterRCNNConfig(
        in_channels=in_channels,
        num_classes=num_classes,
        anchor_sizes=tuple(smallest * 2**level for level in range(NUM_LEVELS)),
        anchor_aspect_ratios=(1 / aspect, 1.0, aspect),
        rpn_box_weights=(unit, unit, unit, unit),
        roi_canonical_level=CANONICAL_LEVEL,
        box_weights=(centre, centre, size, size),
        max_log_scale=MAX_LOG_SCALE,
        **{name: settings[name] for name in as_they_are.split()},
    )
