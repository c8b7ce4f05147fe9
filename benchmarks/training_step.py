"""What the engine adds to a bare PyTorch loop, and how near training comes to the processor's matrix product.

    python benchmarks/training_step.py [--repeats 9] [--image-size 64] [--batch 32] [--bf16]

Step time: one process holds both a bare loop (pipeline, forward, loss, backward, SGD, nothing else) and the engine,
each with its own copy of ResNet-50, and alternates epochs of four steps between them. Bar: at most 1.01.
Peak memory: each of the two alone in a process of its own. Bar: at most 1.10 plus prefetch buffers. It is measured
first: Linux counts what a process had before it became another program, so a large parent would show in its children.
Arithmetic: training GFLOP/s of the bare loop at 224 x 224 on one batch, alternating with a square matrix product of the
same number format. Bars: at least 0.80 (fp32) and 0.75 (bf16; only where the processor has bf16 units).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from report import figure, machine, spread
from torch.nn import functional

from hpcai500.allocator import keep_freed_memory
from hpcai500.checkpoint import Checkpoints
from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import open_communicator
from hpcai500.datasets.generated import Recipe, prepare
from hpcai500.edition import load_edition
from hpcai500.engine import Engine, Schedule
from hpcai500.ledger import LedgerWriter, create_ledger
from hpcai500.models.resnet import ResNet50
from hpcai500.pipelines.image_pipeline import ImagePipelineConfig, open_image_pipeline
from hpcai500.pipelines.pipeline import Pipeline
from hpcai500.workloads.resnet50 import ResNet50Workload

STEPS = 4
SMOKE = load_edition().workload("resnet50").size("smoke")  # of 10 classes
PEAK_LEARNING_RATE = 1e-3  # of both: what is learned does not matter here, but no loss may overflow


def open_data(path: Path, args: argparse.Namespace) -> Pipeline:
    return open_image_pipeline(
        "torch",
        ImagePipelineConfig(
            path=path,
            train_image_size=args.image_size,
            validation_image_size=args.image_size,
            validation_resize=args.image_size,
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            batch_size_per_rank=args.batch,
            validation_batch_size=args.batch,
            num_train_samples=STEPS * args.batch,
            seed=1,
            channels_last=True,
        ),
    )


class BareLoop:
    """What anybody would write, with the engine's optimizer."""

    def __init__(self, pipeline: Pipeline, args: argparse.Namespace) -> None:
        self.pipeline, self.num_epochs = pipeline, 0
        self.model = ResNet50(num_classes=10).to(memory_format=torch.channels_last)
        self.optimizer = open_workload(args).build_optimizer(self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE

    def epoch(self) -> None:
        self.model.train()
        for images, labels, _ in self.pipeline.train_batches(self.num_epochs):
            loss = functional.cross_entropy(self.model(images), labels, label_smoothing=0.1)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.num_epochs += 1


def open_workload(args: argparse.Namespace) -> ResNet50Workload:
    words = {"batch_size_per_rank": args.batch, "train_image_size": args.image_size, "precision": "fp32"}
    words["learning_rate_per_256"] = PEAK_LEARNING_RATE
    settings = load_edition().workload("resnet50").resolve("mini", "free", words)
    return ResNet50Workload(settings, size=SMOKE, num_ranks=1, device="cpu")


def make_engine(pipeline: Pipeline, args: argparse.Namespace, folder: Path) -> Engine:
    create_ledger(folder / "ledger.jsonl")
    comm = open_communicator("serial")
    return Engine(
        Schedule(num_epochs=10**6, evaluation_period_epochs=1, report_steps=STEPS, seed=1, quality="top-1"),
        workload=open_workload(args),
        pipeline=pipeline,
        comm=comm,
        ledger=LedgerWriter(folder / "ledger.jsonl", rank=0),
        recorder=StepRecorder(folder, comm),
        checkpoints=Checkpoints(folder, every_s=0),
    )


def compare_steps(path: Path, args: argparse.Namespace, folder: Path) -> None:
    bare = BareLoop(open_data(path, args), args)
    engine = make_engine(open_data(path, args), args, folder)
    times: dict[str, list[float]] = {"bare": [], "engine": []}
    processor_times: dict[str, list[float]] = {"bare": [], "engine": []}
    for number in range(args.repeats + 1):
        order = [("bare", bare.epoch), ("engine", engine._train_epoch)]
        for name, train in order if number % 2 else reversed(order):
            begin_s, processor_begin_s = time.perf_counter(), time.process_time()
            train()
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - begin_s) / STEPS)
                processor_times[name].append((time.process_time() - processor_begin_s) / STEPS)
    ratios = [engine_s / bare_s for engine_s, bare_s in zip(times["engine"], times["bare"], strict=True)]
    processor = {name: statistics.median(values) for name, values in processor_times.items()}
    print(f"step, {args.image_size} x {args.image_size}, batch {args.batch}:")
    print(f"  bare loop {spread(times['bare'], 's')}, engine {spread(times['engine'], 's')}")
    print(f"  engine / bare, pair by pair: {spread(ratios)}; bar 1.01")
    figure(f"step of {args.image_size} x {args.image_size}, batch {args.batch}: engine / bare loop", ratios, bar=1.01)
    figure(f"step of {args.image_size} x {args.image_size}, batch {args.batch}: engine", times["engine"], "s")
    ratio = processor["engine"] / processor["bare"]
    print(f"  processor time: bare {processor['bare']:.4f} s, engine {processor['engine']:.4f} s, ratio {ratio:.3f}")


def peak_memory(kind: str, path: Path, args: argparse.Namespace) -> float:
    """Peak resident memory, in MB, of a process that trains two epochs in one of the two ways."""
    words = ["--image-size", args.image_size, "--batch", args.batch, "--peak-memory-of", kind, "--data", path]
    command = [sys.executable, __file__, *map(str, words)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def train_two_epochs(args: argparse.Namespace) -> None:
    bare = args.peak_memory_of == "bare"
    if not bare:
        keep_freed_memory()  # as hpcai500.train does
    with tempfile.TemporaryDirectory() as folder:
        pipeline = open_data(args.data, args)
        train = BareLoop(pipeline, args).epoch if bare else make_engine(pipeline, args, Path(folder))._train_epoch
        train()
        train()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)  # Linux counts in KiB


def compare_arithmetic(dtype: torch.dtype, repeats: int) -> float:
    model = ResNet50().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), PEAK_LEARNING_RATE)
    images = torch.randn(16, 3, 224, 224).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (16,))
    matrix = torch.randn(2048, 2048, dtype=dtype)
    flop = 16 * load_edition().workload("resnet50").size("official").flop_training_per_sample
    products: list[float] = []
    steps: list[float] = []
    for number in range(repeats + 1):
        begin_s = time.perf_counter()
        for _ in range(20):
            torch.mm(matrix, matrix)
        middle_s = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end_s = time.perf_counter()
        if number:
            products.append(20 * 2 * 2048**3 / (middle_s - begin_s) / 1e9)
            steps.append(flop / (end_s - middle_s) / 1e9)
    ratios = [step / product for step, product in zip(steps, products, strict=True)]
    print(f"arithmetic, {dtype}: training {spread(steps, 'GFLOP/s')}, product {spread(products, 'GFLOP/s')}")
    print(f"  training / product, pair by pair: {spread(ratios)}; bar {0.75 if dtype == torch.bfloat16 else 0.80}")
    name = f"224 x 224, batch 16, {str(dtype).removeprefix('torch.')}"
    figure(f"{name}: training", steps, "GFLOP/s", better="more")
    figure(f"{name}: training / product", ratios, better="more", bar=0.75 if dtype == torch.bfloat16 else 0.80)
    return statistics.median(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--bf16", action="store_true", help="measure bf16 too; slow without bf16 units")
    parser.add_argument("--peak-memory-of", choices=("bare", "engine"), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_memory_of:
        train_two_epochs(args)
        return
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = Recipe(seed=0, num_classes=10, image_size=64, num_samples=(STEPS * args.batch, 10))
        path = prepare(folder / "pictures.h5", recipe)
        memory = {kind: [peak_memory(kind, path, args) for _ in range(3)] for kind in ("bare", "engine")}
        print(f"peak memory: bare {spread(memory['bare'], 'MB')}, engine {spread(memory['engine'], 'MB')}")
        ratio = statistics.median(memory["engine"]) / statistics.median(memory["bare"])
        figure(
            "peak memory of two epochs, engine / bare loop",
            [a / b for a, b in zip(memory["engine"], memory["bare"], strict=True)],
            bar=1.1,
        )
        print(f"  ratio of medians {ratio:.3f}; bar 1.10")
        before = compare_arithmetic(torch.float32, 5)
        keep_freed_memory()  # as hpcai500.train does; for both loops from here on
        compare_steps(path, args, folder)
    fp32 = compare_arithmetic(torch.float32, max(3, args.repeats // 2))
    print(f"with freed memory kept / without: {fp32 / before:.2f}")
    if args.bf16:
        bf16 = compare_arithmetic(torch.bfloat16, max(3, args.repeats // 2))
        print(f"bf16 / fp32 {bf16 / fp32:.2f}; bar 1.6 on avx512_bf16")


if __name__ == "__main__":
    main()
