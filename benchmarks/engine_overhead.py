"""Host time a step that is not the model's: the real engine with next to no model and no pipeline.

    python benchmarks/engine_overhead.py [--repeats 15] [--steps 1000] [--batch 256] [--profile]

One process holds a bare loop (forward, loss, backward, SGD) and the engine (the same, and learning rate, phases,
samples, losses, ledger, step times, looks), each with a model of one weight and batches that lie in memory, and
alternates epochs between them. What the engine takes longer is its own, whatever the model: bar 50 us a step. Where
ranks exchange gradients, a parameter's hook adds to it: the last line tells how much. Processor time is that of the one
thread there is, and does not count what other programs take. --profile lists the functions.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from report import figure, machine, spread
from torch import Tensor, nn

from hpcai500.checkpoint import Checkpoints
from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import Communicator, open_communicator
from hpcai500.edition import load_edition
from hpcai500.engine import Engine, Schedule
from hpcai500.ledger import LedgerWriter, create_ledger
from hpcai500.models.resnet import ResNet50
from hpcai500.pipelines.image_pipeline import ImageBatch
from hpcai500.sample_order import epoch_order
from hpcai500.workloads.resnet50 import ResNet50Workload

REPORT_STEPS = 50  # the official size's
SMOKE = load_edition().workload("resnet50").size("smoke")


class OneWeight(nn.Module):
    """The least that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.weight * images


class OneWeightWorkload(ResNet50Workload):
    """The ResNet-50 workload's policies over that."""

    def build_model(self) -> nn.Module:
        return OneWeight()

    def loss(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        return model(batch.images).sum()  # type: ignore[no-any-return]


class ResidentPipeline:
    """Batches that lie in memory; what a pipeline costs is measured by image_pipelines.py."""

    num_skipped = num_dropped_per_epoch = 0

    def __init__(self, *, num_steps: int, batch_size: int) -> None:
        self.num_steps_per_epoch, self.num_train_samples = num_steps, num_steps * batch_size
        ids = epoch_order(1, 0, self.num_train_samples).reshape(num_steps, batch_size)
        images, labels = torch.ones(1), torch.zeros(batch_size, dtype=torch.int64)
        self._batches = [ImageBatch(images, labels, row) for row in ids]

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[ImageBatch]:
        return iter(self._batches[first_step:])


def make_engine(pipeline: Any, comm: Communicator, folder: Path, *, report_steps: int = REPORT_STEPS) -> Engine:
    """The engine over the model of one weight."""
    settings = load_edition().workload("resnet50").resolve("mini", "free", {"learning_rate_per_256": 0.0})
    create_ledger(folder / "ledger.jsonl")
    return Engine(
        Schedule(num_epochs=10**6, evaluation_period_epochs=1, report_steps=report_steps, seed=1, quality="top-1"),
        workload=OneWeightWorkload(settings, size=SMOKE, num_ranks=1, device="cpu"),
        pipeline=pipeline,
        comm=comm,
        ledger=LedgerWriter(folder / "ledger.jsonl", rank=0),
        recorder=StepRecorder(folder, comm),
        checkpoints=Checkpoints(folder, every_s=0),
    )


def bare_loop(engine: Engine, pipeline: ResidentPipeline) -> Callable[[], None]:
    """What anybody would write, with the engine's workload and optimizer."""
    workload, model = engine.workload, engine.workload.build_model()
    optimizer = workload.build_optimizer(model)

    def epoch() -> None:
        model.train()
        for batch in pipeline.train_batches(0):
            workload.loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


def compare(loops: dict[str, Callable[[], None]], args: argparse.Namespace) -> None:
    clocks = {"processor time": time.process_time, "wall time": time.perf_counter}
    times_us: dict[tuple[str, str], list[float]] = {(clock, name): [] for clock in clocks for name in loops}
    for number in range(args.repeats + 1):
        for name in loops if number % 2 else reversed(loops):
            begin_s = {clock: now() for clock, now in clocks.items()}
            loops[name]()
            if number:  # the first round warms up
                for clock, now in clocks.items():
                    times_us[clock, name].append((now() - begin_s[clock]) / args.steps * 1e6)
    for clock in clocks:
        bare, engine = times_us[clock, "bare"], times_us[clock, "engine"]
        own_us = [ours - theirs for theirs, ours in zip(bare, engine, strict=True)]
        print(f"{clock} of a step of {args.batch} samples: bare {spread(bare, 'us')}, engine {spread(engine, 'us')}")
        print(f"  the engine's own, pair by pair: {spread(own_us, 'us')}; bar 50 us")
        figure(f"engine, ledger and collector, {clock} a step", own_us, "us", bar=50)


def hook_cost(comm: Communicator, repeats: int) -> None:
    """What taking a gradient into its bucket costs, per parameter of ResNet-50, over one rank."""
    model = ResNet50()
    exchange: Any = comm.exchange(model, torch.optim.SGD(model.parameters(), lr=0.0))
    num_parameters = sum(len(bucket.parameters) for bucket in exchange.buckets)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for bucket in exchange.buckets:  # from here on the gradients lie in their buckets, as under no engine: least work
        for position in range(len(bucket.parameters)):
            bucket.fill(position, 1)
        bucket.reset()
    small = [(b, p) for b in exchange.buckets for p in range(len(b.parameters)) if b.parameters[p].numel() <= 2048]
    times_us = []
    for _ in range(repeats):
        begin_s = time.perf_counter()
        for bucket, position in small:
            bucket.fill(position, 1)
        times_us.append((time.perf_counter() - begin_s) / len(small) * 1e6)
        for bucket in exchange.buckets:
            bucket.reset()
    median_us = statistics.median(times_us)
    print(f"a parameter's hook: {spread(times_us, 'us')}, so {median_us * num_parameters:.0f} us for {num_parameters}")
    figure("a parameter's gradient into its bucket", times_us, "us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--profile", action="store_true", help="list where the engine's time goes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        pipeline = ResidentPipeline(num_steps=args.steps, batch_size=args.batch)
        engine = make_engine(pipeline, open_communicator("serial"), Path(name))
        if args.profile:
            profile = cProfile.Profile()
            engine._train_epoch()
            profile.runcall(engine._train_epoch)
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        compare({"bare": bare_loop(engine, pipeline), "engine": engine._train_epoch}, args)
    with open_communicator("torchdist") as comm:
        hook_cost(comm, args.repeats)


if __name__ == "__main__":
    main()
