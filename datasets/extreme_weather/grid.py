"""The grid of the generated fields: equal steps of latitude and longitude, row 0 at the South Pole, column 0 at 0 E.

The weather is drawn on a fixed grid of 2.5 degrees and in degrees, whatever the size of the output: a recipe with other
heights and widths shows the same weather at another resolution.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]  # float32, but for intermediate values
IntArray = npt.NDArray[np.intp]

COARSE_STEP_DEG = 2.5
COARSE_SHAPE = (72, 144)
DEGREE_M = 111_195.0  # length of a degree of a great circle; mean radius of the Earth 6,371 km
EARTH_ROTATION = 7.292e-5  # rad/s


@dataclass(frozen=True)
class Grid:
    """``height`` rows from pole to pole and ``width`` columns round the Earth; values belong to the cells' centres."""

    height: int
    width: int

    @functools.cached_property
    def latitudes(self) -> FloatArray:
        """Of the rows, in degrees north, from south to north; (height,)."""
        return ((np.arange(self.height) + 0.5) * (180 / self.height) - 90).astype(np.float32)

    @functools.cached_property
    def longitudes(self) -> FloatArray:
        """Of the columns, in degrees east, from 0; (width,)."""
        return ((np.arange(self.width) + 0.5) * (360 / self.width)).astype(np.float32)

    def rows_of(self, latitude: float) -> float:
        """Position of a latitude in rows, 0 at the South Pole and ``height`` at the North Pole."""
        return (latitude + 90) * self.height / 180

    def columns_of(self, longitude: float) -> float:
        """Position of a longitude in columns; outside 0 to ``width`` where the longitude is outside 0 to 360."""
        return longitude * self.width / 360

    @functools.cached_property
    def _row_taps(self) -> tuple[IntArray, FloatArray]:
        indices, weights = _spline_taps((self.latitudes + 90) / COARSE_STEP_DEG - 0.5)
        return np.clip(indices, 0, COARSE_SHAPE[0] - 1), weights

    @functools.cached_property
    def _column_taps(self) -> tuple[IntArray, FloatArray]:
        indices, weights = _spline_taps(self.longitudes / COARSE_STEP_DEG - 0.5)
        return indices % COARSE_SHAPE[1], weights

    def interpolate(self, coarse: FloatArray) -> FloatArray:
        """Values (height, width) of a field (72, 144) on the grid of 2.5 degrees, by cubic B-splines.

        Sums of a fixed order, not matrix products: their rounding would depend on the number of threads.
        """
        columns, column_weights = self._column_taps
        wide = np.zeros((COARSE_SHAPE[0], self.width), np.float32)
        for tap in range(4):
            wide += coarse[:, columns[tap]] * column_weights[tap]
        rows, row_weights = self._row_taps
        values: FloatArray = wide[rows[0]]
        values *= row_weights[0][:, None]
        for tap in range(1, 4):
            values += wide[rows[tap]] * row_weights[tap][:, None]
        return values

    def window(self, longitude: float, latitude: float, reach: tuple[float, float]) -> Window | None:
        """The cells within ``reach`` (degrees of longitude, degrees of latitude) of a place; None if there are none."""
        south = max(int(np.ceil(self.rows_of(latitude - reach[1]) - 0.5)), 0)
        north = min(int(np.floor(self.rows_of(latitude + reach[1]) - 0.5)) + 1, self.height)
        west = int(np.ceil(self.columns_of(longitude - reach[0]) - 0.5))
        east = min(int(np.floor(self.columns_of(longitude + reach[0]) - 0.5)) + 1, west + self.width)
        if south >= north or west >= east:
            return None
        columns = np.arange(west, east)
        x = ((columns + 0.5) * (360 / self.width) - longitude).astype(np.float32)
        y = self.latitudes[south:north] - np.float32(latitude)
        return Window(slice(south, north), columns % self.width, x[None, :], y[:, None])


@dataclass(frozen=True)
class Window:
    """Part of a grid round a place.

    ``rows`` and ``columns`` say which cells (columns go on behind the last with the first); ``x`` (1, columns) and
    ``y`` (rows, 1) are their distances from the place in degrees of longitude and latitude.
    """

    rows: slice
    columns: npt.NDArray[np.int64]
    x: FloatArray
    y: FloatArray

    def add(self, field: FloatArray, values: FloatArray) -> None:
        """Add ``values`` (rows, columns) to a field (height, width) of the whole grid, in place."""
        first, count, width = int(self.columns[0]), len(self.columns), field.shape[1]
        before_seam = min(count, width - first)
        field[self.rows, first : first + before_seam] += values[:, :before_seam]
        if before_seam < count:
            field[self.rows, : count - before_seam] += values[:, before_seam:]


COARSE_GRID = Grid(*COARSE_SHAPE)


def coriolis(latitude: npt.ArrayLike) -> FloatArray:
    """Coriolis parameter in 1/s at latitudes in degrees: negative in the south."""
    return np.asarray(2 * EARTH_ROTATION * np.sin(np.radians(latitude)), dtype=np.float32)


def _spline_taps(positions: FloatArray) -> tuple[IntArray, FloatArray]:
    """Indices (4, n) and weights (4, n) of the uniform cubic B-spline at ``positions`` in cells (n,)."""
    whole = np.floor(positions)
    t = (positions - whole).astype(np.float64)
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return whole.astype(np.intp) + np.arange(-1, 3)[:, None], weights.astype(np.float32)
