"""The reader of data files: what it returns, that it survives fork and pickling, and what it says of bad files."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from pictures import make_data_file

from hpcai500.errors import DataError, UsageError
from hpcai500.pipelines.hdf5 import ImageSplit, open_images


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data_file(tmp_path_factory.mktemp("data") / "small.h5")


@pytest.fixture
def copied_file(data_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(data_file, tmp_path / "copy.h5"))


def source_bytes(data_file: Path, split: ImageSplit, index: int) -> bytes:
    folder = {"train": "train", "validation": "val"}[split.split]
    return (data_file.parent / "small-sources" / folder / split.name(index)).read_bytes()


@pytest.mark.parametrize("name", ["train", "validation"])
def test_samples_come_back_as_published_in_the_order_asked_for(data_file: Path, name: str) -> None:
    split = ImageSplit(data_file, name)
    rng = np.random.default_rng(0)
    assert split.num_bytes == sum(len(split.read_one(index)) for index in range(split.num_samples))
    indices = np.concatenate([rng.integers(0, split.num_samples, 20), np.arange(split.num_samples), [1, 1, 0]])
    packed, offsets = split.read(indices)
    assert offsets[-1] == packed.size
    for j, index in enumerate(indices.tolist()):
        assert packed[offsets[j] : offsets[j + 1]].tobytes() == source_bytes(data_file, split, index)


def test_reading_nothing_returns_nothing(data_file: Path) -> None:
    packed, offsets = ImageSplit(data_file, "train").read(np.array([], dtype=np.int64))
    assert packed.size == 0
    assert offsets.tolist() == [0]


def test_a_buffer_is_used_and_grows_only_when_it_is_too_small(data_file: Path) -> None:
    split = ImageSplit(data_file, "train")
    small = np.empty(10, dtype=np.uint8)
    packed, _ = split.read(np.arange(4), out=small)
    grown = packed.base
    assert grown is not None
    assert grown.size > packed.size
    again, offsets = split.read(np.array([2]), out=grown)
    assert again.base is grown
    assert again.tobytes() == split.read_one(2)
    assert offsets.tolist() == [0, again.size]


def test_tables_say_class_and_size_of_each_sample(data_file: Path) -> None:
    split = ImageSplit(data_file, "train")
    assert split.class_names == ("class0", "class1", "class2")
    assert split.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert split.sizes[5].tolist() == [24 + 3 + 1, 33]
    assert split.provenance["formats"] == {"jpeg_colour": 18}


def test_max_samples_takes_the_first_and_no_more_than_there_are(data_file: Path) -> None:
    split = ImageSplit(data_file, "train", max_samples=5)
    assert (split.num_samples, len(split.labels), len(split.sizes)) == (5, 5, 5)
    with pytest.raises(UsageError, match=r"13 train samples .* valid are 1 to 12"):
        ImageSplit(data_file, "train", max_samples=13)
    with pytest.raises(UsageError, match="valid are 1 to 12"):
        ImageSplit(data_file, "train", max_samples=0)
    with pytest.raises(UsageError, match="train, validation"):
        ImageSplit(data_file, "test")


def test_a_forked_process_opens_the_file_for_itself(data_file: Path) -> None:
    split = ImageSplit(data_file, "train")
    expected = split.read_one(3)
    parents_descriptor = split._open()
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if split.read_one(3) == expected and split._open() != parents_descriptor else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert split.read_one(3) == expected


def test_a_pickled_reader_reads(data_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(data_file.parent)
    split = ImageSplit(data_file.name, "train")
    expected = split.read_one(0)
    copy = pickle.loads(pickle.dumps(split))
    monkeypatch.chdir(tmp_path)
    assert copy.read_one(0) == expected
    copy.close()
    assert split.read_one(0) == expected


def set_attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


def set_value(column: str, index: int, value: int) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[column][index] = value

    return change


def empty_validation(file: h5py.File) -> None:
    for column, shape, dtype in (("bytes", (0,), "u1"), ("labels", (0,), "i4"), ("sizes", (0, 2), "i4")):
        del file["validation"][column]
        file["validation"].create_dataset(column, shape, dtype)
    del file["validation/offsets"]
    file["validation"]["offsets"] = np.zeros(1, dtype=np.int64)


def chunk_the_bytes(file: h5py.File) -> None:
    data = file["train/bytes"][:]
    del file["train/bytes"]
    file["train"].create_dataset("bytes", data=data, chunks=(1000,))


def shorten_labels(file: h5py.File) -> None:
    labels = file["train/labels"][:-1]
    del file["train/labels"]
    file["train"]["labels"] = labels


def drop_names(file: h5py.File) -> None:
    del file["train/names"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_attribute("format", "tables"), "is of format 'tables'; expected format 'hpcai500-images'"),
        (lambda file: file.attrs.__delitem__("format"), "is some other HDF5 file"),
        (set_attribute("format_version", 7), "has format version 7; this version of hpcai500 reads 1"),
        (set_attribute("complete", 0), "is incomplete; .* resumes when run again"),
        (set_value("train/labels", 2, 3), r"label 3 of train sample 2 is out of range; 3 classes have labels 0 to 2"),
        (set_value("validation/labels", 0, -1), "label -1 of validation sample 0 is out of range"),
        (set_value("train/offsets", 3, 0), "train/offsets do not rise from 0"),
        (set_value("train/offsets", -1, 99), "train/offsets do not end at the end of train/bytes"),
        (empty_validation, "has no validation samples"),
        (chunk_the_bytes, "stores train/bytes in chunks"),
        (shorten_labels, "has 12 train pictures, 11 labels and 12 sizes"),
        (drop_names, "lacks train/names"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(
    copied_file: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    with h5py.File(copied_file, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=message):
        open_images(copied_file)


def test_a_missing_file_a_folder_and_a_text_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; prepare it"):
        open_images(tmp_path / "none.h5")
    with pytest.raises(DataError, match="is not a file"):
        open_images(tmp_path)
    (tmp_path / "text.h5").write_text("no pictures here\n" * 100)
    with pytest.raises(DataError, match="is not an HDF5 file"):
        open_images(tmp_path / "text.h5")


def test_a_truncated_file_is_refused_at_opening_and_noticed_when_open(copied_file: Path) -> None:
    split = ImageSplit(copied_file, "validation")
    os.truncate(copied_file, copied_file.stat().st_size - 1000)
    with pytest.raises(DataError, match="ends at byte"):
        split.read(np.arange(split.num_samples))
    with pytest.raises(DataError, match="is truncated at"):
        open_images(copied_file)
