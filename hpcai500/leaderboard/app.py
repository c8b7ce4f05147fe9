"""The web application of a board: its API, and its pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from hpcai500.leaderboard import api, challenge_page, pages
from hpcai500.leaderboard.answers import add_answers
from hpcai500.leaderboard.board import Board, BoardConfig
from hpcai500.leaderboard.headers import Headed
from hpcai500.leaderboard.limits import Limited
from hpcai500.version import __version__


def create_app(config: BoardConfig) -> FastAPI:
    """The application.

    Args:
        config: of the board.

    Raises:
        UsageError: the board cannot be run so.
    """
    board = Board(config)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        board.start()
        yield
        board.stop()

    app = FastAPI(
        title=config.name,
        version=__version__,
        description=api.__doc__ or "",
        docs_url=None,  # they would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.board, app.state.public_url = board, config.public_url
    app.include_router(api.router(board))
    app.include_router(pages.router(board.database, board.storage))
    app.include_router(challenge_page.router(board))
    app.mount("/static", StaticFiles(directory=str(resources.files("hpcai500.leaderboard") / "static")), "static")
    add_answers(app)
    app.add_middleware(Limited, rate=board.address_rate)
    app.add_middleware(Headed)
    return app
