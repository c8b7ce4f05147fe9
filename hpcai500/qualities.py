"""How the quality of an evaluation follows from what the ledger carries of it, for every workload.

The engine and the verifier call the same functions. What they take: ``samples``, the number of samples evaluated;
``counts``, sums over samples that add up over ranks; ``curves``, numbers between 0 and 1 that only the whole has.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from hpcai500.errors import UnknownNameError

CountTable = Mapping[str, Sequence[int]]
CurveTable = Sequence[Sequence[float]]
# 0, 0.01, ... 1 as numpy.linspace gives them (cocodataset.org, "Detection Evaluation": AP is averaged over 101 recalls)
RECALLS = (*(number * 0.01 for number in range(100)), 1.0)


class Quality(NamedTuple):
    """One measure of quality: how to compute it, and what its counts and curves can be.

    Attributes:
        compute: quality from samples, counts and curves.
        problems: of the counts and curves of a whole evaluation, or of the counts of a shard (whose curves are None),
            with so many classes in the data; each a pair of what is expected and what was found.
        truths: names of the counts that the validation set alone decides, whatever the model does.
    """

    compute: Callable[[int, CountTable, CurveTable], float]
    problems: Callable[[int, CountTable, CurveTable | None, int], list[tuple[str, str]]]
    truths: tuple[str, ...] = ()


def top_1(samples: int, counts: CountTable, curves: CurveTable) -> float:
    """Share of samples whose class has the highest score."""
    return counts["correct"][0] / samples if samples else 0.0


def _top_1_problems(
    samples: int, counts: CountTable, curves: CurveTable | None, num_classes: int
) -> list[tuple[str, str]]:
    if counts.keys() != {"correct"} or len(counts["correct"]) != 1:
        return [("counts: one number, correct", f"{dict(counts)}")]
    problems = []
    if counts["correct"][0] > samples:
        problems.append((f"correct: at most {samples}", f"{counts['correct'][0]}"))
    if curves:
        problems.append(("curves: none", f"{len(curves)}"))
    return problems


def mean_average_precision(samples: int, counts: CountTable, curves: CurveTable) -> float:
    """Mean over the classes that occur of the mean precision at 101 recalls.

    ``curves`` hold a class each: the precision at recalls 0, 0.01, ... 1, each the highest at that recall or beyond
    (COCO's detection evaluation at one overlap, IoU 0.5). ``counts``: boxes of each class in the data, detections of
    it, and hits, the detections that match a box.
    """
    of_classes = [
        statistics.fmean(curve) for curve, boxes in zip(curves, counts["boxes"], strict=True) if boxes and curve
    ]
    return statistics.fmean(of_classes) if of_classes else 0.0


def _detection_problems(
    samples: int, counts: CountTable, curves: CurveTable | None, num_classes: int
) -> list[tuple[str, str]]:
    """Hits are among the boxes and detections; a curve falls, and ends where the last box that was hit ends it."""
    lengths = {len(values) for values in counts.values()}
    if counts.keys() != {"boxes", "detections", "hits"} or lengths != {num_classes}:
        return [
            (
                f"counts: boxes, detections and hits of each of {num_classes} classes",
                f"{ {k: len(v) for k, v in counts.items()} }",
            )
        ]
    rows = list(zip(counts["boxes"], counts["detections"], counts["hits"], strict=True))
    problems = [
        (f"hits[{number}]: at most {min(boxes, detections)}", f"{hits}")
        for number, (boxes, detections, hits) in enumerate(rows)
        if hits > min(boxes, detections)
    ]
    if curves is None or problems:
        return problems
    if len(curves) != len(rows):
        return [(f"curves: {len(rows)}, one of each class", f"{len(curves)}")]
    for number, (curve, (boxes, _, hits)) in enumerate(zip(curves, rows, strict=True)):
        reached = sum(recall <= hits / boxes for recall in RECALLS) if hits else 0
        falls = all(after <= before for before, after in itertools.pairwise(curve))
        num_positive = sum(value > 0 for value in curve)
        if len(curve) != len(RECALLS) or not falls or num_positive != reached:
            found = f"{len(curve)}, {num_positive} of them above 0" if falls else "precisions that rise"
            wanted = f"{len(RECALLS)} precisions that fall, the first {reached} of them above 0"
            problems.append((f"curves[{number}]: {wanted}", found))
    return problems


QUALITIES = {
    "top-1": Quality(top_1, _top_1_problems),
    "mAP@[IoU=0.5]": Quality(mean_average_precision, _detection_problems, truths=("boxes",)),
}


def quality_named(name: str) -> Quality:
    """The measure that a workload's rules name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in QUALITIES:
        raise UnknownNameError("quality", name, QUALITIES)
    return QUALITIES[name]
