from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hpcai500.datasets.extreme_weather.grid import Grid
from hpcai500.datasets.extreme_weather.weather import snapshot
from hpcai500.errors import BackendUnavailableError
from hpcai500.pipelines.climate_facts import CHANNEL_NAMES
from hpcai500.weather_pictures import CLASS_COLOURS, Detections, Panel, draw_channels, draw_sample, draw_sheet

pytest.importorskip("matplotlib")

TMQ = ("TMQ", "kg/m2")
NO_BOXES = np.zeros((0, 4)), np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def channels() -> NDArray[np.float32]:
    return snapshot(7, 1979, 1, Grid(64, 96))[0]


def pixels(path: Path) -> NDArray[np.int32]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), dtype=np.int32)


def where_coloured(picture: NDArray[np.int32], colour: str) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the pixels of a colour, the legend's left away."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    map_only = picture[: int(0.88 * len(picture))]
    return np.nonzero((np.abs(map_only - wanted) < 12).all(axis=2))


def test_a_box_is_drawn_where_it_is(tmp_path: Path, channels: NDArray[np.float32]) -> None:
    flat = np.full_like(channels[6], 30)
    box = np.array([[24.0, 40, 48, 48]])  # a quarter to a half from the west, five to six eighths from the south
    picture = pixels(draw_sample(tmp_path / "a.png", flat, channel=TMQ, boxes=box, classes=np.array([1])))
    rows, columns = where_coloured(picture, CLASS_COLOURS[1])
    height, width = picture.shape[:2]
    left, map_width, top, map_height = 0.06 * width, 0.84 * width, 0.07 * height, 0.80 * height
    assert columns.min() == pytest.approx(left + 0.25 * map_width, abs=3)
    assert columns.max() == pytest.approx(left + 0.50 * map_width, abs=3)
    assert rows.min() == pytest.approx(top + (1 - 0.75) * map_height, abs=3)  # row 0 is in the south: below
    assert rows.max() == pytest.approx(top + (1 - 0.625) * map_height, abs=3)


@pytest.mark.parametrize("box", [[90.0, 20, 102, 30], [-6.0, 20, 6, 30]])
def test_a_box_over_the_seam_is_drawn_at_both_ends(
    tmp_path: Path, channels: NDArray[np.float32], box: list[float]
) -> None:
    flat = np.full_like(channels[6], 30)
    path = draw_sample(tmp_path / "a.png", flat, channel=TMQ, boxes=np.array([box]), classes=np.array([3]))
    picture = pixels(path)
    _, columns = where_coloured(picture, CLASS_COLOURS[3])
    shares = (columns / picture.shape[1] - 0.06) / 0.84
    assert np.abs(shares[shares < 0.5].max() - 6 / 96) < 0.01
    assert np.abs(shares[shares > 0.5].min() - 90 / 96) < 0.01
    assert shares.min() > -0.01
    assert shares.max() < 1.01


def test_detections_are_drawn_in_their_class_s_colour(tmp_path: Path, channels: NDArray[np.float32]) -> None:
    found = Detections(np.array([[10.0, 10, 30, 20]]), np.array([2]), np.array([0.87]))
    flat = np.full_like(channels[6], 30)
    boxes, classes = NO_BOXES
    path = draw_sample(
        tmp_path / "a.png", flat, channel=TMQ, boxes=boxes, classes=classes, detections=found, title="sample 3"
    )
    assert len(where_coloured(pixels(path), CLASS_COLOURS[2])[0]) > 100
    assert len(where_coloured(pixels(path), CLASS_COLOURS[0])[0]) == 0
    solid = draw_sample(tmp_path / "b.png", flat, channel=TMQ, boxes=found.boxes, classes=found.classes)
    full_line, dashes = (len(where_coloured(pixels(p), CLASS_COLOURS[2])[0]) for p in (solid, path))
    assert 0.4 * full_line < dashes < 0.9 * full_line


@pytest.mark.parametrize("name", ["PRECT", "PSL", "T200", "V850", "NEW"])
def test_every_channel_can_be_drawn(tmp_path: Path, channels: NDArray[np.float32], name: str) -> None:
    field = channels[CHANNEL_NAMES.index(name) if name in CHANNEL_NAMES else 6]
    boxes, classes = NO_BOXES
    picture = pixels(draw_sample(tmp_path / "a.png", field, channel=(name, "unit"), boxes=boxes, classes=classes))
    assert picture.shape[0] > 500
    assert np.unique(picture.reshape(-1, 3), axis=0).shape[0] > 100


def test_fields_without_a_finite_value_can_be_drawn(tmp_path: Path) -> None:
    boxes, classes = NO_BOXES
    field = np.full((64, 96), np.nan, np.float32)
    assert draw_sample(tmp_path / "a.png", field, channel=TMQ, boxes=boxes, classes=classes).exists()


@pytest.mark.parametrize(("number", "rows", "columns"), [(1, 1, 1), (4, 2, 3)])
def test_a_sheet_has_three_maps_in_a_row(
    tmp_path: Path, channels: NDArray[np.float32], number: int, rows: int, columns: int
) -> None:
    found = Detections(np.array([[10.0, 10, 30, 20]]), np.array([2]), np.array([0.87]))
    panels = [Panel(channels[6], *NO_BOXES, found, f"sample {i}") for i in range(number)]
    path = draw_sheet(tmp_path / "sheet.png", panels, channel=TMQ, title="the best")
    height, width = pixels(path).shape[:2]
    assert width == pytest.approx((columns * 6.4 + 0.9) * 110, abs=2)
    assert height == pytest.approx((rows * 3.55 + 0.95) * 110, abs=2)
    assert [one.name for one in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open(path) as image:
        assert image.mode == "P"  # few colours, so that a report can hold it


def test_a_sheet_of_nothing_can_be_drawn(tmp_path: Path) -> None:
    assert pixels(draw_sheet(tmp_path / "sheet.png", [], channel=TMQ)).size > 0


def test_all_channels_are_drawn_on_one_page(tmp_path: Path, channels: NDArray[np.float32]) -> None:
    box = np.array([[10.0, 10, 30, 20]])
    path = draw_channels(tmp_path / "all.png", channels, boxes=box, classes=np.array([0]), title="climo_1979.h5, 1")
    rows, columns = where_coloured(pixels(path), CLASS_COLOURS[0])
    assert len(np.unique(columns // 660)) == 4
    assert rows.min() < 300
    assert rows.max() > 1100


def test_matplotlib_is_imported_only_to_draw() -> None:
    program = "import sys, hpcai500.weather_pictures; print('matplotlib' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


def test_without_matplotlib_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BackendUnavailableError, match="pip install matplotlib"):
        draw_sheet(tmp_path / "sheet.png", [], channel=TMQ)
