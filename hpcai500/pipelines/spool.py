"""Makes pictures that do not exist as files yet (enlarged, generated) so that hdf5_writer.py can pack them.

The writer must know all sizes first, and a made picture's size is only known once it is made. So workers make them
once, into files of ``ENCODE_EVERY`` pictures each in a folder beside the output; the folder goes when the output is
complete. A finished file is never made again, so a killed conversion resumes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpcai500.pipelines.hdf5_copy import explained
from hpcai500.pipelines.hdf5_writer import (
    Report,
    SplitInputs,
    refuse_existing,
    report_nothing,
    write_images,
)
from hpcai500.pipelines.worker_pool import run_tasks

# Returns the encoded pictures [first, last) of a split; is pickled, and must give the same bytes in every process.
Encode = Callable[[str, int, int], list[bytes]]
Task = tuple[str, int, int]  # split, first, last

ENCODE_EVERY = 500  # pictures in a file: a tenth of a second or more of work, and few files


def write_encoded_images(
    output: Path,
    encode: Encode,
    labels: dict[str, npt.NDArray[np.int32]],
    class_names: Sequence[str],
    provenance: dict[str, Any],
    *,
    num_workers: int | None = None,
    report: Report = report_nothing,
) -> Path:
    """Make the pictures of both splits with ``encode``, one for each label, and pack them into the new file ``output``.

    Raises:
        UsageError: ``output`` exists.
        DataError: the disk is full or cannot be written; and what ``encode`` raises.
    """
    refuse_existing(output)
    folder = output.with_name(output.name + ".spool")
    with explained(output), _prepared(folder, labels, class_names, provenance):
        lengths = _encode_all(folder, encode, labels, num_workers, report)
        splits = {
            split: SplitInputs(
                folder=folder,
                names=[f"{split}-{index:06d}" for index in range(len(labels[split]))],
                labels=labels[split],
                lengths=lengths[split],
                packed_every=ENCODE_EVERY,
            )
            for split in labels
        }
        return write_images(output, splits, class_names, provenance, num_workers=num_workers, report=report)


@contextmanager
def _prepared(
    folder: Path, labels: dict[str, npt.NDArray[np.int32]], class_names: Sequence[str], provenance: dict[str, Any]
) -> Iterator[None]:
    """A spool folder for exactly these pictures, with what an earlier attempt left; removed on success."""
    digests = {split: hashlib.sha256(values.tobytes()).hexdigest() for split, values in labels.items()}
    recipe = json.dumps([digests, list(class_names), provenance, ENCODE_EVERY])
    recipe_file = folder / "recipe.json"
    if folder.exists() and not (recipe_file.exists() and recipe_file.read_text() == recipe):
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    recipe_file.write_text(recipe)
    yield
    shutil.rmtree(folder)


def _encode_all(
    folder: Path,
    encode: Encode,
    labels: dict[str, npt.NDArray[np.int32]],
    num_workers: int | None,
    report: Report,
) -> dict[str, npt.NDArray[np.int64]]:
    """Make what is not made yet; returns the lengths of all pictures in bytes."""
    runs: list[Task] = [
        (split, first, min(first + ENCODE_EVERY, len(values)))
        for split, values in labels.items()
        for first in range(0, len(values), ENCODE_EVERY)
    ]
    missing = [run for run in runs if not _lengths_file(folder, run).exists()]
    total = sum(len(values) for values in labels.values())
    done = total - sum(last - first for _, first, last in missing)
    report("making", done, total)
    for (_, first, last), _ in run_tasks(functools.partial(encode_chunk, str(folder), encode), missing, num_workers):
        done += last - first
        report("making", done, total)
    return {
        split: np.concatenate([np.load(_lengths_file(folder, run)) for run in runs if run[0] == split])
        for split in labels
    }


def encode_chunk(folder: str, encode: Encode, task: Task) -> None:
    """Make one file of pictures, and a table of their lengths beside it that says it is whole."""
    split, first, last = task
    pictures = encode(split, first, last)
    assert len(pictures) == last - first
    data_file = Path(folder) / f"{split}-{first // ENCODE_EVERY:06d}"
    lengths_file = _lengths_file(Path(folder), task)
    with explained(data_file):
        with data_file.open("wb") as file:
            file.writelines(pictures)
            file.flush()
            os.fsync(file.fileno())
        unfinished = lengths_file.with_suffix(f".{os.getpid()}")
        with unfinished.open("wb") as file:
            np.save(file, np.array([len(picture) for picture in pictures], dtype=np.int64))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(lengths_file)


def _lengths_file(folder: Path, task: Task) -> Path:
    return folder / f"{task[0]}-{task[1] // ENCODE_EVERY:06d}.npy"
