"""Accounts, states and verification of submissions on a board, on both databases."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from boards import record_for_board, vary
from sqlalchemy import select

from hpcai500.edition import load_edition
from hpcai500.errors import UnknownNameError, UsageError
from hpcai500.formats import SignedTicket
from hpcai500.leaderboard import lifecycle
from hpcai500.leaderboard.accounts import (
    SLUG,
    TokenRefusedError,
    add_organisation,
    authenticate,
    create_token,
    revoke_token,
    slug_of,
)
from hpcai500.leaderboard.archive import pack
from hpcai500.leaderboard.database import Database, utc_text
from hpcai500.leaderboard.lifecycle import StateError
from hpcai500.leaderboard.storage import ARCHIVE, VERDICT, Storage
from hpcai500.leaderboard.tables import Audit, Submission, Ticket, Token
from hpcai500.leaderboard.tickets import board_key, find_ticket, give_ticket
from hpcai500.leaderboard.worker import MAX_ATTEMPTS, Worker
from hpcai500.register.keys import public_key
from hpcai500.register.ticket import TicketRequest, issue_ticket, ticket_sha256
from hpcai500.register.trusted import TrustedKeys


class Board(NamedTuple):
    database: Database
    storage: Storage
    worker: Worker

    def add(self, submission: Path, *, organisation: str = "a", publish: bool = False) -> str:
        """What an upload leaves behind."""
        upload = self.storage.upload_path("0" * 32)
        archive_sha256, sha256 = pack(submission, upload)
        self.storage.keep(upload, sha256)
        upload.unlink()
        with self.database.writing() as session:
            row = Submission(
                sha256=sha256,
                archive_sha256=archive_sha256,
                size_bytes=1,
                organisation_slug=organisation,
                system_name="A machine",
                system_slug="a-machine",
                state="draft",
                publish=publish,
                uploaded_at=utc_text(),
                attempts=0,
            )
            session.add(row)
        return sha256

    def row(self, sha256: str) -> Submission:
        with self.database.session() as session:
            row = session.get(Submission, sha256)
            assert row is not None
            return row

    def actions(self, sha256: str) -> list[str]:
        with self.database.session() as session:
            return list(session.scalars(select(Audit.action).where(Audit.subject == sha256).order_by(Audit.id)))


def make_board(url: str, folder: Path, **words: object) -> Board:
    database, storage = Database(url), Storage(folder)
    key = public_key(board_key(folder))
    trusted = TrustedKeys(issuers={key: "A Board"})
    worker = Worker(database, storage, board=key, trusted=trusted, **words)  # type: ignore[arg-type]
    with database.writing() as session:
        add_organisation(session, "a", "Organisation A")
        add_organisation(session, "b", "Organisation B")
    return Board(database, storage, worker)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Board]:
    url = f"sqlite:///{tmp_path}/board.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    board = make_board(url, tmp_path / "board")
    yield board
    board.database.close()


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_for_board(tmp_path_factory.mktemp("recorded"))


def test_a_token_is_known_by_its_digest_and_ends(board: Board) -> None:
    with board.database.writing() as session:
        token = create_token(session, "a", ["ticket", "upload"], label="laptop", days=1)
        other = create_token(session, "b", ["challenge"], label="laptop", days=1)
    with board.database.session() as session:
        account = authenticate(session, token)
        assert (account.organisation, account.scopes) == ("a", {"upload", "ticket"})
        assert authenticate(session, other).organisation == "b"
        kept = session.scalars(select(Token)).all()
        assert not any(token[-64:] in str(vars(row)) for row in kept)
        mixed = f"{token[:26]}{other[26:]}"
        for wrong in ("", "x", token[:-1], token + "0", mixed, token.upper(), f"hpcai500_{'0' * 16}_{'0' * 64}"):
            with pytest.raises(TokenRefusedError, match="not known"):
                authenticate(session, wrong)
        with pytest.raises(TokenRefusedError, match="expired at"):
            authenticate(session, token, now_s=time.time() + 86_401)
    with board.database.writing() as session:
        revoke_token(session, account.token_id)
    with board.database.session() as session, pytest.raises(TokenRefusedError, match="revoked at"):
        authenticate(session, token)


def test_names_and_tokens_that_cannot_be_are_refused(board: Board) -> None:
    with board.database.writing() as session:
        for slug, name in (("A", "x"), ("../x", "x"), ("x" * 65, "x"), ("c", ""), ("c", "a\x00b"), ("a", "x")):
            with pytest.raises(UsageError):
                add_organisation(session, slug, name)
        with pytest.raises(UsageError, match="already"):
            add_organisation(session, "c", "Organisation A")
        with pytest.raises(UnknownNameError, match="known: a, b"):
            create_token(session, "x", ["upload"], label="x", days=1)
        with pytest.raises(UnknownNameError, match="scope 'root'"):
            create_token(session, "a", ["root"], label="x", days=1)
        for days in (0, -1, 1e9, float("nan")):
            with pytest.raises(UsageError, match="days"):
                create_token(session, "a", ["upload"], label="x", days=days)


def test_a_name_in_any_script_has_an_address_of_its_own() -> None:
    assert slug_of("Ein Rechner (Süd) / 2") == "ein-rechner-s-d-2"
    assert slug_of("42") == "42"
    names = ["机器", "電腦", "京 1", "京都 1", "1", "!", "?", "Ἀθηνᾶ"]
    for most in (64, 100):
        slugs = [slug_of(name, most) for name in [*names, "机" * 200, f"京{'1' * 199}"]]
        assert len(set(slugs)) == len(slugs)
        assert all(SLUG.match(slug) and len(slug) <= most for slug in slugs), slugs
    assert slug_of("京 1").startswith("1-")
    assert slug_of("プ") == slug_of("フ\u309a")  # however its letters are composed


def test_a_draft_is_verified_and_published_if_its_organisation_said_so(
    board: Board, submission: Path, tmp_path: Path
) -> None:
    sha256 = board.add(submission)
    other = board.add(vary(submission, tmp_path / "other", "other"), publish=True)
    assert [board.worker.work_once() for _ in range(3)] == [True, True, False]
    row = board.row(sha256)
    assert (row.state, row.workload, row.registered, row.registration) == (
        "verified",
        "resnet50",
        False,
        "unregistered",
    )
    assert row.vflops is not None
    assert row.vflops > 0
    assert board.row(other).state == "published"
    assert board.actions(sha256) == ["verified"]
    assert board.actions(other) == ["verified", "published"]
    assert board.storage.path(sha256, VERDICT).is_file()
    assert board.storage.path(sha256, ARCHIVE).stat().st_mode & 0o777 == 0o444
    assert list((board.storage.folder / "work").iterdir()) == []


def test_an_archive_with_another_file_than_listed_is_rejected(board: Board, submission: Path, tmp_path: Path) -> None:
    shutil.copytree(submission.parent, tmp_path / "copy")
    with (tmp_path / "copy/run-1/ledger/node-00000.jsonl").open("ab") as file:
        file.write(b"\n")
    sha256 = board.add(tmp_path / "copy/submission.json", publish=True)
    assert sha256 == hashlib.sha256(submission.read_bytes()).hexdigest()
    assert board.worker.work_once()
    assert (board.row(sha256).state, board.row(sha256).vflops) == ("rejected", None)
    assert "node-00000.jsonl" in (board.row(sha256).problem or "")
    with board.database.writing() as session, pytest.raises(StateError, match="it is rejected"):
        lifecycle.publish(session, session.merge(board.row(sha256)), actor="a")


def test_the_whole_life_of_a_submission(board: Board, submission: Path) -> None:
    sha256 = board.add(submission)
    board.worker.work_once()

    def move(name: str, **words: str) -> object:
        with board.database.writing() as session:
            row = session.get(Submission, sha256)
            return getattr(lifecycle, name)(session, row, **words)

    with pytest.raises(StateError, match="only what is published can be challenged"):
        move("challenge", actor="b", claim="x", evidence="y")
    with pytest.raises(StateError, match="only what is published can be withdrawn"):
        move("withdraw", actor="a", reason="x")
    move("publish", actor="a")
    move("publish", actor="a")
    with pytest.raises(StateError, match="your own"):
        move("challenge", actor="a", claim="x", evidence="y")
    with pytest.raises(UsageError, match="evidence"):
        move("challenge", actor="b", claim="too fast", evidence="\x00")
    first = move("challenge", actor="b", claim="too fast", evidence="see\nthis")
    second = move("challenge", actor="b", claim="too hot", evidence="see that")
    assert board.row(sha256).state == "challenged"
    for opened, uphold, state in ((first, False, "challenged"), (second, False, "published")):
        with board.database.writing() as session:
            lifecycle.decide(session, opened.id, uphold=uphold, decision="looked at it")  # type: ignore[attr-defined]
        assert board.row(sha256).state == state
    third = move("challenge", actor="b", claim="still too fast", evidence="a video")
    with board.database.writing() as session:
        lifecycle.decide(session, third.id, uphold=True, decision="so it is")  # type: ignore[attr-defined]
    assert board.row(sha256).state == "withdrawn"
    with board.database.writing() as session, pytest.raises(UsageError, match="was upheld"):
        lifecycle.decide(session, third.id, uphold=True, decision="twice")  # type: ignore[attr-defined]
    with pytest.raises(StateError, match="it is withdrawn"):
        move("publish", actor="a")
    assert board.actions(sha256) == [
        *("verified", "published", "challenged", "challenged", "challenge dismissed", "challenge dismissed"),
        *("challenged", "challenge upheld", "withdrawn"),
    ]


def recorded_with(signed: SignedTicket, folder: Path) -> Path:
    """A submission whose runs a ticket announced long ago, since recorded runs are of a time of their own."""
    return record_for_board(folder, num_runs=1, ticket=signed)


REQUEST = TicketRequest(workload="resnet50", level="free", size="smoke", num_runs=1, submitter="somebody")
LONG_AGO_NS = 1_780_000_000 * 10**9


def give(board: Board, organisation: str, monkeypatch: pytest.MonkeyPatch) -> SignedTicket:
    key = board_key(board.storage.folder)
    monkeypatch.setattr(
        "hpcai500.leaderboard.tickets.issue_ticket",
        lambda *args, **words: issue_ticket(*args, **words, now_ns=LONG_AGO_NS),
    )
    with board.database.writing() as session:
        return give_ticket(session, REQUEST, organisation=organisation, key=key, name="A Board", edition=load_edition())


def test_a_ticket_of_this_board_registers_one_submission(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = give(board, "a", monkeypatch)
    with board.database.session() as session:
        assert find_ticket(session, ticket_sha256(signed.ticket)) == signed
        assert find_ticket(session, "0" * 64) is None
    sha256 = board.add(recorded_with(signed, tmp_path / "one"))
    board.worker.work_once()
    again = tmp_path / "two" / "submission.json"
    shutil.copytree(tmp_path / "one", again.parent)
    again.write_text(again.read_text().replace('"created": "2', '"created":  "2'))
    other = board.add(again)
    board.worker.work_once()
    assert (board.row(sha256).registered, board.row(sha256).registration) == (True, "registered by A Board")
    assert board.row(other).state == "verified"
    assert not board.row(other).registered
    assert f"was used by submission {sha256}" in (board.row(other).registration or "")


def test_the_ticket_of_another_organisation_does_not_count(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = board.add(recorded_with(give(board, "b", monkeypatch), tmp_path / "one"))
    board.worker.work_once()
    assert (board.row(sha256).state, board.row(sha256).registered) == ("verified", False)
    assert "given to another organisation" in (board.row(sha256).registration or "")


def test_a_ticket_that_the_board_has_not_kept_does_not_count(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = give(board, "a", monkeypatch)
    with board.database.writing() as session:
        session.delete(session.get(Ticket, ticket_sha256(signed.ticket)))
    sha256 = board.add(recorded_with(signed, tmp_path / "one"))
    board.worker.work_once()
    assert not board.row(sha256).registered
    assert "not in its register" in (board.row(sha256).registration or "")


def test_a_draft_of_a_worker_that_died_is_taken_up_by_another(board: Board, submission: Path) -> None:
    sha256 = board.add(submission)
    with board.database.writing() as session:
        row = session.get(Submission, sha256)
        assert row is not None
        row.claimed_by, row.claimed_until = "dead", utc_text(time.time() + 60)
    assert not board.worker.work_once()
    with board.database.writing() as session:
        session.merge(board.row(sha256)).claimed_until = utc_text(time.time() - 1)
    assert board.worker.work_once()
    assert (board.row(sha256).state, board.row(sha256).claimed_by) == ("verified", None)


def test_a_submission_that_kills_its_judge_is_not_tried_for_ever(submission: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "raise SystemExit(3)"]
    board = make_board(f"sqlite:///{tmp_path}/board.db", tmp_path / "board", program=program)
    sha256 = board.add(submission)
    for _ in range(MAX_ATTEMPTS):
        with pytest.raises(OSError, match="exit code 3"):
            board.worker.work_once()
        with board.database.writing() as session:
            session.merge(board.row(sha256)).claimed_until = None
    assert not board.worker.work_once()
    assert board.row(sha256).state == "rejected"
    board.database.close()


def test_a_full_disk_of_the_board_is_not_held_against_a_submission(submission: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "raise OSError(28, 'No space left on device')"]
    board = make_board(f"sqlite:///{tmp_path}/board.db", tmp_path / "board", program=program)
    sha256 = board.add(submission)
    for _ in range(MAX_ATTEMPTS + 1):
        with pytest.raises(OSError, match="No space left"):
            board.worker.work_once()
    assert (board.row(sha256).state, board.row(sha256).attempts) == ("draft", 0)
    board.database.close()


def test_what_later_rules_find_invalid_stays_visible_and_marked(board: Board, submission: Path) -> None:
    sha256 = board.add(submission, publish=True)
    board.worker.work_once()
    with board.database.writing() as session:
        lifecycle.mark_rejected(session, session.merge(board.row(sha256)), "a rule that came later")
    assert (board.row(sha256).state, board.row(sha256).problem) == ("challenged", "a rule that came later")
    board.worker.verify(sha256)
    assert (board.row(sha256).state, board.row(sha256).problem) == ("published", None)
