"""Proofs of equivalence: published values to the bit, real proofs, and what tells another implementation."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from msgspec.structs import replace

from hpcai500.edition import load_edition
from hpcai500.equivalence import command, published
from hpcai500.equivalence.definition import load_proof_rules
from hpcai500.equivalence.fasterrcnn import FasterRCNNTask
from hpcai500.equivalence.make import make_proof, set_published_weights
from hpcai500.equivalence.proof import Difference, Proof, compare_proofs, read_reference
from hpcai500.errors import UnknownNameError
from hpcai500.models.anchors import LEVEL_STRIDES, make_anchors
from hpcai500.models.boxes import pairwise_iou
from hpcai500.models.matching import match_boxes
from hpcai500.models.resnet import Bottleneck, ResNet50
from hpcai500.models.roi import assign_levels
from hpcai500.workloads import open_workload
from hpcai500.workloads.fasterrcnn import FasterRCNNWorkload

RULES = load_proof_rules()
SIZES = [(name, size) for name, workload in RULES.workloads.items() for size in workload.sizes]
MASK = 2**64 - 1
initialise = ResNet50._initialise


def word(name: str, index: int) -> int:
    """The definition of docs/equivalence.rst in whole numbers of any length."""
    state = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    state = (state + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_words_are_those_of_the_definition() -> None:
    for name in ("conv1.weight", "train/0/images"):
        assert published.words(name, 1000).tolist() == [word(name, index) for index in range(1000)]


def test_values_are_exact_and_spread() -> None:
    drawn = published.signed("a", (100, 50))
    assert drawn.dtype == np.float32
    assert drawn[1, 2] == (word("a", 52) >> 40) / 2**23 - 1
    assert drawn.min() >= -1
    assert drawn.max() < 1
    assert abs(float(drawn.mean())) < 5 / math.sqrt(3 * 5000)
    fractions = published.fractions("a", (3,))
    assert fractions.tolist() == [(word("a", index) >> 11) / 2**53 for index in range(3)]


def test_the_page_shows_true_values() -> None:
    """docs/equivalence.rst lists values by which somebody can check an implementation of the definition."""
    page = (Path(__file__).parents[1] / "docs/equivalence.rst").read_text()
    shown = {
        "word(conv1.weight, 0)": str(word("conv1.weight", 0)),
        "word(conv1.weight, 1)": str(word("conv1.weight", 1)),
        "conv1.weight[0, 0, 0, 0]": f"{published.weights('conv1.weight', (64, 3, 7, 7))[0, 0, 0, 0]:.9g}",
        "bn1.weight[0]": f"{published.weights('bn1.weight', (64,))[0]:.9g}",
        "layer1.0.bn3.weight[0]": f"{published.weights('layer1.0.bn3.weight', (256,))[0]:.9g}",
        "fc.bias[0]": f"{published.weights('fc.bias', (10,))[0]:.9g}",
        "train/0/images[0, 0, 0, 0]": f"{published.images('train/0/images', (8, 3, 32, 32))[0, 0, 0, 0]:.9g}",
        "train/0/labels[0..3] of 10": str(published.labels("train/0/labels", 4, 10).tolist()),
        "train/0/boxes[0] of 96 x 144": str(published.boxes("train/0/boxes", 8, height=96, width=144)[0].tolist()),
    }
    for what, value in shown.items():
        assert f"``{what}``  " in page
        assert value in page, f"{what} is {value}"


def test_weights_have_the_scale_of_their_kind() -> None:
    kernel = published.weights("layer1.0.conv2.weight", (64, 64, 3, 3))
    assert float(kernel.std()) == pytest.approx(1 / math.sqrt(64 * 9), rel=0.02)
    for name, low, high in (("bn1.weight", 0.75, 1.25), ("x.bn3.weight", 3 / 32, 5 / 32), ("bn1.bias", -0.125, 0.125)):
        values = published.weights(name, (1000,))
        assert low <= values.min() < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < values.max() < high


def test_images_are_patches() -> None:
    image = published.images("x", (2, 3, 10, 16))
    assert (image[:, :, :3, :4] == image[:, :, :1, :1]).all()  # floor(4 * 2 / 10) = 0
    assert (image[:, :, 3, 0] != image[:, :, 2, 0]).all()
    assert len(np.unique(image)) == 2 * 3 * 16


def test_boxes_lie_inside_on_a_grid_and_neighbours_overlap() -> None:
    objects = published.objects("x", 3, num_objects=5, num_classes=4, height=96, width=144)
    for boxes in (objects.boxes, objects.regions):
        assert (boxes * 8 == np.floor(boxes * 8)).all()
        assert (boxes >= 0).all()
        assert (boxes <= [144, 96, 144, 96]).all()
        assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert set(objects.labels.flatten().tolist()) == {1, 2, 3, 4}
    near = pairwise_iou(torch.from_numpy(objects.boxes), torch.from_numpy(objects.regions[:, :5]))
    assert near.diagonal(dim1=1, dim2=2).min() > 0.3


@pytest.mark.parametrize("size", list(RULES.workloads["fasterrcnn"].sizes))
def test_no_rounding_decides_what_a_detector_learns_from(size: str) -> None:
    """Anchors and regions match the same objects in float32 and float64, and no region is near two levels."""
    rules = load_edition().workload("fasterrcnn")
    own = RULES.workloads["fasterrcnn"].sizes[size]
    settings = rules.resolve(size, "free", {}) | RULES.workloads["fasterrcnn"].settings
    workload = open_workload("fasterrcnn", settings, size=rules.size(size), num_ranks=1, device="cpu")
    assert isinstance(workload, FasterRCNNWorkload)
    config = workload.model_config
    shapes = [(math.ceil(own.height / stride), math.ceil(own.width / stride)) for stride in LEVEL_STRIDES]
    anchors = torch.cat(make_anchors(shapes, config.anchor_sizes, config.anchor_aspect_ratios))
    for number in range(RULES.num_batches):
        words = {"num_objects": own.num_objects, "num_classes": 4, "height": own.height, "width": own.width}
        objects = published.objects(f"train/{number}", own.batch_size, **words)
        boxes, labels, regions = map(torch.from_numpy, objects)
        for references, part, keep in ((anchors, "rpn", True), (regions, "box", False)):
            of_dtype = [
                match_boxes(
                    pairwise_iou(boxes.to(dtype), references.to(dtype)),
                    labels > 0,
                    positive_iou=getattr(config, f"{part}_positive_iou"),
                    negative_iou=getattr(config, f"{part}_negative_iou"),
                    keep_best_of_object=keep,
                )
                for dtype in (torch.float32, torch.float64)
            ]
            assert torch.equal(of_dtype[0].kinds, of_dtype[1].kinds)
            positive = of_dtype[0].kinds == 1
            assert positive.any()
            assert torch.equal(of_dtype[0].objects[positive], of_dtype[1].objects[positive])
        everything = torch.cat((regions, boxes), dim=1)
        levels = [
            assign_levels(everything * scale, canonical_size=config.roi_canonical_size, canonical_level=4)
            for scale in (1 - 1e-5, 1 + 1e-5)
        ]
        assert torch.equal(*levels)


def short_reference(workload: str, proof: Proof) -> Proof:
    """The reference as a proof with fewer steps would have it: weights after all of them are not known."""
    reference = read_reference(workload, "smoke")
    trained = {tuple(one.shape): one.trained_rms for one in proof.parameters}
    parameters = [
        replace(one, trained_rms=trained.get(tuple(one.shape), one.trained_rms)) for one in reference.parameters
    ]
    return replace(reference, losses=reference.losses[: len(proof.losses)], parameters=parameters)


def differences(workload: str, *, num_steps: int, **settings: object) -> list[Difference]:
    proof = make_proof(workload, "smoke", num_steps=num_steps, settings=settings)
    assert len(proof.losses) == num_steps
    return compare_proofs(proof, short_reference(workload, proof), RULES.bounds)


def test_the_package_s_resnet50_proves_itself() -> None:
    assert differences("resnet50", num_steps=5) == []


def test_the_package_s_detector_proves_itself() -> None:
    assert differences("fasterrcnn", num_steps=1) == []


@pytest.mark.parametrize(
    ("settings", "num_steps", "parts"),
    [
        ({"model_variant": "v1"}, 1, {"flop_forward_per_sample", "outputs[class_scores]", "losses[0]"}),
        ({"label_smoothing": 0.0}, 1, {"outputs[loss]"}),
        ({"momentum": 0.9}, 5, {"losses["}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_another_recipe_is_found(settings: dict[str, object], num_steps: int, parts: set[str]) -> None:
    found = differences("resnet50", num_steps=num_steps, **settings)
    names = [one.part for one in found]
    assert all(any(name.startswith(part) for name in names) for part in parts), names


def test_another_loss_of_proposals_is_found_though_it_is_a_small_part() -> None:
    found = differences("fasterrcnn", num_steps=1, rpn_smooth_l1_beta=1.0)
    assert [one.part for one in found] == ["outputs[loss_rpn_box_reg][0]"]


@pytest.mark.parametrize("constants", [{"eps": 1e-3}, {"momentum": 0.01}])
def test_another_normalisation_is_found(constants: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn, "BatchNorm2d", functools.partial(torch.nn.BatchNorm2d, **constants))
    assert any(one.part.startswith("outputs[class_scores]") for one in differences("resnet50", num_steps=1))


def keep_torch_s_own_weights(model: ResNet50) -> None:
    """In place of the reference's initialisation."""


def begin_blocks_with_their_branches(model: ResNet50) -> None:
    initialise(model)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            torch.nn.init.ones_(module.bn3.weight)


@pytest.mark.parametrize("other", [keep_torch_s_own_weights, begin_blocks_with_their_branches])
def test_another_initialisation_is_found(other: Callable[[ResNet50], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResNet50, "_initialise", other)
    found = differences("resnet50", num_steps=1)
    assert found
    assert all(one.part.endswith(".initial_rms") for one in found[:3])
    assert {one.part.partition("[")[0] for one in found} == {"parameters"}


def test_the_detector_s_loss_draws_no_random_number() -> None:
    rules, own = load_edition().workload("fasterrcnn"), RULES.workloads["fasterrcnn"]
    settings = rules.resolve("smoke", "free", {}) | own.settings
    workload = open_workload("fasterrcnn", settings, size=rules.size("smoke"), num_ranks=1, device="cpu")
    assert isinstance(workload, FasterRCNNWorkload)
    task = FasterRCNNTask(workload, own.sizes["smoke"], rules.size("smoke"))
    model = workload.build_model()
    set_published_weights(model)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            parts = task.losses(model.train(), task.batch("train/0"))
            losses.append({name: float(part) for name, part in parts.items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the order of a sum is drawn


@pytest.mark.parametrize(("workload", "size"), SIZES)
def test_every_size_has_a_reference_that_follows_the_rules(workload: str, size: str) -> None:
    edition = load_edition()
    reference, rules = read_reference(workload, size), edition.workload(workload).size(size)
    assert (reference.edition, reference.workload, reference.size) == (edition.number, workload, size)
    assert reference.num_parameters == rules.num_parameters
    assert reference.num_parameters == sum(math.prod(one.shape) * one.number for one in reference.parameters)
    assert reference.flop_training_per_sample == rules.flop_training_per_sample
    assert reference.flop_forward_per_sample == rules.flop_forward_per_sample
    assert len(reference.losses) == RULES.num_steps
    for name, output in reference.outputs.items():
        assert len(output) == (1 if name.startswith("loss") else RULES.num_outputs)
    assert reference.losses[-1] < reference.losses[0]
    assert reference.code_sha256 is None
    assert compare_proofs(reference, reference, RULES.bounds) == []


def test_every_workload_and_size_has_a_proof() -> None:
    edition = load_edition()
    assert {(name, size) for name, workload in edition.workloads.items() for size in workload.sizes} == set(SIZES)
    with pytest.raises(UnknownNameError, match="size"):
        make_proof("resnet50", "huge")


def small_proof(change: Callable[[Proof], Proof]) -> Callable[..., Proof]:
    return lambda workload, size, **_: change(read_reference(workload, size))


def test_the_command_writes_a_proof_and_says_whether_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "equivalence.json"
    words = ["--workload", "resnet50", "--size", "smoke", "--output", str(path)]
    monkeypatch.setattr("hpcai500.equivalence.make.make_proof", small_proof(lambda proof: proof))
    assert command.main(words) == 0
    assert "EQUIVALENT" in capsys.readouterr().out
    assert msgspec.json.decode(path.read_bytes(), type=Proof) == read_reference("resnet50", "smoke")
    assert command.main(words) == 2
    assert "never overwritten" in capsys.readouterr().err
    path.unlink()
    monkeypatch.setattr(
        "hpcai500.equivalence.make.make_proof", small_proof(lambda proof: replace(proof, num_parameters=7))
    )
    assert command.main(words) == 1
    printed = capsys.readouterr().out
    assert "num_parameters: expected 23528522, found 7" in printed
    assert "NOT EQUIVALENT" in printed
    assert json.loads(path.read_bytes())["num_parameters"] == 7


@pytest.mark.parametrize(
    "words", [["--workload", "bert"], ["--size", "huge"], ["--device", "tpu"]], ids=lambda words: words[1]
)
def test_what_there_is_no_proof_of_is_said_in_a_sentence(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*words, "--output", str(tmp_path / "x.json")]) == 2
    assert words[1] in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()
