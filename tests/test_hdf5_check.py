"""The check of data files finds each kind of damage and names the sample."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from pictures import inputs_below, make_class_folders, make_data_file, picture_bytes

from hpcai500.errors import DataError
from hpcai500.pipelines.hdf5 import dataset_digest, open_images
from hpcai500.pipelines.hdf5_check import DataFinding, check_images
from hpcai500.pipelines.hdf5_writer import write_images


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data_file(tmp_path_factory.mktemp("data") / "small.h5")


@pytest.fixture
def copied_file(sound_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sound_file, tmp_path / "copy.h5"))


def position_of(path: Path, split: str, index: int) -> int:
    table = open_images(path).splits[split]
    return table.position_bytes + int(table.offsets[index])


def flip_byte(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x10]))


def test_a_sound_file_has_no_findings(sound_file: Path) -> None:
    assert check_images(sound_file, decode=True) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_flipped_byte_is_found_and_the_sample_named(copied_file: Path, workers: int) -> None:
    flip_byte(copied_file, position_of(copied_file, "validation", 3) + 200)
    flip_byte(copied_file, position_of(copied_file, "train", 8) - 1)
    findings = check_images(copied_file, num_workers=workers)
    assert findings == [
        DataFinding("its bytes differ from their SHA-256", "train", 7, "class1/class1_0003.JPEG"),
        DataFinding("its bytes differ from their SHA-256", "validation", 3, "class1/class1_0001.JPEG"),
    ]
    assert str(findings[0]) == "train sample 7 (class1/class1_0003.JPEG): its bytes differ from their SHA-256"


def test_what_a_truncated_file_lost_is_named(copied_file: Path) -> None:
    size = copied_file.stat().st_size
    end = position_of(copied_file, "validation", 4) + 10
    os.truncate(copied_file, end)
    first, *samples = check_images(copied_file)
    assert first.what == f"the file is truncated: {end} of {size} bytes are there"
    assert [finding.index for finding in samples] == [4, 5]
    assert samples[0].what.startswith("the file ends amid it: 10 of ")
    assert samples[0].name == "class2/class2_0000.JPEG"


def test_a_file_cut_down_to_its_beginning_cannot_be_checked(copied_file: Path) -> None:
    for size in (1500, 10):
        os.truncate(copied_file, size)
        with pytest.raises(DataError, match=r"damaged tables|is truncated at|cannot be opened"):
            check_images(copied_file)


def change(path: Path, alter: Callable[[h5py.File], None]) -> list[DataFinding]:
    with h5py.File(path, "r+") as file:
        alter(file)
    return check_images(path)


def test_a_missing_label_is_found(copied_file: Path) -> None:
    def alter(file: h5py.File) -> None:
        labels = file["train/labels"][:-2]
        del file["train/labels"]
        file["train"]["labels"] = labels

    findings = change(copied_file, alter)
    assert findings == [DataFinding("2 samples from this one on have no label", "train", 10, "class2/class2_0002.JPEG")]


def test_a_label_out_of_range_is_found(copied_file: Path) -> None:
    def alter(file: h5py.File) -> None:
        file["validation/labels"][2] = 3
        file["train/labels"][0] = -1

    assert [(finding.split, finding.index, finding.what.split(";")[0]) for finding in change(copied_file, alter)] == [
        ("train", 0, "label -1 is out of range"),
        ("validation", 2, "label 3 is out of range"),
    ]


def test_a_label_exchanged_for_another_is_found_by_the_digest(copied_file: Path) -> None:
    def alter(file: h5py.File) -> None:
        file["train/labels"][0] = 2

    (finding,) = change(copied_file, alter)
    assert finding.what.startswith("labels or checksums were changed")


def test_broken_offsets_are_found(copied_file: Path) -> None:
    def alter(file: h5py.File) -> None:
        file["train/offsets"][5] = file["train/offsets"][7]
        file["validation/offsets"][-1] += 5

    findings = change(copied_file, alter)
    train = [(finding.index, finding.what) for finding in findings if finding.split == "train"]
    assert [index for index, _ in train] == [4, 5]
    assert train[0][1] == "its bytes differ from their SHA-256"
    assert "are not a range within" in train[1][1]
    validation = [(finding.index, finding.what) for finding in findings if finding.split == "validation"]
    assert [index for index, _ in validation] == [None, 5]
    assert validation[0][1].startswith("offsets go from 0 to")


def test_a_wrong_size_in_the_table_is_found(copied_file: Path) -> None:
    def alter(file: h5py.File) -> None:
        file["train/sizes"][1, 0] += 1

    (finding,) = change(copied_file, alter)
    assert (finding.index, finding.what) == (1, "it is 25 x 33 pixels, the table says 26 x 33")


def test_a_file_without_validation_is_found(copied_file: Path) -> None:
    def alter(file: h5py.File) -> None:
        del file["validation/offsets"]
        file["validation"]["offsets"] = np.zeros(1, dtype=np.int64)

    assert DataFinding("there are no samples", "validation") in change(copied_file, alter)


def test_a_picture_that_does_not_decode_is_found_only_by_decoding(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "source", ["a"], 2)
    (root / "a" / "cut.JPEG").write_bytes(picture_bytes(5)[:-300])  # its header is whole
    inputs = inputs_below(root)
    path = write_images(tmp_path / "out.h5", {"train": inputs, "validation": inputs}, ["a"], {"source": "folder"})
    assert check_images(path) == []
    findings = check_images(path, decode=True)
    assert [(one.split, one.index, one.name) for one in findings] == [
        ("train", 2, "a/cut.JPEG"),
        ("validation", 2, "a/cut.JPEG"),
    ]
    assert findings[0].what.startswith("it does not decode (")


def test_what_is_not_a_data_file_cannot_be_checked(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weather"] = np.zeros(10)
    with pytest.raises(DataError, match="is some other HDF5 file"):
        check_images(tmp_path / "other.h5")


def test_the_digest_is_what_the_format_says(sound_file: Path) -> None:
    expected = hashlib.sha256()
    with h5py.File(sound_file) as file:
        for split in ("train", "validation"):
            expected.update(split.encode())
            expected.update(file[split]["labels"][:].astype("<i4").tobytes() + file[split]["sha256"][:].tobytes())
        tables = [(split, file[split]["labels"][:], file[split]["sha256"][:]) for split in ("train", "validation")]
    assert open_images(sound_file).dataset_sha256 == expected.hexdigest() == dataset_digest(tables)
