"""Writes docs/rules.rst from rules/, so that the page cannot differ from what launcher and verifier apply."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpcai500.convergence import Point, Reference, lower_envelope
from hpcai500.edition import Edition, Setting, Size, Workload, load_edition

HEAD = """.. This page is written from rules/ by docs/rules_page.py; edit the rules, not the page.

The rules, edition {number}
{line}

Layers and levels
-----------------

HPC AI500 sorts what can be changed about a run into nine layers. A level says which layers may change. Launcher and
verifier ask the same function, so what would be refused afterwards is refused before it starts.

"""
DECISIONS = """
What the benchmark leaves undefined and this project decides: precision is open at every level and a column of any
ranking, while weights, optimizer state and normalisation statistics stay fp32; the optimizer belongs to the free
level; an official run trains all its epochs; the achieved quality is that of the last evaluation, never the best of
several; the ranked clock runs from before the first training batch is read to after the last evaluation, with
everything in between; FLOP are counted for the model as run, at the resolution run.

"""
DEVICES = """What no run can do better than: the verifier's checks of physics hold every run against it. fp32 products
may be TF32 at every level, where a device has it. The figures, those of processors too, and where each of them comes
from stand in ``rules/devices.toml``; a device that is missing there can be measured (:doc:`selfcheck`) or added with
its source.

"""


def write_rules_page(path: Path) -> None:
    """Write the page, only if it changed, so that an unchanged page is not built anew."""
    text = rules_page(load_edition())
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def rules_page(edition: Edition) -> str:
    """The page in reStructuredText."""
    title = f"The rules, edition {edition.number}"
    parts = [HEAD.format(number=edition.number, line="=" * len(title)), layers_table(edition), DECISIONS]
    for workload in edition.workloads.values():
        parts.append(f"{workload.title}\n{'-' * len(workload.title)}\n\n")
        parts.append(sizes_table(workload))
        parts.append(settings_table(edition, workload))
        parts.append(convergence_tables(edition, workload))
    parts += ["Devices\n-------\n\n", DEVICES, devices_table(edition)]
    return "".join(parts)


def layers_table(edition: Edition) -> str:
    levels = list(edition.levels.values())
    rows = [
        [f"{number} {name}", *("may change" if number in level.open_layers else "fixed" for level in levels)]
        for number, name in sorted(edition.layers.items())
    ]
    return table(["layer", *(level.name for level in levels)], rows)


def sizes_table(workload: Workload) -> str:
    fields = [field for field in Size.__struct_fields__ if field != "name"]
    rows = [[field, *(show(getattr(size, field)) for size in workload.sizes.values())] for field in fields]
    return "Sizes: layer 9, which no level may change.\n\n" + table(["", *workload.sizes], rows) + "\n"


def settings_table(edition: Edition, workload: Workload) -> str:
    rows = [
        [f"``{key}``", defaults(setting), str(setting.layer), open_levels(edition, setting), setting.note]
        for key, setting in workload.settings.items()
    ]
    head = ["setting", "default", "layer", "may change at", "meaning"]
    return "Settings, for ``--set KEY=VALUE``:\n\n" + table(head, rows) + "\n"


CONVERGENCE = """Reference convergence points; ``hpcai500/convergence.py`` says how they are tested. A submission
is invalid if it reaches a quality in so few epochs that runs like the references' would do so with a probability below
{invalid:g}; below {unusual:g} it is warned of.

"""
NO_CONVERGENCE = "There are no reference convergence points: how fast it learns is not judged.\n\n"


def convergence_tables(edition: Edition, workload: Workload) -> str:
    rules = edition.convergence
    references = [one for one in rules.references if one.workload == workload.name]
    tables = [points_table(edition, workload, reference) for reference in references if reference.points]
    text = CONVERGENCE.format(invalid=rules.invalid_below, unusual=rules.unusual_below) if tables else ""
    text += "".join(tables)
    missing = [size.name for size in workload.sizes.values() if size.rankable and not _has_points(references, size)]
    text += "".join(f"Size {name}: {NO_CONVERGENCE}" for name in missing)
    bounds = [
        [
            one.size,
            levels_in_words(edition, one.levels),
            recipe_in_words(one),
            str(one.highest_quality),
            one.source,
        ]
        for one in references
        if one.highest_quality is not None
    ]
    head = ["size", "levels", "recipe", f"highest {workload.quality}", "source"]
    return text + (f"Qualities above all that is known are refused:\n\n{table(head, bounds)}\n" if bounds else "")


def points_table(edition: Edition, workload: Workload, reference: Reference) -> str:
    points = [
        [
            str(point.quality),
            f"{point.batch_size:,}",
            f"{point.mean_epochs:g} +- {point.std_epochs:g}",
            str(point.num_runs),
            "yes" if _is_on_envelope(point, reference) else "no",
        ]
        for point in reference.points
    ]
    what = f"Size {reference.size}, {levels_in_words(edition, reference.levels)}, {recipe_in_words(reference)} recipe"
    what += f", data {' or '.join(reference.data_sources)}. Source: {reference.source}."
    return f"{what}\n\n{table([workload.quality, 'global batch', 'epochs', 'runs', 'on the envelope'], points)}\n"


def recipe_in_words(reference: Reference) -> str:
    return "any" if reference.any_recipe else "default"


def levels_in_words(edition: Edition, levels: Sequence[str]) -> str:
    if len(levels) == len(edition.levels):
        return "every level"
    return f"{'levels' if len(levels) > 1 else 'level'} {' and '.join(levels)}"


def _is_on_envelope(point: Point, reference: Reference) -> bool:
    return point in lower_envelope([one for one in reference.points if one.quality == point.quality])


def _has_points(references: list[Reference], size: Size) -> bool:
    return any(one.points for one in references if one.size == size.name)


def defaults(setting: Setting) -> str:
    """The default, and those of sizes that have another."""
    others = "; ".join(f"{size}: {show(value)}" for size, value in setting.default_by_size.items())
    return f"{show(setting.default)} ({others})" if others else show(setting.default)


def open_levels(edition: Edition, setting: Setting) -> str:
    levels = [level.name for level in edition.levels.values() if setting.is_open_at(level)]
    if len(levels) == len(edition.levels):
        return "every level"
    return ", ".join(levels) or "no level"


def show(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {show(part)}" for key, part in value.items()) or "-"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int else str(value)


def devices_table(edition: Edition) -> str:
    formats = ("bf16", "fp16", "tf32", "fp32")
    rows = [
        [
            device.pattern,
            *(f"{device.peak_flops[name] / 1e12:g}" if name in device.peak_flops else "-" for name in formats),
            f"{device.memory_bytes_per_s / 1e12:g}",
            f"{device.bus_bytes_per_s / 1e9:g}",
            f"{device.power_limit_w:g}",
            device.source,
        ]
        for device in edition.devices
    ]
    rates = [f"{name}, Tflop/s" for name in formats]
    return table(["device", *rates, "memory, TB/s", "bus, GB/s", "W", "source"], [[f"``{a}``", *b] for a, *b in rows])


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [head, *rows]:
        cells = ["\\-" if cell == "-" else cell for cell in row]  # a dash by itself would begin a list
        lines += [f"   {'* -' if index == 0 else '  -'} {cell}".rstrip() for index, cell in enumerate(cells)]
    return "\n".join(lines) + "\n"
