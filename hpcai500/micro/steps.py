"""Training steps of the workloads on made-up samples: recorded, and measured in turns with the operations they call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hpcai500.edition import Edition
from hpcai500.micro.kinds import kind_of
from hpcai500.micro.recorder import Call, Recorder
from hpcai500.micro.timing import Timer
from hpcai500.micro_record import Kernel, TrainingStep, spread_of
from hpcai500.pipelines.climate_pipeline import BoxBatch
from hpcai500.pipelines.image_pipeline import ImageBatch
from hpcai500.workloads import open_workload
from hpcai500.workloads.policy import MEMORY_FORMATS

LEARNING_RATE = 1e-4  # what is learned does not matter, but no loss may overflow
MIN_OBJECTS, MAX_OBJECTS = 1, 8  # of a made-up field; the data set has a few storms a snapshot
BOX_ROWS = 32  # as the pipelines pad to
CPU_BATCHES = {"resnet50": 16, "fasterrcnn": 1}  # of the official size, whose own are for GPUs
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class StepChoice:
    """Which step to look at: a workload, a size of its rules, a precision; samples of a rank, if not the usual."""

    workload: str
    size: str
    precision: str
    batch_size: int | None = None

    @property
    def text(self) -> str:
        """As "resnet50, official, bf16"."""
        return f"{self.workload}, {self.size}, {self.precision}"


@dataclass(frozen=True)
class Repeats:
    """How often things are measured.

    Attributes:
        rounds: turns of steps and operations, so that a machine that changes meanwhile changes both.
        steps: whole steps a round.
        calls: of each operation a round, at most.
        budget_s: of each operation a round; it is called once whatever that takes.
    """

    rounds: int
    steps: int
    calls: int
    budget_s: float


QUICK = Repeats(rounds=2, steps=2, calls=2, budget_s=0.02)
LONG = Repeats(rounds=3, steps=2, calls=6, budget_s=0.2)


@dataclass
class LiveStep:
    """A model with its optimizer and a batch, ready to step."""

    choice: StepChoice
    workload: Any
    batch: Any
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.choice.precision == "fp16")

    def run(self, enter: Callable[[Any], None] = lambda _phase: None) -> None:
        """One step as hpcai500/engine.py makes it; ``enter`` is told of each phase that begins."""
        enter("forward")
        loss = self.workload.loss(self.model, self.batch)
        enter("backward")
        self.scaler.scale(loss).backward()
        enter("optimizer")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def measure_step(
    choice: StepChoice, edition: Edition, device: torch.device, repeats: Repeats, timer: Timer
) -> TrainingStep:
    """Record a step, and measure it and all it calls.

    Raises:
        UsageError: the device has not that precision.
        RulesError: the rules have no such setting.
        UnknownNameError: no such workload or size.
    """
    live = open_step(choice, edition, device)
    calls = record_calls(live)
    step_times: list[float] = []
    call_times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats.rounds):
        live.run()  # memory and caches as a step leaves them
        step_times += [timer.whole_s(live.run) for _ in range(repeats.steps)]
        for call, times in zip(calls, call_times, strict=True):
            times.extend(timer.times_s(call, num_repeats=repeats.calls, budget_s=repeats.budget_s))
    parameters = [one for one in live.model.parameters() if one.requires_grad]
    shape = list(live.workload.input_shape)
    return TrainingStep(
        workload=choice.workload,
        size=choice.size,
        precision=choice.precision,
        batch_size=len(live.batch.images),
        input_shape=shape,
        gradient_bytes=sum(one.numel() * one.element_size() for one in parameters),
        sample_bytes=FLOAT32_BYTES * float(np.prod(shape)) if choice.workload == "fasterrcnn" else None,
        seconds=spread_of(step_times),
        kernels=[_kernel(call, times) for call, times in zip(calls, call_times, strict=True)],
    )


def record_calls(live: LiveStep) -> list[Call]:
    """The operations of a step that is not the first: the first also makes the optimizer's memory."""
    live.run()
    recorder = Recorder()

    def enter(phase: Any) -> None:
        recorder.phase = phase

    with recorder.watching_operators(), recorder:
        live.run(enter)
    return list(recorder.calls.values())


def open_step(choice: StepChoice, edition: Edition, device: torch.device) -> LiveStep:
    """Model, optimizer and a batch of made-up samples; raises as ``measure_step``."""
    rules = edition.workload(choice.workload)
    words: dict[str, Any] = {"precision": choice.precision}
    if choice.batch_size is not None:
        words["batch_size_per_rank"] = choice.batch_size
    elif choice.size == "official" and device.type == "cpu":
        words["batch_size_per_rank"] = CPU_BATCHES[choice.workload]
    settings = rules.resolve(choice.size, "free", words)
    size = rules.size(choice.size)
    workload = open_workload(choice.workload, settings, size=size, num_ranks=1, device=str(device))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        model = workload.build_model()
        model.train()
        batch = _made_up_batch(choice.workload, workload.input_shape, settings, size.num_classes, device)
    optimizer = workload.build_optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    return LiveStep(choice, workload, batch, model, optimizer)


def _made_up_batch(
    workload: str, shape: tuple[int, ...], settings: dict[str, Any], num_classes: int, device: torch.device
) -> ImageBatch | BoxBatch:
    """Normal noise for images; for fields also some boxes of a tenth to a third of their sides."""
    batch_size = settings["batch_size_per_rank"]
    ids = np.arange(batch_size)
    images = torch.randn(batch_size, *shape).to(device, memory_format=MEMORY_FORMATS[settings["memory_format"]])
    if workload == "resnet50":
        return ImageBatch(images, torch.randint(num_classes, (batch_size,)).to(device), ids)
    sides = torch.tensor([shape[2], shape[1]], dtype=torch.float32)
    begins = torch.rand(batch_size, BOX_ROWS, 2) * 0.6
    boxes = torch.cat((begins, begins + 0.1 + 0.23 * torch.rand(batch_size, BOX_ROWS, 2)), dim=2) * sides.repeat(2)
    num_objects = torch.randint(MIN_OBJECTS, MAX_OBJECTS + 1, (batch_size, 1))
    is_object = torch.arange(BOX_ROWS) < num_objects
    labels = torch.randint(1, num_classes + 1, (batch_size, BOX_ROWS)) * is_object
    return BoxBatch(images, (boxes * is_object.unsqueeze(2)).to(device), labels.to(device), ids)


def _kernel(call: Call, times: list[float]) -> Kernel:
    return Kernel(
        name=call.name,
        kind=kind_of(call.name, call.phase),
        phase=call.phase,
        operands=call.text,
        dtype=str(call.dtype).removeprefix("torch.") if call.dtype else "",
        num_calls=call.num_calls,
        flop=call.flop,
        num_bytes=call.num_bytes,
        seconds=spread_of(times),
    )
