"""Our suppression and RoIAlign beside torchvision's, the detector beside torchvision's, and a step of official size.

    python benchmarks/detection_operators.py [--repeats 9] [--official-step]

Both alternate in one process on the same boxes and features, on one thread; ratios are taken pair by pair. Times are of
the processor, so that other programs on the same machine matter little. The whole model, 3 channels and equal weights,
runs on 256 x 384 with every anchor and region sampled, so that nothing is left to chance; it says how far losses and
detections are apart. Where torchvision's operators do not load, ours are measured alone; --official-step needs none.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from report import figure, machine, spread
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from detectors import OFFICIAL

from hpcai500.allocator import keep_freed_memory
from hpcai500.models import operators
from hpcai500.models.anchors import LEVEL_STRIDES
from hpcai500.models.boxes import suppress
from hpcai500.models.faster_rcnn import FasterRCNN
from hpcai500.models.roi import assign_levels

OFFICIAL_SIZE, MINI_SIZE = (768, 1152), (128, 192)


def compare(name: str, repeats: int, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """Print and tell the ratio of both; without torchvision, how long ours take."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        pairs = [(0, ours), (1, theirs)] if operators.HAS_TORCHVISION else [(0, ours)]
        for which, run in pairs if number % 2 else reversed(pairs):
            begin_s = time.process_time()
            run()
            if number:  # the first round warms up
                times[which].append((time.process_time() - begin_s) * 1e3)
    if not operators.HAS_TORCHVISION:
        print(f"{name}: ours {spread(times[0], 'ms')}")
        figure(f"{name}, processor time", times[0], "ms")
        return
    ratios = [mine / other for mine, other in zip(*times, strict=True)]
    print(f"{name}: ours {spread(times[0], 'ms')}, torchvision {spread(times[1], 'ms')}, ratio {spread(ratios)}")
    figure(f"{name}: ours / torchvision", ratios)


def random_boxes(shape: tuple[int, ...], size: tuple[int, int], *, num_centres: int) -> Tensor:
    """Boxes around a few centres, as a network proposes them: many overlap."""
    height, width = size
    centres = torch.rand(num_centres, 2) * torch.tensor([width, height])
    sides = 16 * 2 ** (4 * torch.rand(num_centres, 2))
    chosen = torch.randint(0, num_centres, shape)
    centre = centres[chosen] + 6 * torch.randn((*shape, 2))
    side = sides[chosen] * (1 + 0.2 * torch.rand((*shape, 2)))
    limit = torch.tensor([width, height], dtype=torch.float32)
    corners = [(centre - side / 2).clamp(min=0), (centre + side / 2)]
    return torch.cat([torch.minimum(corner, limit) for corner in corners], dim=-1)


def compare_suppression(repeats: int) -> None:
    for name, batch, count, centres, size in (
        ("official, a level of 2000 of one image", 1, 2000, 300, OFFICIAL_SIZE),
        ("mini, a level of 300 of four images", 4, 300, 40, MINI_SIZE),
        ("evaluation, 1000 of four classes of one image", 4, 1000, 60, OFFICIAL_SIZE),
    ):
        boxes, valid = random_boxes((batch, count), size, num_centres=centres), torch.ones(batch, count).bool()
        kept = suppress(boxes, valid, 0.7)
        if operators.HAS_TORCHVISION:
            assert torch.equal(kept, operators.suppress_torchvision(boxes, valid, 0.7))
        compare(
            f"suppression, {name}, {float(kept.float().mean()):.0%} kept",
            repeats,
            partial(suppress, boxes, valid, 0.7),
            partial(operators.suppress_torchvision, boxes, valid, 0.7),
        )


def compare_pooling(repeats: int) -> None:
    for name, batch, count, size in (
        ("official, 512 regions of one image", 1, 512, OFFICIAL_SIZE),
        ("mini, 64 regions of four images", 4, 64, MINI_SIZE),
    ):
        strides = LEVEL_STRIDES[:4]
        levels = [torch.randn(batch, 256, size[0] // stride, size[1] // stride) for stride in strides]
        levels = [level.to(memory_format=torch.channels_last).requires_grad_() for level in levels]
        boxes = random_boxes((batch * count,), size, num_centres=100)
        images = torch.arange(batch).repeat_interleave(count)
        box_levels = assign_levels(boxes, canonical_size=224, canonical_level=4)
        arguments = (levels, boxes, images, box_levels)
        constants = {"strides": strides, "output_size": 7, "sampling_ratio": 2}
        ours = partial(operators.align_regions_torch, *arguments, **constants)
        theirs = partial(operators.align_regions_torchvision, *arguments, **constants)
        if operators.HAS_TORCHVISION:
            print(f"RoIAlign, {name}: apart by {float((ours() - theirs()).detach().abs().max()):.1e}")
        compare(f"RoIAlign, {name}, forward", repeats, ours, theirs)
        both_ways = (partial(backward, forward, levels) for forward in (ours, theirs))
        compare(f"RoIAlign, {name}, forward and backward", repeats, *both_ways)


def backward(forward: Callable[[], Tensor], levels: list[Tensor]) -> None:
    torch.autograd.grad(forward().square().sum(), levels)


def compare_models() -> None:
    import test_torchvision_equality as equality

    equality.HEIGHT, equality.WIDTH = 256, 384
    images = torch.randn(3, 3, 256, 384)
    boxes, labels, as_dicts = equality.targets()
    everything = {"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6}
    counts = {name: getattr(OFFICIAL, name) for name in vars(OFFICIAL) if "nms_top_n" in name}
    for name, suppress_boxes, align_regions in (
        ("our operators", suppress, operators.align_regions_torch),
        ("torchvision's operators", operators.suppress_torchvision, operators.align_regions_torchvision),
    ):
        operators.suppress_boxes, operators.align_regions = suppress_boxes, align_regions
        ours, theirs = equality.both_models(**everything, **counts)
        with torch.no_grad():
            mine, reference = ours(images, boxes, labels), theirs(list(images), as_dicts)
            losses = {loss: float((mine[loss] - reference[loss]).abs()) for loss in reference}
            found, expected = ours.eval()(images), theirs.eval()(list(images))
        scores = boxes_apart = 0.0
        num_detections = 0
        for index, image in enumerate(expected):
            count = len(image["scores"])
            num_detections += count
            assert torch.equal(found.labels[index, :count], image["labels"])
            scores = max(scores, float((found.scores[index, :count] - image["scores"]).abs().max()))
            boxes_apart = max(boxes_apart, float((found.boxes[index, :count] - image["boxes"]).abs().max()))
        print(f"whole model, {name}:")
        print("  losses", ", ".join(f"{loss} {float(value):.4f}" for loss, value in reference.items()))
        print("  apart by", ", ".join(f"{value:.1e}" for value in losses.values()))
        print(f"  {num_detections} detections, scores apart by {scores:.1e}, boxes by {boxes_apart:.1e} pixels")


def measure_official_step(repeats: int) -> None:
    keep_freed_memory()  # as hpcai500.train does
    model = FasterRCNN(OFFICIAL).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    images = torch.randn(1, 16, *OFFICIAL_SIZE).to(memory_format=torch.channels_last)
    boxes, labels = torch.tensor([[[100.0, 200, 180, 270], [600, 300, 1100, 420]]]), torch.tensor([[2, 4]])
    times, processor_times = [], []
    for number in range(repeats + 1):
        begin_s, processor_begin_s = time.perf_counter(), time.process_time()
        losses = model(images, boxes, labels)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number:
            times.append(time.perf_counter() - begin_s)
            processor_times.append(time.process_time() - processor_begin_s)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    rate = 1070.1 / statistics.median(times)
    print(f"step of 16 x 768 x 1152, batch 1: {spread(times, 's')}, {rate:.0f} GFLOP/s")
    print(f"  processor time {spread(processor_times, 's')}, peak memory {peak_gb:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--official-step", action="store_true", help="measure only a training step of official size")
    args = parser.parse_args()
    torch.manual_seed(0)
    print(machine())
    if args.official_step:
        measure_official_step(args.repeats)
        return
    torch.set_num_threads(1)
    compare_suppression(args.repeats)
    compare_pooling(args.repeats)
    if operators.HAS_TORCHVISION:
        compare_models()
    else:
        print("torchvision's operators do not load here, so nothing is compared")


if __name__ == "__main__":
    main()
