"""The form in which people challenge a submission: what the API's ``challenge`` does, for a browser without scripts."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from hpcai500.errors import HpcAi500Error
from hpcai500.leaderboard import views
from hpcai500.leaderboard.answers import Refused, refused_by
from hpcai500.leaderboard.api import authenticate_request, check_scope, file_challenge
from hpcai500.leaderboard.board import Board
from hpcai500.leaderboard.lifecycle import MAX_TEXT
from hpcai500.leaderboard.pages import missing, site_of
from hpcai500.leaderboard.views import NoSuchPageError

MAX_FIELDS = 10
ADDRESS = "/submissions/{sha256}/challenge"


class Filed(NamedTuple):
    """What somebody wrote into the form."""

    token: str
    claim: str
    evidence: str


def router(board: Board) -> APIRouter:
    """The form's two paths."""
    pages = APIRouter(include_in_schema=False)

    def show(request: Request, sha256: str, filed: Filed, problem: str = "", status: int = 200) -> Response:
        with board.database.session() as session:
            try:
                _, row = views.find_shown(session, sha256)
            except NoSuchPageError as error:
                return missing(request, board.storage, str(error))
            site = site_of(request, board.storage)
            page = site.render("challenge.html", row=row, filed=filed, problem=problem, max_text=MAX_TEXT)
            return HTMLResponse(page, status)

    @pages.get(ADDRESS, response_class=HTMLResponse)
    def form(request: Request, sha256: str) -> Response:
        return show(request, sha256, Filed("", "", ""))

    def file(request: Request, sha256: str, filed: Filed) -> Response:
        try:
            account = authenticate_request(board, request, filed.token)
            check_scope(account, "challenge")
            file_challenge(board, account, sha256, claim=filed.claim, evidence=filed.evidence)
        except (Refused, HpcAi500Error) as error:
            refused = refused_by(error)
            return show(request, sha256, filed, refused.sentence, refused.status)
        link = site_of(request, board.storage).link
        return RedirectResponse(link(f"/submissions/{sha256}") + "#challenges", 303)

    @pages.post(ADDRESS, response_class=HTMLResponse)
    async def post(request: Request, sha256: str) -> Response:
        return await run_in_threadpool(file, request, sha256, _read_form(await request.body()))

    return pages


def _read_form(body: bytes) -> Filed:
    """What a browser sends of the form; what is not there is empty.

    Raises:
        Refused: it is no form.
    """
    try:
        fields = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise Refused(422, "that is not what the form sends; fill it in again") from None
    # Browsers send each line break as two characters, which would count twice.
    return Filed(*(fields.get(name, [""])[0].replace("\r\n", "\n").strip() for name in Filed._fields))
