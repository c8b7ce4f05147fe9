"""The pages of a board over HTTP: ``router(database, storage)`` for the app (hpcai500/leaderboard/app.py).

Pages need no script and take nothing from elsewhere; the app's headers hold browsers to that. A report stands alone
with its style in it, so it is sent with a policy of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from sqlalchemy.orm import Session

from hpcai500.leaderboard import feeds, ranking, views
from hpcai500.leaderboard.filters import parse_filters
from hpcai500.leaderboard.rendering import Files, Site
from hpcai500.leaderboard.storage import ARCHIVE, REPORT, VERDICT
from hpcai500.leaderboard.views import NoSuchPageError

REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
NOTHING_HERE = "The address may be mistyped, or from a time before the board was as it is now."
NUM_NEWEST = 50  # entries of the feed


class Sessions(Protocol):
    """Where sessions of the database come from (database.py)."""

    def session(self) -> AbstractContextManager[Session]:
        """A session for looking."""


def site_of(request: Request, storage: Files) -> Site:
    """The board as this request sees it: below the path at which a proxy serves it."""
    root = str(request.scope.get("root_path", "")).rstrip("/")
    return Site(storage, lambda address: root + address, own_url=own_url_of(request))


def own_url_of(request: Request) -> str:
    """Where people find the board, without a slash at its end: as its operator says, else as they asked."""
    public_url: str | None = getattr(request.app.state, "public_url", None)
    return public_url or str(request.base_url).rstrip("/")


def missing(request: Request, storage: Files, problem: str = NOTHING_HERE) -> HTMLResponse:
    """The page that says that nothing is at an address; also for the app's own 404."""
    return HTMLResponse(views.missing_page(site_of(request, storage), problem), status_code=404)


def router(database: Sessions, storage: Files) -> APIRouter:
    """All pages, feeds and files of submissions."""
    pages = APIRouter(include_in_schema=False)

    def show(request: Request, view: Callable[[Session, Site], str]) -> HTMLResponse:
        with database.session() as session:
            try:
                return HTMLResponse(view(session, site_of(request, storage)))
            except NoSuchPageError as problem:
                return missing(request, storage, str(problem))

    def send(request: Request, sha256: str, name: str, **sent: object) -> Response:
        """A file of a submission that anybody may see."""
        with database.session() as session:
            try:
                _, row = views.find_shown(session, sha256)
            except NoSuchPageError as problem:
                return missing(request, storage, str(problem))
        path = storage.path(sha256, name)
        if not path.is_file():
            return missing(request, storage, f"This submission has no {name} here.")
        filename = views.archive_name(row) if name == ARCHIVE else None
        return FileResponse(path, filename=filename, **sent)  # type: ignore[arg-type]

    def feed(
        request: Request, names: tuple[str, str, str], make: Callable[[ranking.Board], str], kind: str
    ) -> Response:
        filters, _ = parse_filters(request.query_params)
        with database.session() as session:
            try:
                views.check_names(*names)
            except NoSuchPageError as problem:
                return missing(request, storage, str(problem))
            board = ranking.find_whole_board(session, *names, filters)
        return Response(make(board), media_type=kind)

    def page(path: str) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
        return pages.api_route(path, methods=["GET", "HEAD"], response_class=HTMLResponse)

    @page("/")
    def start(request: Request) -> Response:
        return show(request, views.start_page)

    @page("/boards/{workload}/{size}/{level}.csv")
    def board_csv(request: Request, workload: str, size: str, level: str) -> Response:
        return feed(request, (workload, size, level), feeds.as_csv, "text/csv; charset=utf-8")

    @page("/boards/{workload}/{size}/{level}.json")
    def board_json(request: Request, workload: str, size: str, level: str) -> Response:
        return feed(request, (workload, size, level), feeds.as_json, "application/json")

    @page("/boards/{workload}/{size}/{level}")
    def board(request: Request, workload: str, size: str, level: str) -> Response:
        filters, problems = parse_filters(request.query_params)

        def view(session: Session, site: Site) -> str:
            return views.board_page(
                session, site, views.find_board(session, (workload, size, level), filters), problems
            )

        return show(request, view)

    @page("/submissions/{sha256}")
    def submission(request: Request, sha256: str) -> Response:
        return show(request, lambda session, site: views.submission_page(session, site, sha256))

    @page("/submissions/{sha256}/report")
    def report(request: Request, sha256: str) -> Response:
        return send(request, sha256, REPORT, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    @page("/submissions/{sha256}/archive")
    def archive(request: Request, sha256: str) -> Response:
        return send(request, sha256, ARCHIVE, media_type="application/gzip")

    @page("/submissions/{sha256}/verdict.json")
    def verdict(request: Request, sha256: str) -> Response:
        return send(request, sha256, VERDICT, media_type="application/json")

    @page("/systems/{organisation_slug}/{system_slug}")
    def system(request: Request, organisation_slug: str, system_slug: str) -> Response:
        return show(request, lambda session, site: views.system_page(session, site, organisation_slug, system_slug))

    @page("/history/2020")
    def history_2020(request: Request) -> Response:
        return HTMLResponse(views.history_2020_page(site_of(request, storage)))

    @page("/history/{workload}/{size}/{level}")
    def history(request: Request, workload: str, size: str, level: str) -> Response:
        filters, _ = parse_filters(request.query_params)
        names = (workload, size, level)
        return show(request, lambda session, site: views.history_page(session, site, names, filters.edition))

    @page("/compare")
    def compare(request: Request) -> Response:
        digests = request.query_params.getlist("submission")
        return show(request, lambda session, site: views.compare_page(session, site, digests))

    @page("/audit")
    def audit(request: Request) -> Response:
        filters, _ = parse_filters({"page": request.query_params.get("page", "")})
        return show(request, lambda session, site: views.audit_page(session, site, filters.page))

    @page("/about")
    def about(request: Request) -> Response:
        return HTMLResponse(views.about_page(site_of(request, storage)))

    @page("/feed.atom")
    def atom(request: Request) -> Response:
        with database.session() as session:
            rows = ranking.list_newest(session, NUM_NEWEST)
        base = own_url_of(request)
        return Response(feeds.as_atom(rows, lambda address: base + address), media_type="application/atom+xml")

    return pages
