"""How fast the data file comes to the node, against cp and against cp followed by sha256sum of both.

    python benchmarks/staging.py [--gigabytes 4] [--repeats 5] [--source-folder /var/tmp] [--folder /dev/shm]

The ways take turns. Before each the page cache of the source is dropped (posix_fadvise), and the copy is removed.
The last figures are of a process that imports torch while it stages, against one that only imports and one that does
one after the other.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from report import figure, machine, spread

from hpcai500.staging import Stage, StagedFile

IMPORTS = {
    "import torch": "import torch",
    "stage, then import torch": "stage.start(); stage.wait(); import torch",
    "import torch while it stages": "stage.start(); import torch; stage.wait()",
}
PROGRAM = "import sys, pathlib; from hpcai500.staging import Stage; stage = Stage(*map(pathlib.Path, sys.argv[1:])); "


def drop_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def make_source(path: Path, num_bytes: int) -> None:
    piece = os.urandom(2**20)  # file systems that compress see through zeros
    with path.open("wb") as file:
        for number in range(num_bytes >> 20):
            file.write(number.to_bytes(8, "little") + piece[8:])
        file.flush()
        os.fsync(file.fileno())


def stage(source: Path, folder: Path) -> StagedFile:
    job = Stage(source, folder, on_full_disk="stop")
    job.start()
    return job.wait()


def copy(source: Path, folder: Path) -> None:
    target = folder / "copied"
    subprocess.run(["cp", str(source), str(target)], check=True)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def copy_and_compare(source: Path, folder: Path) -> None:
    copy(source, folder)
    drop_cache(folder / "copied")
    subprocess.run(["sha256sum", str(source), str(folder / "copied")], check=True, capture_output=True)


def timed(work: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    work()
    return time.perf_counter() - begin_s


def sha256_bytes_per_s() -> float:
    piece = bytes(2**26)
    return len(piece) / timed(lambda: hashlib.sha256(piece))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--source-folder", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm"))
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=args.source_folder) as source_folder,
        tempfile.TemporaryDirectory(dir=args.folder) as target_folder,
    ):
        source, folder = Path(source_folder) / "data.h5", Path(target_folder)
        make_source(source, int(args.gigabytes * 1e9))
        measure(source, folder, args.repeats)


def measure(source: Path, folder: Path, num_repeats: int) -> None:
    gigabytes = source.stat().st_size * 1e-9
    rates: dict[str, list[float]] = {"staging, copying": [], "staging, verifying": [], "staging, both": []}
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(num_repeats):
        prepare(source, folder)
        staged = stage(source, folder)
        rates["staging, copying"].append(gigabytes / (staged.copy_ns * 1e-9))
        rates["staging, verifying"].append(gigabytes / (staged.verify_ns * 1e-9))
        rates["staging, both"].append(gigabytes / ((staged.copy_ns + staged.verify_ns) * 1e-9))
        for name, work in (("cp and fsync", copy), ("cp, fsync and sha256sum of both", copy_and_compare)):
            prepare(source, folder)
            rates.setdefault(name, []).append(gigabytes / timed(lambda work=work: work(source, folder)))
        for name, code in IMPORTS.items():
            prepare(source, folder)
            command = [sys.executable, "-c", PROGRAM + code, str(source), str(folder)]
            seconds[name].append(timed(lambda command=command: subprocess.run(command, check=True)))
    print(machine())
    print(f"{gigabytes:.1f} GB from {source.parent.parent} to {folder.parent}")
    print(f"{'sha256 of one core':<36}{sha256_bytes_per_s() / 1e9:.2f} GB/s")
    for name, values in rates.items():
        print(f"{name:<36}{spread(values, 'GB/s')}")
        figure(name, values, "GB/s", better="more")
    for name, values in seconds.items():
        print(f"{name:<36}{spread(values, 's')}")


def prepare(source: Path, folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    drop_cache(source)


if __name__ == "__main__":
    main()
