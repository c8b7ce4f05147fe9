"""Climate files: layouts, the order of box columns, and what is refused."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from climate_files import (
    BOXES,
    HEIGHT,
    NUM_TRAIN,
    SHAPE,
    SPLIT_FILES,
    WIDTH,
    rows_of,
    sample,
    write_file,
    write_folder,
    write_year,
)

from hpcai500.errors import BackendUnavailableError, DataError, SampleError, UsageError
from hpcai500.pipelines.climate import ClimateFile, ClimateSplit, read_statistics
from hpcai500.pipelines.climate_facts import describe_folder

LAYOUTS: dict[str, tuple[dict[str, Any], bool, str]] = {
    "contiguous": ({}, True, "contiguous"),
    "sample-chunks": ({"chunks": (1, *SHAPE)}, True, f"chunks of (1, 16, {HEIGHT}, {WIDTH}), none"),
    "channel-chunks": ({"chunks": (1, 1, HEIGHT, WIDTH)}, False, f"chunks of (1, 1, {HEIGHT}, {WIDTH}), none"),
    "gzip": (
        {"chunks": (1, 3, 10, 16), "compression": "gzip"},  # which reach beyond the field on all sides
        False,
        "chunks of (1, 3, 10, 16), gzip",
    ),
    "shuffle-gzip": (
        {"chunks": (1, 2, 10, WIDTH), "compression": "gzip", "shuffle": True},
        False,
        f"chunks of (1, 2, 10, {WIDTH}), shuffle + gzip",
    ),
    "two-sample-chunks": (
        {"chunks": (2, 2, 10, WIDTH), "compression": "gzip"},
        False,
        f"chunks of (2, 2, 10, {WIDTH}), gzip",
    ),
    "checksums": (
        {"chunks": (1, 2, 10, WIDTH), "fletcher32": True},
        False,
        f"chunks of (1, 2, 10, {WIDTH}), fletcher32",
    ),
}


def image_of(file: ClimateFile | ClimateSplit, index: int) -> np.ndarray:
    out = np.full(SHAPE, np.nan, np.float32)
    file.read(index, out)
    return out


@pytest.fixture(scope="module", name="data")
def data_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "weather")


# Reading


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_the_same(tmp_path: Path, layout: str):
    options, is_direct, description = LAYOUTS[layout]
    file = ClimateFile(write_year(tmp_path / "climo_1979.h5", 4, 0, **options))
    assert (file.num_samples, file.shape, file.layout) == (4, SHAPE, description)
    assert file.is_read_directly == is_direct
    for index in (3, 0, 2, 1):
        assert np.array_equal(image_of(file, index), sample(index))


def test_compression_of_hdf5plugin_is_read_too(tmp_path: Path):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    options = {"chunks": (1, *SHAPE), **hdf5plugin.Bitshuffle(cname="lz4")}
    file = ClimateFile(write_year(tmp_path / "climo_1979.h5", 2, 0, **options))
    assert np.array_equal(image_of(file, 1), sample(1))


def test_without_hdf5plugin_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hdf5plugin = pytest.importorskip("hdf5plugin")
    options = {"chunks": (1, *SHAPE), **hdf5plugin.Bitshuffle(cname="lz4")}
    path = write_year(tmp_path / "climo_1979.h5", 2, 0, **options)
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)  # what Python itself does for "does not import"
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: False)
    with pytest.raises(BackendUnavailableError, match=r"climo_1979.h5' is compressed with .*pip install hdf5plugin"):
        ClimateFile(path)


@pytest.mark.parametrize("layout", ["contiguous", "gzip"])
def test_threads_and_processes_read_side_by_side(tmp_path: Path, layout: str):
    file = ClimateFile(write_year(tmp_path / "climo_1979.h5", 4, 0, **LAYOUTS[layout][0]))
    assert np.array_equal(image_of(file, 1), sample(1))
    with ThreadPoolExecutor(4) as threads:
        for index, image in enumerate(threads.map(lambda i: image_of(file, i % 4), range(24))):
            assert np.array_equal(image, sample(index % 4))
    again = pickle.loads(pickle.dumps(file))
    assert np.array_equal(image_of(again, 2), sample(2))
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=lambda: theirs.send(image_of(file, 3)))
    child.start()
    assert np.array_equal(image_of(file, 0), sample(0))
    assert np.array_equal(ours.recv(), sample(3))
    child.join()


def test_a_closed_file_opens_again(tmp_path: Path):
    file = ClimateFile(write_year(tmp_path / "climo_1979.h5", 2, 0))
    image_of(file, 0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    file.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1
    assert np.array_equal(image_of(file, 1), sample(1))


def test_a_split_is_its_files_one_after_the_other(data: Path):
    split = ClimateSplit(data, SPLIT_FILES["train"], split="train")
    assert (split.num_samples, split.shape) == (NUM_TRAIN, SHAPE)
    for index in (0, 5, 6, 12):
        assert np.array_equal(image_of(split, index), sample(index))
        boxes, classes = split.boxes(index)
        assert np.column_stack([boxes, classes]).tolist() == [[float(v) for v in box] for box in BOXES[index % 4]]
    again = pickle.loads(pickle.dumps(split))
    assert np.array_equal(image_of(again, 12), sample(12))
    assert split.dataset_sha256 == read_statistics(data).dataset_sha256
    assert split.num_bytes == NUM_TRAIN * 4 * np.prod(SHAPE)
    first_three = ClimateSplit(data, SPLIT_FILES["train"], 3)
    assert (len(first_three), first_three.num_bytes) == (3, 3 * 4 * np.prod(SHAPE))
    with pytest.raises(UsageError, match=r"14 validation samples are not to be had from .* valid are 1 to 13"):
        ClimateSplit(data, SPLIT_FILES["train"], 14)


# Boxes


def with_boxes(tmp_path: Path, boxes: np.ndarray, **attributes: Any) -> ClimateFile:
    images = np.stack([sample(i) for i in range(len(boxes))])
    return ClimateFile(write_file(tmp_path / "climo_1979.h5", images, boxes, attributes=attributes))


@pytest.mark.parametrize("order", ["y1 x1 y2 x2", "y1 y2 x1 x2"])
def test_the_order_of_columns_is_decided_from_the_data(tmp_path: Path, order: str):
    file = with_boxes(tmp_path, np.stack([rows_of(boxes, order) for boxes in BOXES]))
    assert file.box_order == order
    for index, expected in enumerate(BOXES):
        boxes, classes = file.boxes(index)
        assert boxes.dtype == np.float32
        assert classes.dtype == np.int64
        assert np.column_stack([boxes, classes]).tolist() == [[float(v) for v in box] for box in expected]


def test_all_rows_unused_is_a_sample_without_boxes(tmp_path: Path):
    file = with_boxes(tmp_path, np.full((2, 15, 5), -1, np.int32))
    for index in range(2):
        boxes, classes = file.boxes(index)
        assert boxes.shape == (0, 4)
        assert classes.shape == (0,)


def test_unused_rows_may_lie_between_used_ones(tmp_path: Path):
    rows = np.full((1, 15, 5), -1, np.int32)
    rows[0, [1, 7]] = rows_of([BOXES[0][0], BOXES[1][2]])[:2]
    file = with_boxes(tmp_path, rows)
    assert file.boxes(0)[0].tolist() == [[2, 10, 8, 20], [12, 14, 20, 18]]


def test_boxes_that_fit_both_orders_are_refused_unless_an_attribute_decides(tmp_path: Path):
    both = rows_of([[5, 2, 20, 12, 1]])[None]  # y1 2, x1 5, y2 12, x2 20; or y 2 to 5 and x 12 to 20
    with pytest.raises(DataError, match=r"its 1 boxes fit both orders .* attribute box_order with the value 'y1 x1 y2"):
        with_boxes(tmp_path, both)
    assert with_boxes(tmp_path, both, box_order="y1 x1 y2 x2").boxes(0)[0].tolist() == [[5, 2, 20, 12]]
    assert with_boxes(tmp_path, both, box_order="y1 y2 x1 x2").boxes(0)[0].tolist() == [[12, 2, 20, 5]]


def test_boxes_that_are_the_same_in_both_orders_need_no_attribute(tmp_path: Path):
    same = rows_of([[5, 2, 20, 5, 1]])[None]
    file = with_boxes(tmp_path, same)
    assert file.box_order == "y1 x1 y2 x2"
    assert file.boxes(0)[0].tolist() == [[5, 2, 20, 5]]


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("x1 y1 x2 y2", r"attribute box_order = 'x1 y1 x2 y2'; expected 'y1 x1 y2 x2' or 'y1 y2 x1 x2'"),
        ("y1 y2 x1 x2", r"attribute box_order = 'y1 y2 x1 x2', but they only fit 'y1 x1 y2 x2'"),
    ],
)
def test_a_wrong_attribute_is_refused(tmp_path: Path, stated: str, message: str):
    with pytest.raises(DataError, match=message):
        with_boxes(tmp_path, np.stack([rows_of(boxes) for boxes in BOXES]), box_order=stated)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([9, 2, 9, 12, 1], "sample 3, box 2 .*: x1 >= x2"),
        ([20, 2, 12, 12, 1], "sample 3, box 2 .*: x1 >= x2"),
        ([5, 12, 9, 12, 1], "sample 3, box 2 .*: y1 >= y2"),
        ([5, 12, 37, 22, 1], "sample 3, box 2 .*: outside the field of 24 x 36"),
        ([5, 12, 9, 25, 1], "sample 3, box 2 .*: outside the field of 24 x 36"),
        ([-2, 12, 9, 22, 1], "sample 3, box 2 .*: outside the field of 24 x 36"),
        ([5, 12, 9, 22, 4], r"sample 3, box 2 has class 4, which is out of range; valid are 0 to 3 \(tropical_depress"),
        ([5, 12, 9, 22, -1], "sample 3, box 2 has class -1"),
    ],
)
def test_wrong_boxes_are_named(tmp_path: Path, box: list[int], message: str):
    rows = np.stack([rows_of(boxes) for boxes in BOXES])
    rows[3] = rows_of([*BOXES[3], box])
    with pytest.raises(DataError, match=f"climo_1979.h5': .*{message}"):
        with_boxes(tmp_path, rows)


# Files that are refused


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.zeros((2, 15, 24, 36), np.float32), {}, r"shape \(2, 15, 24, 36\); expected \(n, 16, height, width\)"),
        (np.zeros((2, 24, 36, 16), np.float32), {}, r"with the channels last; .* PRECT PS PSL QREFHT T200 T500 TMQ"),
        (np.zeros((2, 16, 24), np.float32), {}, r"shape \(2, 16, 24\)"),
        (np.zeros((2, 16, 24, 36)), {}, "holds <f8 values; expected <f4"),
        (np.zeros((2, 16, 24, 36), ">f4"), {}, "holds >f4 values; expected <f4"),
        (np.zeros((0, 16, 24, 36), np.float32), {}, "holds nothing"),
    ],
)
def test_fields_of_another_form_are_refused(tmp_path: Path, images: np.ndarray, options: Any, message: str):
    path = write_file(tmp_path / "climo_1979.h5", images, np.full((len(images), 15, 5), -1, np.int32), **options)
    with pytest.raises(DataError, match=message):
        ClimateFile(path)


@pytest.mark.parametrize(
    "boxes",
    [
        np.full((1, 15, 5), -1, np.int32),
        np.full((2, 16, 5), -1, np.int32),
        np.full((2, 15, 4), -1, np.int32),
        np.full((2, 15, 5), -1.0),
    ],
)
def test_boxes_of_another_form_are_refused(tmp_path: Path, boxes: np.ndarray):
    path = write_file(tmp_path / "climo_1979.h5", np.zeros((2, *SHAPE), np.float32), boxes)
    with pytest.raises(DataError, match=r"'boxes' has shape .*; expected integers, \(2, at most 15, 5\)"):
        ClimateFile(path)


def test_a_file_that_begins_in_the_north_is_refused(tmp_path: Path):
    path = write_year(tmp_path / "climo_1979.h5", 2, 0)
    with h5py.File(path, "r+") as file:
        file["images"].attrs["first_row"] = "north"
    with pytest.raises(DataError, match="begins with the row in the north; expected the southernmost first"):
        ClimateFile(path)


def test_other_files_are_refused(tmp_path: Path):
    path = tmp_path / "climo_1979.h5"
    with pytest.raises(DataError, match="does not exist"):
        ClimateFile(path)
    path.write_bytes(b"no HDF5 at all" * 100)
    with pytest.raises(DataError, match="is not an HDF5 file"):
        ClimateFile(path)
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(DataError, match="has no data set 'images'"):
        ClimateFile(path)
    write_year(path, 3, 0)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    with pytest.raises(DataError, match="is truncated at"):
        ClimateFile(path)


@pytest.mark.parametrize("layout", [(1, *SHAPE), None])
def test_samples_that_were_never_written_are_refused(tmp_path: Path, layout: tuple[int, ...] | None):
    path = tmp_path / "climo_1979.h5"
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (3, *SHAPE), "<f4", chunks=layout)
        if layout:
            images[0] = sample(0)
        file["boxes"] = np.full((3, 15, 5), -1, np.int32)
    with pytest.raises(DataError, match="sample 1 and 1 others were never" if layout else "'images' was never written"):
        ClimateFile(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "gzip"}, r"its chunk from channel 8, row 0, column 0 does not unpack \(Error -\d"),
        ({"compression": "gzip", "fletcher32": True}, "it is damaged or the disk is; .*"),
    ],
)
def test_a_damaged_chunk_is_named(tmp_path: Path, options: dict[str, Any], message: str):
    path = write_year(tmp_path / "climo_1979.h5", 3, 0, chunks=(1, 4, HEIGHT, WIDTH), **options)
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info_by_coord((1, 8, 0, 0))
    with path.open("r+b") as stream:  # the second half is lost
        stream.seek(chunk.byte_offset + chunk.size // 2)
        stream.write(bytes(chunk.size - chunk.size // 2))
    file = ClimateFile(path)
    assert np.array_equal(image_of(file, 0), sample(0))
    with pytest.raises(SampleError, match=rf"climo_1979.h5': sample 1 cannot be read, {message}"):
        image_of(file, 1)
    assert np.array_equal(image_of(file, 2), sample(2))


def test_a_chunk_that_was_never_written_is_named(tmp_path: Path):
    path = tmp_path / "climo_1979.h5"
    with h5py.File(path, "w") as file:
        images = file.create_dataset("images", (2, *SHAPE), "<f4", chunks=(1, 4, HEIGHT, WIDTH), compression="gzip")
        images[0] = sample(0)
        images[1, :4] = sample(1)[:4]
        file["boxes"] = np.full((2, 15, 5), -1, np.int32)
    file = ClimateFile(path)
    assert np.array_equal(image_of(file, 0), sample(0))
    with pytest.raises(SampleError, match=r"sample 1 .*, its chunk from channel 4, row 0, column 0 was never written"):
        image_of(file, 1)


@pytest.mark.parametrize("layout", ["contiguous", "sample-chunks", "gzip", "checksums"])
def test_flipped_bytes_of_the_tables_end_in_no_other_error(tmp_path: Path, layout: str):
    good = write_year(tmp_path / "climo_1979.h5", 2, 0, **LAYOUTS[layout][0]).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for k in range(40):
        damaged = bytearray(good)
        damaged[int(rng.integers(0, 4096))] = int(rng.integers(0, 256))
        path = tmp_path / f"climo_{k:04d}.h5"
        path.write_bytes(damaged)
        try:
            file = ClimateFile(path)
            for index in range(min(file.num_samples, 2)):
                file.read(index, np.empty(file.shape, np.float32))
            file.close()
        except DataError:
            refused += 1
        path.unlink()
    assert refused > 0


# Folders


def changed(data: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of the folder whose statistics say something else."""
    folder = Path(shutil.copytree(data, tmp_path / "weather"))
    content = json.loads((folder / "statistics.json").read_text())
    (folder / "statistics.json").write_text(json.dumps(content | changes))
    return folder


def test_a_folder_is_described_from_its_statistics(data: Path):
    facts = describe_folder(data, SPLIT_FILES)
    assert (facts.source, facts.num_train_samples, facts.num_validation_samples) == ("extreme_weather", 13, 7)
    assert (facts.num_classes, facts.height, facts.width) == (4, HEIGHT, WIDTH)
    assert facts.dataset_sha256 == read_statistics(data).dataset_sha256


def test_a_folder_or_statistics_that_are_missing_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere' does not exist; give a folder that holds climo_YYYY.h5"):
        read_statistics(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"statistics.json' does not exist; write it with `hpcai500 data stats"):
        read_statistics(tmp_path)
    (tmp_path / "statistics.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        read_statistics(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, this version of hpcai500 reads 1"),
        ({"channels": []}, r"channels , expected PRECT PS"),
        ({"dataset_sha256": "0" * 64}, "dataset_sha256 is not that of its files"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(data: Path, tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        read_statistics(changed(data, tmp_path, **changes))


def test_a_file_of_another_size_than_in_the_statistics_is_refused(data: Path, tmp_path: Path):
    folder = changed(data, tmp_path)
    with (folder / "climo_1980.h5").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(DataError, match=r"climo_1980.h5' has \d+ bytes, \d+ when its statistics were made"):
        read_statistics(folder)


def test_a_file_that_the_statistics_do_not_cover_is_refused(data: Path, tmp_path: Path):
    folder = changed(data, tmp_path)
    write_year(folder / "climo_1998.h5", 1, 0)
    with pytest.raises(DataError, match=r"do not cover climo_1998.h5; run `hpcai500 data stats .*` again"):
        ClimateSplit(folder, ["climo_1997.h5", "climo_1998.h5"])


def test_a_split_of_mixed_sizes_is_refused(data: Path, tmp_path: Path):
    folder = changed(data, tmp_path)
    content = json.loads((folder / "statistics.json").read_text())
    content["files"][1]["height"] = 25
    (folder / "statistics.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"mixed sizes .* climo_1979.h5 holds fields of 24 x 36, climo_1980.h5 of 25 x"):
        ClimateSplit(folder, SPLIT_FILES["train"])
