"""The sheet of best, usual and worst detections: which samples it shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcai500.detection_sheet import f1_score, grouped, write_sheet
from hpcai500.pipelines.climate import ClimateSplit
from hpcai500.workloads.detection_evaluation import ImageResult


def sample(number: int, num_boxes: int, num_found: int, *, score: float = 0.9, label: int = 1) -> ImageResult:
    """``num_boxes`` boxes in a row, the first ``num_found`` of which are found."""
    boxes = np.array([[10 * k, 0, 10 * k + 8, 8] for k in range(num_boxes)], np.float32).reshape(-1, 4)
    found = boxes[:num_found] + np.float32(0.5)
    labels = np.ones(num_boxes, np.int64)
    scores = np.full(num_found, score, np.float32)
    return ImageResult(number, boxes, labels, found, scores, np.full(num_found, label, np.int64))


@pytest.mark.parametrize(
    ("result", "f1"),
    [
        (sample(0, 3, 3), 1.0),
        (sample(0, 3, 0), 0.0),
        (sample(0, 0, 0), 1.0),
        (sample(0, 3, 1), 0.5),
        (sample(0, 3, 3, score=0.4), 0.0),
        (sample(0, 3, 3, label=2), 0.0),
    ],
)
def test_f1_is_twice_the_hits_over_boxes_and_sure_detections(result: ImageResult, f1: float) -> None:
    assert f1_score(result) == pytest.approx(f1)


def test_a_box_is_hit_once() -> None:
    one = sample(0, 1, 1)
    twice = one._replace(
        found=np.repeat(one.found, 2, axis=0), scores=np.repeat(one.scores, 2), found_labels=np.repeat(one.labels, 2)
    )
    assert f1_score(twice) == pytest.approx(2 / 3)


def test_no_sample_is_shown_twice_and_of_equals_the_fullest_ones_are() -> None:
    results = [sample(n, 4, n % 5) for n in range(20)] + [sample(20, 0, 0), sample(21, 6, 6), sample(22, 6, 0)]
    groups = {name: [result.id for result in members] for name, members in grouped(results).items()}
    assert groups["best"] == [21, 4, 9]
    assert groups["worst"] == [22, 0, 5]
    assert all(0.4 < f1_score(results[number]) < 0.9 for number in groups["usual"])
    few = grouped(results[:4])
    assert sorted(result.id for members in few.values() for result in members) == [0, 1, 2, 3]


def test_the_sheet_is_drawn_from_the_fields(smoke_weather: Path, tmp_path: Path) -> None:
    split = ClimateSplit(smoke_weather, ["climo_1997.h5"])
    path = write_sheet(tmp_path / "sheet.png", [sample(n, 2, n % 3) for n in range(split.num_samples)], split)
    with Image.open(path) as sheet:
        assert np.asarray(sheet.convert("L")).std() > 10
