"""Packs any folder of class folders with JPEG or PNG pictures.

    hpcai500 data prepare folder --source pictures/ --output pictures.h5

Either ``train/`` and ``validation/`` (or ``val/``) lie below the folder, with the class folders below them; or the
class folders lie there themselves, and a seeded part of each class is taken for validation. The index of a class is its
place in the sorted order of names, as in torchvision's ImageFolder. Pictures are stored as they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hpcai500.errors import DataError, UsageError
from hpcai500.pipelines.hdf5_writer import Report, SplitInputs, refuse_existing, report_nothing, write_images
from hpcai500.version import __version__

SUFFIXES = (".jpeg", ".jpg", ".png")
VALIDATION_NAMES = ("validation", "val")
NUM_THREADS = 16  # listing waits for the file system, not for the processor


class PictureFile(NamedTuple):
    """A picture's name relative to the split's folder, its size in bytes and when it was last changed."""

    name: str
    length: int
    modified_ns: int


def prepare(
    output: Path,
    source: Path,
    *,
    validation_share: float = 0.1,
    seed: int = 0,
    num_workers: int | None = None,
    report: Report = report_nothing,
) -> Path:
    """Pack the pictures below ``source`` into the new file ``output``.

    Args:
        output: a new file.
        source: a folder of class folders, or of train and validation folders with those.
        validation_share: of each class, where there is no validation folder; at least one picture of each class.
        seed: chooses those pictures.
        num_workers: processes; by default one for each usable core.
        report: is told how far it is.

    Raises:
        UsageError: ``output`` exists, or the share is not between 0 and 1.
        DataError: there are no class folders, one is empty or has one picture where it must be split, or validation
            has a class that training has not; see also hdf5_writer.write_images.
    """
    refuse_existing(output)
    origin, provenance = str(source), {"source": "folder", "description": f"class folders below {source.name!r}"}
    if (source / "train").is_dir():
        train, validation = source / "train", find_validation(source)
        class_names = class_folders(train)
        check_known(class_folders(validation), class_names, validation)
        splits = {
            "train": scan_split(train, class_names, report),
            "validation": scan_split(validation, class_names, report),
        }
    else:
        class_names = class_folders(source)
        splits = split_by_seed(source, scan(source, class_names, report), validation_share, seed)
        provenance["description"] += f"; {validation_share} of each class for validation, chosen with seed {seed}"
    provenance |= {"origin": origin, "created_by": f"hpcai500 {__version__}"}
    return write_images(output, splits, class_names, provenance, num_workers=num_workers, report=report)


def find_validation(source: Path) -> Path:
    """The validation folder beside ``source / "train"``; raises DataError if there is none."""
    for name in VALIDATION_NAMES:
        if (source / name).is_dir():
            return source / name
    raise DataError(f"folder {str(source)!r} has train but neither validation nor val; add one of them")


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in ``folder``; raises DataError if there are none."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"folder {str(folder)!r} cannot be listed ({error.strerror}); give a folder of class folders"
        ) from None
    if not names:
        raise DataError(f"folder {str(folder)!r} has no class folders; expected one folder of pictures for each class")
    return names


def check_known(names: Iterable[str], class_names: Sequence[str], folder: Path) -> None:
    """Raise DataError if ``folder`` has a class that is not among ``class_names``."""
    unknown = sorted(set(names) - set(class_names))
    if unknown:
        raise DataError(
            f"class {unknown[0]!r} of {str(folder)!r} has no training pictures ({len(unknown)} such classes); "
            "each class needs a folder of that name in the training folder"
        )


def scan(folder: Path, class_names: Sequence[str], report: Report = report_nothing) -> list[list[PictureFile]]:
    """The pictures of each class in sorted order of names, found in ``folder / class_name``."""
    classes: list[list[PictureFile]] = []
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for pictures in pool.map(lambda name: list_pictures(folder, name), class_names):
            classes.append(pictures)
            report(f"listing {folder.name}", len(classes), len(class_names))
    return classes


def list_pictures(folder: Path, class_name: str = "") -> list[PictureFile]:
    """The pictures in ``folder / class_name``, sorted; names are relative to ``folder``. Missing folders have none."""
    prefix = f"{class_name}/" if class_name else ""
    pictures = []
    try:
        with os.scandir(folder / class_name) as entries:
            for entry in entries:
                if entry.name.lower().endswith(SUFFIXES) and entry.is_file():
                    status = entry.stat()
                    pictures.append(PictureFile(prefix + entry.name, status.st_size, status.st_mtime_ns))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"folder {str(folder / class_name)!r} cannot be listed ({error.strerror})") from None
    empty = next((picture.name for picture in pictures if picture.length == 0), None)
    if empty is not None:
        raise DataError(f"picture {str(folder / empty)!r} is empty; remove or replace it")
    return sorted(pictures)


def scan_split(folder: Path, class_names: Sequence[str], report: Report = report_nothing) -> SplitInputs:
    """The inputs of a split that lies in class folders, ordered by class and name."""
    classes = scan(folder, class_names, report)
    empty = [name for name, pictures in zip(class_names, classes, strict=True) if not pictures]
    if empty and folder.name == "train":
        raise DataError(
            f"class {empty[0]!r} of {str(folder)!r} has no JPEG or PNG pictures ({len(empty)} such classes)"
        )
    return split_inputs(folder, classes)


def split_inputs(folder: Path, classes: Sequence[Sequence[PictureFile]]) -> SplitInputs:
    """The inputs of a split whose class i has the pictures ``classes[i]``."""
    files = [picture for pictures in classes for picture in pictures]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(pictures) for pictures in classes])
    return inputs_of(folder, files, labels)


def inputs_of(folder: Path, files: Sequence[PictureFile], labels: npt.NDArray[np.int32]) -> SplitInputs:
    """The inputs of a split: ``files`` below ``folder`` with a label each."""
    return SplitInputs(
        folder=folder,
        names=[file.name for file in files],
        labels=labels,
        lengths=np.array([file.length for file in files], dtype=np.int64),
        modified_ns=np.array([file.modified_ns for file in files], dtype=np.int64),
    )


def split_by_seed(
    folder: Path, classes: Sequence[Sequence[PictureFile]], validation_share: float, seed: int
) -> dict[str, SplitInputs]:
    """Take ``validation_share`` of each class, but at least one picture, for validation; the rest for training."""
    if not 0 < validation_share < 1:
        raise UsageError(f"validation share {validation_share} is not possible; give a number between 0 and 1")
    train: list[list[PictureFile]] = []
    validation: list[list[PictureFile]] = []
    for label, pictures in enumerate(classes):
        if len(pictures) < 2:
            raise DataError(
                f"a class of {str(folder)!r} has {len(pictures)} pictures (the {label}th in sorted order); "
                "splitting needs two or more: add some, or make train and validation folders yourself"
            )
        number = min(max(round(validation_share * len(pictures)), 1), len(pictures) - 1)
        order = np.random.Generator(np.random.Philox(key=[seed, label])).permutation(len(pictures))
        chosen = set(order[:number].tolist())
        validation.append([picture for index, picture in enumerate(pictures) if index in chosen])
        train.append([picture for index, picture in enumerate(pictures) if index not in chosen])
    return {"train": split_inputs(folder, train), "validation": split_inputs(folder, validation)}
