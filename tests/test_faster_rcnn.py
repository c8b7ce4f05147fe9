"""The whole detector: its size and names, that it learns, also from images without objects, and its precision."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import OFFICIAL, small_config
from torch import Tensor

from hpcai500.errors import UsageError
from hpcai500.models import operators
from hpcai500.models.boxes import pairwise_iou
from hpcai500.models.faster_rcnn import Detections, FasterRCNN

LOSSES = {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}


def model_of(**changes: Any) -> FasterRCNN:
    torch.manual_seed(8)
    return FasterRCNN(small_config(**changes))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two fields of 64 x 96: bright rectangles are objects of label 1, the second field has none."""
    images = 0.3 * torch.randn(2, 16, 64, 96, generator=torch.Generator().manual_seed(1))
    boxes, labels = torch.zeros(2, 4, 4), torch.zeros(2, 4, dtype=torch.long)
    for index, (x1, y1, x2, y2) in enumerate(((8, 8, 40, 40), (56, 20, 88, 60))):
        images[0, :, y1:y2, x1:x2] += 2.0
        boxes[0, index], labels[0, index] = torch.tensor([x1, y1, x2, y2]), 1
    return images, boxes, labels


def test_the_model_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = FasterRCNN(dataclasses.replace(OFFICIAL, in_channels=3, num_classes=90))
    # torchvision's documentation gives 41,755,286; it counts no weights of its frozen normalisation, ours is trained.
    assert sum(parameter.numel() for parameter in model.parameters()) == 41_755_286 + 53_120


def test_names_and_shapes_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        state = {name: tuple(value.shape) for name, value in FasterRCNN(OFFICIAL).state_dict().items()}
    # Of its 295 entries torchvision's frozen normalisation lacks 53 counts of batches.
    assert len(state) == 295 + 53
    assert state["backbone.body.conv1.weight"] == (64, 16, 7, 7)
    assert state["backbone.body.layer4.2.bn3.running_var"] == (2048,)
    assert state["backbone.fpn.inner_blocks.3.0.weight"] == (256, 2048, 1, 1)
    assert state["backbone.fpn.layer_blocks.0.0.bias"] == (256,)
    assert state["rpn.head.conv.0.0.weight"] == (256, 256, 3, 3)
    assert state["rpn.head.cls_logits.weight"] == (3, 256, 1, 1)
    assert state["rpn.head.bbox_pred.bias"] == (12,)
    assert state["roi_heads.box_head.fc6.weight"] == (1024, 12544)
    assert state["roi_heads.box_predictor.cls_score.weight"] == (5, 1024)
    assert state["roi_heads.box_predictor.bbox_pred.weight"] == (20, 1024)
    assert not any(".fc." in name for name in state)


@pytest.mark.parametrize("has_objects", [True, False])
def test_every_weight_gets_a_finite_gradient(has_objects: bool) -> None:
    images, boxes, labels = batch()
    losses = model_of()(images, boxes if has_objects else boxes * 0, labels if has_objects else labels * 0)
    assert set(losses) == LOSSES
    assert all(loss.isfinite() and loss.dtype == torch.float32 and loss.ndim == 0 for loss in losses.values())
    assert bool(losses["loss_rpn_box_reg"] > 0) == bool(losses["loss_box_reg"] > 0) == has_objects
    model = model_of()
    torch.autograd.backward(list(model(images, boxes, labels * has_objects).values()))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_it_learns_a_batch_and_finds_its_objects() -> None:
    images, boxes, labels = batch()
    anchors = (16, 32, 64, 128, 256)
    model = model_of(fpn_channels=64, box_head_width=128, box_batch_size_per_image=64, anchor_sizes=anchors)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.5  # few steps
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    history = []
    for _ in range(25):
        loss = torch.stack(list(model(images, boxes, labels).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert history[-1] < 0.4 * history[0]
    with torch.no_grad():
        found = model.eval()(images)
    assert found.labels[0, 0] == 1
    assert found.scores[0, 0] > 0.3 > found.scores[1, 0]  # nothing is in the second field
    assert pairwise_iou(boxes[0, :2], found.boxes[0, :1]).max() > 0.4


def test_padding_of_the_objects_changes_nothing() -> None:
    images, boxes, labels = batch()
    outcomes = []
    for width in (2, 4):
        model = model_of(
            fpn_channels=16, box_head_width=16, box_batch_size_per_image=1000, rpn_batch_size_per_image=5000
        )
        outcomes.append(model(images, boxes[:, :width], labels[:, :width]))
    for name in LOSSES:
        torch.testing.assert_close(outcomes[0][name], outcomes[1][name])


def test_losses_repeat_with_the_seed() -> None:
    images, boxes, labels = batch()
    outcomes = [model_of(fpn_channels=16, box_head_width=16)(images, boxes, labels) for _ in range(2)]
    assert all(torch.equal(outcomes[0][name], outcomes[1][name]) for name in LOSSES)


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_detections_have_their_fixed_shape_at_any_size(size: tuple[int, int]) -> None:
    model = model_of(fpn_channels=16, box_head_width=16, box_score_threshold=0.0).eval()
    with torch.inference_mode():
        found = model(torch.randn(3, 16, *size))
    assert isinstance(found, Detections)
    assert found.boxes.shape == (3, 100, 4)
    assert found.scores.shape == found.labels.shape == (3, 100)
    assert found.labels.dtype == torch.int64
    assert (found.scores.diff(dim=1) <= 0).all()
    assert (found.labels[found.scores > 0] >= 1).all()
    assert (found.labels <= 4).all()


def test_channels_last_gives_the_same_losses() -> None:
    images, boxes, labels = batch()
    changes = {"fpn_channels": 16, "box_head_width": 16, "box_batch_size_per_image": 1000}
    plain = model_of(**changes, rpn_batch_size_per_image=5000)(images, boxes, labels)
    model = model_of(**changes, rpn_batch_size_per_image=5000).to(memory_format=torch.channels_last)
    other = model(images.to(memory_format=torch.channels_last), boxes, labels)
    for name in LOSSES:
        torch.testing.assert_close(plain[name], other[name], rtol=1e-3, atol=1e-4)


def test_reduced_precision_ends_before_boxes_and_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[torch.dtype]] = {}

    def spy(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def spied(*arguments: Any, **constants: Any) -> Any:
            parts = [
                part for argument in arguments for part in (argument if isinstance(argument, list) else [argument])
            ]
            dtypes = {part.dtype for part in parts if isinstance(part, Tensor) and part.is_floating_point()}
            seen.setdefault(name, set()).update(dtypes)
            return original(*arguments, **constants)

        monkeypatch.setattr(owner, name, spied)

    model = model_of(fpn_channels=8, box_head_width=8)
    spy(operators, "suppress_boxes")
    spy(operators, "align_regions")
    spy(model.rpn, "_propose")
    spy(model.rpn, "_losses")
    spy(model.rpn.head, "forward")
    images, boxes, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images[:, :, :32, :32], boxes / 3, labels)
    torch.autograd.backward(list(losses.values()))
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert seen.pop("forward") == {torch.bfloat16}  # features are reduced
    assert seen == {key: {torch.float32} for key in ("suppress_boxes", "align_regions", "_propose", "_losses")}
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = model.eval()(images[:, :, :32, :32])
    assert found.boxes.dtype == found.scores.dtype == torch.float32


def test_constants_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError, match="anchor_sizes has 2 values; give one for each of the 5 levels"):
        dataclasses.replace(OFFICIAL, anchor_sizes=(32, 64))
    with pytest.raises(UsageError, match=r"rpn_negative_iou 0.8 is above rpn_positive_iou 0.7"):
        dataclasses.replace(OFFICIAL, rpn_negative_iou=0.8)


OFFICIAL_STEP = """
import resource, sys, time
import torch
sys.path.insert(0, sys.argv[1])
from detectors import OFFICIAL
from hpcai500.allocator import keep_freed_memory
from hpcai500.models.faster_rcnn import FasterRCNN

keep_freed_memory()
model = FasterRCNN(OFFICIAL).to(memory_format=torch.channels_last)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
images = torch.randn(1, 16, 768, 1152).to(memory_format=torch.channels_last)
boxes, labels = torch.tensor([[[100.0, 200, 180, 270], [600, 300, 1100, 420]]]), torch.tensor([[2, 4]])
before = [parameter.detach().clone() for parameter in model.parameters()]
begin_s = time.perf_counter()
losses = model(images, boxes, labels)
torch.stack(list(losses.values())).sum().backward()
optimizer.step()
duration_s = time.perf_counter() - begin_s
assert all(loss.isfinite() for loss in losses.values()), losses
# The first step leaves alone what is inside the blocks, which begin as the identity.
assert sum(not torch.equal(old, new) for old, new in zip(before, model.parameters())) > 70
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, duration_s)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # 20 s on two cores that have nothing else to do
def test_a_step_of_official_size_fits_two_cores_and_their_memory() -> None:
    run = subprocess.run(
        [sys.executable, "-c", OFFICIAL_STEP, str(Path(__file__).parent)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    peak_bytes = float(run.stdout.split()[0])
    assert peak_bytes < 6e9  # benchmarks/detection_operators.rst has the figure
