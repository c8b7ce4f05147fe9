"""The workload: learning rate, optimizer, loss, evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hpcai500.edition import load_edition
from hpcai500.errors import UnknownNameError, UsageError
from hpcai500.pipelines.image_pipeline import ImageBatch
from hpcai500.workloads import open_workload
from hpcai500.workloads.policy import sgd


def open_resnet50(size: str = "official", *, num_ranks: int = 1, device: str = "cpu", **overrides: Any) -> Any:
    settings = load_edition().workload("resnet50").resolve(size, "free", overrides)
    rules = load_edition().workload("resnet50").size("smoke")
    return open_workload("resnet50", settings, size=rules, num_ranks=num_ranks, device=device)


def test_the_learning_rate_warms_up_linearly_and_falls_as_half_a_cosine() -> None:
    workload = open_resnet50()
    rate = lambda step: workload.learning_rate(step, steps_per_epoch=100, num_epochs=90)  # noqa: E731
    assert rate(0) == pytest.approx(0.256 / 800)
    assert rate(399) == pytest.approx(0.128)
    assert rate(799) == pytest.approx(0.256)
    assert rate(800 + 8200 // 2) == pytest.approx(0.128)  # half way down
    assert 0 < rate(8999) < 1e-6


@pytest.mark.parametrize(("batch", "ranks", "peak"), [(256, 1, 0.256), (256, 8, 2.048), (32, 2, 0.064)])
def test_the_peak_is_linear_in_the_global_batch(batch: int, ranks: int, peak: float) -> None:
    workload = open_resnet50(num_ranks=ranks, batch_size_per_rank=batch)
    rates = [workload.learning_rate(step, steps_per_epoch=10, num_epochs=90) for step in range(900)]
    assert max(rates) == pytest.approx(peak)


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert open_resnet50(warmup_epochs=0.0).learning_rate(0, steps_per_epoch=5, num_epochs=1) == pytest.approx(0.256)


def test_normalisation_parameters_and_biases_are_not_decayed() -> None:
    workload = open_resnet50()
    model = workload.build_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = workload.build_optimizer(model).param_groups
    assert decayed["weight_decay"] == pytest.approx(1 / 32768)
    assert others["weight_decay"] == 0
    assert {names[id(p)].split(".")[-1] for p in others["params"]} == {"weight", "bias"}
    assert all(
        "bn" in names[id(p)] or "downsample.1" in names[id(p)] or names[id(p)] == "fc.bias" for p in others["params"]
    )
    assert len(decayed["params"]) == 54  # 53 convolutions and the matrix of the last layer
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_decaying_everything_is_possible_by_setting() -> None:
    workload = open_resnet50(weight_decay_on_norm_and_bias=True)
    groups = workload.build_optimizer(workload.build_model()).param_groups
    assert [group["weight_decay"] for group in groups] == [pytest.approx(1 / 32768)]


class FixedScores(nn.Module):
    """Stands for a trained model: puts out the scores it is given."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, images: Tensor) -> Tensor:
        return self.scores


def batch_of(labels: list[int]) -> ImageBatch:
    return ImageBatch(torch.zeros(len(labels), 3, 4, 4), torch.tensor(labels), np.arange(len(labels)))


def test_the_loss_is_cross_entropy_with_label_smoothing_as_the_formula_says() -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    workload = open_resnet50()
    log_p = scores.log_softmax(dim=1)
    target = torch.full((2, 3), 0.1 / 3)
    target[0, 0] += 0.9
    target[1, 1] += 0.9
    expected = -(target * log_p).sum(dim=1).mean()
    torch.testing.assert_close(workload.loss(FixedScores(scores), batch_of([0, 1])), expected)


def test_an_evaluation_counts_hits_and_sums_the_loss_without_smoothing() -> None:
    scores = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    evaluation = open_resnet50().begin_evaluation()
    evaluation.add(FixedScores(scores[:2]), batch_of([0, 1]))
    evaluation.add(FixedScores(scores[2:]), batch_of([1]))
    counts = evaluation.shard()
    log_p = scores.log_softmax(dim=1)
    assert (counts.samples, counts.counts) == (3, {"correct": [2]})
    assert counts.loss_sum == pytest.approx(-float(log_p[0, 0] + log_p[1, 1] + log_p[2, 1]))


def test_the_model_is_channels_last_unless_told_otherwise() -> None:
    weight = open_resnet50().build_model().layer1[0].conv2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    assert open_resnet50(memory_format="contiguous").build_model().layer1[0].conv2.weight.is_contiguous()


def test_bf16_runs_the_model_in_bf16_and_the_loss_in_fp32() -> None:
    workload = open_resnet50("smoke", precision="bf16")
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    seen: list[torch.dtype] = []
    model[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    loss = workload.loss(model, batch_of([1, 2]))
    loss.backward()
    assert seen == [torch.bfloat16]
    assert loss.dtype == torch.float32
    assert model[1].weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "settings", "words"),
    [
        ("cpu", {"precision": "fp16"}, r"needs a CUDA device.*bf16 or fp32"),
        ("cpu", {"torch_compile": True, "cuda_graphs": True}, r"needs a CUDA device.*--set cuda_graphs=false"),
        ("cuda:0", {"cuda_graphs": True}, r"does nothing with torch_compile = false.*--set torch_compile=true"),
    ],
)
def test_what_the_device_has_not_is_refused_with_a_way_out(device: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_resnet50(device=device, **settings)


@pytest.mark.parametrize(("cuda_graphs", "mode"), [(True, "reduce-overhead"), (False, None)])
def test_cuda_graphs_are_asked_of_the_compiler(
    cuda_graphs: bool, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr("hpcai500.workloads.resnet50.placed", lambda model, settings, device: model)  # no GPU here
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode: told.append(mode))
    open_resnet50(device="cuda:0", torch_compile=True, cuda_graphs=cuda_graphs).build_model()
    assert told == [mode]


def test_an_unknown_workload_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown workload 'resnet5' \(did you mean 'resnet50'\?\)"):
        open_workload("resnet5", {}, size=load_edition().workload("resnet50").size("smoke"), num_ranks=1, device="cpu")


def trained_beside_plain_sgd(module: nn.Module, grads: Callable[[nn.Parameter], torch.Tensor]) -> Optimizer:
    """Three steps of the workload's optimizer; asserts that torch's plain SGD gets the same numbers."""
    plain_module = copy.deepcopy(module)
    optimizer = sgd(module, SGD_SETTINGS)
    weights = [p for p in plain_module.parameters() if p.ndim > 1]
    others = [p for p in plain_module.parameters() if p.ndim <= 1]
    plain = torch.optim.SGD(
        [{"params": weights, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}],
        lr=0.0,
        momentum=0.875,
        foreach=False,
    )
    for _ in range(3):
        for group in (*optimizer.param_groups, *plain.param_groups):
            group["lr"] = 0.1
        for parameter, other in zip(module.parameters(), plain_module.parameters(), strict=True):
            parameter.grad = grads(parameter)
            other.grad = parameter.grad.clone()
        optimizer.step()
        plain.step()
    for parameter, other in zip(module.parameters(), plain_module.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-7)
    return optimizer


SGD_SETTINGS = {"weight_decay": 0.01, "momentum": 0.875, "weight_decay_on_norm_and_bias": False}


def small_convolutions() -> nn.Module:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    return layers.to(memory_format=torch.channels_last)


def test_the_optimizer_is_fused_and_gives_the_numbers_of_the_plain_one() -> None:
    optimizer = trained_beside_plain_sgd(small_convolutions(), torch.randn_like)
    assert all(group["fused"] for group in optimizer.param_groups)


def test_gradients_of_another_layout_than_their_parameters_are_not_fused() -> None:
    optimizer = trained_beside_plain_sgd(small_convolutions(), lambda p: torch.randn(p.shape))
    assert not any(group["fused"] for group in optimizer.param_groups)
