"""A board served over loopback, for tests that look at its pages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import uvicorn
from board_rows import make_board
from fastapi import FastAPI

from hpcai500.leaderboard.app import create_app
from hpcai500.leaderboard.board import BoardConfig
from hpcai500.leaderboard.database import Database
from hpcai500.leaderboard.storage import Storage
from hpcai500.leaderboard.tables import Submission

BROWSER = {"Accept": "text/html,*/*"}  # who asks for pages


def make_app(database: Database, storage: Storage, public_url: str | None = None) -> FastAPI:
    """The real application, without workers, which lets tests ask as often as they like."""
    url = database.url.render_as_string(hide_password=False)
    return create_app(
        BoardConfig(
            folder=storage.folder,
            database_url=url,
            num_workers=0,
            requests_per_minute=10_000_000,
            public_url=public_url,
        )
    )


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
    with (
        serving(make_app(database, storage), root_path) as address,
        httpx.Client(base_url=address, headers=BROWSER) as client,
    ):
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
