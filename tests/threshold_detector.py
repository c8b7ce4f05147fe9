"""What one channel alone tells of storms: thresholds and local extremes as detectors, and their average precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]  # ymin, xmin, ymax, xmax


class Detection(NamedTuple):
    sample: int
    box: Box
    score: float


def components(mask: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows and columns of each group of cells that touch along an edge."""
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}
    while left:
        todo, found = [left.pop()], []
        while todo:
            row, column = todo.pop()
            found.append((row, column))
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if near in left:
                    left.remove(near)
                    todo.append(near)
        rows, columns = np.array(found).T
        yield rows, columns


def above_threshold(fields: NDArray[np.float32], threshold: float, enlarged: float) -> list[Detection]:
    """Connected areas above a threshold in fields (n, h, w), their boxes ``enlarged``; the higher the surer."""
    detections = []
    for sample, field in enumerate(fields):
        for rows, columns in components(field > threshold):
            y, x = 0.5 * (rows.min() + rows.max() + 1), 0.5 * (columns.min() + columns.max() + 1)
            half_height = 0.5 * enlarged * (rows.max() + 1 - rows.min())
            half_width = 0.5 * enlarged * (columns.max() + 1 - columns.min())
            box = (y - half_height, x - half_width, y + half_height, x + half_width)
            detections.append(Detection(sample, box, float(field[rows, columns].max())))
    return detections


def local_maxima(fields: NDArray[np.float32], reach: int = 3) -> list[Detection]:
    """Local maxima of fields (n, h, w), the surer the more they stand out from the mean around; boxes of one cell."""
    detections = []
    for sample, field in enumerate(fields):
        windows = surroundings(field, reach)
        for row, column in zip(*np.nonzero(field == windows.max((2, 3))), strict=True):
            score = float(field[row, column] - windows[row, column].mean())
            detections.append(Detection(sample, (row, column, row + 1.0, column + 1.0), score))
    return detections


def resized(detections: list[Detection], height: float, width: float) -> list[Detection]:
    """With boxes of one size round the same centres."""
    found = []
    for sample, box, score in detections:
        y, x = 0.5 * (box[0] + box[2]), 0.5 * (box[1] + box[3])
        found.append(Detection(sample, (y - height / 2, x - width / 2, y + height / 2, x + width / 2), score))
    return found


def surroundings(field: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """The cells within ``reach`` of each cell of (h, w): (h, w, 2 reach + 1, 2 reach + 1)."""
    padded = np.pad(field, ((0, 0), (reach, reach)), mode="wrap")
    padded = np.pad(padded, ((reach, reach), (0, 0)), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1))


def within(detections: list[Detection], rows: tuple[float, float], height: int) -> list[Detection]:
    """Those whose centre is as many rows from the equator as ``rows`` say."""
    middles = (abs(0.5 * (detection.box[0] + detection.box[2]) - height / 2) for detection in detections)
    return [detection for detection, away in zip(detections, middles, strict=True) if rows[0] <= away <= rows[1]]


def overlap(one: Box, other: Box) -> float:
    height = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    width = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - height * width
    return height * width / area


def average_precision(detections: list[Detection], truth: list[list[Box]], least_overlap: float = 0.5) -> float:
    """At 101 recalls, as COCO's; ``truth`` are the boxes of each sample."""
    free = [set(range(len(boxes))) for boxes in truth]
    hits = []
    for sample, box, _ in sorted(detections, key=lambda detection: -detection.score):
        best = max(((overlap(box, truth[sample][i]), i) for i in free[sample]), default=(0.0, -1))
        hits.append(best[0] >= least_overlap)
        if hits[-1]:
            free[sample].remove(best[1])
    if not hits:
        return 0.0
    found = np.cumsum(hits)
    recall, precision = found / sum(map(len, truth)), found / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, np.linspace(0, 1, 101))
    return float(np.append(precision, 0.0)[first].mean())
