"""What each page shows, from the database to its text; the server and the export call the same.

A view returns a page, or raises ``NoSuchPageError`` with a sentence for the reader.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from sqlalchemy import select
from sqlalchemy.orm import Session

from hpcai500.leaderboard import ranking
from hpcai500.leaderboard.compare import LEAST, MOST, compare
from hpcai500.leaderboard.display import (
    clean,
    clean_lines,
    flat,
    moment,
    plain_fact,
    size_in_bytes,
    time_unit_of,
    unit_of,
)
from hpcai500.leaderboard.editions import ALL
from hpcai500.leaderboard.filters import Filters
from hpcai500.leaderboard.history import ranking_of_2020
from hpcai500.leaderboard.plots import PHONE_WIDTH, WIDTH, record_plot
from hpcai500.leaderboard.ranking import HIDDEN_STATES, OFFICIAL, PAGE_ROWS, Board
from hpcai500.leaderboard.rendering import TITLES, Site, level_names, quality_name_of, title_of
from hpcai500.leaderboard.rows import Row, row_of, select_rows
from hpcai500.leaderboard.storage import ARCHIVE, REPORT, SHA256, VERDICT
from hpcai500.leaderboard.tables import SHOWN_STATES, Audit, Challenge, Submission

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}\Z")
AUDIT_ROWS = 100
GROUPS = {
    "Software": ("os", "kernel", "python", "libraries"),
    "Machine": ("processor", "num_cores", "memory_bytes"),
    "Settings": ("data_source", "settings"),
    "Deviations and remarks": ("deviations", "notes", "warnings"),
}


class NoSuchPageError(LookupError):
    """There is nothing at an address; the text says why, to its reader."""


@dataclass(frozen=True, slots=True)
class Event:
    """A line of the audit log, cleaned."""

    at: str
    actor: str
    action: str
    sha256: str
    detail: str


def check_names(*names: str) -> None:
    """Refuse what cannot be the name of a board or a system.

    Raises:
        NoSuchPageError: a name is none.
    """
    for name in names:
        if not NAME.match(name):
            raise NoSuchPageError(f"No board or system is called {clean(name, 60)!r}.")


def start_page(session: Session, site: Site) -> str:
    """What this is, which boards there are, and what is new."""
    boards = ranking.list_boards(session)
    official = [board for board in boards if board.size == OFFICIAL]
    practice = [board for board in boards if board.size != OFFICIAL]
    newest = ranking.list_newest(session)
    return site.render("start.html", "/", boards=boards, official=official, practice=practice, newest=newest)


def board_page(session: Session, site: Site, board: Board, problems: Sequence[str] = ()) -> str:
    """A page of a ranking."""
    columns = {
        "vflops": unit_of(row.vflops for row in board.rows),
        "per_device": unit_of(row.vflops_per_device for row in board.rows),
        "per_watt": unit_of((row.vflops_per_w for row in board.rows), "flop/s/W"),
        "time": time_unit_of(row.wall_s for row in board.rows),
    }
    levels = {board.level, *_levels(session, board.workload, board.size)}
    return site.render(
        "board.html",
        "/",
        board=board,
        filters=board.filters,
        without_filters=Filters(edition=board.filters.edition).query(),
        problems=problems,
        units=columns,
        levels=sorted(levels),
        scale=max((row.vflops_high for row in board.rows), default=0.0),
        quality_name=quality_name_of(board.workload),
        sort_has_interval=board.filters.sort in ("vflops", "per_device") and not board.filters.is_reversed,
        page_numbers=page_numbers(board.page, board.num_pages),
    )


def page_numbers(page: int, num_pages: int) -> list[int | None]:
    """The first, the last and the pages around this one; None where some are left out."""
    near = {1, num_pages, *range(max(1, page - 2), min(num_pages, page + 2) + 1)}
    numbers: list[int | None] = []
    for number in sorted(near):
        if numbers and numbers[-1] != number - 1:
            numbers.append(None)
        numbers.append(number)
    return numbers


def _levels(session: Session, workload: str, size: str) -> list[str]:
    """Levels at which the board has submissions."""
    named = [Submission.workload == workload, Submission.size == size, Submission.state.not_in(HIDDEN_STATES)]
    if size == OFFICIAL:
        named.append(Submission.rankable.is_(True))
    one = select(Submission.level).where(*named).limit(1)  # to look at all of them would take longer
    return [level for level in level_names() if session.scalar(one.where(Submission.level == level))]


def find_shown(session: Session, sha256: str) -> tuple[Submission, Row]:
    """A submission that anybody may see.

    Raises:
        NoSuchPageError: there is none of that address, or it is not published.
    """
    if not SHA256.match(sha256):
        raise NoSuchPageError("A submission's address has 64 digits from 0 to f; this one has not.")
    found = session.get(Submission, sha256)
    if found is None or found.state not in SHOWN_STATES:
        raise NoSuchPageError(
            "No published submission has this address. One that was just uploaded appears once this board has verified "
            "it and its organisation has published it."
        )
    return found, row_of(session.execute(select_rows().where(Submission.sha256 == sha256)).one())


def archive_name(row: Row) -> str:
    """What the archive of a submission is called where it is saved: safe letters only."""
    return f"{re.sub(r'[^a-z0-9-]', '-', row.system_slug)[:60]}-{row.sha256[:12]}.tar.gz"


def submission_page(session: Session, site: Site, sha256: str) -> str:
    """All of a submission.

    Raises:
        NoSuchPageError: there is no such one.
    """
    found, row = find_shown(session, sha256)
    facts = found.facts or {}
    groups = [(name, flat({key: facts[key] for key in keys if key in facts})) for name, keys in GROUPS.items()]
    others = {key: value for key, value in facts.items() if not any(key in keys for keys in GROUPS.values())}
    runs = others.pop("runs", [])
    groups.append(("More", flat(others)))
    return site.render(
        "submission.html",
        found=found,
        row=row,
        is_official=row.size == OFFICIAL,
        board_address=f"/boards/{row.workload}/{row.size}/{row.level}",
        quality_name=quality_name_of(row.workload),
        settings=_settings(found, row),
        facts=[(name, [plain_fact(key, text) for key, text in pairs]) for name, pairs in groups if pairs],
        runs=[run for run in runs if isinstance(run, dict)],
        challenges=[_challenge(challenge) for challenge in found.challenges],
        events=_events(session, sha256),
        archive_name=archive_name(row),
        has_report=site.has_file(sha256, REPORT),
        has_verdict=site.has_file(sha256, VERDICT),
        has_archive=site.has_file(sha256, ARCHIVE),
    )


def _settings(found: Submission, row: Row) -> list[tuple[str, str]]:
    """The facts that have a column of their own."""
    return [
        ("Workload", f"{title_of(row.workload)} ({row.size} size, {row.level} level)"),
        ("Edition of the rules", row.edition),
        ("Accelerator", row.accelerator),
        ("Devices, nodes, ranks", f"{row.num_devices:,}, {row.num_nodes:,}, {found.num_ranks or 0:,}"),
        ("Precision", row.precision),
        ("Communication", clean(found.communicator or "not told")),
        ("Runs", f"{found.num_completed} completed of {found.num_runs} started"),
        ("Submitter", clean(found.submitter or "not told")),
        ("Assembled", moment(found.created)),
        ("Uploaded", f"{moment(found.uploaded_at)}, {size_in_bytes(found.size_bytes)}"),
    ]


def _challenge(challenge: Challenge) -> dict[str, Any]:
    return {
        "claim": clean(challenge.claim, 4000),
        "evidence": clean_lines(challenge.evidence),
        "organisation": clean(challenge.organisation.name),
        "opened_at": challenge.opened_at,
        "state": clean(challenge.state, 20),
        "decision": clean_lines(challenge.decision or ""),
        "closed_at": challenge.closed_at,
    }


def _events(session: Session, sha256: str) -> list[Event]:
    asked = select(Audit).where(Audit.subject == sha256).order_by(Audit.id)
    return [_event(event) for event in session.scalars(asked)]


def _event(event: Audit) -> Event:
    return Event(event.at, clean(event.actor, 100), clean(event.action, 40), event.subject, clean(event.detail, 4000))


def system_page(session: Session, site: Site, organisation_slug: str, system_slug: str) -> str:
    """All submissions of a system over time.

    Raises:
        NoSuchPageError: there is none.
    """
    check_names(organisation_slug, system_slug)
    rows = ranking.list_of_system(session, organisation_slug, system_slug)
    if not rows:
        raise NoSuchPageError("No system of that name has a published submission.")
    return site.render("system.html", rows=rows)


def history_page(session: Session, site: Site, names: tuple[str, str, str], asked: str = "") -> str:
    """The record of a board over time, in the edition that is asked for, else in its newest.

    Raises:
        NoSuchPageError: a name cannot be one.
    """
    check_names(*names)
    workload, size, level = names
    editions = ranking.list_editions(session, *names)
    edition = asked if asked not in ("", ALL) else next(iter(editions), "")  # a record is of one edition
    records, others = ranking.find_progress(session, *names, edition)
    shown = clean(edition, 100)
    title = f"Best VFLOPS over time: {title_of(workload)}, {size} size, {level} level, edition {shown}"
    plots = [record_plot(records, others, title, width=width) for width in (WIDTH, PHONE_WIDTH) if records]
    plot = Markup("".join(plots))  # noqa: S704  plots.py escapes names
    return site.render(
        "history.html",
        workload=workload,
        size=size,
        level=level,
        edition=shown,
        editions=[clean(name, 100) for name in editions],
        filters=Filters(edition=asked),
        records=list(reversed(records)),
        plot=plot,
    )


def history_2020_page(site: Site) -> str:
    """The ranking of 2020."""
    return site.render("history_2020.html", "/history/2020", rows=ranking_of_2020())


def compare_page(session: Session, site: Site, digests: Sequence[str]) -> str:
    """Submissions side by side, or what to do where that cannot be.

    Raises:
        NoSuchPageError: one of them is not there.
    """
    wanted = list(dict.fromkeys(digests))
    if not LEAST <= len(wanted) <= MOST:
        asked = "none" if not wanted else "one" if len(wanted) == 1 else str(len(wanted))
        problem = f"Two to six submissions can be compared; {asked} {'was' if len(wanted) == 1 else 'were'} chosen."
        return site.render("compare.html", problem=problem, comparison=None, reported=())
    found = [find_shown(session, sha256) for sha256 in wanted]
    comparison = compare([row for _, row in found], [submission.facts or {} for submission, _ in found])
    reported = {row.sha256 for _, row in found if site.has_file(row.sha256, REPORT)}
    return site.render("compare.html", problem="", comparison=comparison, reported=reported)


def audit_page(session: Session, site: Site, page: int) -> str:
    """What happened to submissions that anybody may see."""
    events, has_more = find_audit(session, page)
    return site.render("audit.html", "/audit", events=events, page=page, has_more=has_more)


def find_audit(session: Session, page: int) -> tuple[list[Event], bool]:
    """A page of the audit log, newest first, and whether there is another."""
    shown = select(Submission.sha256).where(Submission.state.in_(SHOWN_STATES))
    asked = select(Audit).where(Audit.subject.in_(shown)).order_by(Audit.id.desc())
    found = list(session.scalars(asked.offset((page - 1) * AUDIT_ROWS).limit(AUDIT_ROWS + 1)))
    return [_event(event) for event in found[:AUDIT_ROWS]], len(found) > AUDIT_ROWS


def about_page(site: Site) -> str:
    """How the board works."""
    return site.render("about.html", "/about")


def missing_page(site: Site, problem: str) -> str:
    """What stands at an address where nothing is."""
    return site.render("missing.html", title=TITLES[404], problem=problem)


def find_board(session: Session, names: tuple[str, str, str], filters: Filters, *, page_rows: int = PAGE_ROWS) -> Board:
    """A page of a board that may exist.

    Raises:
        NoSuchPageError: a name cannot be one.
    """
    check_names(*names)
    return ranking.find_board(session, *names, filters, page_rows=page_rows)
