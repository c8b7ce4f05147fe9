"""Cyclones of the tropics and of middle latitudes, and lows that are no event, with what they do to all channels.

A storm is drawn in a window round its centre, in degrees of arc: x to the east (longitude times the cosine of the
centre's latitude), y to the poles' direction of its hemisphere, so one code serves both. Its wind is the gradient wind
of its own pressure (Holton, "An introduction to dynamic meteorology", equation 3.15), turned inwards near the ground.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcai500.datasets.extreme_weather.atmosphere import AIR_DENSITY, State
from hpcai500.datasets.extreme_weather.grid import DEGREE_M, FloatArray, Grid, Window, coriolis

TROPICAL_DEPRESSION, TROPICAL_CYCLONE, EXTRATROPICAL_CYCLONE, ATMOSPHERIC_RIVER = range(4)
INFLOW_BOTTOM, INFLOW_850 = 0.35, 0.08  # tangent of the angle between wind and isobars
BOTTOM_SHARE = 0.8  # wind near the ground / above the friction layer
MIN_CORIOLIS_LATITUDE = 8.0


@dataclass(frozen=True)
class Event:
    """A class and the rectangle round what is visible of it, in degrees; longitudes may lie outside 0 to 360."""

    kind: int
    west: float
    south: float
    east: float
    north: float


@dataclass(frozen=True)
class Storm:
    """A vortex.

    ``longitude`` and ``latitude`` in degrees; ``radius`` from the centre to the edge of what is visible, in degrees of
    arc; ``deficit`` of pressure in Pa; ``strength`` 0 to 1 for what goes with it; ``stretch`` = sqrt(length east-west
    / north-south).
    """

    longitude: float
    latitude: float
    radius: float
    deficit: float
    strength: float
    stretch: float = 1.0

    @property
    def hemisphere(self) -> int:
        return 1 if self.latitude >= 0 else -1

    def window(self, grid: Grid, reach: float) -> tuple[Window, FloatArray, FloatArray] | None:
        """The cells within ``reach`` radii, and their x and y in degrees of arc; None if no cell is."""
        shrink = float(np.cos(np.radians(self.latitude)))
        reach *= self.radius * max(self.stretch, 1 / self.stretch)
        window = grid.window(self.longitude, self.latitude, (min(reach / shrink, 180), reach))
        return None if window is None else (window, window.x * shrink, window.y * self.hemisphere)

    def event(self, kind: int, west: float, south: float, east: float, north: float) -> Event:
        """With edges given from the centre in degrees of arc, x to the east and y to the pole."""
        shrink = float(np.cos(np.radians(self.latitude)))
        low, high = sorted((self.latitude + self.hemisphere * south, self.latitude + self.hemisphere * north))
        return Event(kind, self.longitude + west / shrink, low, self.longitude + east / shrink, high)


def add_tropical_cyclone(state: State, grid: Grid, storm: Storm, spiral: float) -> Event:
    """A warm-core vortex with Holland's profile of pressure, an eye wall and rain bands that ``spiral`` turns (rad)."""
    reach = 2.2
    event = storm.event(TROPICAL_CYCLONE, *_ellipse(storm, 1.0))
    place = storm.window(grid, reach)
    if place is None:
        return event
    window, x, y = place
    r = _distance(storm, x, y)
    _add_vortex(state, storm, (window, x, y), *holland(r, storm, core=0.28, shape=1.5, reach=reach))
    relative = r / storm.radius
    core, disc = np.exp(-((relative / 0.5) ** 2)), np.exp(-((relative / 0.85) ** 4))
    bands = 1 + 0.45 * np.cos(2 * (np.arctan2(y, x) + 3.0 * np.log(relative + 0.05)) + spiral)
    window.add(state.temperature_200, (3 + 8 * storm.strength) * core)
    window.add(state.temperature_500, (2 + 5 * storm.strength) * core)
    window.add(state.temperature, -1.5 * core)
    window.add(state.moisture, (14 + 14 * storm.strength) * disc * (0.85 + 0.15 * bands))
    window.add(state.rain, (2.5e-7 + 5e-7 * storm.strength) * np.exp(-((relative / 0.65) ** 2)) * bands)
    window.add(state.humidity, 0.12 * disc)
    return event


def add_tropical_depression(state: State, grid: Grid, storm: Storm, side: float) -> Event:
    """A shallow, broad vortex with little warm core, and its rain on one ``side`` (direction in rad)."""
    reach = 2.2
    event = storm.event(TROPICAL_DEPRESSION, *_ellipse(storm, 1.0))
    place = storm.window(grid, reach)
    if place is None:
        return event
    window, x, y = place
    r = _distance(storm, x, y)
    _add_vortex(state, storm, (window, x, y), *holland(r, storm, core=0.50, shape=1.3, reach=reach))
    relative = r / storm.radius
    disc = np.exp(-((relative / 0.85) ** 4))
    aside = ((x - 0.35 * storm.radius * np.cos(side)) ** 2 + (y - 0.35 * storm.radius * np.sin(side)) ** 2) ** 0.5
    window.add(state.temperature_500, 1.2 * storm.strength * np.exp(-((relative / 0.6) ** 2)))
    window.add(state.temperature_200, 0.8 * storm.strength * disc)
    window.add(state.moisture, (9 + 7 * storm.strength) * disc)
    window.add(state.rain, (1.2e-7 + 1.6e-7 * storm.strength) * np.exp(-((aside / (0.6 * storm.radius)) ** 2)))
    window.add(state.humidity, 0.08 * disc)
    return event


def add_extratropical_cyclone(state: State, grid: Grid, storm: Storm, turn: float) -> Event:
    """A deep low with a comma of cloud: its head round the pole's side, its tail along the cold front.

    ``turn`` rotates the comma (rad); warm air lies ahead of the front, cold air behind.
    """
    reach = 2.0
    comma, width = comma_points(storm.radius, turn), 0.15 * storm.radius
    low = 0.70 * storm.radius
    west, east = min(comma[:, 0].min() - width, -low), max(comma[:, 0].max() + width, low)
    south, north = min(comma[:, 1].min() - width, -low), max(comma[:, 1].max() + width, low)
    event = storm.event(EXTRATROPICAL_CYCLONE, west, south, east, north)
    place = storm.window(grid, reach)
    if place is None:
        return event
    window, x, y = place
    r = _distance(storm, x, y)
    _add_vortex(state, storm, (window, x, y), *gaussian(r, storm, width=0.45, reach=reach))
    relative = r / storm.radius
    # along the tail from the centre; the warm sector is to its right in the north (x is turned, y is to the pole)
    ahead = x * np.cos(turn) + y * np.sin(turn)
    wide = np.exp(-((relative / 0.9) ** 2))
    cloud = np.exp(-((nearest(x, y, comma) / (1.2 * width)) ** 2))
    contrast = (3 + 5 * storm.strength) * np.tanh(2.5 * ahead / storm.radius) * wide
    window.add(state.temperature, contrast)
    window.add(state.temperature_500, 0.7 * contrast - (2 + 3 * storm.strength) * wide)
    window.add(state.temperature_200, (3 + 4 * storm.strength) * np.exp(-((relative / 0.6) ** 2)))
    window.add(state.moisture, (7 + 7 * storm.strength) * cloud + 0.5 * contrast)
    window.add(state.rain, (1.0e-7 + 1.8e-7 * storm.strength) * cloud)
    window.add(state.humidity, 0.12 * cloud)
    return event


def add_low(state: State, grid: Grid, storm: Storm, core_temperatures: tuple[float, float, float]) -> None:
    """A low that is no event: its wind, and changes of TREFHT, T500 and T200 in K in its core.

    With warm ground and a dry column it is a heat low; with a cold T500 a cut-off low.
    """
    place = storm.window(grid, 2.0)
    if place is None:
        return
    window, x, y = place
    r = _distance(storm, x, y)
    _add_vortex(state, storm, (window, x, y), *gaussian(r, storm, width=0.45, reach=2.0))
    core = np.exp(-((r / (0.8 * storm.radius)) ** 2))
    for field, change in zip(
        (state.temperature, state.temperature_500, state.temperature_200), core_temperatures, strict=True
    ):
        window.add(field, change * core)
    window.add(state.moisture, -5 * storm.strength * core)
    window.add(state.humidity, -0.15 * storm.strength * core)


def add_moist_patch(state: State, grid: Grid, patch: Storm, rain: float, warmth: float) -> None:
    """Moist air with showers (``rain`` in m/s) that warm T500 by ``warmth`` K, and no wind of its own: no event."""
    place = patch.window(grid, 1.6)
    if place is None:
        return
    window, x, y = place
    disc = np.exp(-((_distance(patch, x, y) / (0.85 * patch.radius)) ** 4))
    window.add(state.moisture, (6 + 14 * patch.strength) * disc)
    window.add(state.rain, rain * disc)
    window.add(state.temperature_500, warmth * disc)
    window.add(state.humidity, 0.08 * disc)


# ------------------------------------------------------------------------------------------------------------- profiles


def holland(r: FloatArray, storm: Storm, *, core: float, shape: float, reach: float) -> tuple[FloatArray, FloatArray]:
    """Pressure anomaly (Pa) and its slope (Pa per degree of arc) at distances ``r`` from the centre (degrees of arc).

    Holland, Mon. Weather Rev. 108 (1980) 1212, equation 1: p = pc + deficit exp(-(core / r)^shape), with the radius of
    the strongest wind ``core`` in radii of the storm; tapered to nothing at ``reach`` radii.
    """
    r = np.maximum(r, 0.02 * storm.radius)
    ratio = (core * storm.radius / r) ** shape
    inner = np.exp(-ratio)
    anomaly, slope = -storm.deficit * (1 - inner), storm.deficit * inner * ratio * shape / r
    return _tapered(r, anomaly, slope, storm.radius, reach)


def gaussian(r: FloatArray, storm: Storm, *, width: float, reach: float) -> tuple[FloatArray, FloatArray]:
    """As ``holland``, for p = -deficit exp(-(r / width)^2 / 2) with ``width`` in radii of the storm."""
    scale = width * storm.radius
    anomaly = -storm.deficit * np.exp(-0.5 * (r / scale) ** 2)
    return _tapered(r, anomaly, -anomaly * r / scale**2, storm.radius, reach)


def _tapered(
    r: FloatArray, anomaly: FloatArray, slope: FloatArray, radius: float, reach: float
) -> tuple[FloatArray, FloatArray]:
    t = np.clip((r / radius - 1) / (reach - 1), 0, 1)
    taper, fall = 1 - t * t * (3 - 2 * t), -6 * t * (1 - t) / ((reach - 1) * radius)
    return anomaly * taper, slope * taper + anomaly * fall


def gradient_wind(r: FloatArray, slope: FloatArray, latitude: float) -> FloatArray:
    """Speed in m/s round a low, at distances ``r`` (degrees of arc) with pressure slope ``slope`` (Pa per degree)."""
    f = abs(float(coriolis(max(abs(latitude), MIN_CORIOLIS_LATITUDE))))
    half = 0.5 * f * DEGREE_M * r
    return np.asarray(np.sqrt(half**2 + np.maximum(slope, 0) * r / AIR_DENSITY) - half)


def comma_points(radius: float, turn: float) -> FloatArray:
    """The comma's middle line (n, 2) as x, y in degrees of arc: from the head clockwise to the tail's end."""
    t = np.linspace(0, 1, 14)
    angle = np.radians(170) - np.radians(270) * t + turn
    r = radius * (0.36 + 0.10 * t + 0.54 * t**3)
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1).astype(np.float32)


def nearest(x: FloatArray, y: FloatArray, points: FloatArray) -> FloatArray:
    """Distance of the cells (rows, columns) from a polyline (n, 2)."""
    distance: FloatArray = np.sqrt(nearest_signed(x, y, points)[0])
    return distance


def nearest_signed(x: FloatArray, y: FloatArray, points: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Squared distance from a polyline (n, 2); distance to the right of it; place along it from 0 to 1."""
    shape = np.broadcast_shapes(x.shape, y.shape)
    best = np.full(shape, np.inf, np.float32)
    right, along = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    count = len(points) - 1
    for i in range(count):
        dx, dy = x - points[i, 0], y - points[i, 1]
        sx, sy = points[i + 1] - points[i]
        length = np.hypot(sx, sy)
        t = np.clip((dx * sx + dy * sy) / length**2, 0, 1)
        square = (dx - t * sx) ** 2 + (dy - t * sy) ** 2
        closer = square < best
        np.copyto(best, square, where=closer)
        np.copyto(right, (dx * sy - dy * sx) / length, where=closer)
        np.copyto(along, (i + t) / count, where=closer)
    return best, right, along


def _distance(storm: Storm, x: FloatArray, y: FloatArray) -> FloatArray:
    distance: FloatArray = np.hypot(x / np.float32(storm.stretch), y * np.float32(storm.stretch))
    return distance


def _ellipse(storm: Storm, share: float) -> tuple[float, float, float, float]:
    east, north = share * storm.radius * storm.stretch, share * storm.radius / storm.stretch
    return -east, -north, east, north


def _add_vortex(
    state: State, storm: Storm, place: tuple[Window, FloatArray, FloatArray], anomaly: FloatArray, slope: FloatArray
) -> None:
    """Add pressure and its gradient wind; ``y`` points to the pole, so the wind turns the right way in the south."""
    window, x, y = place
    r = _distance(storm, x, y)
    speed = gradient_wind(r, slope, storm.latitude)
    # the direction of the pressure's slope, outwards
    out_x, out_y = x / storm.stretch**2, y * storm.stretch**2
    size = np.maximum(np.hypot(out_x, out_y), 1e-3)
    out_x, out_y = out_x / size, out_y / size
    window.add(state.pressure, anomaly)
    for east, north, share, inflow in (
        (state.east_850, state.north_850, 1.0, INFLOW_850),
        (state.east_bottom, state.north_bottom, BOTTOM_SHARE, INFLOW_BOTTOM),
    ):
        part = share * speed / np.float32(np.hypot(1, inflow))
        window.add(east, part * (-out_y - inflow * out_x))
        window.add(north, storm.hemisphere * part * (out_x - inflow * out_y))
