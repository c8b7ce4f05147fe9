"""Land, sea and mountains of the generated fields: a sketch of the Earth's in cells of 5 degrees."""

from __future__ import annotations

import functools

import numpy as np

from hpcai500.datasets.extreme_weather.grid import COARSE_GRID, COARSE_SHAPE, FloatArray, Grid

CELL_DEG = 5
# Land by bands of 5 degrees from 90 N to 90 S: from and to in degrees east; -80 to -75 is 80 W to 75 W.
LAND_BANDS: tuple[tuple[tuple[int, int], ...], ...] = (
    (),
    ((-70, -25),),
    ((-90, -20), (15, 25), (95, 105)),
    ((-120, -85), (-55, -20), (100, 115)),
    ((-160, -115), (-85, -75), (-50, -25), (20, 30), (60, 180)),
    ((-165, -110), (-75, -65), (-55, -35), (-25, -15), (10, 180)),
    ((-160, -95), (-75, -65), (-50, -45), (5, 165)),
    ((-130, -95), (-80, -60), (-5, 0), (10, 140), (155, 160)),
    ((-125, -60), (-5, 140)),
    ((-125, -65), (0, 30), (35, 50), (55, 135), (140, 145)),
    ((-120, -75), (-10, 0), (10, 15), (20, 25), (30, 120), (125, 130), (135, 140)),
    ((-120, -80), (-10, 10), (35, 120), (130, 135)),
    ((-115, -100), (-100, -95), (-85, -80), (-15, 35), (35, 55), (60, 120)),
    ((-105, -95), (-15, 40), (40, 60), (70, 90), (95, 110)),
    ((-100, -85), (-15, 40), (45, 55), (75, 80), (95, 110), (120, 125)),
    ((-85, -80), (-75, -60), (-15, 50), (75, 80), (100, 105)),
    ((-80, -50), (-10, 50), (125, 125), (100, 105)),
    ((-80, -50), (10, 45), (100, 105), (110, 120)),
    ((-80, -35), (10, 40), (105, 120), (135, 140)),
    ((-80, -35), (10, 40), (105, 110), (140, 150)),
    ((-75, -35), (15, 40), (130, 135)),
    ((-70, -40), (10, 40), (45, 50), (125, 140), (140, 145)),
    ((-70, -40), (15, 35), (45, 50), (115, 150)),
    ((-70, -50), (15, 35), (115, 155)),
    ((-70, -50), (15, 30), (115, 125), (135, 155)),
    ((-75, -60), (140, 150), (170, 175)),
    ((-75, -65), (170, 175)),
    ((-75, -65),),
    ((-70, -65),),
    (),
    ((-65, -60),),
    ((-70, -60), (40, 60), (80, 165)),
    ((-75, -60), (-10, 170)),
    ((-140, -60), (-25, 170)),
    ((-150, -50), (-30, 175)),
    ((-180, 180),),
)
# Mountains and ice sheets: longitude, latitude, half widths in degrees east and north, height in m.
MOUNTAINS = (
    (88, 33, 12, 6, 4300),  # Tibet
    (-110, 42, 8, 11, 1800),  # Rocky Mountains
    (-69, -20, 4, 15, 2900),  # Andes
    (-40, 73, 10, 9, 2400),  # Greenland
    (90, -82, 70, 11, 2700),  # Antarctica, east
    (-90, -82, 60, 8, 1700),  # Antarctica, west
    (38, 2, 6, 12, 1000),  # East Africa
    (25, -27, 8, 6, 1000),  # South Africa
    (50, 34, 9, 5, 1200),  # Iran
    (100, 52, 12, 6, 1000),  # Altai
)


@functools.cache
def coarse_land() -> FloatArray:
    """Share of land in each cell of the grid of 2.5 degrees, 0 to 1; (72, 144)."""
    cells = np.zeros((36, 72), np.float32)
    for row, bands in enumerate(LAND_BANDS):
        for west, east in bands:
            cells[35 - row, np.arange(west // CELL_DEG, east // CELL_DEG) % 72] = 1
    return np.repeat(np.repeat(cells, 2, axis=0), 2, axis=1)


@functools.cache
def coarse_elevation() -> FloatArray:
    """Height of the ground in m, (72, 144)."""
    longitudes, latitudes = COARSE_GRID.longitudes[None, :], COARSE_GRID.latitudes[:, None]
    heights = np.full(COARSE_SHAPE, 250, np.float32)
    for longitude, latitude, east, north, height in MOUNTAINS:
        away = (longitudes - longitude + 180) % 360 - 180
        heights += np.float32(height) * np.exp(-((away / east) ** 2) - ((latitudes - latitude) / north) ** 2)
    return heights * coarse_land()


@functools.cache
def smooth_land() -> FloatArray:
    """``coarse_land`` without its coasts, which no pressure follows: smoothed over about 8 degrees; (72, 144)."""
    land = coarse_land()
    for _ in range(8):  # each adds a variance of half a cell squared
        land = 0.5 * land + 0.25 * (np.roll(land, 1, 1) + np.roll(land, -1, 1))
        padded = np.pad(land, ((1, 1), (0, 0)), mode="edge")
        land = 0.5 * land + 0.25 * (padded[:-2] + padded[2:])
    return land


@functools.lru_cache(maxsize=2)
def elevation_on(grid: Grid) -> FloatArray:
    """Height of the ground in m on ``grid``; (height, width)."""
    return grid.interpolate(coarse_elevation())
