"""The database of a board: its tables, on both kinds, and what they refuse."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from hpcai500.errors import UsageError
from hpcai500.leaderboard.database import Database, utc_text
from hpcai500.leaderboard.tables import Audit, Base, Organisation


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/board.db"
    return str(request.getfixturevalue("postgresql_url"))


def test_migrations_make_the_tables_that_the_code_speaks_of(url: str) -> None:
    database = Database(url)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    database.close()
    Database(url).close()  # once more changes nothing


def test_servers_that_start_together_on_an_empty_database_take_turns(url: str) -> None:
    problems: list[Exception] = []

    def start() -> None:
        try:
            Database(url).close()
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


@pytest.mark.parametrize("statement", ["UPDATE audit SET detail = ''", "DELETE FROM audit"])
def test_rows_of_the_audit_log_stay(url: str, statement: str) -> None:
    database = Database(url)
    with database.writing() as session:
        session.add(Audit(at=utc_text(), actor="server", action="verified", subject="x", detail="why"))
    with pytest.raises(DBAPIError, match="only ever added"), database.writing() as session:
        session.execute(text(statement))
    with database.session() as session:
        assert [row.detail for row in session.scalars(select(Audit))] == ["why"]
    database.close()


def test_changes_are_kept_together_or_not_at_all(url: str) -> None:
    database = Database(url)

    def add_and_fail() -> None:
        with database.writing() as session:
            session.add(Organisation(slug="a", name="A", created_at=utc_text()))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        add_and_fail()
    with database.session() as session:
        session.add(Organisation(slug="b", name="B", created_at=utc_text()))
        session.flush()
    with database.session() as session:
        assert session.scalars(select(Organisation)).all() == []
    database.close()


def test_many_who_write_to_sqlite_wait_for_each_other(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/board.db")

    def add(number: int) -> None:
        with database.writing() as session:
            count = len(session.scalars(select(Organisation)).all())
            session.add(Organisation(slug=f"s{number}", name=f"{count}", created_at=utc_text()))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.session() as session:  # each has seen what all before it wrote
        assert {row.name for row in session.scalars(select(Organisation))} == {str(number) for number in range(20)}
    database.close()


@pytest.mark.parametrize("url", ["board.db", "mysql://localhost/x", "postgresql:", "://", "sqlite:////nowhere/b.db"])
def test_what_is_no_database_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(UsageError, match=r"--database"):
        Database(url)


def test_a_database_that_is_down_is_refused_without_its_password() -> None:
    with pytest.raises(UsageError, match="cannot be used") as caught:
        Database("postgresql://board:secret@127.0.0.1:1/board")
    assert "secret" not in str(caught.value)


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/board.db"
    database = Database(url)
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    with pytest.raises(UsageError, match="not of this version"):
        Database(url)
