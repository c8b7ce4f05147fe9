"""Images per second of the torch and DALI pipelines, against a plain torch DataLoader with PIL and against bare DALI.

Run: python benchmarks/image_pipelines.py [--repeats 7] [--workers 2] [--batch-size 64] [--num-samples 1024]

The plain loader does what torchvision's ImageFolder, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize
do, in the same calls of Pillow and torch, on one file a picture. Ours read the same JPEG bytes from one HDF5 file. All
make float32 batches of 224 x 224 on the CPU, with the same number of workers (processes, or threads in DALI). "bare" is
DALI as its documentation shows it, with the same operations: its own reader of files, decoding of a random crop,
resizing, mirroring, normalising. "hdf5" only reads the bytes of all pictures, in the order of an epoch: what that takes
of a pipeline's processor time is what the file costs. Timings alternate, so that whatever else the machine does hits
all alike; ratios are of timings next to each other.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from report import figure
from torch.utils.data import DataLoader, Dataset

from hpcai500.pipelines.image_pipeline import ImagePipelineConfig, open_image_pipeline

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA, ASPECT, SIDE = (0.05, 1.0), (0.75, 4 / 3), 224
NUM_DISTINCT = 128  # making pictures is slow, and decoding does not remember them
QUEUE_DEPTH = 2
BARS = {"torch": 1.8, "dali": 1.8}
BARE_BAR, HDF5_BAR = 0.95, 0.03


def make_picture(seed: int, height: int = 375, width: int = 500) -> bytes:
    """A picture of noise at all scales, finest strongest: about 110 kB as JPEG of quality 90, as much as ImageNet."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), dtype=np.float32)
    for octave in range(9):
        cells = 2**octave
        noise = rng.normal(0, 25 / 0.9**octave, (cells * 3 // 4 + 1, cells + 1, 3)).astype(np.float32)
        noise = 0.35 * noise + 0.65 * noise.mean(axis=2, keepdims=True)  # colours of photographs go together
        layers = [Image.fromarray(noise[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        total += np.stack([np.asarray(layer) for layer in layers], axis=2)
    out = io.BytesIO()
    Image.fromarray(np.clip(total + 118, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def write_data(folder: Path, num_samples: int) -> tuple[Path, list[Path], float]:
    """The same pictures as one HDF5 file and as files; returns both and the mean size in kB."""
    distinct = [make_picture(seed) for seed in range(min(num_samples, NUM_DISTINCT))]
    samples = [distinct[i % len(distinct)] for i in range(num_samples)]
    files = [folder / f"{i:06d}.jpg" for i in range(num_samples)]
    for file, sample in zip(files, samples, strict=True):
        file.write_bytes(sample)
    text = h5py.string_dtype("utf-8")
    path = folder / "pictures.h5"
    with h5py.File(path, "w") as h5:
        h5.attrs.update({"format": "hpcai500-images", "format_version": 1, "complete": 1, "dataset_sha256": "0" * 64})
        h5.attrs["provenance"] = json.dumps({"source": "generated", "description": "pictures of a benchmark"})
        h5.create_dataset("class_names", data=["noise"], dtype=text)
        for split, part in (("train", samples), ("validation", samples[:1])):
            group = h5.create_group(split)
            group["bytes"] = np.frombuffer(b"".join(part), dtype=np.uint8)
            group["offsets"] = np.cumsum([0] + [len(sample) for sample in part], dtype=np.int64)
            group["labels"] = np.zeros(len(part), dtype=np.int32)
            group["sizes"] = np.array([Image.open(io.BytesIO(s)).size[::-1] for s in part], dtype=np.int32)
            group["sha256"] = np.array([list(hashlib.sha256(sample).digest()) for sample in part], dtype=np.uint8)
            group.create_dataset("names", data=[f"{i}.jpg" for i in range(len(part))], dtype=text)
    return path, files, statistics.mean(len(sample) for sample in samples) / 1e3


class PlainFolder(Dataset[tuple[torch.Tensor, int]]):
    """ImageFolder with torchvision's usual training transform, on PIL images."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.mean = torch.tensor(MEAN).view(3, 1, 1)
        self.std = torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with self.files[index].open("rb") as file:
            image = Image.open(file).convert("RGB")
        top, left, height, width = random_resized_crop(image.height, image.width)
        image = image.crop((left, top, left + width, top + height)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        array = torch.from_numpy(np.array(image, np.uint8, copy=True))
        tensor = array.permute((2, 0, 1)).contiguous().to(torch.float32).div(255)
        return tensor.clone().sub_(self.mean).div_(self.std), 0


def random_resized_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """As torchvision's RandomResizedCrop.get_params, without the fallback, which pictures of 500 x 375 do not need."""
    log_ratio = torch.log(torch.tensor(ASPECT))
    while True:
        area = height * width * torch.empty(1).uniform_(AREA[0], AREA[1]).item()
        aspect = torch.exp(torch.empty(1).uniform_(float(log_ratio[0]), float(log_ratio[1]))).item()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, size=(1,)).item())
            left = int(torch.randint(0, width - w + 1, size=(1,)).item())
            return top, left, h, w


class BareDali:
    """DALI called as anybody would, reading files by itself; an iterable of batches."""

    def __init__(self, files: list[Path], args: argparse.Namespace) -> None:
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(
            batch_size=args.batch_size,
            num_threads=args.workers,
            device_id=None,
            prefetch_queue_depth=QUEUE_DEPTH,
        )
        def define() -> Any:
            encoded, labels = fn.readers.file(files=[str(file) for file in files], random_shuffle=True, name="files")
            images = fn.decoders.image_random_crop(
                encoded,
                random_area=AREA,
                random_aspect_ratio=ASPECT,
                output_type=types.RGB,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,  # as ours, and as Pillow
            )
            images = fn.resize(images, size=(SIDE, SIDE), interp_type=types.INTERP_LINEAR, antialias=True)
            images = fn.crop_mirror_normalize(
                images,
                mirror=fn.random.coin_flip(),
                mean=[255 * value for value in MEAN],
                std=[255 * value for value in STD],
                dtype=types.FLOAT,
                output_layout="CHW",
            )
            return images, labels

        self._graph = define()
        self._graph.build()
        self._num_batches, self._has_run = len(files) // args.batch_size, False

    def __iter__(self) -> Iterator[tuple[torch.Tensor]]:
        """As ``run`` does, but without the batches it begins beyond the last one: whoever is timed next paid them."""
        for _ in range(QUEUE_DEPTH if self._has_run else 1):  # the very first call fills the queue
            self._graph.schedule_run()
        self._has_run = True
        for number in range(self._num_batches):
            images, _ = self._graph.outputs()
            if number + QUEUE_DEPTH < self._num_batches:
                self._graph.schedule_run()
            yield (torch.utils.dlpack.from_dlpack(images.as_tensor()),)


class OnlyRead:
    """The bytes of an epoch's pictures, batch by batch, and nothing made of them."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def batches(self, epoch: int) -> Iterator[tuple[Any]]:
        buffer = None
        for ids in self._pipeline.shards.train(epoch, 0):
            packed, _ = self._pipeline.train.read(ids, buffer)
            buffer = packed if packed.base is None else packed.base
            yield (ids,)


def cpu_time_s() -> float:
    """Processor time used so far by this process, its threads and its workers; Linux counts the workers' in ticks."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: proc(5)
    return total


def measure(batches: Iterable[Any]) -> tuple[float, float]:
    """Images per second, and milliseconds of processor time per image."""
    start, cpu_start = time.perf_counter(), cpu_time_s()
    count = sum(len(images) for images, *_ in batches)
    return count / (time.perf_counter() - start), (cpu_time_s() - cpu_start) / count * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-samples", type=int, default=1024)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, files, size_kb = write_data(Path(folder), args.num_samples)
        print(
            f"{args.num_samples} JPEG of 500 x 375, {size_kb:.0f} kB; {args.workers} workers, batch {args.batch_size}"
        )
        plain = DataLoader(
            PlainFolder(files),
            batch_size=args.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=args.workers,
            persistent_workers=True,
        )
        config = ImagePipelineConfig(
            path=path,
            train_image_size=SIDE,
            validation_image_size=SIDE,
            validation_resize=256,
            mean=MEAN,
            std=STD,
            crop_area=AREA,
            crop_aspect=ASPECT,
            batch_size_per_rank=args.batch_size,
            validation_batch_size=args.batch_size,
            seed=1,
            num_workers=args.workers,
        )
        pipelines: dict[str, Any] = {name: open_image_pipeline(name, config) for name in BARS}
        bare = BareDali(files, args)
        loops: dict[str, Callable[[int], Iterable[Any]]] = {"plain": lambda epoch: plain, "bare": lambda epoch: bare}
        loops |= {name: pipeline.train_batches for name, pipeline in pipelines.items()}
        loops["hdf5"] = OnlyRead(pipelines["torch"]).batches
        for loop in loops.values():  # starts workers, fills the page cache
            measure(loop(0))
        results: dict[str, list[tuple[float, float]]] = {name: [] for name in loops}
        for repeat in range(args.repeats):
            for name, loop in loops.items():
                results[name].append(measure(loop(1 + repeat)))
        for pipeline in pipelines.values():
            pipeline.close()
    for name, values in results.items():
        rates, costs = zip(*values, strict=True)
        ratios = [ours / plain for (ours, _), (plain, _) in zip(values, results["plain"], strict=True)]
        savings = [plain / ours for (_, ours), (_, plain) in zip(values, results["plain"], strict=True)]
        if name in BARS:
            figure(f"{name}: rate / plain DataLoader", ratios, better="more", bar=BARS[name])
            figure(f"{name}: rate", rates, "images/s", better="more")
        print(
            f"{name:6} {spread(rates, 0)} images/s, {spread(costs, 2)} ms of processor time per image; against plain: "
            f"rate {spread(ratios, 2)}, processor time {spread(savings, 2)}"
            + (f"; at least {BARS[name]:.1f} wanted" if name in BARS else "")
        )
    for name in BARS:
        ratios = [ours / bare for (ours, _), (bare, _) in zip(results[name], results["bare"], strict=True)]
        shares = [read / ours for (_, ours), (_, read) in zip(results[name], results["hdf5"], strict=True)]
        figure(f"{name}: rate / bare DALI", ratios, better="more", bar=BARE_BAR)
        figure(f"{name}: share of reading HDF5", shares, bar=HDF5_BAR)
        print(f"{name}: rate against bare DALI {spread(ratios, 2)}, at least {BARE_BAR} wanted; ", end="")
        print(f"share of reading HDF5 {spread(shares, 3)}, under {HDF5_BAR} wanted")


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
