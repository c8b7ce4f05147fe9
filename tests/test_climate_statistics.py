"""Statistics of a folder of climate files."""

from __future__ import annotations

import hashlib
import json
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
    compute,
    rows_of,
    sample,
    write_file,
    write_folder,
    write_year,
)

from hpcai500.errors import DataError, SampleError
from hpcai500.pipelines import climate_statistics
from hpcai500.pipelines.climate_facts import CHANNELS, read_statistics
from hpcai500.pipelines.climate_statistics import compute_statistics, moments_of

DEEPCAM_CHANNELS = "TMQ U850 V850 UBOT VBOT QREFHT PS PSL T200 T500 PRECT TS TREFHT Z1000 Z200 ZBOT"


def write_images(path: Path, images: np.ndarray) -> Path:
    return write_file(path, images, np.stack([rows_of(BOXES[i % 4]) for i in range(len(images))]))


def test_statistics_are_those_of_all_training_pixels(tmp_path: Path):
    folder = write_folder(tmp_path / "weather")
    samples = np.stack([sample(i) for i in range(NUM_TRAIN)]).astype(np.float64)
    statistics = read_statistics(folder)
    for k, (channel, facts) in enumerate(zip(CHANNELS, statistics.channels, strict=True)):
        field = samples[:, k]
        assert (facts.name, facts.unit) == (channel.name, channel.unit)
        assert (facts.min, facts.max) == (field.min(), field.max())
        assert facts.mean == pytest.approx(field.mean(), rel=1e-12, abs=1e-12)
        assert facts.std == pytest.approx(field.std(), rel=1e-12)
    assert statistics.train_files == tuple(SPLIT_FILES["train"])


def test_files_are_described_with_their_checksums(tmp_path: Path):
    folder = write_folder(tmp_path / "weather")
    statistics = read_statistics(folder)
    names = sorted(path.name for path in folder.glob("climo_*.h5"))
    assert [one.name for one in statistics.files] == names
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    assert [one.sha256 for one in statistics.files] == digests
    assert [one.size_bytes for one in statistics.files] == [(folder / name).stat().st_size for name in names]
    assert [one.num_samples for one in statistics.files] == [6, 7, 7]
    assert [one.box_order for one in statistics.files] == ["y1 x1 y2 x2", "y1 y2 x1 x2", "y1 x1 y2 x2"]
    assert {(one.height, one.width) for one in statistics.files} == {(HEIGHT, WIDTH)}
    lines = "".join(f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True))
    assert statistics.dataset_sha256 == hashlib.sha256(lines.encode()).hexdigest()
    assert statistics.provenance["source"] == "extreme_weather"


def test_workers_and_the_cut_into_tasks_do_not_change_a_digit_and_progress_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_folder(tmp_path / "weather")
    expected = (folder / "statistics.json").read_text()
    (folder / "statistics.json").unlink()
    monkeypatch.setattr(climate_statistics, "RUN_BYTES", 2 * 4 * int(np.prod(SHAPE)))  # two samples a task
    told: list[tuple[str, int, int]] = []
    many = compute_statistics(
        folder, SPLIT_FILES["train"], num_workers=2, report=lambda *progress: told.append(progress)
    )
    text = (folder / "statistics.json").read_text()
    compute_statistics(folder, SPLIT_FILES["train"], num_workers=1)
    assert (folder / "statistics.json").read_text() == text
    done = [progress[1] for progress in told]
    assert len(done) == 3 + 3 + 4
    assert done == sorted(done)
    assert done[-1] == told[-1][2] == sum(one.size_bytes for one in many.files) + NUM_TRAIN * 4 * int(np.prod(SHAPE))
    for one, other in zip(json.loads(expected)["channels"], many.channels, strict=True):
        assert other.std == pytest.approx(one["std"], rel=1e-13)


def test_a_large_mean_does_not_cost_digits():
    """What "sum of squares less square of the sum" would lose: a deviation of 1 Pa about 100,000 Pa in float32."""
    rng = np.random.default_rng(0)
    first, second = (np.full(SHAPE, 100_000, np.float32) + rng.normal(0, 1, SHAPE).astype(np.float32) for _ in range(2))
    merged = moments_of(first).merged(moments_of(second))
    both = np.stack([first, second]).astype(np.float64)
    assert np.allclose(np.sqrt(merged.squares / merged.num_pixels), both.std((0, 2, 3)), rtol=1e-12)


def test_generated_files_say_where_they_come_from(tmp_path: Path):
    for k, year in enumerate((1979, 1980)):
        path = write_year(tmp_path / f"climo_{year}.h5", 2, 2 * k)
        with h5py.File(path, "r+") as file:
            file.attrs["provenance"] = json.dumps({"source": "generated_weather", "seed": 3, "year": year})
    assert compute(tmp_path).provenance == {"source": "generated_weather", "seed": 3}
    with h5py.File(tmp_path / "climo_1980.h5", "r+") as file:
        file.attrs["provenance"] = json.dumps({"source": "generated_weather", "seed": 4, "year": 1980})
    with pytest.raises(DataError, match=r"climo_1979.h5 and climo_1980.h5 are of different data sets: .*'seed': 3.*4"):
        compute(tmp_path)
    with h5py.File(tmp_path / "climo_1980.h5", "r+") as file:
        file.attrs["provenance"] = "made by me"
    with pytest.raises(DataError, match="attribute provenance = 'made by me'; expected JSON with a 'source'"):
        compute(tmp_path)


@pytest.mark.parametrize(
    ("channel", "value", "message"),
    [
        (6, np.nan, r"climo_1980.h5': sample 1, channel TMQ holds nan at row 0, column 0, and is not finite at 864 of"),
        (
            4,
            255.0,
            r"climo_1980.h5': sample 1, channel T200 \(number 4\) has a mean of 255 K; expected 195 to 239; are",
        ),
    ],
)
def test_samples_that_are_not_sound_stop_it_and_are_named(tmp_path: Path, channel: int, value: float, message: str):
    write_year(tmp_path / "climo_1979.h5", 2, 0)
    images = np.stack([sample(i) for i in range(2)])
    images[1, channel] = value
    write_images(tmp_path / "climo_1980.h5", images)
    with pytest.raises(SampleError, match=message):
        compute(tmp_path)
    assert not list(tmp_path.glob("*statistics*"))


def test_channels_in_the_order_of_another_benchmark_are_refused_by_name(tmp_path: Path):
    theirs = DEEPCAM_CHANNELS.split()
    places = [[channel.name for channel in CHANNELS].index(name) for name in theirs]
    write_images(tmp_path / "climo_1979.h5", np.stack([sample(0)[places]]))
    with pytest.raises(
        SampleError, match=r"sample 0, channel PRECT \(number 0\) has a mean of .* in the order PRECT PS"
    ):
        compute(tmp_path, ["climo_1979.h5"])


def test_a_constant_channel_is_refused(tmp_path: Path):
    images = np.stack([sample(i) for i in range(2)])
    images[:, 15] = 61
    write_images(tmp_path / "climo_1979.h5", images)
    with pytest.raises(DataError, match="same value of channel ZBOT everywhere"):
        compute(tmp_path, ["climo_1979.h5"])


def test_missing_training_files_are_named(tmp_path: Path):
    write_year(tmp_path / "climo_1979.h5", 1, 0)
    with pytest.raises(DataError, match=r"lacks climo_1980.h5; it holds climo_1979.h5: fetch what is missing, or name"):
        compute(tmp_path)
    with pytest.raises(DataError, match=r"lacks climo_1980.h5, climo_1981.h5; it holds no climo_YYYY.h5"):
        compute_statistics(tmp_path / "nowhere", ["climo_1980.h5", "climo_1981.h5"])


def test_files_of_mixed_sizes_are_refused(tmp_path: Path):
    write_year(tmp_path / "climo_1979.h5", 1, 0)
    wide: Any = np.concatenate([sample(1), sample(2)], axis=2)[None]
    write_images(tmp_path / "climo_1980.h5", wide)
    with pytest.raises(DataError, match=r"mixed sizes .* climo_1979.h5 holds fields of 24 x 36, climo_1980.h5 of 24 x"):
        compute(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_year(tmp_path / "climo_1979.h5", 1, 0)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"statistics.json' cannot be written: .*No space left"):
        compute(tmp_path, ["climo_1979.h5"])
    assert not list(tmp_path.glob("*statistics*"))
