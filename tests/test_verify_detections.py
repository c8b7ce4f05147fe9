"""The verifier on a detector's submission: its quality follows from counts and curves, and cannot be talked up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import Forger
from recording import EDITION, record_submission

from hpcai500.verify import verify_submission

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    return Forger(record_submission(tmp_path, workload="fasterrcnn"))


def test_what_a_correct_detector_run_writes_is_valid(forger: Forger) -> None:
    verdict = verify_submission(forger.path)
    assert verdict.findings == []
    (result,) = verdict.results
    size = EDITION.workload("fasterrcnn").size("smoke")
    assert result.flop_training_per_sample == size.flop_training_per_sample
    assert 0 < (result.achieved_quality or 0) < 1
    assert result.vflops == pytest.approx((result.flops or 0) * (result.achieved_quality or 0) ** 10)


def raise_quality(value: dict[str, Any]) -> None:
    value["quality"] = 0.99


def raise_precision(value: dict[str, Any]) -> None:
    value["curves"] = [[1.0 if one else 0.0 for one in curve] for curve in value["curves"]]


def reach_further(value: dict[str, Any]) -> None:
    value["curves"][0] = [1.0] * 101


def leave_a_class_out(value: dict[str, Any]) -> None:
    value["curves"] = value["curves"][1:]


def more_hits_in_the_whole(value: dict[str, Any]) -> None:
    value["counts"]["hits"][0] += 1


def more_hits_than_boxes(value: dict[str, Any]) -> None:
    value["counts"]["hits"][0] = value["counts"]["boxes"][0] + 1


def fewer_boxes(value: dict[str, Any]) -> None:
    value["counts"]["boxes"][0] = value["counts"]["hits"][0]


def other_counts(value: dict[str, Any]) -> None:
    value["counts"] = {"correct": [1]}


@pytest.mark.parametrize(
    ("event", "change", "rule"),
    [
        ("evaluation", raise_quality, "figures.quality"),
        ("evaluation", raise_precision, "figures.quality"),
        ("evaluation", reach_further, "figures.quality"),
        ("evaluation", leave_a_class_out, "figures.quality"),
        ("evaluation", more_hits_in_the_whole, "figures.quality"),
        ("evaluation", other_counts, "figures.quality"),
        ("evaluation_shard", fewer_boxes, "figures.quality"),
        ("evaluation_shard", more_hits_than_boxes, "counts.evaluations"),
        ("evaluation_shard", other_counts, "counts.evaluations"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_detector_s_quality_cannot_be_talked_up(forger: Forger, event: str, change: Change, rule: str) -> None:
    forger.edit_events(event, change, rank=0)
    forger.forge()
    assert rule in {finding.rule for finding in verify_submission(forger.path).findings}


def test_a_hard_class_cannot_be_left_out_everywhere(forger: Forger) -> None:
    def leave_out(value: dict[str, Any]) -> None:
        value["counts"] = {name: numbers[1:] for name, numbers in value["counts"].items()}
        if "curves" in value:
            leave_a_class_out(value)

    for rank in (0, 1):
        forger.edit_events("evaluation_shard", leave_out, rank=rank)
    forger.edit_events("evaluation", leave_out, rank=0)
    forger.forge()
    found = {finding.rule for finding in verify_submission(forger.path).findings}
    assert {"counts.evaluations", "figures.quality"} <= found


def test_more_regions_than_were_trained_on_are_found_in_the_flop(forger: Forger) -> None:
    forger.edit_config(lambda config: config["settings"].update(box_batch_size_per_image=512), numbers=(1,))
    forger.forge()
    assert "counts.model" in {finding.rule for finding in verify_submission(forger.path).findings}


def test_a_smaller_field_is_found(forger: Forger) -> None:
    forger.edit_events("model_built", lambda value: value.update(input_shape=[16, 48, 72]))
    forger.forge()
    assert "counts.model" in {finding.rule for finding in verify_submission(forger.path).findings}
