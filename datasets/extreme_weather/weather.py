"""One snapshot: which storms there are and where, the fields with all of them, and the boxes of the events.

Everything depends on (seed, year, index) alone; the size of the grid changes the resolution, not the weather. Numbers
of storms, places and strengths are choices, made so that one channel alone does not tell the classes apart: weak
cyclones are as shallow as strong depressions, and heat lows, cut-off lows and moist patches are no events.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hpcai500.datasets.extreme_weather import storms
from hpcai500.datasets.extreme_weather.atmosphere import State, background, channels
from hpcai500.datasets.extreme_weather.geography import coarse_land
from hpcai500.datasets.extreme_weather.grid import COARSE_STEP_DEG, FloatArray, Grid
from hpcai500.datasets.extreme_weather.rivers import River, add_river
from hpcai500.datasets.extreme_weather.storms import Event, Storm

MAX_BOXES = 15  # rows of the published data set
NUM_TRIES = 12  # to find a free place for a storm
NOISE_STREAM, STORM_STREAM = 0, 1
# How many of each there are, chosen with equal chance
NUMBERS = {
    "cyclone": (0, 1, 1, 2, 2, 3),
    "depression": (0, 1, 1, 1, 2, 2),
    "extratropical": (0, 1, 1, 2, 2, 3),
    "river": (0, 1, 1, 1, 2, 2),
    "heat_low": (0, 1, 2),
    "cut_off_low": (1, 2, 2, 3),
    "old_low": (1, 1, 2, 2),
    "moist_patch": (2, 3, 4, 5),
}
CALM_SHARE = 0.03  # snapshots without any event


@dataclass
class Scene:
    """A snapshot that is being drawn: fields, events so far, and the circles that storms occupy."""

    random: np.random.Generator
    season: float
    grid: Grid
    state: State
    events: list[Event] = field(default_factory=list)
    taken: list[tuple[float, float, float]] = field(default_factory=list)  # longitude, latitude, radius in degrees

    def number(self, name: str) -> int:
        """How many to draw of a sort."""
        return int(self.random.choice(NUMBERS[name]))

    def hemisphere(self, summer_share: float) -> int:
        """1 or -1; the one that has summer with chance ``summer_share`` at the height of the season."""
        chance = 0.5 + (summer_share - 0.5) * self.season
        return 1 if self.random.uniform() < chance else -1

    def place(self, radius: float, latitudes: tuple[float, float], hemisphere: int, land: bool | None) -> Place | None:
        """A place free of other storms, on land or sea if that matters; None if none was found in a few tries."""
        for _ in range(NUM_TRIES):
            longitude, latitude = self.random.uniform(0, 360), hemisphere * self.random.uniform(*latitudes)
            if land is not None and (land_at(longitude, latitude) > 0.5) != land:
                continue
            if all(arc_deg(longitude, latitude, *other[:2]) > 0.85 * (radius + other[2]) for other in self.taken):
                self.taken.append((longitude, latitude, radius))
                return longitude, latitude
        return None


Place = tuple[float, float]


def land_at(longitude: float, latitude: float) -> float:
    """Share of land at a place, 0 to 1."""
    return float(coarse_land()[int((latitude + 90) / COARSE_STEP_DEG), int(longitude % 360 / COARSE_STEP_DEG)])


def arc_deg(longitude: float, latitude: float, other_longitude: float, other_latitude: float) -> float:
    """Distance of two places that are not far apart, in degrees of arc."""
    away = (longitude - other_longitude + 180) % 360 - 180
    shrink = np.cos(np.radians(0.5 * (latitude + other_latitude)))
    return float(np.hypot(away * shrink, latitude - other_latitude))


def snapshot(seed: int, year: int, index: int, grid: Grid) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """Channels float32 (16, height, width) and boxes int32 (15, 5): ymin, xmin, ymax, xmax, class; unused rows -1."""
    season = float(np.cos(2 * np.pi * (generator(seed, STORM_STREAM, year, index).uniform() - 0.55)))
    state = background(generator(seed, NOISE_STREAM, year, index), season).on(grid)
    random = generator(seed, STORM_STREAM, year, index)
    random.uniform()  # the season
    scene = Scene(random, season, grid, state)
    is_calm = random.uniform() < CALM_SHARE
    if not is_calm:
        _add_extratropical(scene)
        _add_tropical(scene)
        _add_rivers(scene)
    _add_decoys(scene)
    return channels(state, grid), boxes(scene.events, grid)


def generator(seed: int, stream: int, year: int, index: int) -> np.random.Generator:
    """Random numbers that depend on the arguments alone (Philox: a counter-based generator, keyed)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, stream, year, index]))


def boxes(events: list[Event], grid: Grid) -> npt.NDArray[np.int32]:
    """Rows ymin, xmin, ymax, xmax, class (15, 5) in whole cells; unused rows are -1.

    A box over column 0 becomes two; a part of less than two columns or a tenth of the width is left away.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    for event in events:
        south = max(round(grid.rows_of(event.south)), 0)
        north = min(round(grid.rows_of(event.north)), grid.height)
        west, east = round(grid.columns_of(event.west)), round(grid.columns_of(event.east))
        east = min(east, west + grid.width)
        turns = west // grid.width
        west, east = west - turns * grid.width, east - turns * grid.width
        least = max(2, 0.1 * (east - west))
        parts = [(west, min(east, grid.width)), (0, east - grid.width)]
        rows += [
            (south, first, north, last, event.kind)
            for first, last in parts
            if last - first >= least and north - south >= 2
        ]
    table = np.full((MAX_BOXES, 5), -1, np.int32)
    rows = rows[:MAX_BOXES]
    table[: len(rows)] = np.array(rows, np.int32).reshape(-1, 5)
    return table


def _add_tropical(scene: Scene) -> None:
    random = scene.random
    for _ in range(scene.number("cyclone")):
        radius, strength = random.uniform(4.3, 6.5), random.uniform() ** 1.2
        place = scene.place(radius, (9, 30), scene.hemisphere(0.75), land=False)
        if place is not None:
            storm = Storm(*place, radius, 1100 + 3600 * strength, strength, random.uniform(0.92, 1.09))
            event = storms.add_tropical_cyclone(scene.state, scene.grid, storm, random.uniform(0, 2 * np.pi))
            scene.events.append(event)
    for _ in range(scene.number("depression")):
        radius, strength = random.uniform(4.0, 5.3), random.uniform()
        place = scene.place(radius, (7, 26), scene.hemisphere(0.7), land=False)
        if place is not None:
            storm = Storm(*place, radius, 650 + 900 * strength, strength, random.uniform(0.92, 1.09))
            event = storms.add_tropical_depression(scene.state, scene.grid, storm, random.uniform(0, 2 * np.pi))
            scene.events.append(event)


def _add_extratropical(scene: Scene) -> None:
    random = scene.random
    for _ in range(scene.number("extratropical")):
        radius, strength = random.uniform(9, 13.5), random.uniform()
        place = scene.place(0.8 * radius, (36, 60), scene.hemisphere(0.4), land=None)
        if place is not None:
            storm = Storm(*place, radius, 1800 + 3000 * strength, strength)
            event = storms.add_extratropical_cyclone(scene.state, scene.grid, storm, random.uniform(-0.35, 0.25))
            scene.events.append(event)


def _add_rivers(scene: Scene) -> None:
    random = scene.random
    for _ in range(scene.number("river")):
        river = River(
            longitude=random.uniform(0, 360),
            latitude=scene.hemisphere(0.4) * random.uniform(17, 27),
            length=random.uniform(26, 48),
            heading=random.uniform(0.35, 0.75),
            bend=random.uniform(-0.7, 0.9),
            width=random.uniform(1.8, 2.7),
            moisture=random.uniform(15, 26),
            wind=random.uniform(11, 20),
        )
        scene.events.append(add_river(scene.state, scene.grid, river))


def _add_decoys(scene: Scene) -> None:
    random = scene.random
    for _ in range(scene.number("heat_low")):
        radius, strength = random.uniform(5, 8), random.uniform()
        place = scene.place(radius, (14, 42), scene.hemisphere(0.9), land=True)
        if place is not None:
            low = Storm(*place, radius, 400 + 700 * strength, strength)
            storms.add_low(scene.state, scene.grid, low, (3 + 4 * strength, 0.5, 0.0))
    for _ in range(scene.number("cut_off_low")):  # deep, windy, warm at 200 hPa, but dry
        radius, strength = random.uniform(4.3, 6.5), random.uniform()
        place = scene.place(radius, (10, 34), scene.hemisphere(0.6), land=None)
        if place is not None:
            low = Storm(*place, radius, 600 + 2600 * strength, strength)
            storms.add_low(scene.state, scene.grid, low, (-1.5, -2 - 3 * strength, 2 + 5 * strength))
    for _ in range(scene.number("old_low")):  # as deep as extratropical cyclones, but without fronts and their cloud
        radius, strength = random.uniform(8, 13), random.uniform()
        place = scene.place(0.8 * radius, (36, 60), scene.hemisphere(0.4), land=None)
        if place is not None:
            low = Storm(*place, radius, 1300 + 2600 * strength, strength)
            storms.add_low(scene.state, scene.grid, low, (-1.0, -3 - 3 * strength, 3 + 4 * strength))
    for _ in range(scene.number("moist_patch")):
        radius, strength = random.uniform(3.5, 7), random.uniform()
        place = scene.place(0.8 * radius, (3, 45), scene.hemisphere(0.6), land=None)
        if place is not None:
            patch = Storm(*place, radius, 0, strength, random.uniform(0.75, 1.5))
            storms.add_moist_patch(scene.state, scene.grid, patch, random.uniform(0, 3e-7), random.uniform(0, 5))
