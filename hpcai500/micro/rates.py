"""Rates of a rank that no single operation shows: products, memory, copies, messages, reading and decoding."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from hpcai500.comm.communicator import Communicator
from hpcai500.micro_record import TRIAD, Rate, spread_of
from hpcai500.pipelines.climate import ClimateSplit
from hpcai500.pipelines.decode import decode_window
from hpcai500.pipelines.hdf5 import ImageSplit
from hpcai500.probes.compute import ComputeSizes, has_bf16, product_flops, triad_bytes_per_s
from hpcai500.probes.network import FABRICS
from hpcai500.roofline import ALL_REDUCE, DECODE, GENERATED, INPUT_SUBJECTS, PRODUCT, READ

Unit = Literal["flop/s", "bytes/s"]
BATCH_OF_PICTURES = 16
GENERATED_SIDE = 400  # pixels; pictures of ImageNet are some 400 x 350
BROADCAST = "broadcast"


@dataclass(frozen=True)
class RateSizes:
    """How much is done for each rate.

    Attributes:
        repeats: of everything.
        matrix: side of the square matrices, by kind of device.
        array_bytes: of each array of the triad, by kind of device.
        copy_bytes: between host and device.
        message_bytes: of the messages that all ranks sum or are sent: a bucket of gradients, ResNet-50's gradients.
        num_pictures: that are read and decoded.
        num_fields: that are read.
    """

    repeats: int
    matrix: dict[str, int]
    array_bytes: dict[str, int]
    copy_bytes: int
    message_bytes: tuple[int, ...]
    num_pictures: int
    num_fields: int


QUICK = RateSizes(3, {"cpu": 1024, "cuda": 4096}, {"cpu": 2**25, "cuda": 2**28}, 2**24, (2**20, 2**24), 32, 4)
LONG = RateSizes(
    7, {"cpu": 2048, "cuda": 8192}, {"cpu": 2**27, "cuda": 2**30}, 2**28, (2**20, 25 * 2**20, 102_228_128), 256, 16
)


def rate_of(name: str, subject: str, unit: Unit, amount: float, times_s: list[float]) -> Rate:
    """So much work in each of these times."""
    return Rate(name=name, subject=subject, unit=unit, value=spread_of([amount / one for one in times_s]))


def device_rates(device: torch.device, sizes: RateSizes) -> Iterator[Rate]:
    """Square products in each number format that the device multiplies, the triad, and copies from and to the host."""
    compute = ComputeSizes(sizes.matrix[device.type], sizes.array_bytes[device.type], budget_s=0.0)
    precisions = {"fp32": torch.float32}
    if has_bf16(device):
        precisions["bf16"] = torch.bfloat16
    if device.type == "cuda":
        precisions["fp16"] = torch.float16
    for precision, dtype in precisions.items():
        values = [product_flops(device, dtype, compute) for _ in range(sizes.repeats)]
        subject = f"{precision}, {compute.matrix} x {compute.matrix}"
        yield Rate(name=PRODUCT, subject=subject, unit="flop/s", value=spread_of(values))
    values = [triad_bytes_per_s(device, compute) for _ in range(sizes.repeats)]
    yield Rate(name=TRIAD, subject="fp64, three arrays", unit="bytes/s", value=spread_of(values))
    if device.type == "cuda":
        yield from _copy_rates(device, sizes)


def _copy_rates(device: torch.device, sizes: RateSizes) -> Iterator[Rate]:
    there = torch.empty(sizes.copy_bytes, dtype=torch.uint8, device=device)
    for memory, here in (("pinned", torch.empty_like(there, device="cpu").pin_memory()), ("plain", there.cpu())):
        for name, target, source in (("host to device", there, here), ("device to host", here, there)):

            def copy(target: torch.Tensor = target, source: torch.Tensor = source) -> None:
                target.copy_(source)
                torch.cuda.synchronize(device)

            yield rate_of(name, memory, "bytes/s", sizes.copy_bytes, _times_s(copy, sizes.repeats))


def message_rates(comm: Communicator, sizes: RateSizes) -> Iterator[Rate]:
    """All-reduce (bus bandwidth, as nccl-tests define it) and broadcast of the communicator; collective."""
    if comm.size == 1:
        return
    fabric = FABRICS[comm.name]()
    device = "cpu" if comm.name == "mpi" else comm.device
    for num_bytes in sizes.message_bytes:
        subject = f"{num_bytes / 1e6:.4g} MB"
        array = torch.zeros(num_bytes // 4, device=device)

        def add(array: torch.Tensor = array) -> None:
            fabric.sum_over_ranks(array)
            if array.is_cuda:
                torch.cuda.synchronize(array.device)

        times_s = _slowest(comm, _times_s(add, sizes.repeats, before=comm.barrier))
        yield rate_of(ALL_REDUCE, subject, "bytes/s", 2 * (comm.size - 1) / comm.size * num_bytes, times_s)
        module = torch.nn.Module()
        module.register_buffer("array", array)
        times_s = _times_s(partial(comm.broadcast_module, module), sizes.repeats, before=comm.barrier)
        yield rate_of(BROADCAST, subject, "bytes/s", num_bytes, _slowest(comm, times_s))


def _slowest(comm: Communicator, times_s: list[float]) -> list[float]:
    return [float(one) for one in comm.allreduce(np.array(times_s), "max")]


def _times_s(work: Callable[[], object], repeats: int, *, before: Callable[[], object] = lambda: None) -> list[float]:
    """Seconds of so many repeats, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        before()
        begin_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin_s)
    return times[1:]


def picture_rates(path: Path | None, sizes: RateSizes, *, place: int) -> tuple[list[Rate], float | None]:
    """Reading pictures with the project's reader, cold where the page cache may be emptied, and decoding them.

    Args:
        path: a file of pictures; one with made-up pictures is written, read from memory and deleted if there is none.
        sizes: how many.
        place: of this rank; each reads others.

    Returns:
        The rates, and the mean bytes of a picture of the file that was given.

    Raises:
        DataError: the file cannot be read.
    """
    if path is not None:
        split = ImageSplit(path, "train")
        return list(_picture_rates(split, sizes, place, cold=True)), split.num_bytes / split.num_samples
    from hpcai500.datasets.generated import Recipe, prepare

    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(seed=0, num_classes=1, image_size=GENERATED_SIDE, num_samples=(sizes.num_pictures, 1))
        made = prepare(Path(folder) / "pictures.h5", recipe)
        return list(_picture_rates(ImageSplit(made, "train"), sizes, place, cold=False)), None


def _picture_rates(split: ImageSplit, sizes: RateSizes, place: int, *, cold: bool) -> Iterator[Rate]:
    subject = INPUT_SUBJECTS["resnet50"] if cold else f"{GENERATED} {INPUT_SUBJECTS['resnet50']}"
    count = min(sizes.num_pictures, split.num_samples)
    values: list[float] = []
    encoded: list[tuple[bytes, int]] = []
    order = np.random.default_rng(place).permutation(split.num_samples)[:count]
    if cold:
        _drop_page_cache(split.path)
    for indices in np.array_split(order, -(-count // BATCH_OF_PICTURES)):
        begin_s = time.perf_counter()
        packed, offsets = split.read(indices)
        values.append(len(packed) / (time.perf_counter() - begin_s))
        encoded += [(packed[offsets[j] : offsets[j + 1]].tobytes(), int(index)) for j, index in enumerate(indices)]
    split.close()
    yield Rate(name=READ, subject=subject, unit="bytes/s", value=spread_of(values))

    def decode(one: tuple[bytes, int]) -> None:
        height, width = split.sizes[one[1]]
        decode_window(one[0], split.sizes[one[1]], np.array([0, 0, height, width]))

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        times_s = _times_s(lambda: list(threads.map(decode, encoded)), sizes.repeats)
    yield rate_of(DECODE, subject, "bytes/s", sum(len(one) for one, _ in encoded), times_s)


def field_rates(folder: Path | None, shape: tuple[int, ...], sizes: RateSizes, *, place: int) -> list[Rate]:
    """Reading climate fields with the project's reader; arguments and errors as ``picture_rates``.

    Args:
        folder: of climate files.
        shape: of a field that is made up, (16, height, width).
        sizes: how many.
        place: of this rank.
    """
    if folder is not None:
        names = sorted(path.name for path in folder.glob("climo_*.h5"))
        return [_field_rate(ClimateSplit(folder, names), sizes, place, cold=True)]
    from hpcai500.datasets.extreme_weather.generate import WeatherRecipe, generate
    from hpcai500.pipelines.climate_statistics import compute_statistics

    with tempfile.TemporaryDirectory() as name:
        made = Path(name) / "fields"
        generate(made, WeatherRecipe(0, shape[1], shape[2], {1979: 2, 1997: 1}))
        compute_statistics(made, ["climo_1979.h5"])
        return [_field_rate(ClimateSplit(made, ["climo_1979.h5"]), sizes, place, cold=False)]


def _field_rate(split: ClimateSplit, sizes: RateSizes, place: int, *, cold: bool) -> Rate:
    subject = INPUT_SUBJECTS["fasterrcnn"] if cold else f"{GENERATED} {INPUT_SUBJECTS['fasterrcnn']}"
    out = np.empty(split.shape, dtype=np.float32)
    if cold:
        for file in split.files:
            _drop_page_cache(file.path)
    times_s = []
    for number in range(sizes.num_fields):
        begin_s = time.perf_counter()
        split.read((place * sizes.num_fields + number) % split.num_samples, out)
        times_s.append(time.perf_counter() - begin_s)
    return rate_of(READ, subject, "bytes/s", out.nbytes, times_s)


def _drop_page_cache(path: Path) -> None:
    """What this node's memory holds of a file, where the file system lets go of it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
