"""The extreme weather workload from one command to a verified submission, on real ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hpcai500.events import Evaluation
from hpcai500.formats import read_config
from hpcai500.record import read_run
from hpcai500.verify import verify_submission

SMOKE = ["--workload", "fasterrcnn", "--size", "smoke", "--device", "cpu"]


def submit(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcai500.submit", *SMOKE, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    ("communicator", "pipeline"),
    [
        ("torchdist", "torch"),
        pytest.param("mpi", "dali", marks=[pytest.mark.mpi, pytest.mark.dali]),
        pytest.param("horovod", "torch", marks=pytest.mark.horovod),
    ],
)
def test_two_ranks_train_a_detector_and_their_submission_is_valid(
    communicator: str, pipeline: str, smoke_weather: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    chosen = ["--set", f"communicator={communicator}", "--set", f"pipeline={pipeline}"]
    done = submit("--data", smoke_weather, "--ranks", 2, *chosen, "--output", folder)
    assert done.returncode == 0, done.stderr
    assert "VALID fasterrcnn, free level, size smoke" in done.stdout
    assert verify_submission(folder / "submission.json").findings == []
    run = folder / "run-1"
    (root,) = read_run(run, read_config(run)[0]).roots
    last = root.values(Evaluation)[-1]
    assert sum(last.counts["boxes"]) > 4
    assert [len(curve) for curve in last.curves] == [101] * 4
    table = json.loads((run / "evaluation/classes.json").read_text())
    assert table["quality"] == last.quality
    assert [row["boxes"] for row in table["classes"]] == last.counts["boxes"]
    assert len(json.loads((run / "evaluation/detections.json").read_text())["samples"]) == 4
    with Image.open(run / "evaluation/sheet.png") as sheet:
        assert sheet.width > 1000


def test_data_of_the_other_workload_is_refused(smoke_weather: Path, smoke_data: Path) -> None:
    done = submit("--data", smoke_data)
    assert done.returncode == 2
    assert str(smoke_data) in done.stderr
    assert "climo_YYYY.h5" in done.stderr
    done = submit("--data", smoke_weather, "--workload", "resnet50")
    assert done.returncode == 2
    assert str(smoke_weather) in done.stderr


def test_fields_of_another_size_are_refused(smoke_weather: Path) -> None:
    done = submit("--data", smoke_weather, "--size", "mini")
    assert done.returncode == 2
    assert "16 x 96 x 144 and size 'mini' has 16 x 128 x 192" in done.stderr


def test_a_detector_of_another_shape_is_free_level(smoke_weather: Path) -> None:
    done = submit("--data", smoke_weather, "--level", "hardware", "--set", "box_head_width=512")
    assert done.returncode == 2
    assert "box_head_width = 512" in done.stderr
    assert "free level allows a change" in done.stderr
