"""The extreme weather workload: its settings reach the model, its loss and learning rate follow their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcai500.edition import load_edition
from hpcai500.errors import UsageError
from hpcai500.flop_forms import flop_form
from hpcai500.pipelines.climate_pipeline import BoxBatch
from hpcai500.workloads import open_workload
from hpcai500.workloads.fasterrcnn import model_config

RULES = load_edition().workload("fasterrcnn")


def open_fasterrcnn(size: str = "smoke", *, num_ranks: int = 1, **overrides: Any) -> Any:
    settings = RULES.resolve(size, "free", overrides)
    return open_workload("fasterrcnn", settings, size=RULES.size(size), num_ranks=num_ranks, device="cpu")


def batch_of(labels: list[list[int]], side: int = 64) -> BoxBatch:
    """Noise with boxes of these labels; 0 is padding."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(labels), 16, side, side, generator=generator)
    boxes = torch.tensor([[[8.0 * k, 4.0, 8.0 * k + 12.0, 24.0] for k in range(len(row))] for row in labels])
    return BoxBatch(images, boxes, torch.tensor(labels), np.arange(len(labels)))


def test_the_official_size_is_what_the_benchmark_states() -> None:
    size = RULES.size("official")
    assert (size.target_quality, size.vflops_exponent, size.epochs, size.num_runs) == (0.35, 10, 50, 5)
    assert size.input == {"channels": 16, "height": 768, "width": 1152}
    assert (size.num_train_samples, size.num_validation_samples) == (17 * 1460, 2 * 1460)
    years = {split: [int(name[6:10]) for name in files] for split, files in size.split_files.items()}
    assert years["train"] == [1979, 1980, 1981, 1982, *range(1984, 1997)]
    assert years["validation"] == [1997, 1998]
    assert years["test"] == list(range(2000, 2006))


@pytest.mark.parametrize("name", list(RULES.sizes))
def test_flop_and_parameters_of_every_size_are_those_of_the_rules(name: str) -> None:
    size, workload = RULES.size(name), open_fasterrcnn(name)
    counted = workload.count_flop()
    assert (size.flop_forward_per_sample, size.flop_training_per_sample) == (counted.forward, counted.training)
    form = flop_form("fasterrcnn", workload.settings, size)
    assert form == (workload.input_shape, counted.forward, counted.training)
    with torch.device("meta"):
        model = open_fasterrcnn(name, memory_format="contiguous").make_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == size.num_parameters


def test_the_official_flop_is_the_known_one() -> None:
    size = RULES.size("official")
    assert size.flop_forward_per_sample == pytest.approx(364.1e9, rel=1e-3)
    assert size.flop_training_per_sample == pytest.approx(1070.1e9, rel=1e-3)


def test_every_setting_of_the_model_reaches_it() -> None:
    default = model_config(RULES.resolve("official", "free", {}), in_channels=16, num_classes=4)
    assert default.anchor_sizes == (32, 64, 128, 256, 512)
    assert default.anchor_aspect_ratios == (0.5, 1.0, 2.0)
    assert default.box_weights == (10, 10, 5, 5)
    names = [key for key in RULES.settings if key.split("_")[0] in ("rpn", "roi", "box", "anchor", "fpn", "detections")]
    assert len(names) == 30
    for key in names:
        setting = RULES.setting(key)
        assert isinstance(setting.default, int | float)
        changed = setting.default * 0.5 if setting.type == "float" else setting.default - 1
        changed = changed or 0.1
        if key.endswith("negative_iou") or (setting.minimum is not None and changed < setting.minimum):
            changed = setting.default * 0.9 if setting.type == "float" else setting.default + 1
        if key == "box_positive_iou":
            changed = 0.6
        settings = RULES.resolve("official", "free", {key: changed})
        assert model_config(settings, in_channels=16, num_classes=4) != default, key


def test_the_learning_rate_is_linear_in_the_global_batch_and_falls_as_half_a_cosine() -> None:
    workload = open_fasterrcnn("official", num_ranks=8)
    rate = lambda step: workload.learning_rate(step, steps_per_epoch=100, num_epochs=50)  # noqa: E731
    assert rate(99) == pytest.approx(0.02)  # 8 ranks of 2 fields, after one epoch of warm-up
    assert rate(49) == pytest.approx(0.01)
    assert rate(100 + 4900 // 2) == pytest.approx(0.01)
    assert open_fasterrcnn("official").learning_rate(99, steps_per_epoch=100, num_epochs=50) == pytest.approx(0.0025)


class FixedLosses(nn.Module):
    """Stands for a model: gives the losses it is given."""

    def __init__(self, losses: dict[str, Tensor]) -> None:
        super().__init__()
        self.losses = losses

    def forward(self, images: Tensor, boxes: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return self.losses


def test_the_loss_is_the_sum_of_the_four_in_fp32() -> None:
    losses = {str(number): torch.tensor(float(number), dtype=torch.bfloat16) for number in range(1, 5)}
    loss = open_fasterrcnn().loss(FixedLosses(losses), batch_of([[1]]))
    assert loss.dtype == torch.float32
    assert float(loss) == 10


@pytest.mark.parametrize("labels", [[[1, 4, 2], [3, 0, 0]], [[0], [0]]], ids=["boxes", "no boxes at all"])
def test_a_step_gives_finite_gradients_to_all_parameters(labels: list[list[int]]) -> None:
    torch.manual_seed(1)
    workload = open_fasterrcnn()
    model = workload.build_model()
    model.train()
    loss = workload.loss(model, batch_of(labels))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == set()


def test_detections_follow_a_step() -> None:
    torch.manual_seed(1)
    workload = open_fasterrcnn()
    model = workload.build_model()
    model.eval()
    evaluation = workload.begin_evaluation()
    with torch.inference_mode():
        evaluation.add(model, batch_of([[1, 4], [0, 0]]))
    shard = evaluation.shard()
    assert (shard.samples, shard.counts["boxes"], shard.loss_sum) == (2, [1, 0, 0, 1], None)


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(UsageError, match=r"needs a CUDA device.*bf16 or fp32"):
        open_fasterrcnn(precision="fp16")
