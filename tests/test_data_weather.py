"""The verbs of `hpcai500 data` for climate fields, and repacking."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from climate_files import HEIGHT, NUM_TRAIN, SHAPE, SPLIT_FILES, WIDTH, write_file, write_folder, write_year

from hpcai500.__main__ import main
from hpcai500.errors import BackendUnavailableError, DataError, UsageError
from hpcai500.pipelines import climate_repack
from hpcai500.pipelines.climate import ClimateFile, ClimateSplit, read_statistics
from hpcai500.pipelines.climate_repack import Storage, repack

NAMES = sorted(name for files in SPLIT_FILES.values() for name in files)


@pytest.fixture(scope="module", name="data")
def data_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "weather")


def copied(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "weather"))


@pytest.mark.parametrize(
    "verb",
    [["stats"], ["repack"], ["show"], ["generate-weather"], ["prepare", "mini-weather"], ["prepare", "smoke-weather"]],
)
def test_each_verb_explains_itself_with_an_example(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["data", *verb, "--help"])
    assert stopped.value.code == 0
    assert f"example:\n  hpcai500 data {' '.join(verb)}" in capsys.readouterr().out


# stats


def test_stats_writes_and_prints_the_statistics(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(data, tmp_path)
    (folder / "statistics.json").unlink()
    assert main(["data", "stats", str(folder), "--workers", "1", "--train-files", *SPLIT_FILES["train"]]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{folder}/statistics.json: over 2 of 3 files\n  PRECT   m/s ")
    assert len(text.splitlines()) == 17
    assert (folder / "statistics.json").read_text() == (data / "statistics.json").read_text()


def test_stats_takes_the_training_files_of_the_size_that_takes_such_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_year(tmp_path / "climo_1979.h5", 2, 0)
    write_year(tmp_path / "climo_1997.h5", 1, 2)
    assert main(["data", "stats", str(tmp_path), "--workers", "1"]) == 2  # of the official size most are missing
    assert "lacks climo_1980.h5, climo_1981.h5" in capsys.readouterr().err
    assert main(["data", "stats", str(tmp_path), "--workers", "1", "--workload-size", "mini"]) == 0
    for name in ("climo_1979.h5", "climo_1997.h5"):
        with h5py.File(tmp_path / name, "r+") as file:
            file.attrs["provenance"] = json.dumps({"source": "generated_weather"})
    (tmp_path / "statistics.json").unlink()
    assert main(["data", "stats", str(tmp_path), "--workers", "1"]) == 0
    assert read_statistics(tmp_path).train_files == ("climo_1979.h5",)
    assert main(["data", "stats", str(tmp_path), "--workload-size", "huge"]) == 2
    assert "unknown size 'huge'" in capsys.readouterr().err


# prepare and generate


def test_smoke_weather_is_what_the_smoke_size_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hpcai500.edition import load_edition
    from hpcai500.pipelines.climate_facts import describe_folder

    folder = tmp_path / "weather"
    assert main(["data", "prepare", "smoke-weather", "--output", str(folder), "--workers", "1"]) == 0
    size = load_edition().workload("fasterrcnn").size("smoke")
    facts = describe_folder(folder, size.split_files)
    assert (facts.num_train_samples, facts.num_validation_samples) == (
        size.num_train_samples,
        size.num_validation_samples,
    )
    assert (facts.height, facts.width) == (size.input["height"], size.input["width"])
    assert facts.source in size.data_sources
    assert facts.dataset_sha256 in capsys.readouterr().out


def test_weather_is_generated_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "weather"
    command = ["data", "generate-weather", "--output", str(folder), "--height", "64", "--width", "96"]
    years = ["--train", "1980=1,1981=1", "--validation", "1990=1", "--seed", "5", "--workers", "1"]
    assert main([*command, *years]) == 0
    assert re.search(r"climo_1980.h5.*1 of 16 x 64 x 96.*climo_1990.h5.*seed 5", capsys.readouterr().out, re.DOTALL)
    assert read_statistics(folder).train_files == ("climo_1980.h5", "climo_1981.h5")
    assert main([*command, "--train", "1980=2", "--validation", "1980=1"]) == 2
    assert "year 1980 is given for training and validation" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--train", "1980"])
    assert "'1980' is not a list like 1979=320,1980=320" in capsys.readouterr().err


# info and check


def test_info_says_what_a_folder_and_a_file_hold(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "info", str(data)]) == 0
    text = capsys.readouterr().out
    for part in ("6 of 16 x 24 x 36, contiguous", "columns y1 y2 x1 x2", "gzip", read_statistics(data).dataset_sha256):
        assert part in text
    assert main(["data", "info", "--json", str(data / "climo_1997.h5")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["num_samples"], facts["shape"]) == (7, list(SHAPE))
    assert facts["num_boxes"]["tropical_cyclone"] == 2
    assert main(["data", "info", "--json", str(data)]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 3


def test_info_of_a_folder_without_statistics_says_how_to_write_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(data, tmp_path)
    (folder / "statistics.json").unlink()
    assert main(["data", "info", str(folder)]) == 0
    assert f"write them with `hpcai500 data stats {folder}`" in capsys.readouterr().out
    assert main(["data", "info", str(tmp_path)]) == 2
    assert "holds no climo_YYYY.h5" in capsys.readouterr().err


def test_check_of_a_sound_folder_and_file_is_good(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (data, data / "climo_1980.h5"):
        assert main(["data", "check", str(path), "--workers", "1"]) == 0
        assert capsys.readouterr().out == f"{path}: good\n"


def test_check_names_everything_that_is_wrong(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(data, tmp_path)
    with h5py.File(folder / "climo_1979.h5", "r+") as file:
        file["images"][2, 6, 3, 4] = np.nan
        file["images"][4, 5] = 217
    with h5py.File(folder / "climo_1980.h5", "r+") as file:
        file["boxes"][3, 0] = (3, 2, 1, 4, 0)
    (folder / "climo_1997.h5").unlink()
    assert main(["data", "check", "--json", str(folder), "--workers", "1"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    told = [(one["split"], one["index"], one["what"]) for one in findings]
    expected = [
        ("climo_1979.h5", None, "its bytes differ from their SHA-256"),
        ("climo_1979.h5", 2, "channel TMQ holds nan at row 3, column 4"),
        ("climo_1979.h5", 4, r"channel T500 \(number 5\) has a mean of 217 K; expected 239 to 275"),
        ("climo_1980.h5", None, "boxes fit neither order"),
        ("climo_1997.h5", None, "the file is missing"),
    ]
    assert [one[:2] for one in told] == [one[:2] for one in expected]
    for (_, _, what), (_, _, pattern) in zip(told, expected, strict=True):
        assert re.search(pattern, what), what
    assert main(["data", "check", str(folder), "--workers", "1"]) == 1
    assert "climo_1979.h5, sample 2: channel TMQ holds nan" in capsys.readouterr().out


# show


def test_show_draws_a_field_with_its_boxes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "tmq.png"
    command = ["data", "show", str(data / "climo_1979.h5"), "1", "--output", str(output)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{output}: TMQ of climo_1979.h5, sample 1, with 3 boxes\n"
    assert output.read_bytes().startswith(b"\x89PNG")
    assert main(command) == 2
    assert "exists and is not overwritten" in capsys.readouterr().err


def test_show_draws_the_detections_of_a_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They count the samples of all validation files: those of climo_1998 come behind the 7 of climo_1997."""
    pytest.importorskip("matplotlib")
    folder = copied(data, tmp_path)
    write_year(folder / "climo_1998.h5", 2, 0)
    found = [
        {"class": "atmospheric_river", "score": 0.9, "box": [1.5, 2.0, 9.0, 8.0]},
        {"class": "tropical_cyclone", "score": 0.2, "box": [1.5, 2.0, 9.0, 8.0]},
    ]
    detections = tmp_path / "detections.json"
    detections.write_text(json.dumps({"samples": [{"sample": 8, "detections": found}]}))

    def show(name: str, index: int, output: str, *options: str) -> int:
        place = ["--output", str(tmp_path / output), "--detections", str(detections)]
        return main(["data", "show", str(folder / name), str(index), *place, *options])

    assert show("climo_1998.h5", 1, "a.png") == 0
    assert "with 3 boxes and 1 detections" in capsys.readouterr().out
    assert show("climo_1998.h5", 1, "b.png", "--min-score", "0.1") == 0
    assert "and 2 detections" in capsys.readouterr().out
    assert show("climo_1997.h5", 1, "c.png") == 2
    assert "has no sample 1; it holds 1 samples" in capsys.readouterr().err
    assert show("climo_1979.h5", 1, "d.png") == 2
    assert "detections are of the validation files, climo_1997.h5, climo_1998.h5" in capsys.readouterr().err
    detections.write_text("[]")
    assert show("climo_1998.h5", 1, "e.png") == 2
    assert "is no detections.json" in capsys.readouterr().err


def test_show_refuses_what_there_is_not(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(data / "climo_1979.h5")
    assert main(["data", "show", path, "6"]) == 2
    assert "has no sample 6; valid are 0 to 5" in capsys.readouterr().err
    assert main(["data", "show", path, "0", "--channel", "TMG"]) == 2
    assert "unknown channel 'TMG' (did you mean 'TMQ'?)" in capsys.readouterr().err


# repack


def images_of(folder: Path, name: str) -> np.ndarray:
    file = ClimateFile(folder / name)
    out = np.empty((file.num_samples, *SHAPE), np.float32)
    for index in range(file.num_samples):
        file.read(index, out[index])
    return out


@pytest.mark.parametrize(
    ("layout", "compression", "described", "is_direct"),
    [
        ("contiguous", "none", "contiguous", True),
        ("sample-chunks", "none", f"chunks of (1, 16, {HEIGHT}, {WIDTH}), none", True),
        ("channel-chunks", "lz4", f"chunks of (1, 1, {HEIGHT}, {WIDTH}), bitshuffle", False),
    ],
)
def test_repacked_files_hold_the_same_to_the_last_bit(
    data: Path, tmp_path: Path, layout: str, compression: str, described: str, is_direct: bool
) -> None:
    if compression != "none":
        pytest.importorskip("hdf5plugin")
    output = tmp_path / "repacked"
    told: list[Any] = []
    result = repack(
        data, output, Storage(layout, compression), num_workers=1, report=lambda *progress: told.append(progress)
    )
    assert [path.name for path in result.files] == NAMES
    assert told[-1][1] == told[-1][2] == sum((data / name).stat().st_size for name in NAMES) == result.bytes_before
    assert "times as fast" in str(result)
    for name in NAMES:
        file, old = ClimateFile(output / name), ClimateFile(data / name)
        assert (file.layout, file.is_read_directly, file.box_order) == (described, is_direct, old.box_order)
        assert images_of(output, name).tobytes() == images_of(data, name).tobytes()
        for index in range(file.num_samples):
            for a, b in zip(file.boxes(index), old.boxes(index), strict=True):
                assert np.array_equal(a, b)
    before, after = read_statistics(data), read_statistics(output)
    assert after.channels == before.channels
    assert after.provenance == {**before.provenance, "repacked_from": before.dataset_sha256}
    assert ClimateSplit(output, SPLIT_FILES["train"], split="train").num_samples == NUM_TRAIN


def test_a_nan_is_repacked_bit_by_bit(tmp_path: Path) -> None:
    images = np.zeros((1, *SHAPE), np.float32)
    images.view(np.uint32)[0, 3, 4, 5] = 0x7FC12345  # a NaN with a payload
    (tmp_path / "weather").mkdir()
    write_file(tmp_path / "weather/climo_1979.h5", images, np.full((1, 15, 5), -1, np.int32))
    repack(tmp_path / "weather", tmp_path / "repacked", Storage("sample-chunks", "none"), num_workers=1)
    assert images_of(tmp_path / "repacked", "climo_1979.h5").view(np.uint32)[0, 3, 4, 5] == 0x7FC12345


def test_a_repack_that_was_interrupted_goes_on(data: Path, tmp_path: Path) -> None:
    output, storage = tmp_path / "repacked", Storage("contiguous", "none")
    repack(data, output, storage, num_workers=1)
    expected = {name: (output / name).read_bytes() for name in [*NAMES, "statistics.json"]}
    (output / "climo_1980.h5").rename(output / "climo_1980.h5.partial")
    (output / "statistics.json").unlink()
    kept = (output / "climo_1979.h5").stat().st_mtime_ns
    repack(data, output, storage, num_workers=1)
    assert (output / "climo_1979.h5").stat().st_mtime_ns == kept
    assert set(expected) == {path.name for path in output.iterdir()}
    assert images_of(output, "climo_1980.h5").tobytes() == images_of(data, "climo_1980.h5").tobytes()


def test_what_does_not_read_back_the_same_is_noticed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ClimateFile.read

    def flip(file: ClimateFile, index: int, out: Any) -> None:
        read(file, index, out)
        if file.path.suffix == ".partial":
            out[3, 4, 5] += 1

    monkeypatch.setattr(ClimateFile, "read", flip)
    with pytest.raises(DataError, match=r"climo_1979.h5.partial': sample 0 does not read back as it was written"):
        climate_repack.repack_file(str(data), str(tmp_path), Storage("contiguous", "none"), "climo_1979.h5")
    assert not (tmp_path / "climo_1979.h5").exists()


def test_what_cannot_be_repacked_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="contiguous samples cannot be compressed; give --layout channel-chunks"):
        repack(data, tmp_path / "repacked", Storage("contiguous", "lz4"))
    with pytest.raises(UsageError, match="is the folder itself"):
        repack(data, data, Storage("contiguous", "none"))
    with pytest.raises(DataError, match=r"holds no climo_YYYY.h5"):
        repack(tmp_path, tmp_path / "repacked", Storage("contiguous", "none"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; give a folder"):
        repack(data, tmp_path / "file", Storage("contiguous", "none"))
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)  # what Python itself does for "does not import"
    with pytest.raises(BackendUnavailableError, match=r"needs hdf5plugin, .* `pip install hdf5plugin`"):
        repack(data, tmp_path / "repacked", Storage("sample-chunks", "lz4"))
    assert not (tmp_path / "repacked").exists()


def test_repack_says_how_much_faster_reading_gets(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "repack", str(data), "--output", str(tmp_path / "repacked"), "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"repacked: 3 files, [\d,]+ bytes before, [\d,]+ now; reading a sample took .* times as fast", text
    )
