"""Draws climate fields with boxes as PNG: one sample, all of its channels, or a sheet of several with detections.

The map is in degrees: column 0 begins at 0 E, row 0 at the South Pole. Boxes that were labelled are drawn as full
lines, detections as dashed ones with their score. Needs matplotlib, which is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hpcai500.errors import BackendUnavailableError
from hpcai500.pipelines.climate_facts import CHANNELS, CLASS_NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

FloatArray = NDArray[np.floating[Any]]

# Told apart by colour-blind eyes too (Okabe and Ito, "Color universal design", 2008), and dark enough for light fields
CLASS_COLOURS = ("#E69F00", "#D00000", "#9B2D8E", "#007A5A")
DOTS_PER_INCH = 110
MAP_WIDTH_IN = 6.4  # of one panel of a sheet; its height is half of it
FAR_PERCENTILES = (0.5, 99.5)  # where the colours end: a few extreme pixels would make everything else pale


class Detections(NamedTuple):
    """What a model found in one sample.

    ``boxes`` float (d, 4): x1, y1, x2, y2 in pixels; ``classes`` int (d,): indices of CLASS_NAMES; ``scores`` (d,).
    """

    boxes: NDArray[Any]
    classes: NDArray[Any]
    scores: NDArray[Any]


@dataclass(frozen=True)
class Panel:
    """One map: ``field`` (height, width); labelled ``boxes`` (k, 4) x1, y1, x2, y2 in pixels and ``classes`` (k,)."""

    field: FloatArray
    boxes: NDArray[Any]
    classes: NDArray[Any]
    detections: Detections | None = None
    title: str = ""


def draw_sample(
    path: Path,
    field: FloatArray,
    *,
    channel: tuple[str, str],
    boxes: NDArray[Any],
    classes: NDArray[Any],
    detections: Detections | None = None,
    title: str = "",
) -> Path:
    """Draw one field (height, width) with its boxes to the PNG ``path``, and return that; what is there is replaced.

    Args:
        path: its folder must exist.
        field: in physical units.
        channel: its name, as in climate_facts.CHANNELS, and its unit.
        boxes: x1, y1, x2, y2 in pixels, shape (k, 4); what lies beyond column 0 or the last goes on at the other side.
        classes: indices of CLASS_NAMES, shape (k,).
        detections: drawn dashed, with scores.
        title: above the map, behind the channel's name.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
    """
    name, unit = channel
    heading = f"{_long_name(name)}: {title}" if title else _long_name(name)
    figure = _new_figure((11.5, 6.9))
    axes = figure.add_axes((0.06, 0.13, 0.84, 0.80))
    image = _draw_map(axes, Panel(field, boxes, classes, detections, heading), name, _colour_range(name, [field]))
    _add_colour_bar(figure, image, name, unit, (0.915, 0.17, 0.016, 0.72))
    _add_legend(figure, has_detections=detections is not None)
    return _save(figure, path)


def draw_sheet(path: Path, panels: Sequence[Panel], *, channel: tuple[str, str], title: str = "") -> Path:
    """Draw several maps of one channel, three in a row, to the PNG ``path``; otherwise as :func:`draw_sample`."""
    name, unit = channel
    num_columns = min(3, max(len(panels), 1))
    num_rows = max(-(-len(panels) // num_columns), 1)
    row_in = MAP_WIDTH_IN / 2 + 0.35
    width_in, height_in = num_columns * MAP_WIDTH_IN + 0.9, num_rows * row_in + 0.95
    figure = _new_figure((width_in, height_in))
    limits = _colour_range(name, [panel.field for panel in panels])
    for number, panel in enumerate(panels):
        row, column = divmod(number, num_columns)
        left = (0.45 + column * MAP_WIDTH_IN) / width_in
        bottom = (0.75 + (num_rows - 1 - row) * row_in) / height_in
        axes = figure.add_axes((left, bottom, (MAP_WIDTH_IN - 0.5) / width_in, (MAP_WIDTH_IN / 2 - 0.25) / height_in))
        image = _draw_map(axes, panel, name, limits)
        if number == 0:  # all have the same colours
            share = min(0.8, 4 / height_in)
            place = (1 - 0.85 / width_in, 0.5 - share / 2, 0.16 / width_in, share)
            _add_colour_bar(figure, image, name, unit, place)
    figure.suptitle(title or _long_name(name), fontsize=12, y=1 - 0.1 / height_in, va="top")
    _add_legend(figure, has_detections=any(panel.detections is not None for panel in panels))
    return _save(figure, path, few_colours=True)


def draw_channels(
    path: Path, fields: FloatArray, *, boxes: NDArray[Any], classes: NDArray[Any], title: str = ""
) -> Path:
    """Draw all channels (16, height, width) of a sample, each with its own colours, to the PNG ``path``."""
    num_columns, num_rows, width_in, height_in = 4, 4, 24.0, 13.6
    figure = _new_figure((width_in, height_in))
    for number, (channel, field) in enumerate(zip(CHANNELS, fields, strict=True)):
        row, column = divmod(number, num_columns)
        left, bottom = 0.025 + column / num_columns * 0.985, 0.07 + (num_rows - 1 - row) / num_rows * 0.93
        axes = figure.add_axes((left, bottom, 0.185, 0.175))
        panel = Panel(field, boxes, classes, None, _long_name(channel.name))
        image = _draw_map(axes, panel, channel.name, _colour_range(channel.name, [field]))
        _add_colour_bar(figure, image, channel.name, channel.unit, (left + 0.189, bottom + 0.01, 0.005, 0.155))
    figure.suptitle(title, fontsize=13, y=0.995, va="top")
    _add_legend(figure, has_detections=False)
    return _save(figure, path)


# ---------------------------------------------------------------------------------------------------- parts of a figure


def _new_figure(size_in: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendUnavailableError(
            f"matplotlib, which draws pictures, is missing ({error}); run `pip install matplotlib`"
        ) from None
    # Not pyplot: a figure of its own draws with Agg, and nothing is changed for the rest of the process.
    return Figure(figsize=size_in, dpi=DOTS_PER_INCH)


def _draw_map(axes: Axes, panel: Panel, name: str, limits: tuple[float, float]) -> AxesImage:
    from matplotlib.colors import Normalize, PowerNorm

    norm = PowerNorm(0.5, *limits) if name == "PRECT" else Normalize(*limits)
    image = axes.imshow(
        panel.field,
        origin="lower",
        extent=(0, 360, -90, 90),
        cmap=_colour_map(name),
        norm=norm,
        interpolation="nearest",
        aspect="auto",
    )
    height, width = panel.field.shape
    scale = np.array([360 / width, 180 / height, 360 / width, 180 / height])
    shift = np.array([0, -90, 0, -90])
    for box, kind in zip(panel.boxes, panel.classes, strict=True):
        _draw_box(axes, box * scale + shift, int(kind), score=None)
    if panel.detections is not None:
        for box, kind, score in zip(*panel.detections, strict=True):
            _draw_box(axes, box * scale + shift, int(kind), score=float(score))
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set(xlim=(0, 360), ylim=(-90, 90))
    axes.set_xticks(range(0, 361, 60), [_longitude_text(degrees) for degrees in range(0, 361, 60)], fontsize=8)
    axes.set_yticks(range(-90, 91, 30), [_latitude_text(degrees) for degrees in range(-90, 91, 30)], fontsize=8)
    axes.grid(color="black", alpha=0.12, linewidth=0.5)
    return image


def _draw_box(axes: Axes, box: FloatArray, kind: int, score: float | None) -> None:
    """Draw ``box`` (west, south, east, north in degrees), once more where it goes on behind the last column."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    colour, halo = CLASS_COLOURS[kind], withStroke(linewidth=3.2, foreground="white", alpha=0.85)
    west, south, east, north = (float(value) for value in box)
    for turn in (-360, 0, 360):
        if east + turn <= 0 or west + turn >= 360:
            continue
        size = east - west, north - south
        outline = Rectangle((west + turn, south), *size, fill=False, edgecolor=colour, linewidth=1.6)
        outline.set_linestyle("-" if score is None else (0, (3, 1.6)))
        outline.set_path_effects([halo])
        axes.add_patch(outline)
        if score is not None:
            place = max(west + turn, 0) + 0.8, min(north, 84)
            text = axes.text(*place, f"{score:.2f}", color=colour, fontsize=7.5, va="bottom", clip_on=True)
            text.set_path_effects([withStroke(linewidth=2.2, foreground="white", alpha=0.85)])


def _add_colour_bar(
    figure: Figure, image: AxesImage, name: str, unit: str, place: tuple[float, float, float, float]
) -> None:
    from matplotlib.ticker import FuncFormatter

    bar = figure.colorbar(image, cax=figure.add_axes(place), extend="max" if _is_positive(name) else "both")
    high = image.get_clim()[1] or 0.0
    exponent = int(np.floor(np.log10(high))) if 0 < high < 1e-3 else 0  # rain: in 1e-7 m/s
    bar.formatter = FuncFormatter(lambda value, _: f"{value / 10.0**exponent:g}")
    bar.set_label(f"{name} in {f'1e{exponent} ' if exponent else ''}{unit}", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _add_legend(figure: Figure, *, has_detections: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linewidth=2, label=class_name.replace("_", " "))
        for class_name, colour in zip(CLASS_NAMES, CLASS_COLOURS, strict=True)
    ]
    if has_detections:
        handles += [
            Line2D([], [], color="black", linewidth=1.6, label="labelled"),
            Line2D([], [], color="black", linewidth=1.6, linestyle=(0, (3, 1.6)), label="detected, with score"),
        ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=9, frameon=False)


def _save(figure: Figure, path: Path, *, few_colours: bool = False) -> Path:
    """Write a PNG; with few colours it takes a fifth of the place, and eyes see no difference in a map of one scale."""
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png")
    if few_colours:
        with Image.open(partial) as picture:
            colours = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
        colours.save(partial, format="png", optimize=True)
    partial.replace(path)
    return path


# ---------------------------------------------------------------------------------------------------------------- looks


def _long_name(name: str) -> str:
    """As "TMQ, precipitable water"; only the name where it is not one of the data set's."""
    return next((f"{name}, {channel.long_name}" for channel in CHANNELS if channel.name == name), name)


def _is_wind(name: str) -> bool:
    return name.startswith(("U", "V"))


def _is_positive(name: str) -> bool:
    return name in ("PRECT", "TMQ", "QREFHT")


def _colour_map(name: str) -> str:
    """Light where a storm is not: boxes are drawn in dark colours."""
    if _is_wind(name):
        return "RdBu_r"
    if name.startswith("T") and name != "TMQ":
        return "RdYlBu_r"
    return {"PRECT": "Blues", "TMQ": "YlGnBu", "QREFHT": "YlGnBu"}.get(name, "viridis")


def _colour_range(name: str, fields: Sequence[FloatArray]) -> tuple[float, float]:
    """The values of the first and last colour: the same distance from 0 for winds, from 0 for what has none below."""
    values = np.concatenate([np.ravel(field)[np.isfinite(np.ravel(field))] for field in fields] or [np.zeros(1)])
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, FAR_PERCENTILES))
    if _is_wind(name):
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    elif _is_positive(name):
        low = 0.0
    return (low, high) if high > low else (low - 1.0, low + 1.0)


def _longitude_text(degrees: int) -> str:
    if degrees % 180 == 0:
        return f"{degrees % 360}°"
    return f"{degrees}°E" if degrees < 180 else f"{360 - degrees}°W"


def _latitude_text(degrees: int) -> str:
    return f"{abs(degrees)}°{'S' if degrees < 0 else 'N'}" if degrees else "0°"
