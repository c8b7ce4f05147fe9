"""ImageNet (ILSVRC2012): packs the published pictures, unchanged.

    hpcai500 data prepare imagenet --source ILSVRC2012/ --output imagenet.h5

Expected below the source: training pictures in ``train/nXXXXXXXX/*.JPEG``; validation pictures in ``val/`` or
``validation/``, in such class folders too, or flat with a file that says their classes (validation_labels.py). Kaggle's
``ILSVRC/Data/CLS-LOC`` is found as well. A class's index is its place in the sorted order of WordNet ids, as in
torchvision, so that published weights fit. See README.rst beside this file.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from hpcai500.datasets import folder as folders
from hpcai500.datasets.imagenet import validation_labels
from hpcai500.errors import DataError
from hpcai500.pipelines.hdf5_writer import Report, SplitInputs, refuse_existing, report_nothing, write_images
from hpcai500.version import __version__

# Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", arXiv:1409.0575, table 2
NUM_CLASSES, NUM_TRAIN, NUM_VALIDATION = 1000, 1_281_167, 50_000
WORDNET_ID = re.compile(r"n\d{8}")
BELOW = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
TRAIN_NAMES = ("train", "ILSVRC2012_img_train")
VALIDATION_NAMES = ("val", "validation", "ILSVRC2012_img_val")


def prepare(
    output: Path,
    source: Path,
    *,
    labels_file: Path | None = None,
    synsets_file: Path | None = None,
    num_workers: int | None = None,
    report: Report = report_nothing,
) -> Path:
    """Pack ImageNet into the new file ``output``.

    Args:
        output: a new file.
        source: the folder with the training and validation folders.
        labels_file: says the classes of flat validation pictures; by default looked for below ``source``.
        synsets_file: says which WordNet id a number of the development kit means; by default looked for beside it.
        num_workers: processes; by default one for each usable core.
        report: is told how far it is.

    Raises:
        UsageError: ``output`` exists.
        DataError: a folder or the mapping is missing or does not fit; see also hdf5_writer.write_images.
    """
    refuse_existing(output)
    train = _find_folder(source, TRAIN_NAMES)
    validation = _find_folder(source, VALIDATION_NAMES)
    class_names = [name for name in folders.class_folders(train) if WORDNET_ID.fullmatch(name)]
    if not class_names:
        raise DataError(
            f"folder {str(train)!r} has no folders like n01440764; give a folder of ImageNet's training pictures"
        )
    splits = {
        "train": folders.scan_split(train, class_names, report),
        "validation": _scan_validation(source, validation, class_names, labels_file, synsets_file, report=report),
    }
    numbers = (len(class_names), *(len(inputs.names) for inputs in splits.values()))
    is_whole = numbers == (NUM_CLASSES, NUM_TRAIN, NUM_VALIDATION)
    if len(splits["validation"].names) == NUM_VALIDATION:
        _check_balance(splits["validation"], class_names)
    provenance = {
        "source": "imagenet",
        "description": (
            f"ILSVRC2012 {'as published' if is_whole else 'in part'}: {numbers[0]} classes, {numbers[1]} training and "
            f"{numbers[2]} validation pictures, bytes unchanged"
        ),
        "origin": str(source),
        "is_whole": is_whole,
        "created_by": f"hpcai500 {__version__}",
    }
    return write_images(output, splits, class_names, provenance, num_workers=num_workers, report=report)


def _find_folder(source: Path, names: tuple[str, ...]) -> Path:
    candidates = [source / below / name for below in BELOW for name in names]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise DataError(
        f"folder {str(source)!r} has no {' or '.join(names)} in it; give the folder that holds ImageNet's "
        "train/nXXXXXXXX/ and val/, or prepare other class folders with `hpcai500 data prepare folder`"
    )


def _scan_validation(
    source: Path,
    validation: Path,
    class_names: list[str],
    labels_file: Path | None,
    synsets_file: Path | None,
    *,
    report: Report,
) -> SplitInputs:
    files = folders.list_pictures(validation)
    if not files:
        names = [name for name in folders.class_folders(validation) if WORDNET_ID.fullmatch(name)]
        folders.check_known(names, class_names, validation)
        return folders.scan_split(validation, class_names, report)
    labels_file = labels_file or validation_labels.find(source)
    wordnet_ids = validation_labels.read(labels_file, [file.name for file in files], synsets_file)
    folders.check_known(wordnet_ids, class_names, validation)
    index_of = {name: index for index, name in enumerate(class_names)}
    labels = np.array([index_of[wordnet_id] for wordnet_id in wordnet_ids], dtype=np.int32)
    return folders.inputs_of(validation, files, labels)


def _check_balance(inputs: SplitInputs, class_names: list[str]) -> None:
    """The published validation set has 50 pictures of each class; a mapping of something else is noticed here."""
    numbers = np.bincount(inputs.labels, minlength=len(class_names))
    wrong = np.flatnonzero(numbers != NUM_VALIDATION // NUM_CLASSES)
    if len(wrong) > 0:
        raise DataError(
            f"class {class_names[wrong[0]]!r} has {numbers[wrong[0]]} of the {NUM_VALIDATION} validation pictures; "
            "expected 50 of each class: check the file of validation labels"
        )
