"""The whole board as files that a plain web server, or a folder opened in a browser, shows without a program behind.

Templates and queries are those of the server, so the numbers are; only links differ. Sorting leads to files made
beforehand, filtering hides rows in the browser (static/board.js). The same board gives the same bytes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session

from hpcai500.errors import UsageError
from hpcai500.leaderboard import feeds, ranking, views
from hpcai500.leaderboard.filters import SORTS, Filters
from hpcai500.leaderboard.pages import NOTHING_HERE, NUM_NEWEST, Sessions
from hpcai500.leaderboard.rendering import STATIC, Files, Site
from hpcai500.leaderboard.storage import ARCHIVE, REPORT, VERDICT
from hpcai500.leaderboard.tables import SHOWN_STATES, Submission

PAGE_ROWS = 500  # of a board's file; within it filters work
MARK = ".hpcai500-export"  # says that a folder is an export, which may be written over
FILES = {"report": REPORT, "archive": ARCHIVE, "verdict.json": VERDICT}
Names = tuple[str, str, str]


def export_board(database: Sessions, storage: Files, folder: Path, base_url: str = "") -> int:
    """Write the board as files; over an earlier export, whose files that are no more are taken away.

    Args:
        database: of the board.
        storage: its files.
        folder: where to; new, empty, or an earlier export.
        base_url: under which the files will be served, for links of the feed and a page for what is not there; without
            it the feed's links are relative.

    Returns:
        How many files there are.

    Raises:
        UsageError: the folder holds something else, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARK).exists())):
        raise UsageError(f"{str(folder)!r} holds something that is not an exported board; name a new or empty folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
        export = _Export(storage, folder, base_url.rstrip("/"))
        with database.session() as session:
            export.write_all(session)
        export.remove_old()
    except OSError as error:
        raise UsageError(
            f"the board cannot be written to {str(folder)!r} ({error.strerror}); free space or name another folder"
        ) from None
    return len(export.written)


def file_of(address: str) -> str:
    """The file in which a page of the board stands: "boards/resnet50/official/free/by-time.html"."""
    split = urlsplit(address)
    path = split.path.strip("/")
    first = path.split("/", maxsplit=1)[0]
    if first == "submissions" and path.count("/") == 2:
        owner, _, name = path.rpartition("/")
        return f"{owner}/{FILES[name]}"
    query = parse_qs(split.query)
    words = [f"edition-{name}" for name in query.get("edition", ())]
    if first == "static" or (PurePosixPath(path).suffix in (".csv", ".json", ".atom") and first != "systems"):
        whole = PurePosixPath(path)
        return str(whole.with_suffix("") / f"{words[0]}{whole.suffix}" if words else whole)
    words += [f"by-{name}" for name in query.get("sort", ())] + [f"page-{number}" for number in query.get("page", ())]
    return str(PurePosixPath(path) / f"{'-'.join(words) or 'index'}.html")


class _Export:
    """Writes the files of one export, and remembers which."""

    def __init__(self, storage: Files, folder: Path, base_url: str) -> None:
        self.storage = storage
        self.folder = folder
        self.base_url = base_url
        self.written = {MARK}

    def write_all(self, session: Session) -> None:
        """All pages, feeds and files."""
        for source in sorted(STATIC.iterdir()):
            self.copy(source, f"/static/{source.name}")
        self.write("/", lambda site: views.start_page(session, site))
        self.write("/about", views.about_page)
        self.write("/history/2020", views.history_2020_page)
        for names in _boards(session):
            self.write_board(session, names)
        for sha256 in session.scalars(select(Submission.sha256).where(Submission.state.in_(SHOWN_STATES))).all():
            self.write_submission(session, sha256)
        for system in _systems(session):
            self.write("/".join(("/systems", *system)), self._system(session, system))
        self.write_audit(session)
        rows = ranking.list_newest(session, NUM_NEWEST)
        absolute = f"{self.base_url}/" if self.base_url else ""
        self.write_text("/feed.atom", feeds.as_atom(rows, lambda address: absolute + file_of(address)))
        if self.base_url:
            site = Site(self.storage, lambda address: absolute + file_of(address), is_static=True)
            self.write_text("/404.html", views.missing_page(site, NOTHING_HERE), name="404.html")

    def write_board(self, session: Session, names: Names) -> None:
        """A board's newest edition, and the older ones by their names."""
        self.write_edition(session, names, "")
        for edition in ranking.list_editions(session, *names)[1:]:
            views.check_names(edition)
            self.write_edition(session, names, edition)

    def write_edition(self, session: Session, names: Names, edition: str) -> None:
        """An edition of a board in each order, with its feeds and its history."""
        address = "/".join(("/boards", *names))
        for sort in SORTS:
            page = 1
            while True:
                filters = Filters(edition=edition, sort=sort, page=page)
                board = views.find_board(session, names, filters, page_rows=PAGE_ROWS)
                self.write(address + filters.query(page=page), self._board(session, board))
                if page >= board.num_pages:
                    break
                page += 1
        filters = Filters(edition=edition)
        board, query = ranking.find_whole_board(session, *names, filters), filters.query()
        self.write_text(f"{address}.csv{query}", feeds.as_csv(board))
        self.write_text(f"{address}.json{query}", feeds.as_json(board))
        history = "/".join(("/history", *names)) + query
        self.write(history, lambda site: views.history_page(session, site, names, edition))

    def write_submission(self, session: Session, sha256: str) -> None:
        """The page of a submission, and its files as far as they are there."""
        address = f"/submissions/{sha256}"
        self.write(address, lambda site: views.submission_page(session, site, sha256))
        for name, file_name in FILES.items():
            source = self.storage.path(sha256, file_name)
            if source.is_file():
                self.copy(source, f"{address}/{name}")

    def write_audit(self, session: Session) -> None:
        """The audit log, page by page."""
        page, has_more = 1, True
        while has_more:
            _, has_more = views.find_audit(session, page)
            self.write(f"/audit{f'?page={page}' if page > 1 else ''}", self._audit(session, page))
            page += 1

    def write(self, address: str, view: Callable[[Site], str]) -> None:
        """A page, with links to the files of the others."""
        start = str(PurePosixPath(file_of(address)).parent)
        site = Site(self.storage, lambda other: os.path.relpath(file_of(other), start), is_static=True)
        self.write_text(address, view(site))

    def write_text(self, address: str, text: str, name: str = "") -> None:
        """A file with this text."""
        self._place(name or file_of(address)).write_bytes(text.encode())

    def copy(self, source: Path, address: str) -> None:
        """A file as it is."""
        shutil.copyfile(source, self._place(file_of(address)))

    def remove_old(self) -> None:
        """Take away what an earlier export wrote and this one did not."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in self.written:
                path.unlink()

    def _place(self, name: str) -> Path:
        path = self.folder / name
        assert path.resolve().is_relative_to(self.folder.resolve()), name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # an archive there may be read-only
        self.written.add(name)
        return path

    @staticmethod
    def _board(session: Session, board: ranking.Board) -> Callable[[Site], str]:
        return lambda site: views.board_page(session, site, board)

    @staticmethod
    def _system(session: Session, system: tuple[str, str]) -> Callable[[Site], str]:
        return lambda site: views.system_page(session, site, *system)

    @staticmethod
    def _audit(session: Session, page: int) -> Callable[[Site], str]:
        return lambda site: views.audit_page(session, site, page)


def _boards(session: Session) -> Iterator[Names]:
    """All boards that a shown submission belongs to, whether or not it is ranked."""
    columns = (Submission.workload, Submission.size, Submission.level)
    for row in session.execute(
        select(*columns).where(Submission.state.in_(SHOWN_STATES)).distinct().order_by(*columns)
    ):
        names = (str(row[0]), str(row[1]), str(row[2]))
        views.check_names(*names)
        yield names


def _systems(session: Session) -> Iterator[tuple[str, str]]:
    columns = (Submission.organisation_slug, Submission.system_slug)
    for row in session.execute(
        select(*columns).where(Submission.state.in_(SHOWN_STATES)).distinct().order_by(*columns)
    ):
        views.check_names(row[0], row[1])
        yield row[0], row[1]
