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


class DetectionEvaluation:
    """One evaluation of one rank.

    Args:
        detect: what a model finds on a batch of images.
        num_classes: without the background.
    """

    def __init__(self, detect: Callable[[nn.Module, Tensor], Detections], *, num_classes: int) -> None:
        self._detect, self._num_classes = detect, num_classes
        self._results: list[ImageResult] = []
        self._all: list[ImageResult] = []
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

    def shard(self) -> Shard:
        """Boxes, detections and hits of each class on this rank's samples."""
        return Shard(len(self._results), count(self._results, self._num_classes), None)

    def detail(self) -> list[ImageResult]:
        return self._results

    def curves(self, details: list[list[ImageResult]]) -> list[list[float]]:
        """Precision of each class at 101 recalls, over the samples of all ranks; zeros where a class does not occur."""
        self._all = sorted((result for results in details for result in results), key=lambda result: result.id)
        self._curves = precision_curves(self._all, self._num_classes)
        return self._curves

    def write_details(self, folder: Path, pipeline: Any) -> None:
        """All detections, the precision of each class, and a sheet of pictures, in the run's ``evaluation`` folder."""
        from hpcai500.detection_sheet import write_sheet

        assert isinstance(pipeline, ClimatePipeline)
        target = folder / DETAILS_FOLDER
        target.mkdir(exist_ok=True)
        names = CLASS_NAMES
        write_detections(target / "detections.json", self._all, names)
        write_class_table(target / "classes.json", self._all, self._curves, names)
        write_sheet(target / "sheet.png", self._all, pipeline.validation)


def count(results: Sequence[ImageResult], num_classes: int) -> dict[str, list[int]]:
    """Boxes, detections and hits of each class, in lists of ``num_classes``."""
    table = np.zeros((3, num_classes), dtype=np.int64)
    for result in results:
        table[0] += np.bincount(result.labels, minlength=num_classes + 1)[1:]
        table[1] += np.bincount(result.found_labels, minlength=num_classes + 1)[1:]
    for found in _evaluate(results, num_classes).evalImgs if results else []:
        if found is not None:
            table[2, found["category_id"] - 1] += np.count_nonzero(found["dtMatches"][0])
    return {name: row.tolist() for name, row in zip(("boxes", "detections", "hits"), table, strict=True)}


def precision_curves(results: Sequence[ImageResult], num_classes: int) -> list[list[float]]:
    """Precision of each class at recalls 0, 0.01, ... 1: (num_classes, 101), zeros where a class does not occur."""
    evaluation = _evaluate(results, num_classes)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision = evaluation.eval["precision"][0, :, :, 0, 0].T  # (num_classes, 101); -1 where a class does not occur
    return [[float(value) for value in curve] for curve in np.maximum(precision, 0.0)]


def _evaluate(results: Sequence[ImageResult], num_classes: int) -> Any:
    """COCO's evaluation of every image at one overlap, before it is accumulated."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    images = [{"id": result.id} for result in results]
    categories = [{"id": label} for label in range(1, num_classes + 1)]
    boxes = [_boxes(result.id, result.boxes, result.labels) for result in results]
    detections = [_boxes(result.id, result.found, result.found_labels, result.scores) for result in results]
    for table, lists in ((truth, boxes), (found, detections)):
        annotations = [{**box, "id": number} for number, box in enumerate((b for part in lists for b in part), start=1)]
        table.dataset = {"images": images, "categories": categories, "annotations": annotations}
    with contextlib.redirect_stdout(io.StringIO()):  # the library prints how far it is
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.iouThrs = np.array([IOU])
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    return evaluation


def _boxes(image: int, boxes: FloatArray, labels: IntArray, scores: FloatArray | None = None) -> list[dict[str, Any]]:
    """Boxes of an image as COCO has them: left, top, width, height."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    rows = np.concatenate([boxes[:, :2], sizes], axis=1).astype(np.float64).tolist()
    return [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": row,
            "area": row[2] * row[3],
            "iscrowd": 0,
            **({} if scores is None else {"score": float(scores[number])}),
        }
        for number, (row, label) in enumerate(zip(rows, labels, strict=True))
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
    path: Path, results: Sequence[ImageResult], curves: list[list[float]], names: Sequence[str]
) -> None:
    """Average precision, boxes, detections and hits of each class."""
    counts = count(results, len(names))
    classes = [
        {
            "class": name,
            "average_precision": float(np.mean(curves[number])) if counts["boxes"][number] else None,
            **{key: counts[key][number] for key in counts},
        }
        for number, name in enumerate(names)
    ]
    total = {"quality": mean_average_precision(len(results), counts, curves), "iou": IOU, "classes": classes}
    path.write_text(json.dumps(total, indent=1) + "\n", encoding="utf-8")
