"""The model: its size, its parameter names, its FLOP."""

from __future__ import annotations

import pytest
import torch

from hpcai500.edition import load_edition
from hpcai500.flop import count_flop
from hpcai500.models.resnet import ResNet50


def test_the_model_has_the_published_number_of_parameters() -> None:
    # torchvision's documentation of resnet50 gives 25,557,032.
    assert sum(parameter.numel() for parameter in ResNet50().parameters()) == 25_557_032


def test_names_and_shapes_are_those_of_torchvisions_resnet50() -> None:
    state = {name: tuple(tensor.shape) for name, tensor in ResNet50().state_dict().items()}
    # A checkpoint of torchvision's resnet50 has 320 entries; these are the ends of its name scheme.
    assert len(state) == 320
    assert state["conv1.weight"] == (64, 3, 7, 7)
    assert state["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert state["layer1.0.downsample.1.running_var"] == (256,)
    assert state["layer3.5.conv2.weight"] == (256, 256, 3, 3)
    assert state["layer4.2.bn3.num_batches_tracked"] == ()
    assert state["fc.weight"] == (1000, 2048)


def test_the_state_is_interchangeable_with_torchvision() -> None:
    torchvision = pytest.importorskip(
        "torchvision.models", reason="torchvision is not installed, or not for this torch", exc_type=Exception
    )
    theirs = torchvision.resnet50(weights=None)
    ours = ResNet50()
    ours.load_state_dict(theirs.state_dict())
    pictures = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(pictures), theirs.eval()(pictures))


@pytest.mark.parametrize(("variant", "forward", "training"), [("v1.5", 8.178e9, 24.299e9), ("v1", 7.716e9, 22.912e9)])
def test_flop_at_224_are_the_known_ones(variant: str, forward: float, training: float) -> None:
    counted = count_flop(lambda: ResNet50(variant=variant), (3, 224, 224))
    assert counted.forward == pytest.approx(forward, rel=1e-3)
    assert counted.training == pytest.approx(training, rel=1e-3)


def test_a_multiply_add_counts_two_and_the_first_convolution_has_no_input_gradient() -> None:
    layer = torch.nn.Conv2d
    counted = count_flop(lambda: layer(3, 8, 5, bias=False), (3, 12, 12))
    multiply_adds = 8 * 8 * 8 * 3 * 5 * 5  # output height x width x channels x input channels x kernel
    assert counted.forward == 2 * multiply_adds
    assert counted.training == 2 * multiply_adds * 2  # forward and weight gradient


@pytest.mark.parametrize("size", ["official", "mini", "smoke"])
def test_the_rules_state_what_is_counted(size: str) -> None:
    rules = load_edition().workload("resnet50")
    stated = rules.size(size)
    side = int(rules.resolve(size, "free", {})["train_image_size"])
    counted = count_flop(lambda: ResNet50(num_classes=stated.num_classes), (3, side, side))
    assert (stated.flop_forward_per_sample, stated.flop_training_per_sample) == (counted.forward, counted.training)
    with torch.device("meta"):
        model = ResNet50(num_classes=stated.num_classes)
    assert stated.num_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_picture_smaller_than_the_network_is_still_classified() -> None:
    assert ResNet50(num_classes=10).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_a_block_starts_as_the_identity() -> None:
    model = ResNet50()
    block = model.layer1[1].eval()
    features = torch.rand(1, 256, 4, 4)
    torch.testing.assert_close(block(features), features)


def test_the_count_depends_on_no_device_and_leaves_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    computed = count_flop(lambda: ResNet50(num_classes=10), (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr("hpcai500.flop.TINY", 0)
    assert count_flop(lambda: ResNet50(num_classes=10), (3, 32, 32)) == computed
