"""The second half of the detector: levels, regions to learn from, losses, selection of detections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectors import small_config
from torch import Tensor

from hpcai500.models.boxes import decode_boxes, pairwise_iou
from hpcai500.models.roi import RoIHeads, assign_levels
from hpcai500.models.rpn import Proposals

CHANNELS, IMAGE_SIZE = 8, (64, 96)
SHAPES = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]


def heads(**changes: Any) -> RoIHeads:
    torch.manual_seed(6)
    return RoIHeads(small_config(fpn_channels=CHANNELS, box_head_width=16, **changes))


def levels(batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn((batch, CHANNELS, *shape), generator=generator) for shape in SHAPES]


def proposals(batch: int = 2, count: int = 40) -> Proposals:
    generator = torch.Generator().manual_seed(9)
    corners = torch.rand((batch, count, 2, 2), generator=generator) * torch.tensor([96.0, 64])
    boxes = torch.cat((corners.amin(dim=2), corners.amax(dim=2) + 1), dim=-1)
    return Proposals(boxes, torch.ones(batch, count, dtype=torch.bool))


def objects() -> tuple[Tensor, Tensor]:
    """Two objects in the first image, of labels 2 and 4, none in the second."""
    boxes, labels = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
    boxes[0, 0], labels[0, 0] = torch.tensor([20.0, 10, 60, 50]), 2
    boxes[0, 1], labels[0, 1] = torch.tensor([70.0, 30, 90, 60]), 4
    return boxes, labels


@pytest.mark.parametrize(
    ("side", "level"), [(1, 2), (111, 2), (112, 3), (223.9, 3), (224, 4), (447, 4), (448, 5), (2000, 5)]
)
def test_a_region_is_pooled_from_the_level_of_its_size(side: float, level: int) -> None:
    box = torch.tensor([[3.0, 5, 3 + 2 * side, 5 + side / 2]])  # the area counts, not the shape
    assert assign_levels(box, canonical_size=224, canonical_level=4).tolist() == [level - 2]


def test_a_side_just_below_a_power_of_two_by_rounding_counts_as_it() -> None:
    box = torch.tensor([[404.42, 404.42, 516.42, 516.42]])
    assert box[0, 2] - box[0, 0] < 112
    assert assign_levels(box, canonical_size=224, canonical_level=4).tolist() == [1]


def test_names_are_torchvisions() -> None:
    assert {name: tuple(value.shape) for name, value in heads().state_dict().items()} == {
        "box_head.fc6.weight": (16, CHANNELS * 49),
        "box_head.fc6.bias": (16,),
        "box_head.fc7.weight": (16, 16),
        "box_head.fc7.bias": (16,),
        "box_predictor.cls_score.weight": (5, 16),
        "box_predictor.cls_score.bias": (5,),
        "box_predictor.bbox_pred.weight": (20, 16),
        "box_predictor.bbox_pred.bias": (20,),
    }


def test_regions_to_learn_from_have_the_label_and_the_code_of_their_object() -> None:
    boxes, labels = objects()
    config = small_config()
    chosen = heads(box_batch_size_per_image=43, box_positive_fraction=1.0).choose_regions(proposals(), boxes, labels)
    assert chosen.boxes.shape == (2, 43, 4)
    iou = pairwise_iou(chosen.boxes[0], boxes[0, :2])
    best, index = iou.max(dim=1)
    sampled = chosen.is_sampled[0]
    assert int(sampled.sum()) == 42  # 40 proposals and both objects; one row is padding
    expected = torch.where(best >= 0.5, torch.tensor([2, 4])[index], 0)
    assert torch.equal(chosen.labels[0][sampled], expected[sampled])
    positive = chosen.labels[0] > 0
    assert set(chosen.labels[0][positive].tolist()) == {2, 4}
    for box in boxes[0, :2]:  # the objects themselves are among them
        assert (chosen.boxes[0][positive] == box).all(dim=1).any()
    found = decode_boxes(chosen.codes[0], chosen.boxes[0], config.box_weights, max_log_scale=config.max_log_scale)
    torch.testing.assert_close(found[positive], boxes[0][index[positive]])
    assert not chosen.codes[0][~positive].any()


def test_an_image_without_objects_gives_background_only() -> None:
    chosen = heads().choose_regions(proposals(), *objects())
    assert chosen.is_sampled[1].all()
    assert not chosen.labels[1].any()
    assert chosen.codes.isfinite().all()


def test_proposals_that_are_padding_are_not_learnt_from() -> None:
    nothing = Proposals(torch.zeros(2, 40, 4), torch.zeros(2, 40, dtype=torch.bool))
    module = heads()
    chosen = module.choose_regions(nothing, *objects())
    assert chosen.is_sampled.sum(dim=1).tolist() == [2, 0]
    losses = module.losses(levels(), nothing, *objects())
    scores, _ = module.predict(levels(), chosen.boxes)
    true = scores[chosen.is_sampled.flatten()]  # both objects, in any order
    expected = torch.nn.functional.cross_entropy(true, chosen.labels[chosen.is_sampled])
    torch.testing.assert_close(losses["loss_classifier"], expected)


def test_overlaps_between_the_thresholds_are_not_learnt_from() -> None:
    boxes, labels = objects()
    near = boxes[:, :1].clone()
    near[0, 0, 2] = 48.0  # 28 of 40 columns: 0.7
    module = heads(box_positive_iou=0.8, box_negative_iou=0.6)
    chosen = module.choose_regions(Proposals(near, torch.tensor([[True], [False]])), boxes, labels)
    assert chosen.is_sampled.sum(dim=1).tolist() == [2, 0]  # the objects alone


def test_without_any_object_all_weights_get_gradients_and_boxes_none_to_follow() -> None:
    module = heads()
    boxes, labels = objects()
    losses = module.losses(levels(), proposals(), boxes, torch.zeros_like(labels))
    assert losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert gradients["box_predictor.cls_score.weight"].any()
    assert not gradients["box_predictor.bbox_pred.weight"].any()


def test_only_the_code_of_the_true_class_is_learnt() -> None:
    module = heads(box_positive_fraction=1.0)
    boxes, labels = objects()
    module.losses(levels(), proposals(), boxes, labels)["loss_box_reg"].backward()
    gradient = module.box_predictor.bbox_pred.bias.grad
    assert gradient is not None
    assert gradient.view(5, 4).any(dim=1).tolist() == [False, False, True, False, True]


def select(boxes: list[list[list[float]]], scores: list[list[float]], **changes: Any) -> list[list[Any]]:
    """(label, score, x1) of the detections of one image, from k x 4 boxes and scores."""
    found = heads(**changes)._select(torch.tensor([boxes]), torch.tensor([scores]))
    rows = zip(found.labels[0].tolist(), found.scores[0].tolist(), found.boxes[0, :, 0].tolist(), strict=True)
    return [[label, round(score, 3), x1] for label, score, x1 in rows]


def same_for_all_classes(*lefts: float) -> list[list[list[float]]]:
    return [[[left, 0.0, left + 20, 20.0]] * 4 for left in lefts]


def test_within_a_class_the_better_detection_stays_and_other_classes_are_left_alone() -> None:
    boxes = same_for_all_classes(0, 2, 50)
    found = select(boxes, [[0.6, 0.0, 0.0, 0.3], [0.7, 0.0, 0.0, 0.0], [0.2, 0.0, 0.0, 0.0]], detections_per_image=5)
    assert found == [[1, 0.7, 2.0], [4, 0.3, 0.0], [1, 0.2, 50.0], [0, 0.0, 0.0], [0, 0.0, 0.0]]


def test_improbable_and_tiny_detections_are_left_out() -> None:
    boxes = [*same_for_all_classes(0, 30), [[60.0, 0, 60.001, 20]] * 4]
    scores = [[0.05, 0.0, 0.0, 0.0], [0.06, 0.0, 0.0, 0.0], [0.9, 0.0, 0.0, 0.0]]
    assert select(boxes, scores, detections_per_image=2) == [[1, 0.06, 30.0], [0, 0.0, 0.0]]


def test_only_the_best_detections_of_all_classes_are_given() -> None:
    boxes = same_for_all_classes(0, 30, 60)
    scores = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.0, 0.0, 0.0], [0.0, 0.6, 0.0, 0.0]]
    assert select(boxes, scores, detections_per_image=3) == [[2, 0.6, 60.0], [1, 0.5, 30.0], [4, 0.4, 0.0]]


def test_nothing_found_is_padding() -> None:
    assert select(same_for_all_classes(0), [[0.0] * 4], detections_per_image=2) == [[0, 0.0, 0.0]] * 2


def test_detections_do_not_depend_on_padding_nor_on_the_other_image() -> None:
    module = heads(box_score_threshold=0.0).eval()
    features, every = levels(), proposals()
    some = Proposals(every.boxes, every.valid.clone())
    some.valid[1, 25:] = False
    together = module.detect(features, some, IMAGE_SIZE)
    alone = module.detect(
        [level[1:] for level in features], Proposals(every.boxes[1:, :25], every.valid[1:, :25]), IMAGE_SIZE
    )
    assert int((alone.scores > 0).sum()) > 20
    for mine, reference in zip(together, alone, strict=True):
        torch.testing.assert_close(mine[1:], reference)


def test_detections_lie_inside_the_image() -> None:
    found = heads(box_score_threshold=0.0).eval().detect(levels(), proposals(), IMAGE_SIZE)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([96.0, 64, 96, 64])).all()


def test_no_proposal_at_all_finds_nothing() -> None:
    nothing = Proposals(torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool))
    found = heads(box_score_threshold=0.0).eval().detect(levels(), nothing, IMAGE_SIZE)
    assert not found.scores.any()
    assert not found.labels.any()
