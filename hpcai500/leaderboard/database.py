"""The database of a board: SQLite in its folder, or PostgreSQL by URL.

``session`` is for looking, ``writing`` for changes: of all who write to SQLite one at a time may, and who says so
before he reads is not told half-way that another was faster.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session

from hpcai500.errors import UsageError

BUSY_TIMEOUT_S = 20  # of SQLite, for another process that writes
CONNECT_TIMEOUT_S = 5
POOL_SIZE = 10
MAX_OVERFLOW = 30  # with the pool, as many as there are threads that answer (anyio: 40)
MIGRATION_LOCK = 500_2026  # any number; servers that start together take turns by it


def utc_text(seconds: float | None = None) -> str:
    """A time as the tables keep it, "2026-11-27T13:20:00Z"; now by default."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() if seconds is None else seconds))


class Database:
    """A board's database, brought to this version's tables.

    Args:
        url: "sqlite:////folder/board.db" or "postgresql://user@host/name".

    Raises:
        UsageError: the URL is none, or the database cannot be reached or is of a newer version.
    """

    def __init__(self, url: str) -> None:
        self.url = _parse(url)
        self.is_postgresql = self.url.get_backend_name() == "postgresql"
        self.engine = _make_postgresql(self.url) if self.is_postgresql else _make_sqlite(self.url)
        try:
            self._migrate()
        except DBAPIError as error:
            self.engine.dispose()
            raise UsageError(
                f"database {self.name!r} cannot be used ({first_line(error)}); check --database and that it runs"
            ) from None

    @property
    def name(self) -> str:
        """Its URL without the password."""
        return self.url.render_as_string(hide_password=True)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session for looking; what it changes is not kept."""
        with Session(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes are kept together at its end, or not at all if an error leaves it."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            session.connection(execution_options={"writes": True})
            yield session

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(resources.files("hpcai500.leaderboard") / "migrations"))
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            if self.is_postgresql:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise UsageError(
                    f"database {self.name!r} is not of this version of hpcai500 ({error}); use the newer version"
                ) from None


def first_line(error: DBAPIError) -> str:
    """What a driver says, in a line."""
    return str(error.orig).strip().partition("\n")[0]


def is_down(error: Exception) -> bool:
    """Whether an error says that the database cannot be reached or is too busy, so that trying again may do."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(error, OperationalError)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        backend = ""
    if backend not in ("sqlite", "postgresql"):
        raise UsageError(
            "--database is no URL of a database; give one as sqlite:////folder/board.db or postgresql://user@host/name"
        )
    return parsed.set(drivername="postgresql+psycopg" if backend == "postgresql" else "sqlite")


def _make_postgresql(url: URL) -> Engine:
    return create_engine(
        url,
        pool_pre_ping=True,  # a server that was started anew has closed what the pool holds
        pool_size=POOL_SIZE,
        max_overflow=MAX_OVERFLOW,
        pool_timeout=CONNECT_TIMEOUT_S,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
    )


def _make_sqlite(url: URL) -> Engine:
    engine = create_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=MAX_OVERFLOW,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself; _begin_sqlite does
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
