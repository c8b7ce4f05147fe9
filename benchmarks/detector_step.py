"""What the engine adds to a bare PyTorch loop that trains Faster R-CNN, and samples a second.

    python benchmarks/detector_step.py [--repeats 7] [--batch 2] [--bf16]

One process holds both a bare loop (pipeline, forward, losses, backward, SGD, nothing else) and the engine, each with
its own copy of the model of the mini size, and alternates epochs of four steps between them. Bar: at most 1.01. With
--bf16 a third one, the engine in bf16, takes its turn; slow where the processor has no bf16 units.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from report import figure, machine, spread

from hpcai500.allocator import keep_freed_memory
from hpcai500.checkpoint import Checkpoints
from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import open_communicator
from hpcai500.datasets.extreme_weather.generate import WeatherRecipe, generate
from hpcai500.edition import Size, load_edition
from hpcai500.engine import Engine, Schedule
from hpcai500.ledger import LedgerWriter, create_ledger
from hpcai500.pipelines.climate_statistics import compute_statistics
from hpcai500.pipelines.pipeline import Pipeline
from hpcai500.workloads import data_module
from hpcai500.workloads.data_source import DataPlace
from hpcai500.workloads.fasterrcnn import FasterRCNNWorkload

STEPS = 4
RULES = load_edition().workload("fasterrcnn")
PEAK_LEARNING_RATE = 1e-4  # of both: what is learned does not matter here, but no loss may overflow


def resolve(args: argparse.Namespace, precision: str) -> tuple[Size, FasterRCNNWorkload]:
    words = {"batch_size_per_rank": args.batch, "precision": precision, "learning_rate_per_16": PEAK_LEARNING_RATE}
    settings = RULES.resolve("mini", "free", words)
    size = msgspec.structs.replace(RULES.size("mini"), num_train_samples=STEPS * args.batch, num_validation_samples=1)
    return size, FasterRCNNWorkload(settings, size=size, num_ranks=1, device="cpu")


def open_pipeline(folder: Path, size: Size, workload: FasterRCNNWorkload) -> Pipeline:
    place = DataPlace(folder, rank=0, num_ranks=1, seed=1, device="cpu")
    return data_module("fasterrcnn").open_data(place, workload.settings, RULES, size)


def bare_loop(folder: Path, args: argparse.Namespace) -> Callable[[int], None]:
    """What anybody would write, with the engine's optimizer."""
    size, workload = resolve(args, "fp32")
    pipeline, model = open_pipeline(folder, size, workload), workload.build_model()
    optimizer = workload.build_optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = PEAK_LEARNING_RATE

    def epoch(number: int) -> None:
        model.train()
        for images, boxes, labels, _ in pipeline.train_batches(number):
            sum(model(images, boxes, labels).values()).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


def engine_loop(folder: Path, args: argparse.Namespace, precision: str, work: Path) -> Callable[[int], None]:
    size, workload = resolve(args, precision)
    create_ledger(work / f"ledger-{precision}.jsonl")
    comm = open_communicator("serial")
    engine = Engine(
        Schedule(num_epochs=10**6, evaluation_period_epochs=1, report_steps=STEPS, seed=1, quality=RULES.quality),
        workload=workload,
        pipeline=open_pipeline(folder, size, workload),
        comm=comm,
        ledger=LedgerWriter(work / f"ledger-{precision}.jsonl", rank=0),
        recorder=StepRecorder(work / f"steps-{precision}", comm),
        checkpoints=Checkpoints(work, every_s=0),
    )
    return lambda _number: engine._train_epoch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="measure bf16 too; slow without bf16 units")
    args = parser.parse_args()
    keep_freed_memory()  # as hpcai500.train does
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "weather"
        generate(
            folder, WeatherRecipe(seed=0, height=128, width=192, samples_by_year={1979: STEPS * args.batch, 1997: 1})
        )
        compute_statistics(folder, ["climo_1979.h5"])
        loops = {"bare": bare_loop(folder, args), "engine": engine_loop(folder, args, "fp32", Path(name))}
        if args.bf16:
            loops["engine bf16"] = engine_loop(folder, args, "bf16", Path(name))
        times: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(args.repeats + 1):
            for loop in loops if number % 2 else reversed(loops):
                begin_s = time.perf_counter()
                loops[loop](number)
                if number:  # the first round warms up
                    times[loop].append((time.perf_counter() - begin_s) / STEPS)
    ratios = [engine_s / bare_s for engine_s, bare_s in zip(times["engine"], times["bare"], strict=True)]
    both = f"bare {spread(times['bare'], 's')}, engine {spread(times['engine'], 's')}"
    print(f"step, 16 x 128 x 192, batch {args.batch}: {both}")
    print(f"  engine / bare, pair by pair: {spread(ratios)}; bar 1.01")
    figure(f"step of 16 x 128 x 192, batch {args.batch}: engine / bare loop", ratios, bar=1.01)
    figure(f"step of 16 x 128 x 192, batch {args.batch}: engine", times["engine"], "s")
    for loop, seconds in times.items():
        print(f"  {loop}: {args.batch / statistics.median(seconds):.2f} samples/s")


if __name__ == "__main__":
    main()
