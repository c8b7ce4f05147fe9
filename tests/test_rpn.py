"""The region proposal network: order of its outputs, its proposals, its losses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from detectors import small_config
from torch import Tensor

from hpcai500.models.anchors import make_anchors
from hpcai500.models.boxes import encode_boxes, pairwise_iou
from hpcai500.models.rpn import RegionProposalNetwork, RPNHead

CHANNELS = 8
IMAGE_SIZE = (64, 96)
SHAPES = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
NUM_ANCHORS = 3 * sum(height * width for height, width in SHAPES)


def network(**changes: Any) -> RegionProposalNetwork:
    torch.manual_seed(2)
    return RegionProposalNetwork(small_config(fpn_channels=CHANNELS, **changes))


def levels(batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn((batch, CHANNELS, *shape), generator=generator) for shape in SHAPES]


def objects(batch: int = 2) -> tuple[Tensor, Tensor]:
    """One object of 40 x 40 in the first image, none in the others."""
    boxes, labels = torch.zeros(batch, 3, 4), torch.zeros(batch, 3, dtype=torch.long)
    boxes[0, 0], labels[0, 0] = torch.tensor([20.0, 10, 60, 50]), 2
    return boxes, labels


class FixedHead(torch.nn.Module):
    """Says what it is told."""

    def __init__(self, logits: Tensor, codes: Tensor) -> None:
        super().__init__()
        self.sizes = [3 * height * width for height, width in SHAPES]
        self.logits, self.codes = logits, codes

    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return list(self.logits.split(self.sizes, 1)), list(self.codes.split(self.sizes, 1))


def all_anchors() -> Tensor:
    config = small_config()
    return torch.cat(make_anchors(SHAPES, config.anchor_sizes, config.anchor_aspect_ratios))


def test_outputs_of_the_head_are_in_the_order_of_the_anchors() -> None:
    head = RPNHead(CHANNELS, 3)
    features = levels(1)
    logits, codes = head(features)
    for level, level_logits, level_codes in zip(features, logits, codes, strict=True):
        hidden = head.conv(level)
        height, width = level.shape[2:]
        by_place = head.cls_logits(hidden)[0].permute(1, 2, 0)
        torch.testing.assert_close(level_logits.view(height, width, 3), by_place)
        by_anchor = head.bbox_pred(hidden)[0].view(3, 4, height, width).permute(2, 3, 0, 1)
        torch.testing.assert_close(level_codes.view(height, width, 3, 4), by_anchor)


def test_names_are_torchvisions() -> None:
    assert set(network().state_dict()) == {
        f"head.{layer}.{kind}" for layer in ("conv.0.0", "cls_logits", "bbox_pred") for kind in ("weight", "bias")
    }


def test_proposals_are_inside_the_image_and_none_overlaps_a_better_one_of_its_level() -> None:
    rpn = network(anchor_sizes=(16, 32, 64, 128, 256)).eval()
    with torch.no_grad():
        proposals, losses = rpn(levels(), IMAGE_SIZE, None, None)
    assert losses == {}
    assert proposals.boxes.shape == (2, 100, 4)
    for rows, valid in zip(*proposals, strict=True):
        boxes = rows[valid]
        assert len(boxes) > 20
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2] <= IMAGE_SIZE[1]).all()
        assert (boxes[:, 3] <= IMAGE_SIZE[0]).all()
        small = boxes[(boxes[:, 2:] - boxes[:, :2]).amax(dim=1) < 20]  # of P2 alone
        assert len(small) > 5
        assert (pairwise_iou(small, small).fill_diagonal_(0) <= 0.7).all()


def test_the_best_proposal_is_the_anchor_of_the_greatest_logit_moved_by_its_code() -> None:
    anchors, place = all_anchors(), 3 * (9 * 24 + 11) + 1  # the square anchor at row 9, column 11 of P2
    target = torch.tensor([30.0, 20, 66, 58])
    logits, codes = torch.zeros(1, NUM_ANCHORS), torch.zeros(1, NUM_ANCHORS, 4)
    logits[0, place] = 5.0
    codes[0, place] = encode_boxes(target, anchors[place], (1.0, 1, 1, 1))
    rpn = network()
    rpn.head = FixedHead(logits, codes)
    proposals, _ = rpn(levels(1), IMAGE_SIZE, None, None)
    torch.testing.assert_close(proposals.boxes[0, 0], target)


def test_training_and_evaluation_keep_their_own_numbers() -> None:
    rpn = network(rpn_post_nms_top_n_training=30, rpn_post_nms_top_n_testing=20, rpn_pre_nms_top_n_training=50)
    assert rpn(levels(), IMAGE_SIZE, None, None)[0].boxes.shape[1] == 30
    assert rpn.eval()(levels(), IMAGE_SIZE, None, None)[0].boxes.shape[1] == 20


def test_proposals_too_small_or_too_improbable_are_padding() -> None:
    rpn = network(rpn_min_box_size=200.0)
    assert not rpn(levels(), IMAGE_SIZE, None, None)[0].valid.any()
    rpn = network(rpn_score_threshold=0.9)
    logits = torch.full((2, NUM_ANCHORS), -5.0)
    logits[1, 7] = 5.0
    rpn.head = FixedHead(logits, torch.zeros(2, NUM_ANCHORS, 4))
    assert rpn(levels(), IMAGE_SIZE, None, None)[0].valid.sum(dim=1).tolist() == [0, 1]


def test_losses_are_those_of_a_network_that_knows_nothing() -> None:
    rpn = network(rpn_batch_size_per_image=NUM_ANCHORS)
    rpn.head = FixedHead(torch.zeros(2, NUM_ANCHORS), torch.zeros(2, NUM_ANCHORS, 4))
    _, losses = rpn(levels(), IMAGE_SIZE, *objects())
    assert float(losses["loss_objectness"]) == pytest.approx(0.6931, abs=1e-4)  # log 2
    assert losses["loss_rpn_box_reg"] > 0


def test_losses_of_a_network_that_knows_all_are_nearly_zero() -> None:
    box = objects()[0][0, 0]
    anchors = all_anchors()
    iou = pairwise_iou(box[None], anchors)[0]
    positive = iou == iou.max()
    assert iou.max() < 0.7  # the object is found by its nearest anchors only
    rpn = network(rpn_batch_size_per_image=NUM_ANCHORS)
    right = torch.where(positive, 20.0, -20.0)
    codes = encode_boxes(box.expand(NUM_ANCHORS, 4), anchors, (1.0, 1, 1, 1)) * positive[:, None]
    no_object = torch.full((NUM_ANCHORS,), -20.0)
    rpn.head = FixedHead(torch.stack((right, no_object)), torch.stack((codes, torch.zeros_like(codes))))
    _, losses = rpn(levels(), IMAGE_SIZE, *objects())
    assert max(float(loss) for loss in losses.values()) < 1e-6
    rpn.head = FixedHead(torch.stack((right, right)), torch.stack((codes, codes)))  # sees it in the empty image too
    _, losses = rpn(levels(), IMAGE_SIZE, *objects())
    assert losses["loss_objectness"] > 0.01
    assert losses["loss_rpn_box_reg"] < 1e-6


def test_an_anchor_learns_the_box_of_its_own_object() -> None:
    boxes, labels = objects()
    boxes[0, 1], labels[0, 1] = torch.tensor([60.0, 20, 92, 60]), 1
    anchors = all_anchors()
    iou = pairwise_iou(boxes[0, :2], anchors)
    own = encode_boxes(boxes[0, iou.argmax(dim=0)], anchors, (1.0, 1, 1, 1))
    rpn = network(rpn_batch_size_per_image=NUM_ANCHORS)
    rpn.head = FixedHead(torch.zeros(2, NUM_ANCHORS), torch.stack((own, own)))
    assert rpn(levels(), IMAGE_SIZE, boxes, labels)[1]["loss_rpn_box_reg"] < 1e-6


def test_without_any_object_all_weights_get_gradients_and_boxes_none_to_follow() -> None:
    rpn = network()
    boxes, labels = objects()
    _, losses = rpn(levels(), IMAGE_SIZE, boxes, torch.zeros_like(labels))
    assert losses["loss_rpn_box_reg"] == 0
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in rpn.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["head.cls_logits.weight"].any()
    assert not gradients["head.bbox_pred.weight"].any()


def test_proposals_carry_no_gradient() -> None:
    proposals, _ = network()(levels(), IMAGE_SIZE, *objects())
    assert not proposals.boxes.requires_grad


def test_the_configuration_reaches_the_losses() -> None:
    config = small_config(fpn_channels=CHANNELS, rpn_batch_size_per_image=NUM_ANCHORS)
    head = FixedHead(torch.zeros(2, NUM_ANCHORS), torch.full((2, NUM_ANCHORS, 4), 3.0))
    found = {}
    for name, change in {
        "as it is": {},
        "beta": {"rpn_smooth_l1_beta": 1.0},
        "weights": {"rpn_box_weights": (10.0, 10.0, 5.0, 5.0)},
        "threshold": {"rpn_positive_iou": 0.4},
    }.items():
        rpn = RegionProposalNetwork(dataclasses.replace(config, **change))
        rpn.head = head
        found[name] = float(rpn(levels(), IMAGE_SIZE, *objects())[1]["loss_rpn_box_reg"])
    assert len(set(found.values())) == len(found)
