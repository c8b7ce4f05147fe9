"""Boards for programs: CSV, JSON and an Atom feed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

from hpcai500.leaderboard.display import with_unit
from hpcai500.leaderboard.ranking import Board
from hpcai500.leaderboard.rows import Row
from hpcai500.spreadsheet import safe_cell

COLUMNS = (
    "rank",
    "is_shared",
    "state",
    "system",
    "organisation",
    "accelerator",
    "num_devices",
    "num_nodes",
    "precision",
    "edition",
    "registered",
    "vflops",
    "vflops_low",
    "vflops_high",
    "vflops_per_device",
    "vflops_per_w",
    "achieved_quality",
    "wall_s",
    "energy_j",
    "energy_label",
    "published_at",
    "sha256",
)
ATOM = "http://www.w3.org/2005/Atom"
NEVER = "1970-01-01T00:00:00Z"  # of a feed without entries, which must have a time


def as_record(row: Row) -> dict[str, Any]:
    """A row by COLUMNS; figures in flop/s, s and J."""
    placed = {"rank": row.place.rank if row.place else None, "is_shared": bool(row.place and row.place.is_shared)}
    return {name: placed[name] if name in placed else getattr(row, name) for name in COLUMNS}


def as_csv(board: Board) -> str:
    """A board as CSV (RFC 4180), the first line naming the columns."""
    output = io.StringIO(newline="")
    writer = csv.writer(output)
    writer.writerow(COLUMNS)
    for row in board.rows:
        values = as_record(row).values()
        writer.writerow([str(value).lower() if isinstance(value, bool) else safe_cell(value) for value in values])
    return output.getvalue()


def as_json(board: Board) -> str:
    """A board as JSON; ``edition`` is the one that its rows are of, "all" for rows without ranks of any."""
    names = {name: getattr(board, name) for name in ("workload", "size", "level", "edition")}
    return json.dumps(names | {"rows": [as_record(row) for row in board.rows]}, ensure_ascii=False, indent=1) + "\n"


def as_atom(rows: Sequence[Row], link: Callable[[str], str]) -> str:
    """New submissions as an Atom feed (RFC 4287); ``link`` makes an absolute address of the board's."""
    ElementTree.register_namespace("", ATOM)
    feed = ElementTree.Element(f"{{{ATOM}}}feed")
    _add(feed, "title", "HPC AI500 leaderboard")
    _add(feed, "id", "urn:hpcai500:leaderboard")
    _add(feed, "updated", max((row.published_at for row in rows), default=NEVER) or NEVER)
    _add(feed, "link", rel="self", href=link("/feed.atom"))
    _add(feed, "link", rel="alternate", type="text/html", href=link("/"))
    for row in rows:
        entry = ElementTree.SubElement(feed, f"{{{ATOM}}}entry")
        board = f"{row.workload}, {row.size}, {row.level}"
        _add(entry, "title", f"{row.system}: {with_unit(row.vflops)} ({board})")
        _add(entry, "id", f"urn:hpcai500:submission:{row.sha256}")
        _add(entry, "updated", row.published_at or NEVER)
        _add(entry, "link", rel="alternate", type="text/html", href=link(f"/submissions/{row.sha256}"))
        _add(ElementTree.SubElement(entry, f"{{{ATOM}}}author"), "name", row.organisation or "unknown")
        devices = f"{row.num_devices} x {row.accelerator} on {row.num_nodes} node{'' if row.num_nodes == 1 else 's'}"
        _add(entry, "summary", f"{devices}, {row.precision}, edition {row.edition}.")
    ElementTree.indent(feed)
    return ElementTree.tostring(feed, encoding="unicode", xml_declaration=False, default_namespace=None)


def _add(parent: ElementTree.Element, name: str, text: str | None = None, **attributes: str) -> None:
    ElementTree.SubElement(parent, f"{{{ATOM}}}{name}", attributes).text = text
