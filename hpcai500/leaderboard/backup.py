"""Backups of a board, the same for both databases, so that one may also move from SQLite to PostgreSQL.

::

    BACKUP/tables/NAME.jsonl      a row a line, all of one moment
    BACKUP/submissions/SHA256/    the files
    BACKUP/key.pem                with which the board signs tickets; mode 0600
    BACKUP/whole.json             written last: the version of the tables, and how many rows each has
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session

from hpcai500.durable import sync_path, write_whole
from hpcai500.errors import RecordError, UsageError
from hpcai500.leaderboard.database import Database
from hpcai500.leaderboard.storage import ARCHIVE, Storage
from hpcai500.leaderboard.tables import Base, Submission
from hpcai500.leaderboard.tickets import KEY_NAME

WHOLE = "whole.json"
TABLES = [table for table in Base.metadata.sorted_tables if table.name != "upload"]  # what is on its way is sent anew
BATCH = 1000


def back_up(database: Database, storage: Storage, folder: Path) -> int:
    """Write a backup while the board runs; returns how many submissions it has.

    Raises:
        UsageError: the folder exists or cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True)
        (folder / "tables").mkdir()
        (folder / "submissions").mkdir()
    except OSError as error:
        raise UsageError(f"{str(folder)!r} cannot be made ({error.strerror}); name a new folder") from None
    numbers: dict[str, int] = {}
    with database.session() as session:
        if database.is_postgresql:
            session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        version = _version(session)
        for table in TABLES:
            rows = [dict(row) for row in session.execute(select(table)).mappings()]
            lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
            write_whole(folder / "tables" / f"{table.name}.jsonl", lines.encode())
            numbers[table.name] = len(rows)
        addresses = list(session.scalars(select(Submission.sha256)))
    for sha256 in addresses:
        # A rejected archive is replaced and never changed, so a file that is copied is of one piece.
        source = storage.path(sha256, ARCHIVE).parent
        shutil.copytree(
            source, folder / "submissions" / sha256, ignore=lambda _, names: [n for n in names if n[0] == "."]
        )
    if (storage.folder / KEY_NAME).exists():
        write_whole(folder / KEY_NAME, (storage.folder / KEY_NAME).read_bytes(), mode=0o600)
    write_whole(folder / WHOLE, json.dumps({"version": version, "rows": numbers}).encode())
    return len(addresses)


def restore(database: Database, storage: Storage, folder: Path) -> int:
    """Make an empty board the one of a backup; returns how many submissions it has.

    Raises:
        RecordError: the backup is not whole, damaged or of another version.
        UsageError: the board is not empty.
    """
    try:
        whole = json.loads((folder / WHOLE).read_bytes())
        tables = {table: _read_rows(folder, table.name, whole["rows"][table.name]) for table in TABLES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{str(folder)!r} is no whole backup of a board ({error}); take another one") from None
    with database.writing() as session:
        if whole["version"] != _version(session):
            raise RecordError(f"the backup is of version {whole['version']!r} of the tables; use that of hpcai500")
        if any(session.scalar(select(func.count()).select_from(table)) for table in TABLES):
            raise UsageError("the board is not empty; restore into a new folder and an empty database")
        addresses = {row["sha256"]: row["archive_sha256"] for row in tables[Submission.__table__]}  # type: ignore[index]
        _copy_files(folder, storage, addresses)
        for table, rows in tables.items():
            for start in range(0, len(rows), BATCH):
                session.execute(insert(table), rows[start : start + BATCH])
        if database.is_postgresql:
            session.execute(
                text("SELECT setval(pg_get_serial_sequence('audit', 'id'), (SELECT max(id) + 1 FROM audit), false)")
            )
    return len(addresses)


def _version(session: Session) -> str:
    return str(session.execute(text("SELECT version_num FROM alembic_version")).scalar_one())


def _read_rows(folder: Path, name: str, number: int) -> list[dict[str, Any]]:
    lines = (folder / "tables" / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    if len(lines) != number:
        raise ValueError(f"{name}.jsonl has {len(lines)} rows and not {number}")
    return [json.loads(line) for line in lines]


def _copy_files(folder: Path, storage: Storage, addresses: dict[str, str]) -> None:
    for sha256, archive_sha256 in addresses.items():
        source, archive = folder / "submissions" / sha256, storage.path(sha256, ARCHIVE)
        try:
            with (source / ARCHIVE).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise RecordError(
                f"the backup lacks the archive of {sha256} ({error.strerror}); take another one"
            ) from None
        if found != archive_sha256:
            raise RecordError(f"the archive of {sha256} in the backup is damaged; take another backup")
        shutil.copytree(source, archive.parent, dirs_exist_ok=True)
        sync_path(archive.parent)
    if (folder / KEY_NAME).exists() and not (storage.folder / KEY_NAME).exists():
        write_whole(storage.folder / KEY_NAME, (folder / KEY_NAME).read_bytes(), mode=0o600)
