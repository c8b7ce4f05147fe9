"""What one GPU reaches, in one command: pictures a second with and without real data, the engine's share, the detector.

    python benchmarks/gpu.py [--batch 256] [--cuda-graphs] [--steps 50] [--repeats 5] [--json FILE]
    python benchmarks/gpu.py --device cpu --tiny        the same code in seconds, for its test; no figure to keep

ResNet-50 v1.5 at 224 x 224, bf16, channels_last: a bare loop on one batch that stays on the device ("synthetic"), the
real engine on the same batch ("engine"), and the real engine behind the DALI pipeline on JPEG files of ImageNet's size
("real data"). Faster R-CNN at 16 x 768 x 1152: the real engine on one batch that stays on the device. Epochs of --steps
steps alternate; medians, and ratios of neighbours. Bars, on one H200: synthetic 5,000 pictures/s, engine / bare at most
1.01, real / synthetic at least 0.95, 60 fields/s.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from image_pipelines import write_data
from report import machine, spread

from hpcai500.allocator import keep_freed_memory
from hpcai500.checkpoint import Checkpoints
from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import open_communicator
from hpcai500.edition import load_edition
from hpcai500.engine import Engine, Schedule
from hpcai500.ledger import LedgerWriter, create_ledger
from hpcai500.pipelines.climate_pipeline import BoxBatch
from hpcai500.pipelines.image_pipeline import ImageBatch
from hpcai500.workloads import data_module, open_workload
from hpcai500.workloads.data_source import DataPlace

TINY_BATCH, TINY_SIDE = 2, 32
PEAK_LEARNING_RATE = 1e-4  # what is learned does not matter here, but no loss may overflow


class ResidentPipeline:
    """One batch, already on the device, again and again."""

    num_skipped = num_dropped_per_epoch = 0

    def __init__(self, batch: Any, num_steps: int) -> None:
        self.batch = batch
        self.num_steps_per_epoch, self.num_train_samples = num_steps, num_steps * len(batch.ids)

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Any]:
        return iter([self.batch] * (self.num_steps_per_epoch - first_step))


def resolve(workload: str, args: argparse.Namespace) -> tuple[Any, dict[str, Any], Any]:
    """Rules, settings and size of a workload: official, or smoke if tiny."""
    rules = load_edition().workload(workload)
    name = "smoke" if args.tiny else "official"
    overrides: dict[str, Any] = {"precision": args.precision, "checkpoint_every_s": 0.0}
    overrides["learning_rate_per_256" if workload == "resnet50" else "learning_rate_per_16"] = PEAK_LEARNING_RATE
    if workload == "resnet50" and args.cuda_graphs:
        overrides |= {"torch_compile": True, "cuda_graphs": True}
    if args.tiny:
        overrides["batch_size_per_rank"] = TINY_BATCH
    elif workload == "resnet50" and args.batch:
        overrides["batch_size_per_rank"] = args.batch
    return rules, rules.resolve(name, "free", overrides), rules.size(name)


def picture_batch(settings: dict[str, Any], size: Any, device: str) -> ImageBatch:
    number, side = settings["batch_size_per_rank"], settings["train_image_size"]
    images = torch.randn(number, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    return ImageBatch(images, torch.randint(size.num_classes, (number,), device=device), np.arange(number))


def field_batch(settings: dict[str, Any], size: Any, device: str) -> BoxBatch:
    """Noise with three boxes of a storm's size on each field."""
    number, shape = settings["batch_size_per_rank"], size.input
    images = torch.randn(number, shape["channels"], shape["height"], shape["width"], device=device)
    corners = torch.rand(number, 3, 2) * torch.tensor([shape["width"] / 2, shape["height"] / 2])
    boxes = torch.cat([corners, corners + min(shape["height"], shape["width"]) / 8], dim=2).to(device)
    labels = torch.randint(1, size.num_classes + 1, (number, 3), device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    return BoxBatch(images=images, boxes=boxes, labels=labels, ids=np.arange(number))


def engine_epoch(workload: str, pipeline: Any, args: argparse.Namespace, folder: Path) -> Callable[[], None]:
    """An epoch of the real engine over the pipeline."""
    rules, settings, size = resolve(workload, args)
    create_ledger(folder / "ledger.jsonl")
    comm = open_communicator("serial", device=args.device)
    engine = Engine(
        Schedule(num_epochs=10**6, evaluation_period_epochs=1, report_steps=50, seed=1, quality=rules.quality),
        workload=open_workload(workload, settings, size=size, num_ranks=1, device=args.device),
        pipeline=pipeline,
        comm=comm,
        ledger=LedgerWriter(folder / "ledger.jsonl", rank=0),
        recorder=StepRecorder(folder, comm),
        checkpoints=Checkpoints(folder, every_s=0),
    )
    return engine._train_epoch


def bare_epoch(batch: ImageBatch, args: argparse.Namespace) -> Callable[[], None]:
    """What anybody would write, with the engine's model, loss and optimizer."""
    _, settings, size = resolve("resnet50", args)
    workload = open_workload("resnet50", settings, size=size, num_ranks=1, device=args.device)
    model = workload.build_model()
    optimizer = workload.build_optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = PEAK_LEARNING_RATE

    def epoch() -> None:
        model.train()
        for _ in range(args.steps):
            workload.loss(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


def real_pipeline(args: argparse.Namespace, folder: Path) -> Any:
    """The workload's own pipeline on pictures like ImageNet's."""
    rules, settings, size = resolve("resnet50", args)
    path, _, _ = write_data(folder, settings["batch_size_per_rank"] * args.steps)
    num_samples = settings["batch_size_per_rank"] * args.steps
    size = msgspec.structs.replace(size, num_train_samples=num_samples, num_validation_samples=1)
    place = DataPlace(path, rank=0, num_ranks=1, seed=1, device=args.device)
    return data_module("resnet50").open_data(place, settings, rules, size)


def measure(loops: dict[str, Callable[[], None]], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step of each loop, one number an epoch; epochs alternate, and the first round warms up."""
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    times_s: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(args.repeats + 1):
        for name in loops if number % 2 else reversed(loops):
            wait()
            begin_s = time.perf_counter()
            loops[name]()
            wait()
            if number:
                times_s[name].append((time.perf_counter() - begin_s) / args.steps)
    return times_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--batch", type=int, help="pictures a step (default: the official size's)")
    parser.add_argument("--cuda-graphs", action="store_true", help="compile ResNet-50 and start it as CUDA graphs")
    parser.add_argument("--steps", type=int, default=50, help="of an epoch")
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each loop")
    parser.add_argument("--tiny", action="store_true", help="the smoke size: shows that the script works")
    parser.add_argument("--json", type=Path, help="write the seconds of all steps to this file")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("this machine shows no CUDA device; --device cpu --tiny only tries the script")
    keep_freed_memory()
    print(machine(), torch.cuda.get_device_name() if args.device.startswith("cuda") else "no GPU: no figure to keep")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, settings, size = resolve("resnet50", args)
        batch = picture_batch(settings, size, args.device)
        real = real_pipeline(args, folder)
        loops = {
            "synthetic": bare_epoch(batch, args),
            "engine": engine_epoch("resnet50", ResidentPipeline(batch, args.steps), args, folder / "engine"),
            "real data": engine_epoch("resnet50", real, args, folder / "real"),
        }
        times_s = measure(loops, args)
        real.close()
        for loop, seconds in times_s.items():
            print(f"ResNet-50, {loop}: {spread([len(batch.ids) / s for s in seconds], 'images/s')}")
        ratios = {
            "engine / bare, step time": [b / a for a, b in zip(times_s["synthetic"], times_s["engine"], strict=True)],
            "real / synthetic, rate": [a / b for a, b in zip(times_s["engine"], times_s["real data"], strict=True)],
        }
        for what, values in ratios.items():
            print(f"  {what}: {spread(values)}")
        del loops, batch
        _, settings, size = resolve("fasterrcnn", args)
        fields = ResidentPipeline(field_batch(settings, size, args.device), args.steps)
        detector = measure({"detector": engine_epoch("fasterrcnn", fields, args, folder / "detector")}, args)
        number = settings["batch_size_per_rank"]
        print(f"Faster R-CNN, batch {number}: {spread([number / s for s in detector['detector']], 'samples/s')}")
    if args.json:
        args.json.write_text(json.dumps({**times_s, **detector}), encoding="utf-8")


if __name__ == "__main__":
    main()
