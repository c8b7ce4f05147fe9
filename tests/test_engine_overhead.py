"""What the engine itself takes: memory that does not grow with the steps."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from recording import new_ledger
from torch import Tensor, nn

from hpcai500.checkpoint import Checkpoints
from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import open_communicator
from hpcai500.edition import load_edition
from hpcai500.engine import Engine, Schedule
from hpcai500.pipelines.image_pipeline import ImageBatch
from hpcai500.workloads.resnet50 import ResNet50Workload

STEPS = 1100
BATCH = 16
PAGE_BYTES = 4096
# A step's own times stay until the epoch's end, when they are written: four numbers.
STEP_TIMES_BYTES = 4 * 32 + 96


class OneWeightWorkload(ResNet50Workload):
    """The ResNet-50 workload's policies over the least that can be trained."""

    def build_model(self) -> nn.Module:
        return nn.Linear(1, 1, bias=False)

    def loss(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        return model(batch.images).square().mean()  # type: ignore[no-any-return]


class Watched:
    """A pipeline of one batch in memory, which notes the memory in use at some steps."""

    num_steps_per_epoch, num_train_samples = STEPS, STEPS * BATCH
    num_skipped = num_dropped_per_epoch = 0

    def __init__(self) -> None:
        self.traced_bytes: dict[int, int] = {}
        self.resident_bytes: dict[int, int] = {}

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[ImageBatch]:
        images, labels = torch.ones(1, 1), torch.zeros(BATCH, dtype=torch.int64)
        for step in range(first_step, STEPS):
            if step in (100, STEPS - 1):
                gc.collect()
                self.traced_bytes[step] = tracemalloc.get_traced_memory()[0]
                resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
                self.resident_bytes[step] = resident * PAGE_BYTES
            yield ImageBatch(images, labels, np.arange(BATCH * step, BATCH * (step + 1)))


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Engine, Watched]]:
    settings = load_edition().workload("resnet50").resolve("smoke", "free", {})
    pipeline = Watched()
    with new_ledger(tmp_path / "node-00000.jsonl") as ledger, open_communicator("serial") as comm:
        yield (
            Engine(
                Schedule(num_epochs=9, evaluation_period_epochs=9, report_steps=20, seed=1, quality="top-1"),
                workload=OneWeightWorkload(
                    settings, size=load_edition().workload("resnet50").size("smoke"), num_ranks=1, device="cpu"
                ),
                pipeline=pipeline,  # type: ignore[arg-type]
                comm=comm,
                ledger=ledger,
                recorder=StepRecorder(tmp_path, comm),
                checkpoints=Checkpoints(tmp_path / "checkpoints", every_s=0),
            ),
            pipeline,
        )


def test_a_thousand_steps_allocate_nothing_that_stays(watched: tuple[Engine, Watched]) -> None:
    engine, pipeline = watched
    tracemalloc.start()
    try:
        engine._train_epoch()  # warms up
        engine._train_epoch()
        first_epoch, resident = pipeline.traced_bytes.copy(), pipeline.resident_bytes.copy()
        engine._train_epoch()
    finally:
        tracemalloc.stop()
    begin, end = 100, STEPS - 1
    assert first_epoch[end] - first_epoch[begin] < (end - begin) * STEP_TIMES_BYTES
    assert pipeline.traced_bytes[begin] - first_epoch[begin] < 32_000  # an epoch later, at the same step
    assert pipeline.resident_bytes[end] - resident[begin] < 4_000_000
