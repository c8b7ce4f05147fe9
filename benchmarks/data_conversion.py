"""How fast ImageNet is converted, beside reading and hashing the same files on one core.

    python benchmarks/data_conversion.py [--files 16000] [--repeats 7] [--folder FOLDER]

Makes a folder like ImageNet's (class folders, JPEG files of about 110 kB, all different), then alternates a whole
conversion on all cores (listing, starting processes, reading, SHA-256, header, writing, tables, fsync, rename) with
reading and SHA-256 of the same files in one process. Both find the files in the page cache, so this compares work and
not disks. The bar is 0.7 of the throughput. A quarter of the files is converted too: the difference of both gives the
rate at which a conversion streams once it has begun, which is what counts for ImageNet's 1.3 million files.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from report import figure

# Worker processes import this module again; what they do not need is imported in the functions, as in `hpcai500 data`.
from hpcai500.pipelines.worker_pool import usable_cores

NUM_CLASSES = 20
NUM_PICTURES = 60  # that really differ; each file ends in its own few bytes besides
BAR = 0.7


def make_pictures() -> list[bytes]:
    """JPEG files of about 500 x 375 pixels and 110 kB, as ImageNet's are on average."""
    import numpy as np
    from PIL import Image, ImageFilter

    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(NUM_PICTURES):
        height, width = (int(side) for side in rng.integers((330, 450), (420, 550)))
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        noise.filter(ImageFilter.GaussianBlur(0.55)).save(buffer, "JPEG", quality=82)
        pictures.append(buffer.getvalue())
    return pictures


def make_imagenet(root: Path, num_files: int) -> list[Path]:
    pictures, paths = make_pictures(), []
    for number in range(num_files):
        split = "val" if number % 25 == 0 else "train"
        wordnet_id = f"n{number % NUM_CLASSES:08d}"
        path = root / split / wordnet_id / f"{wordnet_id}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures[number % NUM_PICTURES] + number.to_bytes(8, "little"))
        paths.append(path)
    return sorted(paths)


class Times(NamedTuple):
    """Of one run: time that passed, and processor time of this process and its children."""

    wall_s: float
    cpu_s: float


def now() -> Times:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Times(time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages))


def since(start: Times) -> Times:
    end = now()
    return Times(end.wall_s - start.wall_s, end.cpu_s - start.cpu_s)


def time_hashing(paths: list[Path]) -> Times:
    start = now()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            hashlib.sha256(file.readall()).digest()
    return since(start)


def time_conversion(root: Path, output: Path) -> Times:
    from hpcai500.datasets.imagenet import prepare as imagenet

    output.unlink(missing_ok=True)
    os.sync()  # what the last conversion left to write is not this one's
    start = now()
    imagenet.prepare(output, root)
    return since(start)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def link_quarter(paths: list[Path], root: Path, small_root: Path) -> int:
    """Link every fourth file below ``small_root``; returns how many bytes they have."""
    for path in paths[::4]:
        link = small_root / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(path)
    return sum(path.stat().st_size for path in paths[::4])


def describe(name: str, runs: list[Times], num_bytes: int) -> float:
    rates = [num_bytes / run.wall_s / 1e6 for run in runs]
    median = statistics.median(rates)
    cpu_s = statistics.median(run.cpu_s for run in runs) / (num_bytes / 1e9)
    print(f"{name:<30} {median:7.0f} {min(rates):7.0f} {max(rates):7.0f} {cpu_s:9.2f}")
    return median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=16000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where to make the files (a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        root = Path(temporary) / "ILSVRC2012"
        paths = make_imagenet(root, args.files)
        num_bytes = sum(path.stat().st_size for path in paths)
        print(f"{processor()}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f} at the beginning")
        print(f"{args.files} files, {num_bytes / 1e6:.0f} MB, mean {num_bytes / args.files / 1e3:.0f} kB")
        small_root, output = Path(temporary) / "small", Path(temporary) / "imagenet.h5"
        small_bytes = link_quarter(paths, root, small_root)
        conversions, streams, hashings = [], [], []
        time_hashing(paths)  # warms the page cache
        for _ in range(args.repeats):
            small, whole = time_conversion(small_root, output), time_conversion(root, output)
            conversions.append(whole)
            streams.append(Times(whole.wall_s - small.wall_s, whole.cpu_s - small.cpu_s))
            hashings.append(time_hashing(paths))
    print(f"\n{'':<30} {'MB/s':>7} {'least':>7} {'most':>7} {'CPU s/GB':>9}")
    converting = describe(f"convert, {usable_cores()} processes", conversions, num_bytes)
    streaming = describe("the same, once begun", streams, num_bytes - small_bytes)
    hashing = describe("read and SHA-256, 1 process", hashings, num_bytes)
    rates = [num_bytes / 1e6 / times.wall_s for times in conversions]
    figure("converting ImageNet", rates, "MB/s", better="more")
    figure(
        "conversion once begun / reading and SHA-256 on one core",
        [(num_bytes - small_bytes) / num_bytes * b.wall_s / a.wall_s for a, b in zip(streams, hashings, strict=True)],
        better="more",
        bar=BAR,
    )
    print(
        f"\nratio of medians: whole conversion {converting / hashing:.2f}, once begun {streaming / hashing:.2f}; "
        f"bar {BAR}"
    )


if __name__ == "__main__":
    main()
