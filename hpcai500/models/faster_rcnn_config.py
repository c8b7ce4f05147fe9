"""Every constant of Faster R-CNN with a ResNet-50-FPN backbone, without a default: the rules give them.

Sources: [ren] Ren et al., "Faster R-CNN", NIPS 2015 (arXiv 1506.01497v3); [fpn] Lin et al., "Feature Pyramid Networks
for Object Detection", CVPR 2017 (arXiv 1612.03144v2); [fast] Girshick, "Fast R-CNN", ICCV 2015 (arXiv 1504.08083);
[mask] He et al., "Mask R-CNN", ICCV 2017 (arXiv 1703.06870v3); [tv] torchvision's fasterrcnn_resnet50_fpn, release
0.28. The values named are torchvision's; where a paper is named as well it has the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcai500.errors import UsageError

NUM_LEVELS = 5  # P2 to P6 ([fpn] section 4.1)


@dataclass(frozen=True)
class FasterRCNNConfig:
    """Constants of the model; boxes are in pixels of the image, thresholds compare intersection over union (IoU).

    Attributes:
        in_channels: channels of an image; 16 for ExtremeWeather.
        num_classes: classes without the background, which the network adds as class 0; 4 for ExtremeWeather.
        fpn_channels: of every level of the pyramid. [fpn] section 3: 256.
        anchor_sizes: side of the square anchor of each level P2 to P6. [fpn] section 4.1: 32, 64, 128, 256, 512.
        anchor_aspect_ratios: height / width, at each level. [ren] section 3.3, [fpn] section 4.1: 0.5, 1, 2.
        rpn_positive_iou: an anchor is positive from this overlap on. [ren] section 3.1.2: 0.7.
        rpn_negative_iou: and negative below this one. [ren] section 3.1.2: 0.3.
        rpn_batch_size_per_image: anchors sampled for the loss. [ren] section 3.1.3: 256.
        rpn_positive_fraction: of them at most. [ren] section 3.1.3: 0.5 ("a ratio of up to 1:1").
        rpn_pre_nms_top_n_training: best anchors of each level and image that suppression looks at. [tv]: 2000.
        rpn_pre_nms_top_n_testing: the same in evaluation. [tv]: 1000.
        rpn_post_nms_top_n_training: best proposals of an image, over its levels. [tv], [fpn] section 5.2: 2000.
        rpn_post_nms_top_n_testing: the same in evaluation. [tv], [fpn] section 5.2: 1000.
        rpn_nms_iou: a proposal overlapping a better one more than this goes. [ren] section 3.3: 0.7.
        rpn_score_threshold: proposals less probable than this go. [tv]: 0, so none.
        rpn_min_box_size: proposals narrower or lower than this go. [tv]: 0.001.
        rpn_box_weights: factors of (dx, dy, dw, dh) of the box code. [tv]: 1, 1, 1, 1 ([ren] equation 2 has none).
        rpn_smooth_l1_beta: where the box loss turns from square to linear. [tv]: 1/9.
        roi_output_size: cells along a side of a pooled region. [fpn] section 4.2: 7.
        roi_sampling_ratio: points along a side of a cell. [tv]: 2; [mask] section 3: four points a cell.
        roi_canonical_size: side of a region that is pooled from the canonical level. [fpn] equation 1: 224.
        roi_canonical_level: that level. [fpn] equation 1: 4.
        box_head_width: of both hidden layers. [fpn] section 4.2: 1024.
        box_positive_iou: a region belongs to an object from this overlap on. [fast] section 2.3: 0.5.
        box_negative_iou: and to the background below this one. [tv]: 0.5.
        box_batch_size_per_image: regions sampled for the loss. [fpn] section 5.2: 512.
        box_positive_fraction: of them at most. [fast] section 2.3: 0.25.
        box_weights: as rpn_box_weights, for the final boxes. [tv]: 10, 10, 5, 5, inverse deviations of the targets.
        box_smooth_l1_beta: as rpn_smooth_l1_beta. [tv]: 1/9.
        box_score_threshold: detections must be more probable than this. [tv]: 0.05.
        box_nms_iou: as rpn_nms_iou, within a class. [tv]: 0.5.
        box_min_size: detections narrower or lower than this go. [tv]: 0.01.
        detections_per_image: the best ones. [tv]: 100.
        max_log_scale: largest logarithm of a change of width or height. [tv]: log(1000 / 16), 4.135.
    """

    in_channels: int
    num_classes: int
    fpn_channels: int
    anchor_sizes: tuple[int, ...]
    anchor_aspect_ratios: tuple[float, ...]
    rpn_positive_iou: float
    rpn_negative_iou: float
    rpn_batch_size_per_image: int
    rpn_positive_fraction: float
    rpn_pre_nms_top_n_training: int
    rpn_pre_nms_top_n_testing: int
    rpn_post_nms_top_n_training: int
    rpn_post_nms_top_n_testing: int
    rpn_nms_iou: float
    rpn_score_threshold: float
    rpn_min_box_size: float
    rpn_box_weights: tuple[float, float, float, float]
    rpn_smooth_l1_beta: float
    roi_output_size: int
    roi_sampling_ratio: int
    roi_canonical_size: int
    roi_canonical_level: int
    box_head_width: int
    box_positive_iou: float
    box_negative_iou: float
    box_batch_size_per_image: int
    box_positive_fraction: float
    box_weights: tuple[float, float, float, float]
    box_smooth_l1_beta: float
    box_score_threshold: float
    box_nms_iou: float
    box_min_size: float
    detections_per_image: int
    max_log_scale: float

    def __post_init__(self) -> None:
        """Refuse what no single setting can rule out by itself.

        Raises:
            UsageError: a level without an anchor size, or a negative threshold above its positive one.
        """
        if len(self.anchor_sizes) != NUM_LEVELS:
            raise UsageError(
                f"anchor_sizes has {len(self.anchor_sizes)} values; give one for each of the {NUM_LEVELS} levels"
            )
        for part in ("rpn", "box"):
            negative, positive = getattr(self, f"{part}_negative_iou"), getattr(self, f"{part}_positive_iou")
            if negative > positive:
                raise UsageError(
                    f"{part}_negative_iou {negative} is above {part}_positive_iou {positive}; "
                    "make it at most as large, or one region would be both"
                )
