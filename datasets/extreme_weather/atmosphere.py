"""The weather without storms: by latitude, season, land and sea, with pressure systems that the wind follows.

All numbers are fits by eye to textbook climatology (Peixoto and Oort, "Physics of climate", 1992), made to agree with
means and ranges over tropical ocean of the ExtremeWeather channels. The fields hang together as they do in nature:

* wind: a balance of pressure gradient, Coriolis force and linear friction, which gives trade winds and westerlies;
* heights Z1000, Z200 and ZBOT: hydrostatic, so a warm column has a high 200 hPa surface;
* pressure at the ground PS: PSL reduced by the height of the ground; humidity QREFHT: relative humidity times
  saturation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields

import numpy as np

from hpcai500.datasets.extreme_weather.geography import coarse_elevation, coarse_land, elevation_on, smooth_land
from hpcai500.datasets.extreme_weather.grid import (
    COARSE_GRID,
    COARSE_SHAPE,
    COARSE_STEP_DEG,
    DEGREE_M,
    FloatArray,
    Grid,
    coriolis,
)

AIR_DENSITY = 1.2  # kg/m3 near the ground
GAS_CONSTANT = 287.0  # J/(kg K), dry air
GRAVITY = 9.81  # m/s2
FRICTION_BOTTOM, FRICTION_850 = 4e-5, 1.5e-5  # 1/s: 22 and 8 degrees across the isobars in middle latitudes
FRICTION_EQUATOR = 4e-5  # added there, where nothing else would hold the wind

LATITUDES = COARSE_GRID.latitudes[:, None]
NOISE_SCALES_DEG = {  # standard deviation of the kernel that smooths white noise
    "pressure": 8.0,
    "temperature": 8.0,
    "upper": 9.0,
    "moisture": 5.0,
    "moisture_fine": 2.2,
    "rain": 2.0,
    "east_wind": 3.5,
    "north_wind": 3.5,
    "surface": 5.0,
    "humidity": 5.0,
}


@dataclass
class State:
    """What decides all channels: fields (height, width) of one grid, to which storms are added.

    Pressure in Pa; temperatures in K; ``moisture`` = TMQ in kg/m2; ``rain`` in m/s; relative ``humidity`` 0 to 1;
    winds in m/s to the east and to the north; ``surface`` is TS - TREFHT in K.
    """

    pressure: FloatArray
    temperature: FloatArray
    temperature_500: FloatArray
    temperature_200: FloatArray
    moisture: FloatArray
    rain: FloatArray
    humidity: FloatArray
    surface: FloatArray
    east_850: FloatArray
    north_850: FloatArray
    east_bottom: FloatArray
    north_bottom: FloatArray

    def on(self, grid: Grid) -> State:
        """The same on another grid; ``self`` must be on the one of 2.5 degrees."""
        return State(**{field.name: grid.interpolate(getattr(self, field.name)) for field in fields(self)})


def background(random: np.random.Generator, season: float) -> State:
    """Weather without storms on the grid of 2.5 degrees.

    Args:
        random: decides the pressure systems, moist and dry regions and so on.
        season: from -1 (January) to 1 (July).
    """
    noise = smooth_noise(random)
    land = coarse_land()
    summer = np.sin(np.radians(LATITUDES)) * season  # positive where it is summer
    middle = _bell(np.abs(LATITUDES), 50, 18)  # where the weather changes
    pressure = _mean_pressure(season) + (90 + 480 * middle) * noise["pressure"]
    temperature, temperature_500, temperature_200 = _temperatures(season, summer, middle, noise)
    equator = 6 * season  # latitude of the rain belt
    belt, dry = _bell(LATITUDES, equator, 8), _bell(np.abs(LATITUDES - equator), 23, 9)
    at_sea_level = temperature + 0.006 * coarse_elevation()
    wet = 0.22 * noise["moisture"] + 0.10 * noise["moisture_fine"] + 0.18 * belt - 0.28 * dry - 0.15 * land
    moisture = 46 * np.exp(0.058 * (at_sea_level - 300) + wet - 0.00035 * coarse_elevation())
    showers = noise["rain"] + 0.5 * noise["moisture"] + 1.1 * belt + 0.5 * middle - 0.5 * dry - 1.3
    rain = 1.6e-7 * np.maximum(showers, 0) ** 1.5 * np.minimum(moisture / 30, 1.5)
    humidity = 0.80 - 0.22 * land + 0.05 * noise["humidity"] + 0.04 * belt - 0.03 * dry
    surface = 1.0 + land * (2.5 * summer + 1.5 * noise["surface"]) + 0.4 * noise["surface"]
    east_bottom, north_bottom = _balanced_wind(pressure, FRICTION_BOTTOM)
    east_850, north_850 = _balanced_wind(pressure, FRICTION_850)
    jet = 5 * _bell(np.abs(LATITUDES), 42, 14) * (1 - 0.4 * summer)  # the westerlies grow with height
    gusts = 1.2 + 0.8 * middle
    return State(
        pressure,
        temperature,
        temperature_500,
        temperature_200,
        moisture,
        rain,
        humidity,
        surface,
        east_850 + jet + gusts * noise["east_wind"],
        north_850 + gusts * noise["north_wind"],
        (1 - 0.3 * land) * (east_bottom + 0.6 * gusts * noise["east_wind"]),
        (1 - 0.3 * land) * (north_bottom + 0.6 * gusts * noise["north_wind"]),
    )


def channels(state: State, grid: Grid) -> FloatArray:
    """All 16 channels (16, height, width) in the data set's order and units."""
    elevation = elevation_on(grid)
    temperature = state.temperature
    humidity = np.clip(state.humidity, 0.1, 1.0)
    scale_height = (GAS_CONSTANT / GRAVITY) * (temperature + 0.003 * elevation)
    ground_pressure = state.pressure * np.exp(-elevation / scale_height)
    # Murray, J. Appl. Meteorol. 6 (1967) 203: saturation over water
    saturation = 611 * np.exp(17.27 * (temperature - 273.16) / (temperature - 35.86))
    # 1000 hPa to sea level at the density of that air; the layer to 200 hPa with its mean temperature
    height_1000 = (state.pressure - 1e5) * (GAS_CONSTANT / (GRAVITY * 1e5)) * (temperature + 0.006 * elevation)
    layer = 0.20 * (temperature + 0.006 * elevation) + 0.54 * state.temperature_500 + 0.26 * state.temperature_200
    height_200 = height_1000 + np.float32(GAS_CONSTANT / GRAVITY * np.log(5)) * layer
    return np.stack(
        [
            np.maximum(state.rain, 0),
            ground_pressure,
            state.pressure,
            humidity * 0.622 * saturation / ground_pressure,
            state.temperature_200,
            state.temperature_500,
            np.clip(state.moisture, 0.3, 90),
            temperature,
            temperature + state.surface,
            state.east_850,
            state.east_bottom,
            state.north_850,
            state.north_bottom,
            height_1000,
            height_200,
            0.22 * temperature,  # the lowest layer's middle: 0.75 % of the pressure above the ground
        ],
        dtype=np.float32,
    )


def smooth_noise(random: np.random.Generator) -> dict[str, FloatArray]:
    """Independent fields of mean 0 and variance 1 on the grid of 2.5 degrees, of NOISE_SCALES_DEG; (72, 144) each.

    White noise is smoothed along the meridians, then along the parallels: over more columns near the poles, so that
    features are as wide there as elsewhere.
    """
    white = random.standard_normal((len(NOISE_SCALES_DEG), *COARSE_SHAPE))
    north_filter, east_filter = _noise_filters()
    smooth = np.fft.irfft(np.fft.rfft(white, axis=1) * north_filter, n=COARSE_SHAPE[0], axis=1)
    smooth = np.fft.irfft(np.fft.rfft(smooth, axis=2) * east_filter, n=COARSE_SHAPE[1], axis=2)
    return dict(zip(NOISE_SCALES_DEG, smooth.astype(np.float32), strict=True))


@functools.cache
def _noise_filters() -> tuple[FloatArray, FloatArray]:
    """Factors of the Fourier coefficients along the meridians (fields, 37, 1) and the parallels (fields, 72, 73)."""
    scales = np.array(list(NOISE_SCALES_DEG.values()))[:, None, None]
    north = np.exp(-0.5 * (2 * np.pi * np.fft.rfftfreq(COARSE_SHAPE[0], COARSE_STEP_DEG)[None, :, None] * scales) ** 2)
    shrink = np.maximum(np.cos(np.radians(LATITUDES)), 0.05)[None]
    frequencies = np.fft.rfftfreq(COARSE_SHAPE[1], COARSE_STEP_DEG)[None, None, :]
    east = np.exp(-0.5 * (2 * np.pi * frequencies * scales / shrink) ** 2)
    return _unit_variance(north, 1), _unit_variance(east, 2)


def _unit_variance(factors: FloatArray, axis: int) -> FloatArray:
    """Scale real Fourier factors so that they keep the variance of white noise; all but two count twice."""
    count = np.full(factors.shape[axis], 2.0)
    count[[0, -1]] = 1
    power = (factors**2 * np.expand_dims(count, tuple(i for i in range(3) if i != axis))).sum(axis, keepdims=True)
    return np.asarray(factors * np.sqrt(count.sum() / power))


def _mean_pressure(season: float) -> FloatArray:
    """PSL in Pa without weather (72, 144): equatorial trough, subtropical highs, polar lows, seasons over land."""
    summer = np.sin(np.radians(LATITUDES)) * season
    pressure = (
        101150
        - 250 * _bell(LATITUDES, 6 * season, 10)
        + 800 * (_bell(LATITUDES, 33 + 2 * season, 11) + _bell(LATITUDES, -31 + 2 * season, 11))
        - 450 * (1 - 0.5 * season) * _bell(LATITUDES, 62, 12)
        - 2100 * _bell(LATITUDES, -66, 12)
    )
    return pressure - smooth_land() * _bell(np.abs(LATITUDES), 45, 16) * (150 + 900 * summer)


def _temperatures(
    season: float, summer: FloatArray, middle: FloatArray, noise: dict[str, FloatArray]
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """TREFHT, T500 and T200 in K without storms, (72, 144) each."""
    land, polar = coarse_land(), np.sin(np.radians(LATITUDES - 3 * season)) ** 2
    weather = noise["temperature"]
    temperature = 300.5 - 45 * polar - 0.006 * coarse_elevation() + (3 + 11 * land) * summer
    temperature += (0.7 + 2.3 * middle) * weather + land * 0.8 * noise["surface"]
    temperature_500 = 268 - 34 * polar + 4 * summer + (0.5 + 1.8 * middle) * (0.7 * weather + 0.7 * noise["upper"])
    temperature_200 = 218.5 - 3 * polar + 6 * polar * summer + (0.8 + 1.4 * middle) * noise["upper"]
    return temperature, temperature_500, temperature_200


def _balanced_wind(pressure: FloatArray, friction: float) -> tuple[FloatArray, FloatArray]:
    """Winds to the east and north in m/s, (72, 144) each, of a pressure in Pa on the grid of 2.5 degrees.

    The steady solution of -f v = -dp/dx / density - friction u and f u = -dp/dy / density - friction v.
    """
    step_m = COARSE_STEP_DEG * DEGREE_M
    shrink = np.maximum(np.cos(np.radians(LATITUDES)), 0.15)  # no gales at the poles' narrow cells
    slope_east = (np.roll(pressure, -1, 1) - np.roll(pressure, 1, 1)) / (2 * step_m * shrink * AIR_DENSITY)
    slope_north = np.gradient(pressure, step_m, axis=0) / AIR_DENSITY
    f = coriolis(LATITUDES)
    drag = friction + FRICTION_EQUATOR * _bell(LATITUDES, 0, 9)
    scale = 1 / (f**2 + drag**2)
    return -(drag * slope_east + f * slope_north) * scale, (f * slope_east - drag * slope_north) * scale


def _bell(values: FloatArray, centre: float, width: float) -> FloatArray:
    return np.asarray(np.exp(-(((values - centre) / width) ** 2)), dtype=np.float32)
