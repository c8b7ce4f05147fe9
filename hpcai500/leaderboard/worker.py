"""Verifies what was uploaded: takes one draft after the other, also beside workers of other servers.

A worker claims a draft for a minute and renews that while its judge is at work. If its server dies, another worker
takes the draft up again after that minute.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import or_, select, update
from sqlalchemy.exc import SQLAlchemyError

from hpcai500.errors import RecordError
from hpcai500.leaderboard import judge, lifecycle
from hpcai500.leaderboard.audit import SERVER, note
from hpcai500.leaderboard.database import Database, utc_text
from hpcai500.leaderboard.judge import Limits, Outcome, judge_archive
from hpcai500.leaderboard.storage import ARCHIVE, REPORT, VERDICT, Storage, is_full
from hpcai500.leaderboard.tables import DRAFT, Submission, Upload
from hpcai500.leaderboard.tickets import judge_ticket
from hpcai500.register.trusted import TrustedKeys

LOG = logging.getLogger("hpcai500.leaderboard")
LEASE_S, RENEW_S = 60.0, 15.0
POLL_S = 2.0  # for drafts of other servers, and after a database or disk has failed
MAX_ATTEMPTS = 5
UPLOAD_LIVES_S = 7 * 86_400
STRANDED_S = 86_400  # what lies in work/ so long belongs to nobody who is alive


class Worker:
    """Verifies drafts in a thread of its own until it is stopped.

    Args:
        database: of the board.
        storage: of the board.
        board: public key of the board.
        trusted: keys of the board and of registers that it trusts.
        limits: of each judge.
        program: that judges.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage,
        *,
        board: str,
        trusted: TrustedKeys,
        limits: Limits | None = None,
        program: Sequence[str] = judge.PROGRAM,
    ) -> None:
        self.name = f"{socket.gethostname()[:40]}-{secrets.token_hex(6)}"
        self._database, self._storage, self._board, self._trusted = database, storage, board, trusted
        self._limits, self._program = limits or Limits(), program
        self._is_wanted, self._is_over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="hpcai500-worker", daemon=True)

    def start(self) -> None:
        """Begin to look for drafts."""
        self._thread.start()

    def wake(self) -> None:
        """Look at once: there is a draft."""
        self._is_wanted.set()

    def stop(self) -> None:
        """Claim no more; a judge that is at work is left alone, and its draft is taken up again later."""
        self._is_over.set()
        self._is_wanted.set()

    def _serve(self) -> None:
        next_tidy_s = 0.0
        while not self._is_over.is_set():
            has_done = False
            try:
                if time.monotonic() >= next_tidy_s:
                    self.tidy()
                    next_tidy_s = time.monotonic() + 3600.0
                has_done = self.work_once()
            except (SQLAlchemyError, OSError) as error:
                LOG.warning("the worker tries again soon: %s", str(error).partition("\n")[0])
                self._is_over.wait(POLL_S)
            if not has_done:
                self._is_wanted.wait(POLL_S)
                self._is_wanted.clear()

    def work_once(self) -> bool:
        """Verify one draft; returns whether there was one.

        Raises:
            SQLAlchemyError: the database failed; the draft is taken up again.
            OSError: the disk or the judge failed; likewise.
        """
        sha256 = self._claim()
        if sha256 is None:
            return False
        try:
            self.verify(sha256)
        except OSError as error:
            if is_full(error):
                self._give_back(sha256)
            raise
        return True

    def verify(self, sha256: str) -> None:
        """Verify a submission and keep what was found.

        Raises:
            SQLAlchemyError: the database failed.
            OSError: the disk or the judge failed.
        """
        archive = self._storage.path(sha256, ARCHIVE)
        folder = self._storage.folder / "work" / f"{sha256[:16]}-{secrets.token_hex(8)}"
        is_over = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(sha256, is_over), daemon=True)
        renewing.start()
        try:
            outcome = judge_archive(archive, folder, self._trusted, limits=self._limits, program=self._program)
            self._keep_files(sha256, folder)
        except RecordError as error:
            outcome = Outcome(problem=str(error))
        finally:
            is_over.set()
            renewing.join()
            shutil.rmtree(folder, ignore_errors=True)
        self._settle(sha256, outcome)

    def _claim(self) -> str | None:
        """Take the oldest draft that nobody works at."""
        now = time.time()
        is_free = or_(Submission.claimed_until.is_(None), Submission.claimed_until < utc_text(now))
        oldest = (
            select(Submission)
            .where(Submission.state == DRAFT, is_free)
            .order_by(Submission.uploaded_at, Submission.sha256)
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite has one writer at a time
        )
        with self._database.writing() as session:
            row = session.scalars(oldest).first()
            if row is None:
                return None
            row.claimed_by, row.claimed_until = self.name, utc_text(now + LEASE_S)
            row.attempts += 1
            if row.attempts > MAX_ATTEMPTS:
                lifecycle.mark_rejected(session, row, f"the server failed on it {MAX_ATTEMPTS} times; ask its operator")
                return None
            return row.sha256

    def _give_back(self, sha256: str) -> None:
        """As if it had not been claimed."""
        mine = update(Submission).where(Submission.sha256 == sha256, Submission.claimed_by == self.name)
        values = {"claimed_by": None, "claimed_until": None, "attempts": Submission.attempts - 1}
        with self._database.writing() as session:
            session.execute(mine.values(values))

    def _renew(self, sha256: str, is_over: threading.Event) -> None:
        while not is_over.wait(RENEW_S):
            mine = update(Submission).where(Submission.sha256 == sha256, Submission.claimed_by == self.name)
            try:
                with self._database.writing() as session:
                    session.execute(mine.values(claimed_until=utc_text(time.time() + LEASE_S)))
            except SQLAlchemyError as error:
                LOG.warning("the claim on %s cannot be renewed: %s", sha256, str(error).partition("\n")[0])

    def _keep_files(self, sha256: str, folder: Path) -> None:
        for name in (VERDICT, REPORT):
            if (folder / name).exists():
                self._storage.write(sha256, name, (folder / name).read_bytes())

    def _settle(self, sha256: str, outcome: Outcome) -> None:
        with self._database.writing() as session:
            row = session.get(Submission, sha256, with_for_update=True)
            if row is None or (row.state == DRAFT and row.claimed_by != self.name):
                return  # another worker has it, since this one seemed dead
            row.claimed_by = row.claimed_until = None
            if outcome.entry is None:
                lifecycle.mark_rejected(session, row, outcome.problem or "it is not valid")
            elif outcome.submission_sha256 != sha256:
                lifecycle.mark_rejected(session, row, "its archive holds another submission than it began with")
            else:
                registered, words = judge_ticket(session, row, outcome.ticket, board=self._board, trusted=self._trusted)
                lifecycle.mark_verified(session, row, outcome.entry, registered=registered, registration=words)

    def tidy(self) -> None:
        """Forget uploads that nobody goes on with, and what killed judges have left."""
        with self._database.writing() as session:
            oldest = utc_text(time.time() - UPLOAD_LIVES_S)
            stale = select(Upload).where(Upload.created_at < oldest, Upload.submission_sha256.is_(None))
            for row in session.scalars(stale):
                note(session, SERVER, "upload forgotten", row.id, "nobody went on with it for a week")
                self._storage.upload_path(row.id).unlink(missing_ok=True)
                session.delete(row)
        for folder in (self._storage.folder / "work").iterdir():
            if time.time() - folder.stat().st_mtime > STRANDED_S:
                shutil.rmtree(folder, ignore_errors=True)
