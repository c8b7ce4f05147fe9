"""mAP@[IoU=0.5]: against values worked out by hand, and the same for any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from hpcai500.models.roi import Detections
from hpcai500.pipelines.climate_pipeline import BoxBatch
from hpcai500.qualities import RECALLS, mean_average_precision, quality_named
from hpcai500.workloads.detection_evaluation import (
    Detail,
    DetectionEvaluation,
    ImageResult,
    count,
    match,
    pack,
    precision_curves,
    unpack,
    write_class_table,
    write_detections,
)
from hpcai500.workloads.workload import Shard

NUM_CLASSES = 4
MEASURE = quality_named("mAP@[IoU=0.5]")


def result(
    sample: int, boxes: list[tuple[Any, ...]], found: list[tuple[Any, ...]]
) -> ImageResult:  # boxes: x1, y1, x2, y2, label; found: and score
    truth, seen = np.array(boxes, np.float32).reshape(-1, 5), np.array(found, np.float32).reshape(-1, 6)
    labels, found_labels = truth[:, 4].astype(np.int64), seen[:, 4].astype(np.int64)
    return ImageResult(sample, truth[:, :4], labels, seen[:, :4], seen[:, 5], found_labels)


def random_results(num_samples: int, seed: int = 0) -> list[ImageResult]:
    """Detections that hit some boxes, miss others, and invent some."""
    random = np.random.default_rng(seed)
    results = []
    for sample in range(num_samples):
        corners = random.uniform(0, 60, (random.integers(0, 6), 2))
        boxes = [(x, y, x + w, y + h, random.integers(1, NUM_CLASSES + 1)) for (x, y), (w, h) in zip(
            corners, random.uniform(4, 20, (len(corners), 2)), strict=True)]  # fmt: skip
        found: list[tuple[Any, ...]] = []
        for x1, y1, x2, y2, label in boxes * 2:
            shift = random.normal(0, 2, 4)
            seen = (x1 + shift[0], y1 + shift[1], x2 + shift[2], y2 + shift[3])
            found.append((*seen, label if random.random() < 0.8 else 1, random.random()))
        found.sort(key=lambda row: -row[5])
        results.append(result(sample, boxes, found))
    return results


def counts_of(results: list[ImageResult]) -> dict[str, list[int]]:
    return count(results, match(results, NUM_CLASSES))


def quality(results: list[ImageResult]) -> float:
    curves = precision_curves([match(results, NUM_CLASSES)], counts_of(results)["boxes"])
    return mean_average_precision(len(results), counts_of(results), curves)


def test_the_average_precision_of_a_worked_example() -> None:
    # Two boxes of class 1. By falling score: a hit (0.9), an invention (0.8), a hit (0.7). Precision is 1 up to recall
    # 0.5, that is at 51 of 101 recalls, and 2/3 at the other 50.
    boxes = [(0, 0, 10, 10, 1), (20, 20, 30, 30, 1)]
    found = [(0, 0, 10, 9, 1, 0.9), (40, 0, 50, 10, 1, 0.8), (20, 21, 30, 30, 1, 0.7)]
    results = [result(0, boxes, found)]
    assert counts_of(results) == {"boxes": [2, 0, 0, 0], "detections": [3, 0, 0, 0], "hits": [2, 0, 0, 0]}
    assert quality(results) == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize(("height", "is_hit"), [(5.1, True), (4.9, False)])
def test_a_hit_overlaps_by_one_half(height: float, is_hit: bool) -> None:
    results = [result(0, [(0, 0, 10, 10, 3)], [(0, 0, 10, height, 3, 0.5)])]
    assert counts_of(results)["hits"] == [0, 0, int(is_hit), 0]
    assert quality(results) == pytest.approx(float(is_hit))


def test_a_box_is_hit_once_and_by_its_own_class() -> None:
    found = [(0, 0, 10, 10, 2, 0.9), (0, 0, 10, 10, 2, 0.8), (0, 0, 10, 10, 1, 0.7)]
    assert counts_of([result(0, [(0, 0, 10, 10, 2)], found)])["hits"] == [0, 1, 0, 0]


def test_classes_that_do_not_occur_are_left_out_and_empty_data_is_0() -> None:
    perfect = [result(0, [(0, 0, 10, 10, 2)], [(0, 0, 10, 10, 2, 0.9), (0, 0, 5, 5, 4, 0.9)])]
    assert quality(perfect) == pytest.approx(1)
    assert quality([result(0, [], [])]) == 0
    assert quality([result(0, [(0, 0, 10, 10, 2)], [])]) == 0


def test_the_number_is_that_of_the_library_from_end_to_end() -> None:
    """Its own way through COCO's data model, which is too slow for every evaluation, gives the same to the bit."""
    results = random_results(30, seed=4)
    truth, found = COCO(), COCO()
    tables: dict[COCO, list[dict[str, Any]]] = {truth: [], found: []}
    for one in results:
        for table, boxes, labels, scores in (
            (truth, one.boxes, one.labels, np.zeros(len(one.boxes))),
            (found, one.found, one.found_labels, one.scores),
        ):
            for (x1, y1, x2, y2), label, score in zip(boxes.astype(float).tolist(), labels, scores, strict=True):
                shape = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                entry = {"id": len(tables[table]) + 1, "image_id": one.id, "category_id": int(label)}
                tables[table].append(shape | entry | {"score": float(score)})
    for table, rows in tables.items():
        images, categories = [{"id": one.id} for one in results], [{"id": label} for label in range(1, 5)]
        table.dataset = {"images": images, "categories": categories, "annotations": rows}
        table.createIndex()
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert quality(results) == pytest.approx(evaluation.stats[1], rel=1e-6)  # AP at IoU 0.5, all sizes, 100 detections


@pytest.mark.parametrize("num_ranks", [2, 3, 7])
def test_any_number_of_ranks_gives_the_same_number(num_ranks: int) -> None:
    results = random_results(23)
    evaluations = [DetectionEvaluation(lambda *_: None, num_classes=NUM_CLASSES) for _ in range(num_ranks)]  # type: ignore[arg-type,return-value]
    for rank, evaluation in enumerate(evaluations):
        evaluation._results = results[rank::num_ranks]
    total = Shard(0, {"boxes": [0] * 4, "detections": [0] * 4, "hits": [0] * 4}, None)
    for evaluation in evaluations:
        total = total.plus(evaluation.shard())
    curves = evaluations[0].curves(total, [evaluation.detail() for evaluation in evaluations])
    assert total.counts == counts_of(results)
    assert MEASURE.compute(total.samples, total.counts, curves) == quality(results)
    assert 0.1 < quality(results) < 0.9
    assert MEASURE.problems(total.samples, total.counts, curves, NUM_CLASSES) == []


def test_what_is_sent_comes_out_as_it_was() -> None:
    results = random_results(5)
    for one, other in zip(results, unpack(pack(results)), strict=True):
        assert one.id == other.id
        for mine, theirs in zip(one[1:], other[1:], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert unpack(pack([])) == []


def test_a_rank_may_have_no_sample() -> None:
    empty = DetectionEvaluation(lambda *_: None, num_classes=NUM_CLASSES)  # type: ignore[arg-type,return-value]
    assert empty.shard() == Shard(0, {"boxes": [0] * 4, "detections": [0] * 4, "hits": [0] * 4}, None)
    results = random_results(3)
    whole = Detail(pack(results), match(results, NUM_CLASSES))
    counts = counts_of(results)
    curves = empty.curves(Shard(3, counts, None), [empty.detail(), whole])
    assert curves == precision_curves([whole.scored], counts["boxes"])


def test_padding_is_neither_a_box_nor_a_detection() -> None:
    images = torch.zeros(2, 16, 8, 8)
    boxes = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]])
    detections = Detections(boxes, torch.tensor([[0.9, 0.0], [0.0, 0.0]]), torch.tensor([[2, 0], [0, 0]]))
    evaluation = DetectionEvaluation(lambda *_: detections, num_classes=NUM_CLASSES)
    evaluation.add(nn.Identity(), BoxBatch(images, boxes, torch.tensor([[2, 0], [0, 0]]), np.array([5, 6])))
    counts = {"boxes": [0, 1, 0, 0], "detections": [0, 1, 0, 0], "hits": [0, 1, 0, 0]}
    assert evaluation.shard() == Shard(2, counts, None)


@pytest.mark.parametrize(
    ("counts", "curves", "words"),
    [
        ({"boxes": [2], "detections": [5], "hits": [3]}, None, "hits[0]: at most 2"),
        ({"boxes": [9], "detections": [1], "hits": [2]}, None, "hits[0]: at most 1"),
        ({"boxes": [2], "hits": [1]}, None, "boxes, detections and hits of each of 1 classes"),
        ({"boxes": [2], "detections": [2, 2], "hits": [1]}, None, "boxes, detections and hits of each of 1 classes"),
        ({"boxes": [2], "detections": [2], "hits": [1]}, [], "1, one of each class"),
        ({"boxes": [2], "detections": [2], "hits": [1]}, [[1.0] * 101], "the first 51 of them above 0"),
        ({"boxes": [2], "detections": [2], "hits": [1]}, [[0.5] * 50 + [0.6] + [0.0] * 50], "that fall"),
        ({"boxes": [2], "detections": [2], "hits": [1]}, [[1.0] * 51], "101 precisions"),
        ({"boxes": [2], "detections": [2], "hits": [0]}, [[1.0] + [0.0] * 100], "the first 0 of them above 0"),
    ],
)
def test_counts_and_curves_that_cannot_be_are_found(counts: Any, curves: Any, words: str) -> None:
    problems = MEASURE.problems(4, counts, curves, 1)
    assert any(words in expected for expected, _ in problems)


def test_the_recalls_are_those_of_the_library() -> None:
    assert np.linspace(0.0, 1.0, 101).tolist() == list(RECALLS)


def test_the_details_are_for_people_and_programs(tmp_path: Path) -> None:
    results = random_results(4)
    names = ("depression", "cyclone", "low", "river")
    write_detections(tmp_path / "detections.json", results, names)
    written = json.loads((tmp_path / "detections.json").read_text())
    assert [sample["sample"] for sample in written["samples"]] == [0, 1, 2, 3]
    assert {found["class"] for sample in written["samples"] for found in sample["detections"]} <= set(names)
    curves = precision_curves([match(results, NUM_CLASSES)], counts_of(results)["boxes"])
    write_class_table(tmp_path / "classes.json", counts_of(results), curves, names)
    table = json.loads((tmp_path / "classes.json").read_text())
    assert table["quality"] == quality(results)
    assert [row["average_precision"] for row in table["classes"]] == [
        pytest.approx(np.mean(curve)) if boxes else None
        for curve, boxes in zip(curves, counts_of(results)["boxes"], strict=True)
    ]
