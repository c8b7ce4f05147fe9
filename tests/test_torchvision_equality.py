"""Our detector beside torchvision's, with equal weights: operators, losses, gradients, detections.

Runs wherever torchvision's operators load; ``benchmarks/detection_operators.rst`` records one run.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors import small_config
from torch import Tensor

from hpcai500.models import operators
from hpcai500.models.boxes import decode_boxes, encode_boxes, pairwise_iou, suppress
from hpcai500.models.faster_rcnn import Detections, FasterRCNN, FasterRCNNConfig
from hpcai500.models.operators import align_regions_torch, align_regions_torchvision, suppress_torchvision

if not operators.HAS_TORCHVISION:
    pytest.skip("torchvision is not installed, or not for this torch", allow_module_level=True)

import torchvision.models.detection as tv
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou

HEIGHT, WIDTH = 128, 192
EVERYTHING = 100_000  # samples a image: more than there are, so that no random choice is left
OURS_AND_THEIRS = [
    pytest.param(suppress, align_regions_torch, id="our operators"),
    pytest.param(suppress_torchvision, align_regions_torchvision, id="torchvision's operators"),
]


def random_boxes(shape: tuple[int, ...], seed: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand((*shape, 4), generator=generator) * torch.tensor([width, height, width, height])
    first, second = corners[..., :2], corners[..., 2:]
    return torch.cat((torch.minimum(first, second), torch.maximum(first, second) + 1), dim=-1)


def their_model(config: FasterRCNNConfig) -> Any:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    return tv.FasterRCNN(
        backbone,
        num_classes=config.num_classes + 1,
        min_size=HEIGHT,
        max_size=WIDTH,
        image_mean=[0.0, 0.0, 0.0],
        image_std=[1.0, 1.0, 1.0],
        rpn_pre_nms_top_n_train=config.rpn_pre_nms_top_n_training,
        rpn_pre_nms_top_n_test=config.rpn_pre_nms_top_n_testing,
        rpn_post_nms_top_n_train=config.rpn_post_nms_top_n_training,
        rpn_post_nms_top_n_test=config.rpn_post_nms_top_n_testing,
        rpn_batch_size_per_image=config.rpn_batch_size_per_image,
        rpn_positive_fraction=config.rpn_positive_fraction,
        box_batch_size_per_image=config.box_batch_size_per_image,
        box_positive_fraction=config.box_positive_fraction,
        box_score_thresh=config.box_score_threshold,
    )


def both_models(**changes: Any) -> tuple[FasterRCNN, Any]:
    """Ours and theirs with the same weights; scaled up, so that proposals and scores differ from place to place."""
    config = small_config(in_channels=3, **changes)
    torch.manual_seed(5)
    ours = FasterRCNN(config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith("bn3.weight"):
                parameter.fill_(0.5)
            if name.endswith(("cls_logits.weight", "cls_score.weight", "bbox_pred.weight")):
                parameter.normal_(std=0.1 if name.startswith("rpn") else 0.3)
    theirs = their_model(config)
    theirs.load_state_dict(ours.state_dict())  # strict: same names and shapes
    return ours, theirs


def targets() -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Three images with 3, 0 and 1 objects."""
    boxes, labels = torch.zeros(3, 4, 4), torch.zeros(3, 4, dtype=torch.long)
    boxes[0, :3] = torch.tensor([[10.0, 20, 60, 70], [100, 5, 180, 125], [30, 60, 70, 80]])
    labels[0, :3] = torch.tensor([1, 4, 2])
    boxes[2, 0] = torch.tensor([0.0, 0, 192, 40])
    labels[2, 0] = 3
    as_dicts = [{"boxes": b[k > 0], "labels": k[k > 0]} for b, k in zip(boxes, labels, strict=True)]
    return boxes, labels, as_dicts


@pytest.mark.parametrize(("suppress_boxes", "align_regions"), OURS_AND_THEIRS)
def test_losses_and_gradients_are_torchvisions(
    monkeypatch: pytest.MonkeyPatch, suppress_boxes: Any, align_regions: Any
) -> None:
    monkeypatch.setattr(operators, "suppress_boxes", suppress_boxes)
    monkeypatch.setattr(operators, "align_regions", align_regions)
    ours, theirs = both_models(rpn_batch_size_per_image=EVERYTHING, box_batch_size_per_image=EVERYTHING)
    images = torch.randn(3, 3, HEIGHT, WIDTH)
    boxes, labels, as_dicts = targets()
    our_losses = ours(images, boxes, labels)
    their_losses = theirs(list(images), as_dicts)
    assert set(our_losses) == set(their_losses)
    for name, value in their_losses.items():
        assert value > 0
        torch.testing.assert_close(our_losses[name], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    sum(our_losses.values()).backward()
    sum(their_losses.values()).backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        reference = their_gradients[name]
        assert (parameter.grad - reference).norm() <= 1e-3 * reference.norm() + 1e-5, name


@pytest.mark.parametrize(("suppress_boxes", "align_regions"), OURS_AND_THEIRS)
def test_detections_are_torchvisions(monkeypatch: pytest.MonkeyPatch, suppress_boxes: Any, align_regions: Any) -> None:
    monkeypatch.setattr(operators, "suppress_boxes", suppress_boxes)
    monkeypatch.setattr(operators, "align_regions", align_regions)
    ours, theirs = both_models()
    images = torch.randn(2, 3, HEIGHT, WIDTH)
    with torch.no_grad():
        found = ours.eval()(images)
        expected = theirs.eval()(list(images))
    assert isinstance(found, Detections)
    assert [len(image["scores"]) > 5 for image in expected] == [True, True]
    for index, image in enumerate(expected):
        count = len(image["scores"])
        assert int((found.scores[index] > 0).sum()) == count
        torch.testing.assert_close(found.scores[index, :count], image["scores"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.boxes[index, :count], image["boxes"], rtol=1e-4, atol=1e-3)
        assert torch.equal(found.labels[index, :count], image["labels"])


def test_suppression_keeps_what_torchvisions_keeps() -> None:
    boxes = random_boxes((4, 300), seed=0)
    valid = torch.rand(4, 300, generator=torch.Generator().manual_seed(1)) > 0.2
    for threshold in (0.1, 0.5, 0.7):
        kept = suppress(boxes, valid, threshold)
        assert torch.equal(kept, suppress_torchvision(boxes, valid, threshold))
        assert 0 < kept.sum() < valid.sum()


@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_pooling_and_its_gradient_are_torchvisions(sampling_ratio: int) -> None:
    shapes = ((32, 48), (16, 24), (8, 12), (3, 5))  # the last not half of the one before
    generator = torch.Generator().manual_seed(3)
    levels = [torch.randn((2, 6, *shape), generator=generator, dtype=torch.float64) for shape in shapes]
    boxes = random_boxes((40,), seed=2).double()
    boxes[0] = torch.tensor([0.0, 0, 0, 0])  # no area
    boxes[1] = torch.tensor([191.9, 127.9, 192, 128])  # the last cell
    boxes[2] = torch.tensor([-40.0, -40, 300, 300])  # further than the features
    images = torch.randint(0, 2, (40,), generator=generator)
    box_levels = torch.randint(0, 4, (40,), generator=generator)
    outcomes = []
    for align in (align_regions_torch, align_regions_torchvision):
        leaves = [level.clone().requires_grad_() for level in levels]
        regions = align(
            leaves, boxes, images, box_levels, strides=(4, 8, 16, 32), output_size=7, sampling_ratio=sampling_ratio
        )
        (regions * torch.linspace(-1, 1, regions.numel(), dtype=torch.float64).view(regions.shape)).sum().backward()
        outcomes.append([regions.detach(), *(leaf.grad for leaf in leaves)])
    for mine, reference in zip(*outcomes, strict=True):
        assert reference.abs().max() > 0.1
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-6)


def test_arithmetic_of_boxes_is_torchvisions() -> None:
    first, second = random_boxes((50,), seed=7), random_boxes((50,), seed=8)
    torch.testing.assert_close(pairwise_iou(first, second), box_iou(first, second))
    weights = (10.0, 10.0, 5.0, 5.0)
    coder = BoxCoder(weights)
    codes = encode_boxes(first, second, weights)
    torch.testing.assert_close(codes, coder.encode_single(first, second))
    large = codes * 8  # beyond the limit of the logarithm, for some
    ours = decode_boxes(large, second, weights, max_log_scale=coder.bbox_xform_clip)
    torch.testing.assert_close(ours, coder.decode_single(large, second))
