"""The pages of a board served over loopback, with the headers of the app, for tests that look at them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import uvicorn
from board_rows import make_board
from fastapi import FastAPI, Request, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from hpcai500.leaderboard.database import Database
from hpcai500.leaderboard.pages import missing, router
from hpcai500.leaderboard.rendering import STATIC
from hpcai500.leaderboard.storage import Storage
from hpcai500.leaderboard.tables import Submission

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def make_app(database: Database, storage: Storage) -> FastAPI:
    app = FastAPI()
    app.include_router(router(database, storage))
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.middleware("http")
    async def guard(request: Request, call_next: object) -> Response:
        response: Response = await call_next(request)  # type: ignore[operator]
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    @app.exception_handler(HTTPException)
    def say(request: Request, error: HTTPException) -> Response:
        return missing(request, storage)

    return app


@contextmanager
def serving(app: FastAPI, root_path: str = "") -> Iterator[str]:
    """Serve an app in a thread; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", root_path=root_path))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def client_of(database: Database, storage: Storage, root_path: str = "") -> Iterator[httpx.Client]:
    """A client of a board that is served."""
    with serving(make_app(database, storage), root_path) as address, httpx.Client(base_url=address) as client:
        yield client


@contextmanager
def opening_boards() -> Iterator[Callable[..., httpx.Client]]:
    """Gives a function that makes a board in a folder, serves it, and gives a client of it."""
    with ExitStack() as stack:

        def open_board(folder: Path, *submissions: Submission, url: str = "", root_path: str = "") -> httpx.Client:
            database, storage = make_board(folder, *submissions, url=url)
            stack.callback(database.close)
            return stack.enter_context(client_of(database, storage, root_path))

        yield open_board
