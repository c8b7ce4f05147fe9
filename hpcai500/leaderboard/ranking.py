"""Who stands where: the queries behind boards, feeds and the exported files.

A rank is 1 + the number of submissions that are better; it is shared by neighbours that cannot be told apart: whose
95 % intervals overlap, both that of the one above and that of the first who has the rank. So a long chain of small
overlaps does not make everybody first. Ranks are of what the filters leave, by the figure that the board is sorted by
(by VFLOPS where it is sorted by date). Withdrawn submissions have none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from hpcai500.leaderboard.display import clean
from hpcai500.leaderboard.filters import Filters
from hpcai500.leaderboard.rows import Dot, Place, Row, row_of, select_rows
from hpcai500.leaderboard.tables import RANKED_STATES, SHOWN_STATES, STATES, WITHDRAWN, Submission

OFFICIAL = "official"
PAGE_ROWS = 50
HIDDEN_STATES = tuple(state for state in STATES if state not in SHOWN_STATES)
"""For "not in": an "in" makes SQLite take the index of states where another gives the order that is wanted."""
MAX_TIED = 100_000  # rows of which places are worked out


@dataclass(frozen=True, slots=True)
class Options:
    """What the filters of a board can be set to: only what there is."""

    precisions: tuple[str, ...]
    editions: tuple[str, ...]
    size_classes: tuple[str, ...]
    years: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A page of a board."""

    workload: str
    size: str
    level: str
    filters: Filters
    rows: tuple[Row, ...]
    num_all: int  # without the filters
    num_found: int
    page: int
    num_pages: int
    options: Options

    @property
    def address(self) -> str:
        """Address of the board, without filters."""
        return f"/boards/{self.workload}/{self.size}/{self.level}"

    @property
    def is_official(self) -> bool:
        """Whether its results may be compared with others outside of it."""
        return self.size == OFFICIAL


@dataclass(frozen=True, slots=True)
class BoardSummary:
    """A board as the start page lists it."""

    workload: str
    size: str
    level: str
    num_submissions: int
    leader: Row | None

    @property
    def address(self) -> str:
        """Address of the board."""
        return f"/boards/{self.workload}/{self.size}/{self.level}"


@dataclass(frozen=True, slots=True)
class Figure:
    """What a board can be sorted by: the column, and the interval of it."""

    value: Any
    low: Any
    high: Any
    is_less_better: bool = False

    def best_first(self, *, is_reversed: bool = False) -> list[Any]:
        """Order of rows; equal ones by their digest, so that pages never show one twice."""
        if self.is_less_better == is_reversed:
            return [self._nulls_last(self.value.desc()), Submission.sha256.desc()]
        return [self._nulls_last(self.value.asc()), Submission.sha256.asc()]

    def _nulls_last(self, order: Any) -> Any:
        """Where a column may be empty; only vflops never is, whose index serves the plain order alone."""
        return order if self.value is Submission.vflops else order.nulls_last()


def _exact(column: Any, *, is_less_better: bool = False) -> Figure:
    return Figure(column, column, column, is_less_better)


FIGURES = {
    "vflops": Figure(Submission.vflops, Submission.vflops_low, Submission.vflops_high),
    "per_device": Figure(
        Submission.vflops_per_device,
        Submission.vflops_low / Submission.num_devices,
        Submission.vflops_high / Submission.num_devices,
    ),
    "per_watt": _exact(Submission.vflops_per_w),
    "quality": _exact(Submission.achieved_quality),
    "time": _exact(Submission.wall_s, is_less_better=True),
    "date": _exact(Submission.published_at),
}


def places_of(intervals: Sequence[tuple[float, float, float]]) -> list[Place]:
    """Places of submissions that are sorted best first, of each its value, and the low and high end of its interval."""
    ranks: list[int] = []
    like_above: list[bool] = []
    first = above = (0.0, 0.0, 0.0)
    for position, interval in enumerate(intervals, 1):
        is_like_above = position > 1 and _overlap(above, interval)
        shares = is_like_above and _overlap(first, interval)
        ranks.append(ranks[-1] if shares else position)
        like_above.append(is_like_above)
        first, above = first if shares else interval, interval
    count = Counter(ranks)
    return [Place(rank, count[rank] > 1, like) for rank, like in zip(ranks, like_above, strict=True)]


def _overlap(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    return one[1] <= other[2] and other[1] <= one[2]


def find_board(
    session: Session, workload: str, size: str, level: str, filters: Filters, *, page_rows: int = PAGE_ROWS
) -> Board:
    """A page of a board; a page beyond the last is the last.

    Args:
        session: of the database.
        workload: of the board; with ``size`` and ``level`` names it. There need be nothing on it.
        size: as above.
        level: as above.
        filters: which rows, in which order, and which page.
        page_rows: rows of a page.
    """
    base = _on_board(workload, size, level)
    options, num_all = _find_options(session, base)
    wanted = and_(base, Submission.state.in_(SHOWN_STATES), *_conditions(filters))
    num_found = num_all
    if filters.is_narrowing:
        num_found = session.execute(select(func.count()).select_from(Submission).where(wanted)).scalar_one()
    num_pages = max(1, math.ceil(num_found / page_rows))
    page = min(filters.page, num_pages)
    rows = find_rows(session, wanted, filters, offset=(page - 1) * page_rows, limit=page_rows)
    return Board(workload, size, level, filters, tuple(rows), num_all, num_found, page, num_pages, options)


def find_all_rows(session: Session, workload: str, size: str, level: str, filters: Filters) -> list[Row]:
    """All rows of a board that the filters leave, for feeds."""
    wanted = and_(_on_board(workload, size, level), Submission.state.in_(SHOWN_STATES), *_conditions(filters))
    return find_rows(session, wanted, filters, offset=0, limit=MAX_TIED)


def find_rows(session: Session, wanted: ColumnElement[bool], filters: Filters, *, offset: int, limit: int) -> list[Row]:
    """Rows with their places, in the order that the filters ask for."""
    order = FIGURES[filters.sort].best_first(is_reversed=filters.is_reversed)
    keys = select(Submission.sha256).where(wanted).order_by(*order).offset(offset).limit(limit).subquery()
    asked = select_rows().join(keys, keys.c.sha256 == Submission.sha256).order_by(*order)
    places = _find_places(session, wanted, filters, num_needed=offset + limit + 1)
    return [row_of(values, places.get(values[0])) for values in session.execute(asked)]


def _find_places(session: Session, wanted: ColumnElement[bool], filters: Filters, num_needed: int) -> dict[str, Place]:
    """Places by digest, at least of the best ``num_needed``: all that is needed where the page has the best first."""
    name = "vflops" if filters.sort == "date" else filters.sort
    figure = FIGURES[name]
    is_in_order = name == filters.sort and not filters.is_reversed
    found = session.execute(
        select(Submission.sha256, figure.value, figure.low, figure.high)
        .where(wanted, Submission.state.in_(RANKED_STATES), figure.value.is_not(None))
        .order_by(*figure.best_first())
        .limit(num_needed if is_in_order else MAX_TIED)
    ).all()
    intervals = [
        (value, value if low is None else low, value if high is None else high) for _, value, low, high in found
    ]
    places = places_of(intervals)
    return {row[0]: place for row, place in zip(found, places, strict=True)}


def _on_board(workload: str, size: str, level: str) -> ColumnElement[bool]:
    """What belongs to a board: of official ones only what is rankable."""
    named = [Submission.workload == workload, Submission.size == size, Submission.level == level]
    return and_(*named, Submission.rankable.is_(True)) if size == OFFICIAL else and_(*named)


def _conditions(filters: Filters) -> list[ColumnElement[bool]]:
    """What the filters demand of a row, and that it has a score, which the index of boards wants to be told."""
    equal = {Submission.precision: filters.precision, Submission.edition: filters.edition}
    equal[Submission.size_class] = filters.size_class
    conditions = [Submission.vflops.is_not(None), *(column == value for column, value in equal.items() if value)]
    if filters.accelerator:
        conditions.append(func.lower(Submission.accelerator).contains(filters.accelerator.lower(), autoescape=True))
    if filters.nodes_min is not None:
        conditions.append(Submission.num_nodes >= filters.nodes_min)
    if filters.nodes_max is not None:
        conditions.append(Submission.num_nodes <= filters.nodes_max)
    if filters.year is not None:
        conditions.append(Submission.published_at.between(f"{filters.year}", f"{filters.year + 1}"))
    if filters.registered:
        conditions.append(Submission.registered.is_(True))
    if filters.energy:
        conditions.append(Submission.energy_j.is_not(None))
    return conditions


def _find_options(session: Session, base: ColumnElement[bool]) -> tuple[Options, int]:
    """What the filters can be set to, and how many submissions the board has, in one look."""
    year = func.substr(Submission.published_at, 1, 4)
    columns = (Submission.precision, Submission.edition, Submission.size_class, year)
    found = session.execute(
        select(*columns, func.count()).where(base, Submission.state.in_(SHOWN_STATES)).group_by(*columns)
    ).all()
    precisions, editions, classes, years = (
        sorted({clean(row[at], 100) for row in found if row[at]}) for at in range(4)
    )
    classes.sort(key=lambda name: int("".join(letter for letter in name.split("-")[0] if letter.isdigit()) or 0))
    options = Options(tuple(precisions), tuple(reversed(editions)), tuple(classes), tuple(reversed(years)))
    return options, sum(row[4] for row in found)


def list_boards(session: Session) -> list[BoardSummary]:
    """All boards that have a submission, official ones first, each with who leads it."""
    names = (Submission.workload, Submission.size, Submission.level)
    found = session.execute(
        select(*names, func.count())
        .where(Submission.state.not_in(HIDDEN_STATES), (Submission.size != OFFICIAL) | Submission.rankable.is_(True))
        .group_by(*names)
    ).all()
    ordered = sorted(found, key=lambda row: (row[1] != OFFICIAL, row[1], row[0], row[2]))
    return [
        BoardSummary(
            str(workload), str(size), str(level), count, find_leader(session, str(workload), str(size), str(level))
        )
        for workload, size, level, count in ordered
    ]


def find_leader(session: Session, workload: str, size: str, level: str) -> Row | None:
    """Who has the best score on a board; None if nobody is ranked."""
    ranked = and_(_on_board(workload, size, level), Submission.state.in_(RANKED_STATES), Submission.vflops.is_not(None))
    return next(iter(find_rows(session, ranked, Filters(), offset=0, limit=1)), None)


def list_newest(session: Session, limit: int = 10) -> list[Row]:
    """What was published last, of all boards."""
    ranked = Submission.state.not_in((*HIDDEN_STATES, WITHDRAWN))
    asked = select_rows().where(ranked, Submission.published_at.is_not(None))
    newest_first = asked.order_by(Submission.published_at.desc(), Submission.sha256)
    return [row_of(values) for values in session.execute(newest_first.limit(limit))]


def list_of_system(session: Session, organisation_slug: str, system_slug: str) -> list[Row]:
    """All that was ever shown of a system, newest first."""
    mine = and_(Submission.organisation_slug == organisation_slug, Submission.system_slug == system_slug)
    asked = select_rows().where(mine, Submission.state.in_(SHOWN_STATES))
    newest_first = asked.order_by(Submission.published_at.desc(), Submission.sha256)
    return [row_of(values) for values in session.execute(newest_first)]


def find_progress(session: Session, workload: str, size: str, level: str) -> tuple[list[Row], list[Dot]]:
    """Of a board's ranked submissions those that were the best when they were published, and the others; by date."""
    ranked = and_(_on_board(workload, size, level), Submission.state.in_(RANKED_STATES))
    asked = select(Submission.sha256, Submission.published_at, Submission.vflops).where(
        ranked, Submission.vflops.is_not(None), Submission.published_at.is_not(None)
    )
    best = -math.inf
    records: list[str] = []
    others: list[Dot] = []
    found: Any = session.execute(asked.order_by(Submission.published_at, Submission.vflops.desc(), Submission.sha256))
    for sha256, published_at, vflops in found:
        if vflops > best:
            best = vflops
            records.append(sha256)
        else:
            others.append(Dot(published_at, vflops))
    rows = {row.sha256: row for row in _find(session, records)}
    return [rows[sha256] for sha256 in records], others


def _find(session: Session, digests: list[str]) -> list[Row]:
    return [row_of(values) for values in session.execute(select_rows().where(Submission.sha256.in_(digests)))]
