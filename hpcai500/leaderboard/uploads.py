"""Takes archives in: announced, sent in pieces that can be resumed, and kept whole at the end.

How much of an upload is there is the length of its file. What is acknowledged is on the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from hpcai500.durable import sync_path
from hpcai500.errors import RecordError
from hpcai500.leaderboard import lifecycle
from hpcai500.leaderboard.accounts import Account, check_text, slug_of
from hpcai500.leaderboard.answers import Refused
from hpcai500.leaderboard.archive import read_first
from hpcai500.leaderboard.audit import note
from hpcai500.leaderboard.database import Database, utc_text
from hpcai500.leaderboard.storage import ARCHIVE, SHA256, UPLOAD_ID, Storage
from hpcai500.leaderboard.tables import DRAFT, REJECTED, VERIFIED, Submission, Upload

MAX_OPEN = 100  # uploads of an organisation; what nobody goes on with is forgotten after a week
RESET = (
    *("problem", "verified_at", "claimed_by", "claimed_until"),
    *("registered", "registration", "ticket_sha256"),
)


def announce(
    session: Session,
    storage: Storage,
    account: Account,
    *,
    sha256: str,
    size_bytes: int,
    system_name: str,
    publish: bool,
) -> tuple[Upload, bool]:
    """Begin an upload, or find the one of the same archive that was begun; returns it and whether it is new.

    Raises:
        UsageError: the system's name cannot be one.
        Refused: the organisation has too many open.
        OSError: the disk is full.
    """
    assert SHA256.match(sha256), sha256
    check_text("the system's name", system_name)
    own = select(Upload).where(Upload.organisation_slug == account.organisation)
    same = own.where(Upload.archive_sha256 == sha256, Upload.size_bytes == size_bytes)
    for row in session.scalars(same.order_by(Upload.created_at.desc())):
        if row.submission_sha256 is not None or storage.upload_path(row.id).exists():
            row.publish = publish
            if row.submission_sha256 is None:
                row.system_name = system_name
            return row, False
    num_open = select(func.count()).where(
        Upload.organisation_slug == account.organisation, Upload.submission_sha256.is_(None)
    )
    if (session.scalar(num_open) or 0) >= MAX_OPEN:
        raise Refused(429, f"your organisation has {MAX_OPEN} uploads that are not finished; finish some of them")
    row = Upload(
        id=secrets.token_hex(16),
        organisation_slug=account.organisation,
        token_id=account.token_id,
        archive_sha256=sha256,
        size_bytes=size_bytes,
        system_name=system_name,
        publish=publish,
        created_at=utc_text(),
    )
    path = storage.upload_path(row.id)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    sync_path(path.parent)
    session.add(row)
    return row, True


def find_upload(session: Session, account: Account, upload_id: str) -> Upload:
    """An upload of the organisation.

    Raises:
        Refused: it has none of that id.
    """
    row = session.get(Upload, upload_id) if UPLOAD_ID.match(upload_id) else None
    if row is None or row.organisation_slug != account.organisation:
        raise Refused(404, "your organisation has no such upload; begin one with POST /api/uploads")
    return row


def offset_of(storage: Storage, row: Upload) -> int:
    """How many bytes of an upload are there.

    Raises:
        Refused: it was forgotten.
    """
    if row.submission_sha256 is not None:
        return row.size_bytes
    try:
        return storage.upload_path(row.id).stat().st_size
    except FileNotFoundError:
        raise Refused(404, "this upload was forgotten; begin another one with POST /api/uploads") from None


@contextmanager
def held(path: Path) -> Iterator[int]:
    """The file of an upload, open for appending and held against other requests and servers.

    Raises:
        Refused: it is not there, or another request holds it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Refused(404, "this upload is over or was forgotten; ask for it with POST /api/uploads") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(409, "another request writes to this upload; try again soon", {"Retry-After": "2"}) from None
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Append all of it.

    Raises:
        OSError: the disk is full; as much as there was room for is there.
    """
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def finish(database: Database, storage: Storage, account: Account, upload_id: str) -> tuple[Submission, bool]:
    """Look at a whole upload and keep it as a submission; returns that and whether it is new. Doing it again is safe.

    Raises:
        Refused: it is not whole, not what was announced, no archive of a submission, or another organisation's.
        OSError: the disk is full.
    """
    with database.session() as session:
        upload = find_upload(session, account, upload_id)
        if upload.submission_sha256 is not None:
            return _known(session, upload.submission_sha256), False
    path = storage.upload_path(upload_id)
    with held(path) as descriptor:
        there = os.fstat(descriptor).st_size
        if there < upload.size_bytes:
            raise Refused(409, f"there are {there:,} of {upload.size_bytes:,} bytes; send the rest by PATCH first")
        try:
            sha256 = _look_at(path, upload)
        except RecordError as error:
            _discard(database, path, upload, str(error))
            raise Refused(422, f"{error}; the upload is discarded") from None
        try:
            row, is_new = _keep(database, storage, account, upload_id, sha256)
        except IntegrityError:  # another upload of the same submission was faster
            row, is_new = _keep(database, storage, account, upload_id, sha256)
        path.unlink(missing_ok=True)
    return row, is_new


def _known(session: Session, sha256: str) -> Submission:
    row = session.get(Submission, sha256)
    assert row is not None, sha256
    return row


def _look_at(path: Path, upload: Upload) -> str:
    """The address of the submission in it."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != upload.archive_sha256:
        raise RecordError(f"the archive's SHA-256 is {found}, and {upload.archive_sha256} was announced")
    return hashlib.sha256(read_first(path)).hexdigest()


def _discard(database: Database, path: Path, upload: Upload, why: str) -> None:
    with database.writing() as session:
        if (row := session.get(Upload, upload.id)) is not None:
            session.delete(row)
            note(session, upload.organisation_slug, "upload discarded", upload.id, why)
    path.unlink(missing_ok=True)


def _keep(
    database: Database, storage: Storage, account: Account, upload_id: str, sha256: str
) -> tuple[Submission, bool]:
    """In one transaction: the row first, which keeps others away, then the file, then that it is so."""
    with database.writing() as session:
        upload = find_upload(session, account, upload_id)
        path = storage.upload_path(upload_id)
        row = session.get(Submission, sha256, with_for_update=True)
        is_new = row is None
        if row is None:
            row = Submission(sha256=sha256, attempts=0)
            _fill(row, upload)
            session.add(row)
            session.flush()
            storage.keep(path, sha256)
            note(session, account.organisation, "uploaded", sha256, f"{upload.size_bytes:,} bytes")
        elif row.state == REJECTED and row.archive_sha256 != upload.archive_sha256:
            archive = storage.path(sha256, ARCHIVE)
            with suppress(FileExistsError):
                os.link(archive, archive.with_name(f"rejected-{row.archive_sha256}.tar.gz"))
            storage.keep(path, sha256)
            _fill(row, upload)
            note(session, account.organisation, "uploaded again", sha256, "another archive of it than the rejected one")
        elif row.organisation_slug != account.organisation:
            raise Refused(409, "another organisation has uploaded this submission; write to the board's operator")
        elif upload.publish and row.state in (DRAFT, VERIFIED):
            lifecycle.publish(session, row, actor=account.organisation)
        upload.submission_sha256 = sha256
    return row, is_new


def _fill(row: Submission, upload: Upload) -> None:
    row.archive_sha256, row.size_bytes = upload.archive_sha256, upload.size_bytes
    row.organisation_slug, row.publish = upload.organisation_slug, upload.publish
    row.system_name, row.system_slug = upload.system_name, slug_of(upload.system_name, 100)
    row.state, row.uploaded_at, row.attempts = DRAFT, utc_text(), 0
    for name in RESET:
        setattr(row, name, None)
