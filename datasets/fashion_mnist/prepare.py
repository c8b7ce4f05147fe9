"""Fashion-MNIST: finds or fetches the published files and packs them, enlarged to 64 x 64, for the mini size.

    hpcai500 data prepare fashion-mnist --source FOLDER --output fashion-mnist.h5
    hpcai500 data prepare mini --output data/mini.h5

Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
arXiv:1708.07747. The published pictures are 28 x 28 grey; they are enlarged with Pillow's bicubic filter and stored as
grey JPEG of quality 95, so the same readers and decoders serve as for ImageNet. See README.rst beside this file.
"""

from __future__ import annotations

import functools
import gzip
import io
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hpcai500.errors import DataError, UsageError
from hpcai500.pipelines.hdf5 import ImageFileInfo, open_images
from hpcai500.pipelines.hdf5_writer import Report, report_nothing
from hpcai500.pipelines.spool import write_encoded_images
from hpcai500.version import __version__

# arXiv:1708.07747, table 2, in the order of the labels 0 to 9
CLASS_NAMES = (
    "T-Shirt/Top", "Trouser", "Pullover", "Dress", "Coat", "Sandals", "Shirt", "Sneaker", "Bag", "Ankle boots",
)  # fmt: skip
FILES = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
         "validation": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049  # yann.lecun.com/exdb/mnist, "File formats": 0x0803, 0x0801
DEBIAN_PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
IMAGE_SIZE, JPEG_QUALITY = 64, 95
NUM_GENERATED = {"train": 60_000, "validation": 10_000}  # the same numbers where the real pictures are not to be had


class Found(NamedTuple):
    """A folder with the four published files, and in words how it was found."""

    folder: Path
    origin: str


def find_or_fetch(source: Path | None = None, cache: Path | None = None) -> Found | None:
    """Look for the four files: in ``source``; else installed; else in ``cache``; else fetched there with apt.

    Fetching needs no root: the Debian package is downloaded and unpacked into ``cache`` (by default
    ``~/.cache/hpcai500``), not installed.

    Returns:
        None where there is no ``source`` and the files are not to be had.

    Raises:
        DataError: ``source`` does not hold the four files.
    """
    if source is not None:
        missing = _missing_files(source)
        if missing:
            raise DataError(
                f"folder {str(source)!r} lacks {', '.join(missing)} (each may end in .gz); "
                "give the folder of Fashion-MNIST's four files"
            )
        return Found(source, f"given: {source}")
    if not _missing_files(INSTALLED):
        return Found(INSTALLED, f"installed: Debian's {DEBIAN_PACKAGE}")
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpcai500"
    folder = cache / DEBIAN_PACKAGE / INSTALLED.relative_to("/")
    if _missing_files(folder):
        _fetch(cache / DEBIAN_PACKAGE)
    if _missing_files(folder):
        return None
    return Found(folder, f"fetched: Debian's {DEBIAN_PACKAGE}, with apt-get download")


def find_or_fail(source: Path | None = None, cache: Path | None = None) -> Found:
    """As ``find_or_fetch``; raises DataError too where the files are not to be had."""
    found = find_or_fetch(source, cache)
    if found is None:
        raise DataError(
            f"Fashion-MNIST is neither in {str(INSTALLED)!r} nor to be had with apt-get; give its folder with --source"
        )
    return found


def _missing_files(folder: Path) -> list[str]:
    names = [name for pair in FILES.values() for name in pair]
    return [name for name in names if not any((folder / (name + end)).is_file() for end in ("", ".gz"))]


def _fetch(folder: Path) -> None:
    """Download and unpack the Debian package into ``folder``; quietly does nothing where that is not possible."""
    # Where the machine's package lists are missing (a fresh container), private ones are fetched; that needs no root.
    private = [f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}/cache"]
    quick = ["-oAcquire::Retries=1", "-oAcquire::http::Timeout=20", "-oAPT::Sandbox::User="]
    download = ["apt-get", *quick, "download", DEBIAN_PACKAGE]
    try:
        (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (folder / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        if not _succeeds(download, folder):
            _succeeds(["apt-get", *quick, *private, "update"], folder)
            if not _succeeds([*download[:-2], *private, *download[-2:]], folder):
                return
        for package in sorted(folder.glob(f"{DEBIAN_PACKAGE}_*.deb")):
            _succeeds(["dpkg", "-x", str(package), str(folder)], folder)
            package.unlink()
    except OSError:  # no apt or dpkg here, or the cache cannot be written
        return


def _succeeds(command: Sequence[str], folder: Path) -> bool:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=180, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


# ----------------------------------------------------------------------------------------------------------- converting


def read_idx(folder: Path, name: str, magic: int) -> npt.NDArray[np.uint8]:
    """Read an idx file, which may be compressed: images (n, height, width) or labels (n,).

    Raises:
        DataError: it is missing, of another kind or size than its header says.
    """
    plain, packed = folder / name, folder / (name + ".gz")
    path = plain if plain.is_file() else packed
    try:
        data = gzip.decompress(packed.read_bytes()) if path == packed else plain.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"idx file {str(path)!r} cannot be read") from error
    num_dimensions = magic & 0xFF
    header = np.frombuffer(data[: 4 + 4 * num_dimensions], dtype=">u4")
    if len(header) != 1 + num_dimensions or header[0] != magic:
        raise DataError(f"{str(path)!r} is not an idx file of magic number {magic}; get Fashion-MNIST's files again")
    shape = tuple(int(length) for length in header[1:])
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * num_dimensions)
    if values.size != int(np.prod(shape)):
        raise DataError(f"idx file {str(path)!r} holds {values.size} values, its header says {shape}; get it again")
    return values.reshape(shape)


@functools.cache
def _images(folder: str, split: str) -> npt.NDArray[np.uint8]:
    return read_idx(Path(folder), FILES[split][0], IMAGES_MAGIC)


def encode(folder: str, size: int, split: str, first: int, last: int) -> list[bytes]:
    """The pictures [first, last) of a split, enlarged to ``size`` x ``size`` pixels, as grey JPEG."""
    from PIL import Image

    pictures = []
    for pixels in _images(folder, split)[first:last]:
        picture = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        pictures.append(buffer.getvalue())
    return pictures


def provenance_of(found: Found, size: int) -> dict[str, Any]:
    """What the data file says of itself."""
    return {
        "source": "fashion_mnist",
        "description": (
            f"Fashion-MNIST (arXiv:1708.07747), 28 x 28 grey pictures enlarged to {size} x {size} with Pillow's "
            f"bicubic filter and stored as grey JPEG of quality {JPEG_QUALITY}"
        ),
        "origin": found.origin,
        "image_size": size,
        "created_by": f"hpcai500 {__version__}",
    }


def prepare(
    output: Path,
    found: Found,
    *,
    size: int = IMAGE_SIZE,
    num_workers: int | None = None,
    report: Report = report_nothing,
) -> Path:
    """Pack all pictures of the files found into the new file ``output``.

    Raises:
        UsageError: ``output`` exists.
        DataError: a file is damaged; see also hdf5_writer.write_images.
    """
    labels = {}
    for split, (images_name, labels_name) in FILES.items():
        labels[split] = read_idx(found.folder, labels_name, LABELS_MAGIC).astype(np.int32)
        num_images = len(_images(str(found.folder), split))
        if num_images != len(labels[split]) or labels[split].max(initial=0) >= len(CLASS_NAMES):
            raise DataError(
                f"{images_name} has {num_images} pictures, {labels_name} {len(labels[split])} labels up to "
                f"{labels[split].max(initial=0)}; expected as many of both and labels 0 to 9: get the files again"
            )
    _images.cache_clear()
    return write_encoded_images(
        output,
        functools.partial(encode, str(found.folder), size),
        labels,
        CLASS_NAMES,
        provenance_of(found, size),
        num_workers=num_workers,
        report=report,
    )


def prepare_mini(
    output: Path,
    *,
    source: Path | None = None,
    cache: Path | None = None,
    num_workers: int | None = None,
    report: Report = report_nothing,
) -> Path:
    """The data of the mini size: Fashion-MNIST if it is to be had, else generated pictures; provenance says which.

    A complete mini file at ``output`` is used as it is.

    Raises:
        UsageError: ``output`` exists and is something else.
        DataError: see ``find_or_fetch`` and ``prepare``.
    """
    from hpcai500.datasets import generated

    if output.exists():
        info = open_images(output)
        if not is_mini(info):
            raise UsageError(
                f"{str(output)!r} exists and holds other pictures ({info.provenance.get('description')}); "
                "give another --output or delete it yourself"
            )
        return output
    output.parent.mkdir(parents=True, exist_ok=True)
    found = find_or_fetch(source, cache)
    if found is not None:
        return prepare(output, found, num_workers=num_workers, report=report)
    recipe = generated.Recipe(
        seed=0, num_classes=len(CLASS_NAMES), image_size=IMAGE_SIZE, num_samples=tuple(NUM_GENERATED.values())
    )
    return generated.prepare(output, recipe, num_workers=num_workers, report=report)


def is_mini(info: ImageFileInfo) -> bool:
    """Whether a data file is what ``prepare_mini`` makes."""
    provenance = info.provenance
    return (
        provenance.get("source") in ("fashion_mnist", "generated")
        and provenance.get("image_size") == IMAGE_SIZE
        and len(info.class_names) == len(CLASS_NAMES)
        and all(info.splits[split].num_samples == number for split, number in NUM_GENERATED.items())
    )
