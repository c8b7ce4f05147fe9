"""Pictures of what a detector found: the validation samples it does best on, worst on, and as usual."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hpcai500.pipelines.climate import ClimateSplit
from hpcai500.pipelines.climate_facts import CHANNELS
from hpcai500.weather_pictures import Detections, Panel, draw_sheet

CHANNEL = "TMQ"  # the one in which people see all four classes
NUM_EACH = 3  # best, usual and worst samples
SURE_SCORE = 0.5  # detections below are neither drawn nor judged: there are many and they are meant as doubtful
IOU = 0.5


class FoundSample(Protocol):
    """What there is on a sample and what was found; see hpcai500/workloads/detection_evaluation.py."""

    @property
    def id(self) -> int: ...
    @property
    def boxes(self) -> NDArray[np.float32]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def found(self) -> NDArray[np.float32]: ...
    @property
    def scores(self) -> NDArray[np.float32]: ...
    @property
    def found_labels(self) -> NDArray[np.int64]: ...


def write_sheet(path: Path, results: Sequence[FoundSample], split: ClimateSplit) -> Path:
    """Draw the samples with the highest, middle and lowest F1 of sure detections.

    Args:
        path: of the PNG.
        results: of all samples of the split.
        split: where their fields are read from.

    Raises:
        BackendUnavailableError: matplotlib is missing.
        DataError: a field cannot be read any more.
    """
    names = [channel.name for channel in CHANNELS]
    row = names.index(CHANNEL)
    sample = np.empty(split.shape, dtype=np.float32)
    panels = []
    for group, members in grouped(results).items():
        for result in members:
            split.read(result.id, sample)
            sure = result.scores >= SURE_SCORE
            detections = Detections(result.found[sure], result.found_labels[sure] - 1, result.scores[sure])
            title = f"{group}: sample {result.id}, F1 {f1_score(result):.2f}"
            panels.append(Panel(sample[row].copy(), result.boxes, result.labels - 1, detections, title))
    title = f"Detections with a score of at least {SURE_SCORE:g} on validation samples"
    return draw_sheet(path, panels, channel=(CHANNEL, CHANNELS[row].unit), title=title)


def grouped(results: Sequence[FoundSample]) -> dict[str, Sequence[FoundSample]]:
    """Best, usual and worst of the samples, none twice; of equals those with the most boxes tell most."""
    ranked = sorted(results, key=lambda result: (-f1_score(result), -len(result.boxes), result.id))
    best, rest = ranked[:NUM_EACH], ranked[NUM_EACH:]
    worst = sorted(rest, key=lambda result: (f1_score(result), -len(result.boxes), result.id))[:NUM_EACH]
    named = {result.id for result in worst}
    rest = [result for result in rest if result.id not in named]
    middle = max(0, (len(rest) - NUM_EACH) // 2)
    return {"best": best, "usual": rest[middle : middle + NUM_EACH], "worst": worst}


def f1_score(result: FoundSample) -> float:
    """2 x hits / (boxes + sure detections): 1 if every box is found and nothing else, also where there is nothing.

    A box is hit by the surest detection of its class that overlaps it by half and has hit no other.
    """
    sure = result.scores >= SURE_SCORE
    found, labels = result.found[sure], result.found_labels[sure]
    total = len(result.boxes) + len(found)
    if not total:
        return 1.0
    matches = (_iou(found, result.boxes) >= IOU) & (labels[:, None] == result.labels[None, :])
    free = np.ones(len(result.boxes), dtype=np.bool_)
    hits = 0
    for row in matches:
        candidates = np.flatnonzero(row & free)
        if len(candidates):
            free[candidates[0]] = False
            hits += 1
    return 2 * hits / total


def _iou(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of boxes (k, 4) with boxes (m, 4): shape (k, m)."""
    corners = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    overlap = np.prod(np.clip(corners[1] - corners[0], 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (one, other)]
    ratio: NDArray[np.float32] = overlap / np.maximum(areas[0][:, None] + areas[1][None, :] - overlap, 1e-9)
    return ratio
