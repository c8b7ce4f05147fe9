"""Evaluates detections: mAP@[IoU=0.5] by COCO's own evaluation code, exact for any number of ranks.

Each rank keeps what it detects on its shard. Which detections hit a box is decided image by image, so the counts of the
shards add up; the precision curves need all scores together, so rank 0 takes the detections of all ranks, in the order
of the samples, whoever evaluated them.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from hpcai500.models.roi import Detections
from hpcai500.pipelines.climate_facts import CLASS_NAMES
from hpcai500.pipelines.climate_pipeline import BoxBatch, ClimatePipeline
from hpcai500.qualities import mean_average_precision
from hpcai500.workloads.workload import Shard

IOU = 0.5  # of a detection and the box it hits; the benchmark's mAP@[IoU=0.5]
MAX_DETECTIONS = 100  # of an image and class that are looked at (cocodataset.org, "Detection Evaluation")
DETAILS_FOLDER = "evaluation"

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]


class ImageResult(NamedTuple):
    """What there is on a sample, and what was found. Labels are class + 1.

    ``boxes`` (k, 4) and ``found`` (d, 4) are corners (x1, y1, x2, y2) in pixels; ``scores`` (d,) fall.
    """

    id: int
    boxes: FloatArray
    labels: IntArray
    found: FloatArray
    scores: FloatArray
    found_labels: IntArray


class Scored(NamedTuple):
    """The detections of a class: sample, score, and whether it hit a box; (d,) each, in a sample the best first."""

    ids: IntArray
    scores: FloatArray
    hits: NDArray[np.bool_]


class Detail(NamedTuple):
    """What rank 0 needs of a rank: its samples in few arrays, and the detections of each class."""

    packed: tuple[NDArray[Any], ...]
    scored: list[Scored]


class DetectionEvaluation:
    """One evaluation of one rank.

    Args:
        detect: what a model finds on a batch of images.
        num_classes: without the background.
    """

    def __init__(self, detect: Callable[[nn.Module, Tensor], Detections], *, num_classes: int) -> None:
        self._detect, self._num_classes = detect, num_classes
        self._results: list[ImageResult] = []
        self._details: list[Detail] = []
        self._counts: dict[str, list[int]] = {}
        self._curves: list[list[float]] = []

    def add(self, model: nn.Module, batch: BoxBatch) -> None:
        """Detect on a batch and keep the results."""
        detections = self._detect(model, batch.images)
        found, scores, found_labels = (part.cpu().numpy() for part in detections)
        boxes, labels = batch.boxes.cpu().numpy(), batch.labels.cpu().numpy()
        for row, sample in enumerate(batch.ids):
            is_box, is_found = labels[row] > 0, found_labels[row] > 0
            self._results.append(
                ImageResult(
                    int(sample),
                    boxes[row][is_box],
                    labels[row][is_box],
                    found[row][is_found],
                    scores[row][is_found].astype(np.float32),
                    found_labels[row][is_found],
                )
            )

    @cached_property
    def _scored(self) -> list[Scored]:
        """Of this rank's samples; asked for when all have been added."""
        return match(self._results, self._num_classes)

    def shard(self) -> Shard:
        """Boxes, detections and hits of each class on this rank's samples."""
        return Shard(len(self._results), count(self._results, self._scored), None)

    def detail(self) -> Detail:
        return Detail(pack(self._results), self._scored)

    def curves(self, total: Shard, details: list[Detail]) -> list[list[float]]:
        """Precision of each class at 101 recalls, over the samples of all ranks; zeros where a class does not occur."""
        self._details, self._counts = details, total.counts
        self._curves = precision_curves([detail.scored for detail in details], total.counts["boxes"])
        return self._curves

    def write_details(self, folder: Path, pipeline: Any) -> None:
        """All detections, the precision of each class, and a sheet of pictures, in the run's ``evaluation`` folder."""
        from hpcai500.detection_sheet import write_sheet

        assert isinstance(pipeline, ClimatePipeline)
        target = folder / DETAILS_FOLDER
        target.mkdir(exist_ok=True)
        results = sorted((one for detail in self._details for one in unpack(detail.packed)), key=lambda one: one.id)
        write_detections(target / "detections.json", results, CLASS_NAMES)
        write_class_table(target / "classes.json", self._counts, self._curves, CLASS_NAMES)
        write_sheet(target / "sheet.png", results, pipeline.validation)


def pack(results: Sequence[ImageResult]) -> tuple[NDArray[Any], ...]:
    """Few long arrays in place of many short ones, which are sent faster."""
    if not results:
        return ()
    lengths = np.array([(one.id, len(one.boxes), len(one.found)) for one in results])
    return (lengths, *(np.concatenate(parts) for parts in list(zip(*results, strict=True))[1:]))


def unpack(packed: tuple[NDArray[Any], ...]) -> list[ImageResult]:
    """What ``pack`` packed."""
    if not packed:
        return []
    lengths, boxes, labels, found, scores, found_labels = packed
    box_ends, found_ends = np.cumsum(lengths[:, 1])[:-1], np.cumsum(lengths[:, 2])[:-1]
    parts = [np.split(part, box_ends) for part in (boxes, labels)]
    parts += [np.split(part, found_ends) for part in (found, scores, found_labels)]
    return [ImageResult(int(sample), *rest) for sample, *rest in zip(lengths[:, 0], *parts, strict=True)]


def count(results: Sequence[ImageResult], scored: Sequence[Scored]) -> dict[str, list[int]]:
    """Boxes, detections and hits of each class."""
    boxes = np.zeros(len(scored) + 1, dtype=np.int64)
    for result in results:
        boxes += np.bincount(result.labels, minlength=len(boxes))
    return {
        "boxes": boxes[1:].tolist(),
        "detections": [len(one.scores) for one in scored],
        "hits": [int(np.count_nonzero(one.hits)) for one in scored],
    }


def precision_curves(scored: Sequence[Sequence[Scored]], num_boxes: Sequence[int]) -> list[list[float]]:
    """Precision of each class at recalls 0, 0.01, ... 1: (num_classes, 101), zeros where a class does not occur.

    COCO's evaluation puts the detections of all samples in a row, in the order of samples, before it sorts them by
    score; here they come to it in that row, as if they were of one sample.

    Args:
        scored: of each rank, of each class.
        num_boxes: of each class, over all ranks.
    """
    evaluation = _new_evaluation(len(num_boxes))
    evaluation.params.imgIds = [0]
    evaluation.params.maxDets = [1 + sum(len(one.scores) for of_rank in scored for one in of_rank)]  # all of them
    evaluation._paramsEval = evaluation.params
    evaluation.evalImgs = [_row([of_rank[k] for of_rank in scored], boxes) for k, boxes in enumerate(num_boxes)]
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints how far it is
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, 0].T  # (num_classes, 101); -1 where a class does not occur
    return [[float(value) for value in curve] for curve in np.maximum(precision, 0.0)]


def _row(scored: Sequence[Scored], num_boxes: int) -> dict[str, Any] | None:
    """COCO's record of a class on a sample, of all detections of all ranks in the order of samples."""
    ids = np.concatenate([one.ids for one in scored])
    if not len(ids) and not num_boxes:
        return None
    order = np.argsort(ids, kind="stable")  # a sample is of one rank, and its own order stays
    hits = np.concatenate([one.hits for one in scored])[order]
    return {
        "dtScores": np.concatenate([one.scores for one in scored])[order],
        "dtMatches": hits[None].astype(np.float64),
        "dtIgnore": np.zeros((1, len(order))),
        "gtIgnore": np.zeros(num_boxes, dtype=np.int64),
    }


def match(results: Sequence[ImageResult], num_classes: int) -> list[Scored]:
    """Which detections of each class hit a box, sample by sample, as COCO's evaluation says."""
    evaluation = _new_evaluation(num_classes)
    return [_match_class(evaluation, results, label) for label in range(1, num_classes + 1)]


def _match_class(evaluation: Any, results: Sequence[ImageResult], label: int) -> Scored:
    ids, scores, hits = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)], [np.zeros(0, np.bool_)]
    for result in results:
        key, boxes, found = (result.id, label), result.labels == label, result.found_labels == label
        evaluation._gts[key] = _boxes(result.boxes[boxes])
        evaluation._dts[key] = _boxes(result.found[found], result.scores[found])
        if not evaluation._dts[key]:
            continue
        evaluation.ious[key] = evaluation.computeIoU(*key)
        record = evaluation.evaluateImg(*key, evaluation.params.areaRng[0], MAX_DETECTIONS)
        scores.append(np.array(record["dtScores"], np.float32))
        hits.append(record["dtMatches"][0] > 0)
        ids.append(np.full(len(scores[-1]), result.id))
    return Scored(np.concatenate(ids), np.concatenate(scores), np.concatenate(hits))


def _new_evaluation(num_classes: int) -> Any:
    """COCO's evaluation at one overlap, of boxes of any size, with nothing in it."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(iouType="bbox")
    evaluation.params.iouThrs = np.array([IOU])
    evaluation.params.maxDets = [MAX_DETECTIONS]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.catIds = list(range(1, num_classes + 1))
    evaluation.ious = {}
    return evaluation


def _boxes(boxes: FloatArray, scores: FloatArray | None = None) -> list[dict[str, Any]]:
    """Boxes as COCO's evaluation has them: left, top, width, height."""
    rows = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64).tolist()
    marks = [0.0] * len(rows) if scores is None else scores.tolist()
    return [
        {"id": number, "bbox": row, "area": row[2] * row[3], "iscrowd": 0, "ignore": 0, "score": mark}
        for number, (row, mark) in enumerate(zip(rows, marks, strict=True), start=1)
    ]


def write_detections(path: Path, results: Sequence[ImageResult], names: Sequence[str]) -> None:
    """Everything found on the validation samples, for people and programs; `hpcai500 data show` draws it."""
    samples = [
        {
            "sample": result.id,
            "detections": [
                {"class": names[label - 1], "score": round(float(score), 4), "box": [round(x, 2) for x in box.tolist()]}
                for box, score, label in zip(result.found, result.scores, result.found_labels, strict=True)
            ],
        }
        for result in results
    ]
    content = {"box": "x1, y1, x2, y2 in pixels", "classes": list(names), "samples": samples}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_class_table(
    path: Path, counts: dict[str, list[int]], curves: list[list[float]], names: Sequence[str]
) -> None:
    """Average precision, boxes, detections and hits of each class."""
    classes = [
        {
            "class": name,
            "average_precision": float(np.mean(curves[number])) if counts["boxes"][number] else None,
            **{key: counts[key][number] for key in counts},
        }
        for number, name in enumerate(names)
    ]
    total = {"quality": mean_average_precision(0, counts, curves), "iou": IOU, "classes": classes}
    path.write_text(json.dumps(total, indent=1) + "\n", encoding="utf-8")
