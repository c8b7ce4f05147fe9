"""The boxes of climate files: in which order their columns are, whether they are sound, and their form in memory.

The data set's page gives the columns as ymin, xmin, ymax, xmax, class, its authors' code reads ymin, ymax, xmin, xmax,
class; which of them a file has is decided from all its boxes. In memory a box is (x1, y1, x2, y2) in pixels, x to the
east from column 0, y down the rows from row 0, x1 < x2 <= width and y1 < y2 <= height.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcai500.errors import DataError
from hpcai500.pipelines.climate_facts import CLASS_NAMES

BOX_ORDERS = {
    "y1 x1 y2 x2": (1, 0, 3, 2),
    "y1 y2 x1 x2": (2, 0, 3, 1),
}
"""Name of each order, and the columns of the file that hold x1, y1, x2, y2. The first is that of the page."""
ORDER_ATTRIBUTE = "box_order"
MAX_FILE_BOXES = 15
"""Rows of boxes a sample has at most in a file (benchmark's data set: 15)."""

Int32Array = NDArray[np.int32]


class FileBoxes(NamedTuple):
    """All boxes of a file, sample after sample."""

    order: str
    """A key of BOX_ORDERS."""
    boxes: NDArray[np.float32]
    """(x1, y1, x2, y2) in pixels, shape (total, 4)."""
    classes: NDArray[np.int64]
    """Indices of CLASS_NAMES, shape (total,)."""
    starts: NDArray[np.int64]
    """Sample i has rows starts[i] to starts[i + 1], shape (n + 1,)."""


class _Reading(NamedTuple):
    """All used rows, read in one order."""

    boxes: Int32Array
    faults: list[str]
    """What is wrong with the first wrong row, in words; empty where all are right."""
    num_wrong: int
    first_wrong: int


def read_boxes(rows: NDArray[Any], height: int, width: int, *, place: str, stated_order: str | None) -> FileBoxes:
    """Decide the order of the columns and check every box.

    Args:
        rows: as in the file, integers, shape (n, max_boxes, 5); rows that are all -1 are unused.
        height: of the fields in pixels.
        width: of the fields in pixels.
        place: the file, for messages.
        stated_order: what the attribute ``box_order`` of the data set says, if it has one; it decides where the boxes
            fit both orders, which only few boxes do.

    Raises:
        DataError: the boxes fit neither order, or both and nothing says which, or a class is out of range.
    """
    used = (rows != -1).any(axis=2)
    sample_of, row_of = np.nonzero(used)
    table = rows[used].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int64)
    _check_classes(table, sample_of, row_of, place)
    readings = {order: _read_as(table, columns, height, width) for order, columns in BOX_ORDERS.items()}
    fitting = [order for order, reading in readings.items() if not reading.faults]
    if not fitting:
        _refuse(readings, sample_of, row_of, table, place)
    order = _choose(fitting, readings, stated_order, place)
    return FileBoxes(order, readings[order].boxes.astype(np.float32), table[:, 4].copy(), starts)


def _check_classes(table: NDArray[np.int64], sample_of: NDArray[Any], row_of: NDArray[Any], place: str) -> None:
    wrong = np.flatnonzero((table[:, 4] < 0) | (table[:, 4] >= len(CLASS_NAMES)))
    if len(wrong):
        first = wrong[0]
        raise DataError(
            f"{place}: sample {sample_of[first]}, box {row_of[first]} has class {table[first, 4]}, which is out of "
            f"range; valid are 0 to {len(CLASS_NAMES) - 1} ({', '.join(CLASS_NAMES)}), and unused rows are all -1"
        )


def _read_as(table: NDArray[np.int64], columns: tuple[int, ...], height: int, width: int) -> _Reading:
    x1, y1, x2, y2 = (table[:, column] for column in columns)
    wrong = {
        "x1 >= x2": x1 >= x2,
        "y1 >= y2": y1 >= y2,
        f"outside the field of {height} x {width}": (x1 < 0) | (y1 < 0) | (x2 > width) | (y2 > height),
    }
    any_wrong = np.logical_or.reduce(list(wrong.values()))
    first = int(any_wrong.argmax()) if any_wrong.any() else -1
    faults = [what for what, where in wrong.items() if first >= 0 and where[first]]
    return _Reading(np.stack([x1, y1, x2, y2], axis=1).astype(np.int32), faults, int(any_wrong.sum()), first)


def _refuse(
    readings: dict[str, _Reading],
    sample_of: NDArray[Any],
    row_of: NDArray[Any],
    table: NDArray[np.int64],
    place: str,
) -> None:
    """Name the first box that is wrong in the order that fits better."""
    order = min(readings, key=lambda one: readings[one].num_wrong)
    reading = readings[order]
    first = reading.first_wrong
    values = ", ".join(str(value) for value in table[first])
    raise DataError(
        f"{place}: its boxes fit neither order of columns; read as {order!r}, which fits better, "
        f"{reading.num_wrong} of {len(table)} are wrong, the first being sample {sample_of[first]}, "
        f"box {row_of[first]} ({values}): "
        f"{' and '.join(reading.faults)}; mend the boxes or fetch the file again"
    )


def _choose(fitting: list[str], readings: dict[str, _Reading], stated_order: str | None, place: str) -> str:
    if stated_order is not None and stated_order not in BOX_ORDERS:
        known = " or ".join(repr(order) for order in BOX_ORDERS)
        raise DataError(f"{place}: the boxes have the attribute {ORDER_ATTRIBUTE} = {stated_order!r}; expected {known}")
    if stated_order is not None and stated_order not in fitting:
        raise DataError(
            f"{place}: the boxes have the attribute {ORDER_ATTRIBUTE} = {stated_order!r}, but they only fit "
            f"{fitting[0]!r}; mend the attribute"
        )
    if stated_order is not None or len(fitting) == 1:
        return stated_order or fitting[0]
    first, second = (readings[order].boxes for order in BOX_ORDERS)
    if np.array_equal(first, second):  # also where there is no box at all
        return fitting[0]
    known = " or ".join(repr(order) for order in BOX_ORDERS)
    raise DataError(
        f"{place}: its {len(first)} boxes fit both orders of columns, so none can be trusted; give the data set "
        f"'boxes' the attribute {ORDER_ATTRIBUTE} with the value {known}"
    )
