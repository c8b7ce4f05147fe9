"""How fast climate samples of 16 x 768 x 1152 float32 are read, and come out of the pipelines as normalised batches.

Run: python benchmarks/weather_reading.py [--repeats 7] [--num-samples 8] [--folder FOLDER]

Alternating, with a hot page cache: os.preadv of the bytes of a sample, ClimateFile.read of files stored in several
ways, and the usual idiom (a file with the channels last, indexed by a list of channels, and transposed); gzip also by
h5py, and by two threads. Then the whole pipelines, with mirror and roll, against the reader alone and a DataLoader with
one worker that reads by h5py and normalises in place. With a cold cache (posix_fadvise DONTNEED before each):
ClimateFile.read against dd. At last how long a model waits for its data that takes 1.3 times as long for a batch as the
pipeline alone. Processor time is that of all threads and workers: it tells more than the clock where others share the
cores.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import torch
from image_pipelines import cpu_time_s
from report import machine, spread
from torch.utils.data import DataLoader, Dataset

from hpcai500.pipelines.climate import ClimateFile
from hpcai500.pipelines.climate_facts import CHANNELS, read_statistics
from hpcai500.pipelines.climate_pipeline import ClimatePipelineConfig, open_climate_pipeline
from hpcai500.pipelines.climate_statistics import compute_statistics

SHAPE = (16, 768, 1152)
SAMPLE_BYTES = 4 * int(np.prod(SHAPE))
BATCH_SIZE = 2
CHANNEL_LIST = list(range(len(CHANNELS)))
SPLIT_FILES = {"train": ["climo_1979.h5"], "validation": ["climo_1997.h5"]}
WAIT_SPEED = 1.3  # how much faster than the model the pipeline is


def make_sample(seed: int) -> np.ndarray:
    """Smooth fields with some noise in the ranges of the channels: bitshuffle and gzip find as much as in real ones."""
    rng = np.random.default_rng(seed)
    low, high = (np.array([channel.plausible[k] for channel in CHANNELS])[:, None, None] for k in range(2))
    y, x = np.linspace(-1, 1, SHAPE[1])[:, None], np.linspace(0, 2 * np.pi, SHAPE[2], endpoint=False)
    waves = np.stack([np.sin((1 + k % 5) * x + k + seed) * np.cos((2 + k % 3) * y) for k in range(16)])
    noise = rng.standard_normal(SHAPE, dtype=np.float32)
    return ((low + high) / 2 + (high - low) * (0.1 * waves + 0.002 * noise)).astype(np.float32)


def write_data(folder: Path, num_samples: int) -> dict[str, Path]:
    """The same samples stored in several ways, the contiguous ones with statistics."""
    samples = [make_sample(seed) for seed in range(num_samples)]
    shape = (num_samples, *SHAPE)
    ways: dict[str, dict[str, Any]] = {
        "contiguous": {},
        "sample chunks": {"chunks": (1, *SHAPE)},
        "lz4, samples": {"chunks": (1, *SHAPE), **hdf5plugin.Bitshuffle(cname="lz4")},
        "lz4, channels": {"chunks": (1, 1, *SHAPE[1:]), **hdf5plugin.Bitshuffle(cname="lz4")},
        "gzip": {"chunks": (1, 2, 96, 144), "compression": "gzip"},
    }
    paths = {}
    for way, options in ways.items():
        place = folder / re.sub(r"\W+", "_", way)
        place.mkdir()
        paths[way] = place / "climo_1979.h5"
        count = min(2, num_samples) if options.get("compression") else num_samples  # unpacking is slow
        with h5py.File(paths[way], "w") as file:
            images = file.create_dataset("images", (count, *SHAPE), "<f4", **options)
            for index in range(count):
                images[index] = samples[index]
            file["boxes"] = np.full((count, 15, 5), -1, np.int32)
    paths["channels last"] = folder / "channels_last.h5"
    with h5py.File(paths["channels last"], "w") as file:
        images = file.create_dataset("images", (num_samples, *SHAPE[1:], 16), "<f4")
        for index, one in enumerate(samples):
            images[index] = one.transpose(1, 2, 0)
    with h5py.File(paths["contiguous"].with_name("climo_1997.h5"), "w") as file:
        file["images"] = samples[0][None]
        file["boxes"] = np.full((1, 15, 5), -1, np.int32)
    compute_statistics(paths["contiguous"].parent, SPLIT_FILES["train"])
    assert shape[0] >= BATCH_SIZE
    os.sync()
    return paths


class Usual(Dataset[torch.Tensor]):
    """What a data set for DataLoader usually does: h5py, then normalisation; here at least in place."""

    def __init__(self, path: Path, num_samples: int) -> None:
        self.path, self.num_samples = path, num_samples
        channels = read_statistics(path.parent).channels
        self.mean, self.std = (
            np.array([getattr(one, name) for one in channels], np.float32)[:, None, None] for name in ("mean", "std")
        )
        self.file: h5py.File | None = None

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.file is None:
            self.file = h5py.File(self.path)
        image = self.file["images"][index]
        image -= self.mean
        image /= self.std
        return torch.from_numpy(image)


def gb_per_s(work: Callable[[], Any], num_bytes: int) -> float:
    start = time.perf_counter()
    work()
    return num_bytes / (time.perf_counter() - start) / 1e9


Results = dict[str, list[float]]


def alternate(works: dict[str, tuple[Callable[[], Any], int]], repeats: int) -> tuple[Results, Results]:
    """Each work ``repeats`` times in turn, after one round that warms up; GB/s, and ms of processor time a sample."""
    rates: Results = {name: [] for name in works}
    costs: Results = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, (work, num_bytes) in works.items():
            start_s = cpu_time_s()
            rate = gb_per_s(work, num_bytes)
            if repeat:
                rates[name].append(rate)
                costs[name].append((cpu_time_s() - start_s) * 1e3 * SAMPLE_BYTES / num_bytes)
    return rates, costs


def ratio(results: dict[str, list[float]], ours: str, theirs: str) -> str:
    return spread([a / b for a, b in zip(results[ours], results[theirs], strict=True)])


def drain(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def read_samples(paths: dict[str, Path], num_samples: int, repeats: int) -> None:
    out = np.empty(SHAPE, np.float32)
    plain = os.open(paths["contiguous"], os.O_RDONLY)
    with h5py.File(paths["contiguous"]) as file:
        start = file["images"].id.get_offset()
    idiom = h5py.File(paths["channels last"])["images"]

    def usual() -> None:
        for index in range(2):
            np.ascontiguousarray(idiom[index, ..., CHANNEL_LIST].transpose(2, 0, 1))

    def preadv() -> None:
        for index in range(num_samples):
            os.preadv(plain, [out], start + index * SAMPLE_BYTES)

    def reader(file: ClimateFile) -> Callable[[], None]:
        return lambda: [file.read(index, out) for index in range(file.num_samples)]  # type: ignore[return-value]

    works: dict[str, tuple[Callable[[], Any], int]] = {"os.preadv": (preadv, num_samples * SAMPLE_BYTES)}
    for way in ("contiguous", "sample chunks", "lz4, samples", "lz4, channels", "gzip"):
        file = ClimateFile(paths[way])
        works[way] = (reader(file), file.num_samples * SAMPLE_BYTES)
    gzipped, packed = ClimateFile(paths["gzip"]), h5py.File(paths["gzip"])["images"]
    outs = [np.empty(SHAPE, np.float32) for _ in range(gzipped.num_samples)]
    packed_bytes = gzipped.num_samples * SAMPLE_BYTES
    works["gzip by h5py"] = (
        lambda: [packed.read_direct(out, np.s_[i]) for i, out in enumerate(outs)],
        packed_bytes,
    )
    threads = ThreadPoolExecutor(2)
    works["gzip, 2 threads"] = (
        lambda: list(threads.map(gzipped.read, range(len(outs)), outs)),
        packed_bytes,
    )
    works["usual idiom"] = (usual, 2 * SAMPLE_BYTES)
    rates, costs = alternate(works, repeats)
    threads.shutdown()
    print("Reading, page cache hot, one thread")
    for name, some in rates.items():
        print(
            f"  {name:17} {spread(some, 'GB/s')}, {spread(costs[name], 'ms of processor')}; "
            f"/ os.preadv {ratio(rates, name, 'os.preadv')}, processor {ratio(costs, 'os.preadv', name)}"
        )
    print(
        f"  contiguous / usual idiom {ratio(rates, 'contiguous', 'usual idiom')}, "
        f"processor {ratio(costs, 'usual idiom', 'contiguous')}"
    )


def read_cold(path: Path, num_samples: int, repeats: int) -> None:
    """Both read the whole file; before each its pages are dropped."""
    file, out = ClimateFile(path), np.empty(SHAPE, np.float32)

    def forget() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

    results: dict[str, list[float]] = {"dd": [], "reader": []}
    for _ in range(repeats):
        for name, rates in results.items():
            forget()
            if name == "dd":
                command = ["dd", f"if={path}", "of=/dev/null", "bs=1M"]
                rate = gb_per_s(lambda: subprocess.run(command, check=True, capture_output=True), path.stat().st_size)  # noqa: B023
            else:
                rate = gb_per_s(lambda: [file.read(i, out) for i in range(num_samples)], num_samples * SAMPLE_BYTES)
            rates.append(rate)
    print("Reading, cold cache")
    for name, rates in results.items():
        print(f"  {name:17} {spread(rates, 'GB/s')}")
    print(f"  reader / dd {ratio(results, 'reader', 'dd')}")


def run_pipelines(paths: dict[str, Path], num_samples: int, repeats: int) -> None:
    folder = paths["contiguous"].parent
    file, out = ClimateFile(paths["contiguous"]), np.empty(SHAPE, np.float32)
    loader = DataLoader(
        Usual(paths["contiguous"], num_samples),
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=1,
        persistent_workers=True,
    )
    num_bytes = num_samples // BATCH_SIZE * BATCH_SIZE * SAMPLE_BYTES
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "reader": (lambda: [file.read(i, out) for i in range(num_samples)], num_samples * SAMPLE_BYTES),
        "DataLoader": (lambda: drain(loader), num_samples * SAMPLE_BYTES),
    }
    pipelines = []
    for name, num_workers in (("torch", 0), ("torch", 1), ("torch", 2), ("dali", 1), ("dali", 2)):
        pipeline = open_climate_pipeline(name, config_of(folder, num_workers))
        pipelines.append(pipeline)
        works[f"{name}, {num_workers}"] = (lambda pipeline=pipeline: drain(pipeline.train_batches(1)), num_bytes)
    rates, costs = alternate(works, repeats)
    for pipeline in pipelines:
        pipeline.close()
    print(f"To normalised batches of {BATCH_SIZE}, page cache hot; name and threads")
    for name, some in rates.items():
        print(
            f"  {name:17} {spread(some, 'GB/s')}, {spread(costs[name], 'ms of processor')}; "
            f"/ reader {ratio(rates, name, 'reader')}, processor {ratio(costs, 'reader', name)}; "
            f"/ DataLoader {ratio(rates, name, 'DataLoader')}, processor {ratio(costs, 'DataLoader', name)}"
        )


def config_of(folder: Path, num_workers: int) -> ClimatePipelineConfig:
    return ClimatePipelineConfig(
        folder=folder,
        split_files=SPLIT_FILES,
        batch_size_per_rank=BATCH_SIZE,
        validation_batch_size=1,
        seed=1,
        num_workers=num_workers,
    )


def wait_for_data(folder: Path, name: str, repeats: int) -> None:
    """The share of a step that a model waits for its batch, which computes on one core for a known time."""
    pipeline = open_climate_pipeline(name, config_of(folder, 1))
    matrix = torch.ones((256, 256))
    drain(pipeline.train_batches(0))
    shares, batch_times = [], []
    for repeat in range(repeats):
        start = time.perf_counter()
        drain(pipeline.train_batches(2 * repeat))
        batch_s = (time.perf_counter() - start) / pipeline.num_steps_per_epoch
        waits_s, step_s = [], WAIT_SPEED * batch_s
        batches = pipeline.train_batches(2 * repeat + 1)
        while True:
            start = time.perf_counter()
            if next(batches, None) is None:
                break
            waits_s.append(time.perf_counter() - start)
            end = time.perf_counter() + step_s
            while time.perf_counter() < end:
                torch.mm(matrix, matrix)
        waits_s = waits_s[1:]  # the first batch of an epoch has nothing to hide behind
        shares.append(100 * statistics.fmean(waits_s) / (step_s + statistics.fmean(waits_s)))
        batch_times.append(batch_s * 1e3)
    pipeline.close()
    print(f"  {name}: a batch takes {spread(batch_times, 'ms')} alone; the model waits {spread(shares, '% of a step')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where to put the files, 3 GB; a temporary one by default")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        paths = write_data(Path(name), args.num_samples)
        read_samples(paths, args.num_samples, args.repeats)
        run_pipelines(paths, args.num_samples, args.repeats)
        print(f"Waiting, when the pipeline with one thread is {WAIT_SPEED} times as fast as the model")
        for pipeline in ("torch", "dali"):
            wait_for_data(paths["contiguous"].parent, pipeline, args.repeats)
        read_cold(paths["contiguous"], args.num_samples, args.repeats)


if __name__ == "__main__":
    main()
