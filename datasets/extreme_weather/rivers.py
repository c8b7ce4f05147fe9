"""Atmospheric rivers: long filaments of moist air that blow to the pole and to the east, with rain where they cool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcai500.datasets.extreme_weather.atmosphere import AIR_DENSITY, State
from hpcai500.datasets.extreme_weather.grid import DEGREE_M, FloatArray, Grid, Window, coriolis
from hpcai500.datasets.extreme_weather.storms import ATMOSPHERIC_RIVER, Event, nearest_signed

CONTOUR = 1.18  # half the filament's height, in standard deviations
BOTTOM_SHARE, BOTTOM_TURN = 0.65, 0.3  # wind near the ground / at 850 hPa; turned to the lower pressure


@dataclass(frozen=True)
class River:
    """A curved filament.

    ``longitude`` and ``latitude`` of its tropical end in degrees; ``length`` in degrees of arc; ``heading`` at its
    middle in rad from east to the pole; ``bend`` in rad from one end to the other, positive to the pole; ``width``:
    standard deviation across in degrees; ``moisture`` in kg/m2; ``wind`` at 850 hPa in m/s.
    """

    longitude: float
    latitude: float
    length: float
    heading: float
    bend: float
    width: float
    moisture: float
    wind: float

    @property
    def hemisphere(self) -> int:
        return 1 if self.latitude >= 0 else -1

    @property
    def shrink(self) -> float:
        """Cosine of about its middle latitude: what turns degrees of longitude into degrees of arc."""
        return float(np.cos(np.radians(abs(self.latitude) + 0.5 * self.length * np.sin(max(self.heading, 0.0)))))

    def points(self) -> FloatArray:
        """The middle line (n, 2) in degrees of arc from the tropical end: x to the east, y to the pole."""
        number = 14
        directions = self.heading + self.bend * np.linspace(-0.5, 0.5, number - 1)
        steps = np.stack([np.cos(directions), np.sin(directions)], axis=1) * (self.length / (number - 1))
        return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]).astype(np.float32)

    def event(self) -> Event:
        """The rectangle round the contour at half the filament's height."""
        points, edge = self.points(), CONTOUR * self.width
        west, south = (float(value) - edge for value in points.min(axis=0))
        east, north = (float(value) + edge for value in points.max(axis=0))
        low, high = sorted((self.latitude + self.hemisphere * south, self.latitude + self.hemisphere * north))
        return Event(
            ATMOSPHERIC_RIVER,
            self.longitude + west / self.shrink,
            low,
            self.longitude + east / self.shrink,
            high,
        )


def add_river(state: State, grid: Grid, river: River) -> Event:
    """Add a filament of moisture with a jet along it, in balance with a step of pressure across it, and rain."""
    event = river.event()
    margin = 3.5 * river.width
    middle = 0.5 * (event.west + event.east), 0.5 * (event.south + event.north)
    reach = 0.5 * (event.east - event.west) + margin / river.shrink, 0.5 * (event.north - event.south) + margin
    window = grid.window(*middle, (min(reach[0], 180), reach[1]))
    if window is None:
        return event
    x = (window.x + np.float32(middle[0] - river.longitude)) * np.float32(river.shrink)
    y = (window.y + np.float32(middle[1] - river.latitude)) * river.hemisphere
    square, right, along = nearest_signed(x, y, river.points())
    filament = np.exp(-0.5 * square / river.width**2)
    window.add(state.moisture, river.moisture * filament)
    window.add(state.humidity, 0.10 * filament)
    window.add(state.temperature, 1.5 * filament * along)
    window.add(state.rain, 2.2e-7 * (river.moisture / 22) * filament * np.sin(np.pi * (0.1 + 0.8 * along)))
    _add_jet(state, window, river, square=square, right=right, along=along)
    return event


def _add_jet(
    state: State, window: Window, river: River, *, square: FloatArray, right: FloatArray, along: FloatArray
) -> None:
    """Add a geostrophic jet: pressure A n / w exp(-(n / w)^2 / 2) at n to its right, blowing dp/dn / (density f).

    In the south ``right`` is the left hand (y points to the pole), and f is negative: the formula is the same.
    """
    width = 1.3 * river.width
    envelope = np.exp(-0.5 * square / width**2)
    f = abs(float(coriolis(river.latitude))) + abs(float(coriolis(river.event().north)))
    rise = river.wind * AIR_DENSITY * 0.5 * f * width * DEGREE_M
    window.add(state.pressure, rise * (right / width) * envelope)
    speed = river.wind * (1 - (right / width) ** 2) * envelope
    direction = river.heading + river.bend * (along - np.float32(0.5))
    for east, north, share, turn in (
        (state.east_850, state.north_850, 1.0, 0.0),
        (state.east_bottom, state.north_bottom, BOTTOM_SHARE, BOTTOM_TURN),
    ):
        window.add(east, share * speed * np.cos(direction + turn))
        window.add(north, river.hemisphere * share * speed * np.sin(direction + turn))
