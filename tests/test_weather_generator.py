from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from threshold_detector import (
    Detection,
    above_threshold,
    average_precision,
    local_maxima,
    resized,
    surroundings,
    within,
)

from hpcai500.datasets.extreme_weather import storms
from hpcai500.datasets.extreme_weather.atmosphere import AIR_DENSITY, State
from hpcai500.datasets.extreme_weather.generate import RECIPE_VERSION, WeatherRecipe, generate
from hpcai500.datasets.extreme_weather.grid import DEGREE_M, Grid, coriolis
from hpcai500.datasets.extreme_weather.rivers import River, add_river
from hpcai500.datasets.extreme_weather.storms import Event, Storm
from hpcai500.datasets.extreme_weather.weather import boxes, land_at, snapshot
from hpcai500.errors import UsageError
from hpcai500.pipelines.climate import ClimateFile
from hpcai500.pipelines.climate_facts import CHANNEL_NAMES, CHANNELS

GRID = Grid(96, 144)
NUM_SAMPLES = 40
DEPRESSION, CYCLONE, EXTRATROPICAL, RIVER = range(4)

Snapshots = tuple[NDArray[np.float32], NDArray[np.int32]]


@pytest.fixture(scope="module")
def weather() -> Snapshots:
    """Channels (n, 16, 96, 144) and boxes (n, 15, 5)."""
    made = [snapshot(7, 1979, index, GRID) for index in range(NUM_SAMPLES)]
    return np.stack([channels for channels, _ in made]), np.stack([rows for _, rows in made])


def channel(weather: Snapshots, name: str) -> NDArray[np.float32]:
    return weather[0][:, CHANNEL_NAMES.index(name)]


def rows_of(weather: Snapshots, kind: int) -> list[tuple[int, NDArray[np.int32]]]:
    """Sample and ymin, xmin, ymax, xmax of each whole box of a class (none that the seam cuts)."""
    return [
        (sample, row[:4])
        for sample, table in enumerate(weather[1])
        for row in table
        if row[4] == kind and row[1] > 0 and row[3] < GRID.width
    ]


def calm(grid: Grid) -> State:
    zeros = {field.name: np.zeros((grid.height, grid.width), np.float32) for field in fields(State)}
    return State(**zeros)


# ------------------------------------------------------------------------------------------------------------ the files


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    recipe = WeatherRecipe(3, 64, 96, {1979: 5, 1997: 2})
    generate(tmp_path / "one", recipe, num_workers=1)
    generate(tmp_path / "three", recipe, num_workers=3)
    assert digests(tmp_path / "one") == digests(tmp_path / "three")
    assert set(digests(tmp_path / "one")) == {"climo_1979.h5", "climo_1997.h5"}


def test_files_are_as_published_and_say_how_they_were_made(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    recipe = WeatherRecipe(3, 64, 96, {1979: 3})
    (path,) = generate(
        tmp_path, recipe, num_workers=1, report=lambda stage, done, total: seen.append((stage, done, total))
    )
    assert seen == [("generating", done, 3) for done in range(4)]
    with h5py.File(path) as file:
        assert file["images"].shape == (3, 16, 64, 96)
        assert file["images"].dtype == "<f4"
        assert file["images"].chunks is None
        assert file["boxes"].shape == (3, 15, 5)
        assert file["boxes"].dtype == "<i4"
        channels, rows = snapshot(3, 1979, 2, Grid(64, 96))
        np.testing.assert_array_equal(file["images"][2], channels)
        np.testing.assert_array_equal(file["boxes"][2], rows)
    reader = ClimateFile(path)
    assert reader.is_read_directly
    assert reader.box_order == "y1 x1 y2 x2"
    assert f'"recipe_version": {RECIPE_VERSION}' in str(reader.provenance)
    assert '"source": "generated_weather", "seed": 3' in str(reader.provenance)


def test_a_killed_generation_goes_on_with_the_years_that_are_missing(tmp_path: Path) -> None:
    generate(tmp_path, WeatherRecipe(3, 64, 96, {1979: 2}), num_workers=1)
    before = (tmp_path / "climo_1979.h5").stat()
    (tmp_path / "climo_1980.h5.partial").write_bytes(b"half a file")
    generate(tmp_path, WeatherRecipe(3, 64, 96, {1979: 2, 1980: 1}), num_workers=1)
    assert (tmp_path / "climo_1979.h5").stat().st_mtime_ns == before.st_mtime_ns
    assert {path.name for path in tmp_path.iterdir()} == {"climo_1979.h5", "climo_1980.h5"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    generate(tmp_path, WeatherRecipe(3, 64, 96, {1979: 1}), num_workers=1)
    for other in (WeatherRecipe(4, 64, 96, {1979: 1}), WeatherRecipe(3, 64, 96, {1979: 2})):
        with pytest.raises(UsageError, match=r"climo_1979.h5' exists, is not of this recipe"):
            generate(tmp_path, other, num_workers=1)
    with pytest.raises(UsageError, match=r"has 'climo_1979.h5' in it"):
        generate(tmp_path, WeatherRecipe(3, 64, 96, {1980: 1}), num_workers=1)


@pytest.mark.parametrize(
    ("seed", "height", "width", "samples", "said"),
    [
        (-1, 96, 144, {1979: 1}, "seed -1"),
        (0, 10, 144, {1979: 1}, "10 x 144 cells"),
        (0, 96, 500, {1979: 1}, "96 x 500 cells"),
        (0, 96, 144, {}, "no year"),
        (0, 96, 144, {1979: 0}, "0 samples of year 1979"),
        (0, 96, 144, {0: 1}, "1 samples of year 0"),
    ],
)
def test_impossible_recipes_are_refused(seed: int, height: int, width: int, samples: dict[int, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        WeatherRecipe(seed, height, width, samples)


# ----------------------------------------------------------------------------------------------------------- the fields


def test_a_sample_depends_on_seed_year_and_index_alone() -> None:
    channels, rows = snapshot(7, 1979, 1, GRID)
    again, rows_again = snapshot(7, 1979, 1, Grid(96, 144))
    np.testing.assert_array_equal(channels, again)
    np.testing.assert_array_equal(rows, rows_again)
    for other in ((8, 1979, 1), (7, 1980, 1), (7, 1979, 2)):
        assert np.abs(snapshot(*other, GRID)[0] - channels).max() > 1


def test_another_size_shows_the_same_weather() -> None:
    coarse, rows = snapshot(7, 1979, 1, GRID)
    fine, fine_rows = snapshot(7, 1979, 1, Grid(192, 288))
    blocks = fine.reshape(16, 96, 2, 144, 2).mean((2, 4))
    for number, name in enumerate(CHANNEL_NAMES):
        assert np.corrcoef(coarse[number].ravel(), blocks[number].ravel())[0, 1] > 0.98, name
    used = rows[:, 4] >= 0
    np.testing.assert_array_equal(fine_rows[:, 4], rows[:, 4])
    assert np.abs(fine_rows[used, :4] - 2 * rows[used, :4]).max() <= 1


def test_channels_are_within_the_ranges_of_the_real_ones(weather: Snapshots) -> None:
    assert np.isfinite(weather[0]).all()
    for number, facts in enumerate(CHANNELS):
        means = weather[0][:, number].mean((1, 2))
        assert facts.plausible[0] < means.min() < means.max() < facts.plausible[1], facts.name
    assert (channel(weather, "PRECT") >= 0).all()
    assert (channel(weather, "QREFHT") > 0).all()
    assert (channel(weather, "TMQ") > 0).all()


def test_tropical_ocean_is_like_that_of_the_real_data(weather: Snapshots) -> None:
    # mean and standard deviation over 2,440 places of tropical ocean in the ClimateNet sample
    real = {
        "PRECT": (2.68e-8, 8.18e-8),
        "PSL": (101617, 636),
        "QREFHT": (0.01365, 0.00391),
        "T200": (217.6, 2.15),
        "T500": (265.0, 3.12),
        "TMQ": (33.5, 12.7),
        "TREFHT": (296.3, 3.41),
        "TS": (297.7, 3.00),
        "U850": (-2.59, 7.51),
        "UBOT": (-2.69, 5.83),
        "V850": (0.60, 3.69),
        "VBOT": (-0.57, 4.65),
        "Z1000": (141, 50),
        "Z200": (12321, 107),
        "ZBOT": (65.2, 0.92),
    }
    ocean = np.array([[land_at(x, y) < 0.5 and abs(y) < 28 for x in GRID.longitudes] for y in GRID.latitudes])
    for name, (mean, deviation) in real.items():
        values = channel(weather, name)[:, ocean]
        assert abs(values.mean() - mean) < deviation, (name, values.mean())
        assert 0.3 * deviation < values.std() < 2.2 * deviation, (name, values.std())


def test_winds_in_middle_latitudes_blow_along_the_isobars(weather: Snapshots) -> None:
    for south, north in ((-60, -30), (30, 60)):
        rows = np.nonzero((GRID.latitudes > south) & (GRID.latitudes < north))[0]
        slope = np.gradient(channel(weather, "PSL"), DEGREE_M * 180 / GRID.height, axis=1)
        geostrophic = -slope / (AIR_DENSITY * coriolis(GRID.latitudes)[None, :, None])
        winds = channel(weather, "U850")[:, rows]
        assert np.corrcoef(geostrophic[:, rows].ravel(), winds.ravel())[0, 1] > 0.7


def test_heights_follow_pressure_and_temperature(weather: Snapshots) -> None:
    expected = (channel(weather, "PSL") - 1e5) * 287 / (9.81 * 1e5) * channel(weather, "TREFHT")
    ocean = np.array([[land_at(x, y) < 0.5 for x in GRID.longitudes] for y in GRID.latitudes])
    assert np.abs(channel(weather, "Z1000") - expected)[:, ocean].max() < 20
    assert np.corrcoef(channel(weather, "Z200").ravel(), channel(weather, "T500").ravel())[0, 1] > 0.95
    assert (channel(weather, "PS") < channel(weather, "PSL") + 1).all()


# ----------------------------------------------------------------------------------------------------------- the storms


@pytest.mark.parametrize("kind", [DEPRESSION, CYCLONE, EXTRATROPICAL])
@pytest.mark.parametrize("height_name", ["850", "BOT"])
def test_cyclones_turn_opposite_ways_in_the_two_hemispheres(weather: Snapshots, kind: int, height_name: str) -> None:
    east, north = channel(weather, f"U{height_name}"), channel(weather, f"V{height_name}")
    turns: dict[int, list[float]] = {1: [], -1: []}
    for sample, (south, west, top, right) in rows_of(weather, kind):
        inside = np.s_[sample, south:top, west:right]
        y = np.arange(top - south)[:, None] - 0.5 * (top - south - 1)
        x = np.arange(right - west)[None, :] - 0.5 * (right - west - 1)
        turn = (x * (north[inside] - north[inside].mean()) - y * (east[inside] - east[inside].mean())).mean()
        turns[1 if south + top > GRID.height else -1].append(float(turn))
    assert min(len(turns[1]), len(turns[-1])) >= 3
    assert np.mean(np.array(turns[1]) > 0) > 0.9
    assert np.mean(np.array(turns[-1]) < 0) > 0.9


@pytest.mark.parametrize("latitude", [18.0, -18.0])
def test_the_wind_of_a_cyclone_balances_its_pressure(latitude: float) -> None:
    grid = Grid(768, 1152)
    state = calm(grid)
    storms.add_tropical_cyclone(state, grid, Storm(180.0, latitude, 6.0, 4000, 0.7), spiral=0.0)
    row = int(grid.rows_of(latitude))
    columns = np.arange(int(grid.columns_of(181.5)), int(grid.columns_of(186)))
    r = (grid.longitudes[columns] - 180) * np.cos(np.radians(latitude)) * DEGREE_M
    slope = np.gradient(state.pressure[row], grid.longitudes * np.cos(np.radians(latitude)) * DEGREE_M)[columns]
    speed = np.hypot(state.east_850, state.north_850)[row, columns]
    balance = speed**2 / r + abs(coriolis(latitude)) * speed
    np.testing.assert_allclose(balance, slope / AIR_DENSITY, rtol=0.06)
    assert 30 < np.hypot(state.east_850, state.north_850).max() < 65


def test_winds_near_the_ground_blow_into_a_low() -> None:
    grid = Grid(384, 576)
    for latitude in (20.0, -20.0):
        state = calm(grid)
        storms.add_tropical_depression(state, grid, Storm(100.0, latitude, 5.0, 1000, 0.5), side=0.0)
        spread = np.gradient(state.north_bottom, axis=0) + np.gradient(state.east_bottom, axis=1)
        middle = int(grid.rows_of(latitude)), int(grid.columns_of(100))
        assert spread[middle[0] - 4 : middle[0] + 4, middle[1] - 4 : middle[1] + 4].mean() < 0


def test_storms_fade_before_their_windows_end() -> None:
    grid, storm = Grid(192, 288), Storm(100.0, 30.0, 8.0, 3000, 0.8)
    ways = (storms.add_tropical_cyclone, storms.add_tropical_depression, storms.add_extratropical_cyclone)
    for add in ways:
        state = calm(grid)
        add(state, grid, storm, 0.0)
        for field in fields(State):
            values = np.abs(getattr(state, field.name))
            rows, columns = np.nonzero(values)
            if not rows.size:
                continue
            part = values[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            edge = max(part[0].max(), part[-1].max(), part[:, 0].max(), part[:, -1].max())
            share = 0.11 if "east" in field.name or "north" in field.name else 0.02  # winds fall like the slope
            share = 0.005 if field.name == "pressure" else share
            assert edge < share * values.max(), (add.__name__, field.name)


def stands_out(weather: Snapshots, name: str, kind: int) -> NDArray[np.float32]:
    """Value in the middle of each box less the mean along its edge."""
    field, found = channel(weather, name), []
    for sample, (south, west, top, right) in rows_of(weather, kind):
        part = field[sample, south:top, west:right]
        edge = np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])
        middle = part[
            (top - south) // 2 - 1 : (top - south) // 2 + 1, (right - west) // 2 - 1 : (right - west) // 2 + 1
        ]
        found.append(middle.mean() - edge.mean())
    return np.array(found)


def test_cyclones_have_a_warm_core_and_depressions_little_or_none(weather: Snapshots) -> None:
    assert stands_out(weather, "T200", CYCLONE).min() > 1
    assert stands_out(weather, "T500", CYCLONE).mean() > 2
    assert abs(stands_out(weather, "T200", DEPRESSION).mean()) < 1
    assert stands_out(weather, "T500", DEPRESSION).mean() < 1


def test_all_events_but_rivers_are_lows_and_those_of_the_tropics_are_moist_with_rain(weather: Snapshots) -> None:
    for kind in (DEPRESSION, CYCLONE, EXTRATROPICAL):
        assert np.mean(stands_out(weather, "PSL", kind) < -100) > 0.95
    for kind in (DEPRESSION, CYCLONE):
        assert np.mean(stands_out(weather, "TMQ", kind) > 0) > 0.9
        assert np.mean(stands_out(weather, "PRECT", kind) > 0) > 0.7


# ------------------------------------------------------------------------------------------------------------ the boxes


def rectangle_of(mask: NDArray[np.bool_], grid: Grid, kind: int) -> Event:
    rows, columns = np.nonzero(mask)
    degrees = 180 / grid.height, 360 / grid.width
    return Event(
        kind,
        columns.min() * degrees[1],
        rows.min() * degrees[0] - 90,
        (columns.max() + 1) * degrees[1],
        (rows.max() + 1) * degrees[0] - 90,
    )


def assert_close(one: Event, other: Event, tolerance_deg: float) -> None:
    for name in ("west", "south", "east", "north"):
        assert abs(getattr(one, name) - getattr(other, name)) < tolerance_deg, (name, one, other)


@pytest.mark.parametrize("latitude", [20.0, -20.0])
def test_the_box_of_a_river_is_that_of_its_contour_at_half_height(latitude: float) -> None:
    grid, state = Grid(384, 576), calm(Grid(384, 576))
    river = River(100.0, latitude, length=35, heading=0.5, bend=0.6, width=2.0, moisture=20, wind=15)
    event = add_river(state, grid, river)
    assert_close(event, rectangle_of(state.moisture > 10, grid, RIVER), 0.9)
    assert (event.north > 35) == (latitude > 0)
    assert event.east > 125


@pytest.mark.parametrize("latitude", [15.0, -25.0])
def test_the_box_of_a_cyclone_is_that_of_an_isobar(latitude: float) -> None:
    grid, state = Grid(384, 576), calm(Grid(384, 576))
    storm = Storm(100.0, latitude, 6.0, 4000, 0.7, stretch=1.08)
    event = storms.add_tropical_cyclone(state, grid, storm, spiral=1.0)
    level = -4000 * (1 - np.exp(-(0.28**1.5)))  # Holland's profile at the radius
    assert_close(event, rectangle_of(state.pressure < level, grid, CYCLONE), 0.9)


@pytest.mark.parametrize("latitude", [45.0, -50.0])
def test_the_box_of_an_extratropical_cyclone_holds_its_comma_and_little_else(latitude: float) -> None:
    grid, state = Grid(384, 576), calm(Grid(384, 576))
    event = storms.add_extratropical_cyclone(state, grid, Storm(100.0, latitude, 11.0, 3000, 0.5), turn=0.0)
    cloud = state.rain > 0.5 * state.rain.max()
    comma = rectangle_of(cloud, grid, EXTRATROPICAL)
    assert event.west <= comma.west + 0.6
    assert comma.east <= event.east + 0.6
    assert event.south <= comma.south + 0.6
    assert comma.north <= event.north + 0.6
    area = (event.east - event.west) * (event.north - event.south)
    assert (comma.east - comma.west) * (comma.north - comma.south) > 0.5 * area


def test_a_box_over_the_seam_becomes_two() -> None:
    (first, second), rest = np.split(boxes([Event(RIVER, 340, 20, 390, 45)], GRID), [2])
    assert first.tolist() == [59, 136, 72, 144, RIVER]
    assert second.tolist() == [59, 0, 72, 12, RIVER]
    assert (rest == -1).all()
    west = boxes([Event(CYCLONE, -7, 20, 5, 30)], GRID)
    assert west[:2].tolist() == [[59, 141, 64, 144, CYCLONE], [59, 0, 64, 2, CYCLONE]]


def test_slivers_at_the_seam_are_left_away_and_the_poles_cut() -> None:
    table = boxes([Event(RIVER, 320, 20, 362.4, 45), Event(EXTRATROPICAL, 10, 70, 40, 95)], GRID)
    assert table[:2].tolist() == [[59, 128, 72, 144, RIVER], [85, 4, 96, 16, EXTRATROPICAL]]
    assert (table[2:] == -1).all()


def test_more_boxes_than_the_file_has_rows_for_are_left_away() -> None:
    table = boxes([Event(CYCLONE, 10 * i, 10, 10 * i + 10, 20) for i in range(20)], GRID)
    assert table.shape == (15, 5)
    assert (table[:, 4] == CYCLONE).all()


def test_fields_go_round_the_earth() -> None:
    states = []
    for longitude in (180.0, 5.0):  # 70 columns apart
        state = calm(GRID)
        storms.add_extratropical_cyclone(state, GRID, Storm(longitude, 50.0, 11.0, 3000, 0.5), turn=0.1)
        add_river(state, GRID, River(longitude, 20.0, 40, 0.5, 0.3, 2.0, 20, 15))
        states.append(state)
    for field in fields(State):
        one, other = (getattr(state, field.name) for state in states)
        np.testing.assert_allclose(np.roll(one, -70, axis=1), other, atol=1e-4 * max(np.abs(other).max(), 1e-9))


def test_boxes_are_of_all_classes_and_sizes_and_some_overlap(weather: Snapshots) -> None:
    used = weather[1][..., 4] >= 0
    numbers = used.sum(axis=1)
    assert numbers.min() <= 1
    assert numbers.max() >= 8
    assert 3 < numbers.mean() < 8
    table = weather[1][used]
    assert (table[:, 0] >= 0).all()
    assert (table[:, 2] <= 96).all()
    assert (table[:, 1] >= 0).all()
    assert (table[:, 3] <= 144).all()
    assert (table[:, 2] > table[:, 0]).all()
    assert (table[:, 3] > table[:, 1]).all()
    heights = {kind: np.median([top - south for _, (south, _, top, _) in rows_of(weather, kind)]) for kind in range(4)}
    widths = {kind: np.median([right - west for _, (_, west, _, right) in rows_of(weather, kind)]) for kind in range(4)}
    degrees = 180 / GRID.height, 360 / GRID.width
    for kind, low, high in ((DEPRESSION, 7, 11), (CYCLONE, 8, 14), (EXTRATROPICAL, 15, 30), (RIVER, 15, 60)):
        assert low < heights[kind] * degrees[0] < high, kind
        assert low < widths[kind] * degrees[1] < high, kind
    assert any(overlaps(rows[rows[:, 4] >= 0]) for rows in weather[1])
    assert any((rows[:, 1] == 0).any() and (rows[:, 3] == 144).any() for rows in weather[1])


def overlaps(rows: NDArray[np.int32]) -> bool:
    return any(
        min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
        for i, a in enumerate(rows)
        for b in rows[:i]
    )


def test_some_snapshots_are_without_events() -> None:
    counts = [(snapshot(0, 1984, index, Grid(64, 96))[1][:, 4] >= 0).sum() for index in range(60)]
    assert 1 <= sum(count == 0 for count in counts) <= 10


# --------------------------------------------------------------------------------------- not too easy, and not hopeless

# Of each class: where it is (degrees from the equator) and its usual box (degrees of latitude and longitude)
HABITS = {
    DEPRESSION: ((5, 28), (9.0, 9.6)),
    CYCLONE: ((7, 32), (10.6, 11.3)),
    EXTRATROPICAL: ((33, 65), (20.0, 24.0)),
    RIVER: ((15, 55), (24.0, 37.0)),
}


def truth(weather: Snapshots, kind: int) -> list[list[tuple[float, float, float, float]]]:
    return [[tuple(row[:4].tolist()) for row in table if row[4] == kind] for table in weather[1]]


def at_home(detections: list[Detection], kind: int) -> list[Detection]:
    (low, high), _ = HABITS[kind]
    return within(detections, (low * GRID.height / 180, high * GRID.height / 180), GRID.height)


def usual_size(kind: int) -> tuple[float, float]:
    _, (height, width) = HABITS[kind]
    return height * GRID.height / 180, width * GRID.width / 360


def single_channels(weather: Snapshots) -> dict[str, NDArray[np.float32]]:
    wind = np.hypot(channel(weather, "U850"), channel(weather, "V850"))
    fields = {name: channel(weather, name) for name in ("PRECT", "T200", "T500", "TMQ")}
    return {"low PSL": -channel(weather, "PSL"), "wind": wind} | fields


def test_the_measure_itself_gives_1_to_the_truth_and_0_to_nothing(weather: Snapshots) -> None:
    boxes_of = truth(weather, CYCLONE)
    perfect = [Detection(sample, box, 1.0) for sample, found in enumerate(boxes_of) for box in found]
    assert average_precision(perfect, boxes_of) == 1
    assert average_precision([], boxes_of) == 0
    assert average_precision(perfect[::2], boxes_of) == pytest.approx(0.5, abs=0.03)


def test_a_threshold_on_one_channel_finds_few_events(weather: Snapshots) -> None:
    means = {}
    for name, field in single_channels(weather).items():
        found = dict.fromkeys(HABITS, 0.0)  # the best threshold and size for each class by itself: better than fair
        for quantile in (0.97, 0.99, 0.997):
            for enlarged in (1.5, 2.0):
                detections = above_threshold(field, float(np.quantile(field, quantile)), enlarged)
                for kind in HABITS:
                    precision = average_precision(at_home(detections, kind), truth(weather, kind))
                    found[kind] = max(found[kind], precision)
        means[name] = np.mean(list(found.values()))
    print("mAP@0.5 of a threshold on", ", ".join(f"{name} {value:.2f}" for name, value in means.items()))
    assert 0.05 < max(means.values()) < 0.22


def test_local_extremes_of_one_channel_find_less_than_half(weather: Snapshots) -> None:
    means = {}
    for name, field in single_channels(weather).items():
        peaks = local_maxima(field)
        precisions = [
            average_precision(resized(at_home(peaks, kind), *usual_size(kind)), truth(weather, kind)) for kind in HABITS
        ]
        means[name] = np.mean(precisions)
    print("mAP@0.5 of local extremes of", ", ".join(f"{name} {value:.2f}" for name, value in means.items()))
    assert 0.2 < max(means.values()) < 0.45


def test_two_channels_tell_more_than_one(weather: Snapshots) -> None:
    peaks = at_home(local_maxima(-channel(weather, "PSL")), CYCLONE)
    mid = channel(weather, "T500")
    warm = []
    for peak in peaks:
        row, column = int(peak.box[0]), int(peak.box[1])
        near = surroundings(mid[peak.sample], 3)[row, column]
        if near[3, 3] > near.mean() + 0.5:
            warm.append(peak)
    one, two = (
        average_precision(resized(found, *usual_size(CYCLONE)), truth(weather, CYCLONE)) for found in (peaks, warm)
    )
    assert two > one + 0.1
