"""Draws docs/pictures/imports.svg: which parts of the package import which, read from the source with ``ast``.

A part is a sub-package, or modules of one subject. Arrows that follow from others are left out (transitive reduction),
and a part stands above all that it imports, so that the picture shows layers. A cycle of parts is an error.
"""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "hpcai500"


@dataclass(frozen=True)
class Part:
    """One box: its half of the package, its column, what it is for, and its modules or packages by name."""

    half: str
    column: float
    purpose: str
    members: tuple[str, ...]


# A longer name goes before a shorter one: equivalence.proof is of one part, the rest of equivalence of another.
PARTS = {
    "foundation": Part(
        "judge", 2.35, "errors, commands", ("command", "errors", "version", "plain_files", "durable", "spreadsheet")
    ),
    "arithmetic": Part(
        "judge",
        1,
        "figures, order, FLOP",
        ("metrics", "qualities", "flop_forms", "learning_rate", "sample_order", "code_digest"),
    ),
    "rules": Part(
        "judge",
        1,
        "what is allowed",
        ("edition", "setting_needs", "convergence", "devices", "rulebook", "finding", "rules"),
    ),
    "records": Part(
        "judge",
        1,
        "ledgers, files",
        (
            "events",
            "formats",
            "ledger",
            "ledger_reader",
            "entries",
            "record",
            "straggler_record",
            "micro_record",
            "roofline",
        ),
    ),
    "register": Part("judge", 0.75, "tickets, keys", ("register",)),
    "proofs": Part("judge", 1.66, "equivalence", ("equivalence", "equivalence.proof", "equivalence.definition")),
    "energy figures": Part(
        "judge",
        -0.15,
        "joules, labels",
        ("energy.integrate", "energy.label", "energy.meter_file", "energy.told", "energy.figures"),
    ),
    "submission": Part("judge", 1, "runs put together", ("submission", "signature", "deviations")),
    "checks": Part("judge", 1, "findings", ("checks",)),
    "verify": Part(
        "judge",
        1,
        "verdict, export",
        (
            "verify",
            "verdict",
            "judged_run",
            "applied_rules",
            "explain",
            "sarif",
            "junit",
            "schemas",
            "mllog",
            "export",
            "sign",
        ),
    ),
    "report": Part("judge", 1.5, "pages of runs", ("report",)),
    "scaling": Part("judge", 1.5, "plans for more nodes", ("scaling",)),
    "leaderboard": Part("judge", 0.5, "rankings", ("leaderboard",)),
    "machine": Part("run", 3, "devices, energy", ("system", "energy", "nvidia_smi", "allocator")),
    "comm": Part("run", 4, "ranks talk", ("comm",)),
    "pipelines": Part("run", 5.25, "data to device", ("pipelines",)),
    "models": Part("run", 6, "networks", ("models",)),
    "workloads": Part("run", 5.75, "what is trained", ("workloads", "flop")),
    "references": Part(
        "run",
        6,
        "proofs are made",
        ("equivalence.make", "equivalence.published", "equivalence.resnet50", "equivalence.fasterrcnn"),
    ),
    "data": Part(
        "run",
        4.75,
        "prepare, check",
        ("data", "data_weather", "data_progress", "datasets", "weather_pictures", "detection_sheet"),
    ),
    "selfcheck": Part("run", 3, "fit to measure?", ("selfcheck", "probes")),
    "micro": Part("run", 6, "kernels, roofline", ("micro",)),
    "launch": Part("run", 4, "Slurm, mpiexec", ("launch",)),
    "training": Part(
        "run",
        4.75,
        "one rank of a run",
        (
            "train",
            "engine",
            "account",
            "collector",
            "step_files",
            "stragglers",
            "checkpoint",
            "pauses",
            "out_of_memory",
            "resume",
            "replay.order",
            "progress",
            "ending",
            "failure",
            "lease",
            "start_up",
            "deferred_dynamo",
            "staging",
            "verified_copy",
        ),
    ),
    "submit": Part(
        "run",
        3.75,
        "plans, jobs, status",
        (
            "submit",
            "software",
            "plan",
            "rank_trial",
            "announced",
            "unfinished",
            "site",
            "job",
            "job_end",
            "launches",
            "last_words",
            "over",
            "energy.command",
            "run_states",
            "status",
            "watch",
        ),
    ),
    "replay": Part("run", 5, "trained again", ("replay",)),
}
ENTRY = {"hpcai500", "hpcai500.__main__"}  # the package itself and the command that calls all others


def imported_parts(package: Path = PACKAGE) -> dict[str, dict[str, list[str]]]:
    """Of each part, the parts it imports when it is itself imported, each with the imports that make it so.

    Raises:
        ValueError: a module is in no part of PARTS.
    """
    modules = {_name_of(path, package): path for path in sorted(package.rglob("*.py"))}
    part_of = {name: _part_of(name) for name in modules if name not in ENTRY}
    found: dict[str, dict[str, list[str]]] = {part: {} for part in PARTS}
    for name, part in part_of.items():
        for target in _imports(modules[name], modules.keys()):
            other = part_of.get(target, part)
            if other != part:
                found[part].setdefault(other, []).append(f"{_short(name)} imports {_short(target)}")
    return found


def _name_of(path: Path, package: Path) -> str:
    name = ".".join((package.name, *path.relative_to(package).with_suffix("").parts))
    return name.removesuffix(".__init__")


def _short(name: str) -> str:
    return name.removeprefix("hpcai500.")


def _part_of(name: str) -> str:
    words = _short(name).split(".")
    for length in range(len(words), 0, -1):
        for part, entry in PARTS.items():
            if ".".join(words[:length]) in entry.members:
                return part
    raise ValueError(f"module {name} is in no part of the picture; add it to PARTS in docs/imports_picture.py")


def _imports(path: Path, known: Container[str]) -> Iterator[str]:
    """The modules of the package that a module imports when it is imported: not those within functions."""
    for node in _statements(ast.parse(path.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported; what is for type checkers alone is not among them."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, inner, []))


def layers_of(imports: dict[str, dict[str, list[str]]]) -> dict[str, int]:
    """The layer of each part: one above the highest part that it imports.

    Raises:
        ValueError: parts import each other in a circle.
    """
    layers: dict[str, int] = {}

    def layer(part: str, above: tuple[str, ...]) -> int:
        if part in above:
            circle = [*above[above.index(part) :], part]
            because = "; ".join(imports[a][b][0] for a, b in pairwise(circle))
            raise ValueError(f"{' > '.join(circle)} import each other: {because}")
        if part not in layers:
            layers[part] = 1 + max((layer(other, (*above, part)) for other in imports[part]), default=-1)
        return layers[part]

    for part in imports:
        layer(part, ())
    return layers


def arrows_of(imports: dict[str, dict[str, list[str]]]) -> list[tuple[str, str]]:
    """The imports that do not follow from others: A > C is left out where A > B and B > C."""
    layers_of(imports)  # a circle has no reduction

    def reachable(part: str) -> set[str]:
        return set(imports[part]).union(*(reachable(other) for other in imports[part]))

    return [
        (part, other)
        for part, others in imports.items()
        for other in others
        if not any(other in reachable(between) for between in others)
    ]


BOX_WIDTH, BOX_HEIGHT = 130, 42
COLUMN_WIDTH, LAYER_HEIGHT = 150, 78
MARGIN = 24
RUN_HALF_FROM = 2.5  # the column where the run half begins
STYLE = """
  .imports { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
  .imports { width: 100%; height: auto; }
  .imports .half { fill: var(--color-background-secondary, #f6f7f9); stroke: none; }
  .imports .box { fill: var(--color-background-primary, #ffffff); stroke: var(--color-foreground-border, #878787); }
  .imports .run .box { stroke: var(--color-brand-primary, #0b5cad); }
  .imports text { fill: var(--color-foreground-primary, #1b1f24); text-anchor: middle; }
  .imports text { font-size: 14px; font-weight: 600; }
  .imports .purpose { fill: var(--color-foreground-secondary, #57606a); font-size: 11.5px; font-weight: 400; }
  .imports .title { fill: var(--color-foreground-secondary, #57606a); text-anchor: start; font-size: 13px; }
  .imports .arrow { fill: none; stroke: var(--color-foreground-muted, #6b7280); stroke-width: 1.3; }
  .imports .tip { fill: var(--color-foreground-muted, #6b7280); }
"""


def write_imports_picture(path: Path) -> None:
    """Write the picture, only if it changed."""
    text = imports_picture()
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def imports_picture() -> str:
    """The picture as SVG, to stand within a page of HTML: its colours are those of the page, light or dark."""
    imports = imported_parts()
    layers = layers_of(imports)
    top = max(layers.values())
    width = round((max(part.column for part in PARTS.values()) + 1) * COLUMN_WIDTH + 2 * MARGIN)
    height = (top + 1) * LAYER_HEIGHT + 2 * MARGIN

    def place(name: str) -> tuple[float, float]:
        y = MARGIN + 24 + (top - layers[name]) * LAYER_HEIGHT
        return MARGIN + (PARTS[name].column + 0.5) * COLUMN_WIDTH, y

    arrows = [arrow(*place(upper), *place(lower), imports[upper][lower]) for upper, lower in arrows_of(imports)]
    boxes = [box(name, part, *place(name), imports[name]) for name, part in PARTS.items()]
    return "\n".join(
        [
            f'<svg class="imports" viewBox="0 0 {width} {height}" role="img" '
            'aria-labelledby="imports-title imports-desc" xmlns="http://www.w3.org/2000/svg">',
            f"<style>{STYLE}</style>",
            '<title id="imports-title">Which part of the package imports which</title>',
            f'<desc id="imports-desc">{escape(described(imports))}</desc>',
            '<marker id="imports-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path class="tip" d="M0,0 L8,4 L0,8 z"/></marker>',
            *halves(width, height),
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def halves(width: int, height: int) -> list[str]:
    """The grounds on which the boxes of each half stand; errors and commands stand on both."""
    middle = MARGIN + RUN_HALF_FROM * COLUMN_WIDTH + 26
    bottom = height - MARGIN - LAYER_HEIGHT + 14
    grounds = [("judge half", 8.0, middle - 6), ("run half", middle + 6, width - 8.0)]
    return [
        f'<rect class="half" x="{left:g}" y="8" width="{right - left:g}" height="{bottom - 8:g}" rx="10"/>'
        f'<text class="title" x="{left + 14:g}" y="30">{name}</text>'
        for name, left, right in grounds
    ]


def box(name: str, part: Part, x: float, y: float, imports: dict[str, list[str]]) -> str:
    """A part; who points at it reads its modules and all that it imports."""
    told = f"{name}: {', '.join(part.members)}\nimports {', '.join(imports) or 'no other part'}"
    return (
        f'<g class="{part.half}"><title>{escape(told)}</title>'
        f'<rect class="box" x="{x - BOX_WIDTH / 2:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="7"/>'
        f'<text x="{x:g}" y="{y + 18:g}">{name}</text>'
        f'<text class="purpose" x="{x:g}" y="{y + 33:g}">{escape(part.purpose)}</text></g>'
    )


def arrow(x1: float, y1: float, x2: float, y2: float, reasons: list[str]) -> str:
    """From the lower edge of a box to the upper edge of one beneath it, leaving and entering upright."""
    start, end = y1 + BOX_HEIGHT, y2 - 1
    shift = max(-BOX_WIDTH / 2 + 16, min(BOX_WIDTH / 2 - 16, (x2 - x1) / 6))  # arrows to one box spread over its edge
    bend = (end - start) * 0.5
    x1, x2 = x1 + shift, x2 - shift
    return (
        f'<path class="arrow" marker-end="url(#imports-tip)" d="M{x1:g},{start:g} C{x1:g},{start + bend:g} '
        f'{x2:g},{end - bend:g} {x2:g},{end:g}"><title>{escape(reasons[0])}</title></path>'
    )


def described(imports: dict[str, dict[str, list[str]]]) -> str:
    """The picture in words, for who cannot see it."""
    arrows: dict[str, list[str]] = {}
    for upper, lower in arrows_of(imports):
        arrows.setdefault(upper, []).append(lower)
    return "; ".join(f"{upper} imports {' and '.join(lower)}" for upper, lower in arrows.items())
