"""What a board answers when it refuses: one sentence, as JSON, or as a page to who asks for one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from hpcai500.errors import HpcAi500Error
from hpcai500.leaderboard.accounts import TokenRefusedError
from hpcai500.leaderboard.database import is_down
from hpcai500.leaderboard.lifecycle import StateError
from hpcai500.leaderboard.rendering import refusal_page
from hpcai500.leaderboard.storage import is_full
from hpcai500.verdict import printable

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

LOG = logging.getLogger("hpcai500.leaderboard")
RETRY_S = "5"
API_PATHS = ("/api/", "/tickets", "/key", "/openapi.json")


class Refused(Exception):  # noqa: N818, since it is an answer and no error
    """A request is not done.

    Args:
        status: of HTTP.
        sentence: why, and what to do.
        headers: of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, printable(sentence), headers or {}


NO_DATABASE = Refused(
    503, "the board's database cannot be reached; nothing is lost, try again soon", {"Retry-After": RETRY_S}
)
NO_ROOM = Refused(507, "the board's disk is full; what is there stays, go on when its operator has made room")
BROKEN = Refused(500, "the board itself failed; its operator finds the cause in the log")


def refusal(refused: Refused) -> JSONResponse:
    """The answer as JSON."""
    return JSONResponse({"error": refused.sentence}, refused.status, headers=refused.headers)


def _answer(request: Request, refused: Refused) -> Response:
    wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(API_PATHS)
    if not wants_page:
        return refusal(refused)
    sentence = f"{refused.sentence[:1].upper()}{refused.sentence[1:]}."
    root_path = str(request.scope.get("root_path", ""))
    return HTMLResponse(refusal_page(root_path, refused.status, sentence), refused.status, headers=refused.headers)


def refused_by(error: Exception) -> Refused:  # noqa: PLR0911, since each kind has its answer
    """What is answered where an error has stopped a request."""
    match error:
        case Refused():
            return error
        case TokenRefusedError():
            return Refused(401, str(error), {"WWW-Authenticate": "Bearer"})
        case StateError():
            return Refused(409, str(error))
        case HpcAi500Error():
            return Refused(422, str(error))
        case RequestValidationError():
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            return Refused(422, f"the request cannot be read: {place}: {first['msg']}")
        case HTTPException():
            sentences = {404: "there is nothing at this address", 405: "this address takes other methods"}
            sentence = sentences.get(error.status_code, str(error.detail))
            return Refused(error.status_code, sentence, dict(error.headers or {}))
    return _failure_of(error)


def _failure_of(error: Exception) -> Refused:
    """What is answered where it is not the asker's fault."""
    is_disk_full = isinstance(error, OSError) and is_full(error)
    if is_disk_full or (isinstance(error, SQLAlchemyError) and "disk is full" in str(error)):
        return NO_ROOM
    return NO_DATABASE if isinstance(error, PoolTimeoutError) or is_down(error) else BROKEN


def add_answers(app: FastAPI) -> None:
    """Answer every error of an application in a sentence."""

    def handle(request: Request, error: Exception) -> Response:
        refused = refused_by(error)
        if refused.status >= 500:
            what = f"{type(error).__name__}: {error}"
            LOG.error("%s %s: %s", request.method, printable(request.url.path), printable(what), exc_info=error)
        return _answer(request, refused)

    for kind in (Refused, HpcAi500Error, RequestValidationError, HTTPException, OSError, SQLAlchemyError, Exception):
        app.add_exception_handler(kind, handle)
