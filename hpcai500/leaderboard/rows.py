"""A submission as boards, feeds and plots show it, and how it is read.

Text in rows is cleaned (display.py) but not escaped; that is for who writes it down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Select, select

from hpcai500.leaderboard.display import clean
from hpcai500.leaderboard.tables import PUBLISHED, WITHDRAWN, Organisation, Submission


@dataclass(frozen=True, slots=True)
class Place:
    """A rank, whether others share it, and whether the row cannot be told apart from the one above."""

    rank: int
    is_shared: bool
    is_like_above: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A submission as boards show it; figures in the units of tables.py."""

    sha256: str
    workload: str
    size: str
    level: str
    organisation: str
    organisation_slug: str
    system: str
    system_slug: str
    state: str
    accelerator: str
    num_devices: int
    num_nodes: int
    precision: str
    edition: str
    size_class: str
    registered: bool
    vflops: float
    vflops_low: float
    vflops_high: float
    vflops_per_device: float | None
    vflops_per_w: float | None
    achieved_quality: float | None
    wall_s: float | None
    energy_j: float | None
    energy_label: str | None
    published_at: str
    place: Place | None = None

    @property
    def is_withdrawn(self) -> bool:
        """Whether it stands there struck through, without a rank."""
        return self.state == WITHDRAWN

    @property
    def is_challenged(self) -> bool:
        """Whether somebody doubts it and nobody has decided yet."""
        return self.state not in (PUBLISHED, WITHDRAWN)


class Dot(NamedTuple):
    """A submission in the plot of records."""

    published_at: str
    vflops: float


ROW_COLUMNS = (
    Submission.sha256,
    Submission.workload,
    Submission.size,
    Submission.level,
    Organisation.name,
    Submission.organisation_slug,
    Submission.system_name,
    Submission.system_slug,
    Submission.state,
    Submission.accelerator,
    Submission.num_devices,
    Submission.num_nodes,
    Submission.precision,
    Submission.edition,
    Submission.size_class,
    Submission.registered,
    Submission.vflops,
    Submission.vflops_low,
    Submission.vflops_high,
    Submission.vflops_per_device,
    Submission.vflops_per_w,
    Submission.achieved_quality,
    Submission.wall_s,
    Submission.energy_j,
    Submission.energy_label,
    Submission.published_at,
)


def select_rows() -> Select[*tuple[Any, ...]]:
    """The query of rows, to be narrowed and ordered."""
    columns: list[Any] = list(ROW_COLUMNS)
    return select(*columns).join(Organisation, Organisation.slug == Submission.organisation_slug)


def row_of(values: Sequence[Any], place: Place | None = None) -> Row:
    """A row from the columns ROW_COLUMNS."""
    named: dict[str, Any] = dict(zip(Row.__slots__, values, strict=False))
    for name in ("organisation", "system", "accelerator"):
        named[name] = clean(named[name] or "")
    for name in ("precision", "edition", "size_class", "workload", "size", "level"):
        named[name] = clean(named[name] or "", 100)
    named["registered"] = bool(named["registered"])
    named["published_at"] = named["published_at"] or ""
    for name in ("num_devices", "num_nodes", "vflops"):
        named[name] = named[name] or 0
    for name in ("vflops_low", "vflops_high"):
        named[name] = named["vflops"] if named[name] is None else named[name]
    return Row(**named, place=place)
