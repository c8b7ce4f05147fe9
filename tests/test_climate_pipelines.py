"""One suite for all pipelines of climate fields: each shows the same samples, turns, boxes and values."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from climate_files import BOXES, HEIGHT, NUM_TRAIN, NUM_VALIDATION, SHAPE, SPLIT_FILES, WIDTH, sample, write_folder

from hpcai500.errors import BackendUnavailableError, DataError, SampleError, UnknownNameError, UsageError
from hpcai500.pipelines.climate_facts import CHANNELS, read_statistics
from hpcai500.pipelines.climate_pipeline import (
    BoxBatch,
    ClimatePipeline,
    ClimatePipelineConfig,
    open_climate_pipeline,
)
from hpcai500.pipelines.climate_transform import plan_turns

VARIANTS = [
    pytest.param(("torch", 0), id="torch"),
    pytest.param(("torch", 2), id="torch-2-threads"),
    pytest.param(("dali", 2), id="dali", marks=pytest.mark.dali),
]
Open = Callable[..., ClimatePipeline]


@pytest.fixture(scope="module", name="data")
def data_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "weather")


def config_of(folder: Path, **changes: Any) -> ClimatePipelineConfig:
    settings: dict[str, Any] = {
        "folder": folder,
        "split_files": SPLIT_FILES,
        "batch_size_per_rank": 2,
        "validation_batch_size": 3,
        "seed": 3,
    }
    return ClimatePipelineConfig(**(settings | changes))


@pytest.fixture(name="opened")
def opened_fixture() -> Iterator[list[ClimatePipeline]]:
    pipelines: list[ClimatePipeline] = []
    yield pipelines
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture(params=VARIANTS, name="open_one")
def open_one_fixture(request: pytest.FixtureRequest, data: Path, opened: list[ClimatePipeline]) -> Open:
    name, num_workers = request.param

    def open_one(folder: Path = data, **changes: Any) -> ClimatePipeline:
        opened.append(open_climate_pipeline(name, config_of(folder, **({"num_workers": num_workers} | changes))))
        return opened[-1]

    return open_one


def ids_of(batches: Iterator[BoxBatch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.ids]


def physical(images: torch.Tensor, data: Path) -> np.ndarray:
    """Normalised images in physical units again, float64."""
    channels = read_statistics(data).channels
    mean, std = (np.array([getattr(one, name) for one in channels])[:, None, None] for name in ("mean", "std"))
    return images.double().numpy() * std + mean


def assert_close(shown: np.ndarray, expected: np.ndarray, data: Path) -> None:
    """Equal within float32's rounding: a hundred-thousandth of each channel's standard deviation."""
    std = np.array([one.std for one in read_statistics(data).channels])[:, None, None]
    assert (np.abs(shown - expected) / std).max() < 1e-4


# What a batch is


def test_batches_have_the_promised_shapes_and_types(open_one: Open, data: Path):
    pipeline = open_one()
    batch = next(pipeline.train_batches(0))
    assert batch.images.shape == (2, *SHAPE)
    assert batch.images.dtype == batch.boxes.dtype == torch.float32
    assert batch.boxes.shape == (2, 32, 4)
    assert batch.labels.shape == (2, 32)
    assert batch.labels.dtype == torch.int64
    assert batch.ids.dtype == np.int64
    assert (pipeline.num_steps_per_epoch, pipeline.num_dropped_per_epoch) == (6, 1)
    assert (pipeline.num_train_samples, pipeline.num_validation_samples) == (NUM_TRAIN, NUM_VALIDATION)
    assert (pipeline.num_classes, pipeline.num_skipped) == (4, 0)
    assert pipeline.dataset_sha256 == read_statistics(data).dataset_sha256
    assert pipeline.provenance["source"] == "extreme_weather"


def test_validation_samples_are_as_in_the_file_but_normalised(open_one: Open, data: Path):
    for batch in open_one().validation_batches():
        shown = physical(batch.images, data)
        for k, i in enumerate(batch.ids.tolist()):
            assert_close(shown[k], sample(100 + i), data)
            expected = BOXES[(100 + i) % len(BOXES)]
            num = len(expected)
            assert batch.boxes[k, :num].tolist() == [[float(value) for value in box[:4]] for box in expected]
            assert batch.labels[k, :num].tolist() == [box[4] + 1 for box in expected]
            assert not batch.labels[k, num:].any()
            assert not batch.boxes[k, num:].any()


def test_training_samples_over_an_epoch_are_normalised_to_mean_0_and_deviation_1(open_one: Open):
    images = torch.cat([batch.images for batch in open_one(batch_size_per_rank=13, mirror=False).train_batches(0)])
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_is_as_asked_and_values_do_not_depend_on_it(open_one: Open, channels_last: bool):
    batch = next(open_one(channels_last=channels_last).train_batches(0))
    other = next(open_one(channels_last=not channels_last).train_batches(0))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.images.is_contiguous(memory_format=memory_format)
    assert torch.equal(batch.images, other.images)


def test_batches_that_are_kept_do_not_change_while_later_ones_come(open_one: Open):
    kept, copies = [], []
    for batch in open_one().train_batches(0):
        kept.append(batch)
        copies.append([part.clone() for part in batch[:3]])
    for batch, parts in zip(kept, copies, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch[:3], parts, strict=True))


def copied(data: Path, tmp_path: Path) -> Path:
    """A copy of the folder to change; data sets without compression keep their size."""
    return Path(shutil.copytree(data, tmp_path / "weather"))


# Turns


def test_mirror_and_roll_are_as_drawn_and_the_wind_to_the_north_changes_its_sign(open_one: Open, data: Path):
    batch = next(open_one(batch_size_per_rank=NUM_TRAIN).train_batches(4))
    turns = plan_turns(3, 4, batch.ids, WIDTH, mirror=True, roll=True)
    assert {turn.mirror for turn in turns} == {False, True}
    assert len({turn.roll for turn in turns}) > 5
    shown = physical(batch.images, data)
    for image, i, turn in zip(shown, batch.ids.tolist(), turns, strict=True):
        expected = np.roll(sample(i).astype(np.float64), turn.roll, axis=2)
        if turn.mirror:
            expected = expected[:, ::-1].copy()
            for k, channel in enumerate(CHANNELS):
                if channel.name in ("VBOT", "V850"):
                    expected[k] *= -1
        assert_close(image, expected, data)


def test_boxes_follow_mirror_and_roll(open_one: Open, data: Path, tmp_path: Path):
    """In these fields TMQ is 20, and one more over a pixel for each box of the file that covers it."""
    folder = copied(data, tmp_path)
    for name, first in (("climo_1979.h5", 0), ("climo_1980.h5", 6)):
        with h5py.File(folder / name, "r+") as file:
            for i in range(file["images"].shape[0]):
                tmq = np.full(SHAPE[1:], 20, np.float32)
                for x1, y1, x2, y2, _ in BOXES[(first + i) % len(BOXES)]:
                    tmq[y1:y2, x1:x2] += 1
                file["images"][i, 6] = tmq
    whole = 0
    for epoch in range(3):
        for batch in open_one(folder).train_batches(epoch):
            tmq = physical(batch.images, folder)[:, 6].round()
            for field, boxes, labels in zip(tmq, batch.boxes.int().tolist(), batch.labels.tolist(), strict=True):
                counted = np.full(SHAPE[1:], 20)
                for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
                    assert (0 <= x1 < x2 <= WIDTH and 0 <= y1 < y2 <= HEIGHT) if label else (x1, x2) == (0, 0)
                    counted[y1:y2, x1:x2] += 1 if label else 0
                missing = field - counted
                whole += not missing.any()
                # What is missing are parts that the seam cut off: up to 2 columns at one side, for the widest has 10.
                assert missing.min() >= 0
                assert not missing[:, 2:-2].any()
    assert whole > 30  # of 36


@pytest.mark.parametrize(("mirror", "roll"), [(False, False), (True, False), (False, True)])
def test_turns_can_be_turned_off(open_one: Open, data: Path, mirror: bool, roll: bool):
    batch = next(open_one(batch_size_per_rank=NUM_TRAIN, mirror=mirror, roll=roll).train_batches(4))
    shown = physical(batch.images, data)
    psl = 2
    originals = [sample(int(i))[psl] for i in batch.ids]
    same = [np.allclose(image[psl], field, rtol=1e-6) for image, field in zip(shown, originals, strict=True)]
    rows = [np.allclose(image[psl, ::-1], field, rtol=1e-6) for image, field in zip(shown, originals, strict=True)]
    assert all(same) == (not mirror and not roll)
    assert any(rows) == mirror
    assert all(a or b for a, b in zip(same, rows, strict=True)) == (not roll)


# Sharding, order, resuming


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_see_each_sample_once_in_the_order_of_one_rank(open_one: Open, num_ranks: int):
    def epoch(num_ranks: int) -> list[list[int]]:
        ranks = [open_one(rank=r, num_ranks=num_ranks, batch_size_per_rank=6 // num_ranks) for r in range(num_ranks)]
        assert all((rank.num_steps_per_epoch, rank.num_dropped_per_epoch) == (2, 1) for rank in ranks)
        steps = zip(*(rank.train_batches(1) for rank in ranks), strict=True)
        return [[int(i) for batch in step for i in batch.ids] for step in steps]

    used = epoch(num_ranks)
    assert used == epoch(1)
    assert len({i for step in used for i in step}) == 12


def test_samples_do_not_depend_on_the_number_of_ranks(open_one: Open):
    whole = next(open_one(batch_size_per_rank=4).train_batches(0))
    halves = [next(open_one(rank=rank, num_ranks=2).train_batches(0)) for rank in range(2)]
    for k in range(3):
        assert torch.equal(whole[k], torch.cat([half[k] for half in halves]))


def test_order_and_turns_change_from_epoch_to_epoch_and_with_the_seed(open_one: Open):
    pipeline = open_one(batch_size_per_rank=NUM_TRAIN)
    first, second = next(pipeline.train_batches(0)), next(pipeline.train_batches(1))
    other = next(open_one(batch_size_per_rank=NUM_TRAIN, seed=4).train_batches(0))
    for batch in (second, other):
        assert batch.ids.tolist() != first.ids.tolist()
        same_order = batch.images[np.argsort(batch.ids)]
        assert not torch.equal(same_order, first.images[np.argsort(first.ids)])


@pytest.mark.parametrize("first_step", [0, 1, 4, 6])
def test_a_resumed_epoch_holds_exactly_the_rest_with_identical_values(open_one: Open, first_step: int):
    whole = list(open_one().train_batches(2))
    rest = list(open_one().train_batches(2, first_step))
    assert len(rest) == 6 - first_step
    for expected, batch in zip(whole[first_step:], rest, strict=True):
        assert batch.ids.tolist() == expected.ids.tolist()
        assert all(torch.equal(a, b) for a, b in zip(batch[:3], expected[:3], strict=True))


def test_an_epoch_given_up_midway_leaves_nothing_behind(open_one: Open):
    pipeline = open_one()
    expected = [batch.images.clone() for batch in pipeline.train_batches(0)]
    abandoned = pipeline.train_batches(5)
    next(abandoned)
    again = [batch.images for batch in pipeline.train_batches(0)]
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    assert list(abandoned) == []


def test_validation_may_happen_in_the_middle_of_an_epoch(open_one: Open):
    pipeline = open_one()
    whole = ids_of(pipeline.train_batches(0))
    batches = pipeline.train_batches(0)
    seen = ids_of(iter([next(batches)]))
    assert sorted(ids_of(pipeline.validation_batches())) == list(range(NUM_VALIDATION))
    assert seen + ids_of(batches) == whole


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 9])
def test_validation_sees_each_sample_once_for_any_number_of_ranks(open_one: Open, num_ranks: int):
    ranks = [open_one(rank=rank, num_ranks=num_ranks, batch_size_per_rank=1) for rank in range(num_ranks)]
    assert sorted(i for rank in ranks for i in ids_of(rank.validation_batches())) == list(range(NUM_VALIDATION))


def test_fewer_samples_may_be_asked_for(open_one: Open):
    pipeline = open_one(num_train_samples=8, num_validation_samples=5)
    assert sorted(ids_of(pipeline.train_batches(0))) == list(range(8))
    assert ids_of(pipeline.validation_batches()) == list(range(5))


@pytest.mark.dali
def test_pipelines_agree_to_the_last_bit(data: Path, opened: list[ClimatePipeline]):
    ours, theirs = (open_climate_pipeline(name, config_of(data, num_workers=1)) for name in ("torch", "dali"))
    opened += [ours, theirs]
    pairs = [
        *zip(ours.train_batches(0), theirs.train_batches(0), strict=True),
        *zip(ours.validation_batches(), theirs.validation_batches(), strict=True),
    ]
    for a, b in pairs:
        assert a.ids.tolist() == b.ids.tolist()
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


# Damaged samples


def spoiled(data: Path, tmp_path: Path, name: str, index: int, spoil: Callable[[np.ndarray], None]) -> Path:
    """The usual folder, with one sample changed after its statistics were made."""
    folder = copied(data, tmp_path)
    with h5py.File(folder / name, "r+") as file:
        fields = file["images"][index]
        spoil(fields)
        file["images"][index] = fields
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_stops_and_is_named(open_one: Open, data: Path, tmp_path: Path, value: float):
    def spoil(fields: np.ndarray) -> None:
        fields[6, 5, 7] = value

    folder = spoiled(data, tmp_path, "climo_1980.h5", 3, spoil)
    pattern = rf"climo_1980.h5': sample 3, channel TMQ holds {value} at row 5, column 7, and is not finite at 1 of 864"
    with pytest.raises(SampleError, match=pattern):
        list(open_one(folder).train_batches(0))


def test_exchanged_channels_are_noticed_and_named(open_one: Open, data: Path, tmp_path: Path):
    def spoil(fields: np.ndarray) -> None:
        fields[[4, 5]] = fields[[5, 4]]

    folder = spoiled(data, tmp_path, "climo_1979.h5", 2, spoil)
    with pytest.raises(SampleError, match=r"climo_1979.h5': sample 2, channel T200 \(number 4\) has a mean of 25"):
        list(open_one(folder).train_batches(0))


@pytest.mark.parametrize("direction", [-1, 1])
def test_a_channel_10_standard_deviations_off_is_refused_by_name(
    open_one: Open, data: Path, tmp_path: Path, direction: int
):
    def spoil(fields: np.ndarray) -> None:
        fields[11] += direction * 11 * fields[11].std()

    folder = spoiled(data, tmp_path, "climo_1979.h5", 2, spoil)
    with pytest.raises(SampleError, match=r"sample 2, channel V850 \(number 11\) .* 11 standard deviations off"):
        list(open_one(folder).train_batches(0))


def test_a_damaged_sample_does_not_end_the_pipeline(open_one: Open, data: Path, tmp_path: Path):
    def spoil(fields: np.ndarray) -> None:
        fields[0] = np.nan

    pipeline = open_one(spoiled(data, tmp_path, "climo_1979.h5", 2, spoil))
    with pytest.raises(SampleError, match="channel PRECT"):
        list(pipeline.train_batches(0))
    assert ids_of(pipeline.validation_batches()) == list(range(NUM_VALIDATION))


def test_a_file_cut_short_while_training_is_named(open_one: Open, data: Path, tmp_path: Path):
    folder = copied(data, tmp_path)
    pipeline = open_one(folder)
    path = folder / "climo_1979.h5"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(SampleError, match=r"climo_1979.h5' ends at byte \d+, amid sample"):
        list(pipeline.train_batches(0))


# Threads


def test_closing_ends_the_threads(data: Path):
    before = set(threading.enumerate())
    pipeline = open_climate_pipeline("torch", config_of(data, num_workers=2))
    next(pipeline.train_batches(0))
    assert len(set(threading.enumerate()) - before) == 2
    pipeline.close()
    assert not set(threading.enumerate()) - before


def test_threads_of_others_compute_with_as_many_threads_as_before(data: Path, opened: list[ClimatePipeline]):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        opened.append(open_climate_pipeline("torch", config_of(data, num_workers=2)))
        next(opened[-1].train_batches(0))
        assert torch.get_num_threads() == 3
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert seen == [3]
    finally:
        torch.set_num_threads(before)


# What is not possible


@pytest.mark.parametrize("name", ["torch", pytest.param("dali", marks=pytest.mark.dali)])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size_per_rank": 0}, "batch_size_per_rank = 0 is too small"),
        ({"validation_batch_size": 0}, "validation_batch_size = 0 is too small"),
        ({"num_workers": -1}, "num_workers = -1 is too small"),
        ({"prefetch": 0}, "prefetch = 0 is too small"),
        ({"num_ranks": 0}, "num_ranks = 0 is too small"),
        ({"rank": 2, "num_ranks": 2}, "rank = 2 does not exist among 2 ranks"),
        ({"num_ranks": 14}, "14 ranks are more than the 13 training samples"),
        ({"batch_size_per_rank": 14}, "a global batch of 14 .* is larger than the 13 training samples"),
        ({"num_train_samples": 14}, "14 train samples are not to be had .* valid are 1 to 13"),
        ({"num_validation_samples": 0}, "0 validation samples are not to be had"),
        ({"split_files": {"train": ["climo_1979.h5"]}}, "split_files names no files for validation"),
    ],
)
def test_impossible_settings_are_refused(data: Path, name: str, changes: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        open_climate_pipeline(name, config_of(data, **changes))


def test_a_step_beyond_the_epoch_is_refused(open_one: Open):
    with pytest.raises(UsageError, match="first_step = 7"):
        open_one().train_batches(0, 7)


def test_a_year_that_is_missing_is_named(open_one: Open, data: Path):
    files = {**SPLIT_FILES, "validation": ["climo_1997.h5", "climo_1998.h5"]}
    with pytest.raises(DataError, match=r"lacks climo_1998.h5 of the split 'validation'; it holds climo_1979.h5, "):
        open_one(data, split_files=files)


def test_statistics_over_other_training_files_are_refused(open_one: Open, data: Path):
    files = {**SPLIT_FILES, "train": ["climo_1979.h5"]}
    with pytest.raises(DataError, match=r"statistics of .* are over climo_1979.h5, climo_1980.h5, but"):
        open_one(data, split_files=files)


def test_an_unknown_pipeline_lists_those_that_exist(data: Path):
    with pytest.raises(UnknownNameError, match=r"'dalli' \(did you mean 'dali'\?\); known: dali, torch"):
        open_climate_pipeline("dalli", config_of(data))


def test_without_dali_the_error_says_how_to_get_it(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # what Python itself does for "does not import"
    with pytest.raises(BackendUnavailableError, match=r"pip install 'hpcai500\[dali\]'"):
        open_climate_pipeline("dali", config_of(data))
