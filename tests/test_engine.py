"""The engine on one rank with a small network: what it records is what it did."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from recording import new_ledger
from torch import nn

from hpcai500.checkpoint import Checkpoints
from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import open_communicator
from hpcai500.edition import load_edition
from hpcai500.engine import Engine, Schedule
from hpcai500.errors import DivergedError
from hpcai500.ledger_reader import Entry, read_ledger
from hpcai500.pipelines.image_pipeline import ImagePipelineConfig, open_image_pipeline
from hpcai500.step_files import STEP_PHASES, read_rank_times, turn_into_columns
from hpcai500.workloads.resnet50 import ResNet50Workload

SMOKE = load_edition().workload("resnet50").size("smoke")


class SmallNetwork(nn.Sequential):
    """A network that learns the generated pictures within seconds."""

    def __init__(self, num_classes: int) -> None:
        convolutions: list[nn.Module] = []
        for in_channels, out_channels in ((3, 16), (16, 32), (32, 64)):
            convolution = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
            convolutions += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU()]
        super().__init__(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


class SmallWorkload(ResNet50Workload):
    """The ResNet-50 workload with another network: the engine must not care."""

    @property
    def _make_model(self) -> Any:
        return partial(SmallNetwork, self.num_classes)


def train(data: Path, folder: Path, *, epochs: int = 2, seed: int = 5, **overrides: Any) -> list[Entry]:
    """Train on one rank and return its ledger."""
    overrides = {"batch_size_per_rank": 24, "crop_area_min": 0.5, **overrides}
    settings = load_edition().workload("resnet50").resolve("smoke", "free", overrides)
    pipeline = open_image_pipeline(
        "torch",
        ImagePipelineConfig(
            path=data,
            train_image_size=32,
            validation_image_size=32,
            validation_resize=32,
            crop_area=(settings["crop_area_min"], 1.0),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            batch_size_per_rank=settings["batch_size_per_rank"],
            validation_batch_size=16,
            seed=seed,
        ),
    )
    comm = open_communicator("serial")
    with new_ledger(folder / "ledger" / "node-00000.jsonl") as ledger:
        engine = Engine(
            Schedule(num_epochs=epochs, evaluation_period_epochs=1, report_steps=2, seed=seed, quality="top-1"),
            workload=SmallWorkload(settings, size=SMOKE, num_ranks=1, device="cpu"),
            pipeline=pipeline,
            comm=comm,
            ledger=ledger,
            recorder=StepRecorder(folder, comm),
            checkpoints=Checkpoints(folder / "checkpoints", every_s=0),
        )
        try:
            engine.train()
        finally:
            pipeline.close()
            comm.close()
    return list(read_ledger(ledger.path))


def values(entries: list[Entry], event: str) -> list[Any]:
    return [entry.value for entry in entries if entry.event == event]


def test_the_record_of_a_run_is_complete_and_in_order(smoke_data: Path, tmp_path: Path) -> None:
    entries = train(smoke_data, tmp_path)
    epoch = ["window", "window", "window", "epoch_part", "evaluation_shard", "evaluation"]
    expected = ["clock_start", *epoch, *epoch, "clock_stop"]
    assert [entry.event for entry in entries] == expected
    assert [value.samples for value in values(entries, "epoch_part")] == [120, 120]  # 5 steps of 24; 8 are dropped
    assert [value.samples for value in values(entries, "evaluation")] == [50, 50]
    for end in values(entries, "epoch_part"):
        assert end.sample_digest == end.epoch_digest


def test_the_times_of_a_window_fill_the_time_between_ledger_lines(smoke_data: Path, tmp_path: Path) -> None:
    entries = train(smoke_data, tmp_path)
    clock = {entry.event: entry.time_ns for entry in entries if entry.event.startswith("clock")}
    windows = values(entries, "window")
    total_ns = sum(window.duration_ns for window in windows)
    total_ns += sum(value.duration_ns for value in values(entries, "evaluation_shard") + values(entries, "checkpoint"))
    passed_ns = clock["clock_stop"] - clock["clock_start"]
    assert 0.5 * passed_ns < total_ns <= passed_ns
    for window in windows:
        assert window.duration_ns == sum(getattr(window, f"{phase}_ns") for phase in STEP_PHASES)
        assert window.forward_backward_ns > 0


def test_the_step_times_of_the_run_are_kept(smoke_data: Path, tmp_path: Path) -> None:
    entries = train(smoke_data, tmp_path)
    (rank,) = read_rank_times(tmp_path / "steps")  # as they are after a crash
    turn_into_columns(tmp_path / "steps" / "node-00000.raw")
    with h5py.File(tmp_path / "steps" / "node-00000.h5") as file:
        assert set(file) == {"epoch-0000", "epoch-0001"}
        total_ns = sum(int(group[f"{phase}_ns"][:].sum()) for group in file.values() for phase in STEP_PHASES)
        assert file["epoch-0000/data_wait_ns"].shape == (1, 5)
    assert total_ns == sum(window.duration_ns for window in values(entries, "window"))
    assert read_rank_times(tmp_path / "steps") == [rank]
    assert rank.rank == 0
    assert 0 < rank.median_own_s <= rank.median_step_s
    assert not rank.is_straggler


def test_the_same_seed_gives_the_same_losses_to_the_bit(smoke_data: Path, tmp_path: Path) -> None:
    runs = [train(smoke_data, tmp_path / name, seed=seed) for name, seed in (("a", 5), ("b", 5), ("c", 6))]
    losses = [[window.loss_sum for window in values(entries, "window")] for entries in runs]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    digests = [values(entries, "epoch_part")[0].sample_digest for entries in runs]
    assert digests[0] == digests[1] != digests[2]  # 8 of 128 samples are dropped, others with another seed


def test_training_learns_the_generated_pictures(smoke_data: Path, tmp_path: Path) -> None:
    entries = train(smoke_data, tmp_path, epochs=25, learning_rate_per_256=1.0, warmup_epochs=2.0)
    qualities = [evaluation.quality for evaluation in values(entries, "evaluation")]
    assert qualities[-1] >= 0.28  # guessing gives 0.1 with a standard deviation of 0.042


def test_a_loss_that_is_no_number_stops_the_run_with_the_step_named(smoke_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"at epoch 0, step \d; try a lower learning rate"):
        train(smoke_data, tmp_path, learning_rate_per_256=1e38, warmup_epochs=0.0)
    events = [entry.event for entry in read_ledger(tmp_path / "ledger" / "node-00000.jsonl")]
    assert "clock_stop" not in events


def test_evaluation_leaves_training_untouched(
    smoke_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = train(smoke_data, tmp_path / "with")
    monkeypatch.setattr(Engine, "_evaluate", lambda self, epoch: None)
    unseen = train(smoke_data, tmp_path / "without")
    assert [w.loss_sum for w in values(seen, "window")] == [w.loss_sum for w in values(unseen, "window")]


def test_bf16_trains_too(smoke_data: Path, tmp_path: Path) -> None:
    entries = train(smoke_data, tmp_path, epochs=1, precision="bf16")
    assert values(entries, "evaluation")[0].samples == 50


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")  # torch's compiler uses it itself
def test_a_compiled_model_trains_and_counts_the_same_flop(smoke_data: Path) -> None:
    settings = load_edition().workload("resnet50").resolve("smoke", "free", {"torch_compile": "true"})
    workload = SmallWorkload(settings, size=SMOKE, num_ranks=1, device="cpu")
    plain = SmallWorkload({**settings, "torch_compile": False}, size=SMOKE, num_ranks=1, device="cpu")
    assert workload.count_flop() == plain.count_flop()
    torch.manual_seed(0)
    compiled = workload.build_model()
    torch.manual_seed(0)
    reference = plain.build_model()
    pictures = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(compiled(pictures), reference(pictures), rtol=1e-4, atol=1e-4)
