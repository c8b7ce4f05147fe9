"""Who stands where: the queries behind boards, feeds and the exported files.

A rank is 1 + the number of submissions that are better; it is shared by neighbours that cannot be told apart: whose
95 % intervals overlap, both that of the one above and that of the first who has the rank. So a long chain of small
overlaps does not make everybody first. Ranks are of what the filters leave, by the figure that the board is sorted by
(by VFLOPS where it is sorted by date). Withdrawn submissions have none. A board shows its newest edition of the rules
if nothing else is asked; where it shows several, nobody has a rank, since their results do not compare.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, and_, case, func, select
from sqlalchemy.orm import Session

from hpcai500.leaderboard.display import clean
from hpcai500.leaderboard.editions import ALL, newest_first, of_edition
from hpcai500.leaderboard.filters import Filters
from hpcai500.leaderboard.rows import Dot, Place, Row, row_of, select_rows
from hpcai500.leaderboard.tables import RANKED_STATES, SHOWN_STATES, STATES, WITHDRAWN, Submission

OFFICIAL = "official"
PAGE_ROWS = 50
HIDDEN_STATES = tuple(state for state in STATES if state not in SHOWN_STATES)
"""For "not in": an "in" makes SQLite take the index of states where another gives the order that is wanted."""
MAX_TIED = 100_000  # rows of which places are worked out
MEASURED = "measured"  # the label of hpcai500.energy.label


@dataclass(frozen=True, slots=True)
class Options:
    """What the filters of a board can be set to: only what there is."""

    precisions: tuple[str, ...]
    editions: tuple[str, ...]  # newest first
    size_classes: tuple[str, ...]
    years: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A page of a board."""

    workload: str
    size: str
    level: str
    filters: Filters
    edition: str  # that is shown; ALL, or "" where the board has nothing
    rows: tuple[Row, ...]
    num_all: int  # of the edition, without the filters
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

    @property
    def is_mixed(self) -> bool:
        """Whether its rows may be of different editions, so that nobody is ranked."""
        return self.edition == ALL and len(self.options.editions) > 1


@dataclass(frozen=True, slots=True)
class BoardSummary:
    """A board as the start page lists it: its newest edition."""

    workload: str
    size: str
    level: str
    edition: str
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
    # What chips say of themselves is shown with its label, and gives nobody a place.
    "per_watt": _exact(case((Submission.energy_label == MEASURED, Submission.vflops_per_w))),
    "quality": _exact(Submission.achieved_quality),
    "time": _exact(Submission.wall_s, is_less_better=True),
    "date": _exact(Submission.published_at),
}


def places_of(intervals: Sequence[tuple[float, float, float]], positions: Iterable[int] | None = None) -> list[Place]:
    """Places of submissions that are sorted best first, of each its value, and the low and high end of its interval.

    Of all, or of those alone that stand at ``positions``, counted from 0.
    """
    ranks: list[int] = []
    like_above: list[bool] = []
    rank = 1
    first_low = first_high = above_low = above_high = math.nan  # overlaps nothing
    for position, (_, low, high) in enumerate(intervals, 1):
        is_like_above = above_low <= high and low <= above_high
        if not (is_like_above and first_low <= high and low <= first_high):
            rank, first_low, first_high = position, low, high
        ranks.append(rank)
        like_above.append(is_like_above)
        above_low, above_high = low, high
    count = Counter(ranks)
    wanted = range(len(ranks)) if positions is None else positions
    return [Place(ranks[at], count[ranks[at]] > 1, like_above[at]) for at in wanted]


def find_board(
    session: Session, workload: str, size: str, level: str, filters: Filters, *, page_rows: int = PAGE_ROWS
) -> Board:
    """A page of a board, of its newest edition if the filters name none; a page beyond the last is the last.

    Args:
        session: of the database.
        workload: of the board; with ``size`` and ``level`` names it. There need be nothing on it.
        size: as above.
        level: as above.
        filters: which rows, in which order, and which page.
        page_rows: rows of a page.
    """
    base = _on_board(workload, size, level)
    options, counts = _find_options(session, base, filters)
    edition = filters.edition or next(iter(counts), "")
    wanted = and_(base, of_edition(edition), Submission.state.in_(SHOWN_STATES), *_conditions(filters))
    of_board = counts.values() if edition == ALL else [counts.get(edition, (0, 0))]
    num_all, num_found = (sum(numbers) for numbers in zip((0, 0), *of_board, strict=True))
    num_pages = max(1, math.ceil(num_found / page_rows))
    page = min(filters.page, num_pages)
    empty = Board(workload, size, level, filters, clean(edition, 100), (), num_all, num_found, page, num_pages, options)
    window = (page - 1) * page_rows, page_rows
    return replace(empty, rows=tuple(find_rows(session, wanted, filters, *window, is_ranked=not empty.is_mixed)))


def find_whole_board(session: Session, workload: str, size: str, level: str, filters: Filters) -> Board:
    """A board with all rows that the filters leave on one page, for feeds."""
    return find_board(session, workload, size, level, replace(filters, page=1), page_rows=MAX_TIED)


def find_rows(
    session: Session,
    wanted: ColumnElement[bool],
    filters: Filters,
    offset: int,
    limit: int,
    *,
    is_ranked: bool = True,
) -> list[Row]:
    """Rows in the order that the filters ask for, with their places if they have any."""
    order = FIGURES[filters.sort].best_first(is_reversed=filters.is_reversed)
    keys = select(Submission.sha256).where(wanted).order_by(*order).offset(offset).limit(limit).subquery()
    asked = select_rows().join(keys, keys.c.sha256 == Submission.sha256).order_by(*order)
    found = session.execute(asked).all()
    digests = {values[0] for values in found}
    places = _find_places(session, wanted, filters, digests, offset + limit + 1) if is_ranked else {}
    return [row_of(values, places.get(values[0])) for values in found]


def _find_places(
    session: Session, wanted: ColumnElement[bool], filters: Filters, digests: set[str], num_needed: int
) -> dict[str, Place]:
    """Places of these submissions, by digest. The best ``num_needed`` tell them where the page has the best first."""
    name = "vflops" if filters.sort == "date" else filters.sort
    figure = FIGURES[name]
    is_in_order = name == filters.sort and not filters.is_reversed
    asked = (
        select(Submission.sha256, figure.value, figure.low, figure.high)
        .where(wanted, Submission.state.in_(RANKED_STATES), figure.value.is_not(None))
        .order_by(*figure.best_first())
        .limit(num_needed if is_in_order else MAX_TIED)
    )
    found = session.connection().execute(asked).all()  # the ORM takes half as long again for so many rows
    intervals = [
        (value, value if low is None else low, value if high is None else high) for _, value, low, high in found
    ]
    positions = {row[0]: position for position, row in enumerate(found) if row[0] in digests}
    return dict(zip(positions, places_of(intervals, positions.values()), strict=True))


def _on_board(workload: str, size: str, level: str) -> ColumnElement[bool]:
    """What belongs to a board: of official ones only what is rankable."""
    named = [Submission.workload == workload, Submission.size == size, Submission.level == level]
    return and_(*named, Submission.rankable.is_(True)) if size == OFFICIAL else and_(*named)


def _ranked(workload: str, size: str, level: str, edition: str) -> ColumnElement[bool]:
    """What has a rank in an edition of a board."""
    return and_(_on_board(workload, size, level), of_edition(edition), Submission.state.in_(RANKED_STATES))


def _conditions(filters: Filters) -> list[ColumnElement[bool]]:
    """What the filters demand of a row, and that it has a score, which the index of boards wants to be told."""
    equal = {Submission.precision: filters.precision, Submission.size_class: filters.size_class}
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
        conditions.append(Submission.energy_label == MEASURED)
    return conditions


def _find_options(
    session: Session, base: ColumnElement[bool], filters: Filters
) -> tuple[Options, dict[str, tuple[int, int]]]:
    """What the filters can be set to; of each edition, newest first, how many it has and how many the filters leave."""
    year = func.substr(Submission.published_at, 1, 4)
    columns = (Submission.precision, Submission.edition, Submission.size_class, year)
    found = session.execute(
        select(*columns, func.count(), func.count().filter(and_(*_conditions(filters))))
        .where(base, Submission.state.in_(SHOWN_STATES))
        .group_by(*columns)
    ).all()
    precisions, classes, years = (sorted({clean(row[at], 100) for row in found if row[at]}) for at in (0, 2, 3))
    classes.sort(key=lambda name: int("".join(letter for letter in name.split("-")[0] if letter.isdigit()) or 0))
    counts = {
        name: (sum(row[4] for row in found if row[1] == name), sum(row[5] for row in found if row[1] == name))
        for name in newest_first(row[1] for row in found)
    }
    editions = tuple(clean(name, 100) for name in counts)
    return Options(tuple(precisions), editions, tuple(classes), tuple(reversed(years))), counts


def list_boards(session: Session) -> list[BoardSummary]:
    """All boards that have a submission, official ones first, each with who leads its newest edition."""
    names = (Submission.workload, Submission.size, Submission.level)
    found = session.execute(
        select(*names, Submission.edition, func.count())
        .where(Submission.state.not_in(HIDDEN_STATES), (Submission.size != OFFICIAL) | Submission.rankable.is_(True))
        .group_by(*names, Submission.edition)
    )
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    for workload, size, level, edition, count in found:
        counts.setdefault((str(workload), str(size), str(level)), {})[edition or ""] = count
    boards: list[BoardSummary] = []
    for board in sorted(counts, key=lambda names: (names[1] != OFFICIAL, names[1], names[0], names[2])):
        edition = next(iter(newest_first(counts[board])), "")
        leader = find_leader(session, *board, edition)
        boards.append(BoardSummary(*board, clean(edition, 100), counts[board][edition], leader))
    return boards


def find_leader(session: Session, workload: str, size: str, level: str, edition: str) -> Row | None:
    """Who has the best score of an edition on a board; None if nobody is ranked."""
    ranked = and_(_ranked(workload, size, level, edition), Submission.vflops.is_not(None))
    return next(iter(find_rows(session, ranked, Filters(), offset=0, limit=1)), None)


def list_editions(session: Session, workload: str, size: str, level: str) -> list[str]:
    """Editions of which a board shows anything, newest first."""
    shown = and_(_on_board(workload, size, level), Submission.state.in_(SHOWN_STATES))
    return newest_first(session.scalars(select(Submission.edition).where(shown).distinct()))


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


def find_progress(session: Session, workload: str, size: str, level: str, edition: str) -> tuple[list[Row], list[Dot]]:
    """Of an edition's ranked submissions those that were the best when they were published, and the others; by date."""
    ranked = _ranked(workload, size, level, edition)
    asked = select(Submission.sha256, Submission.published_at, Submission.vflops).where(
        ranked, Submission.vflops.is_not(None), Submission.published_at.is_not(None)
    )
    best = -math.inf
    records: list[str] = []
    others: list[Dot] = []
    found: Any = session.connection().execute(
        asked.order_by(Submission.published_at, Submission.vflops.desc(), Submission.sha256)
    )
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
