"""What a board's operator does: serves it, lets organisations in, decides challenges, backs it up."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
from collections.abc import Callable

import uvicorn
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from hpcai500.edition import load_edition
from hpcai500.errors import RecordError, UsageError
from hpcai500.leaderboard import accounts, backup, lifecycle
from hpcai500.leaderboard.app import create_app
from hpcai500.leaderboard.audit import OPERATOR, SERVER, note
from hpcai500.leaderboard.board import Board, BoardConfig
from hpcai500.leaderboard.database import Database, first_line
from hpcai500.leaderboard.storage import Storage
from hpcai500.leaderboard.submitting import say
from hpcai500.leaderboard.tables import DRAFT, Audit, Challenge, Organisation, Submission, Token
from hpcai500.verdict import printable

DATABASE_VARIABLE = "HPCAI500_DATABASE"
GRACE_S = 30  # for requests that are being answered when the board is told to end


def run(args: argparse.Namespace) -> int:
    """Do what the words say.

    Raises:
        RecordError: the database failed meanwhile.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of itself whenever a database is opened
    try:
        if args.verb == "serve":
            return serve(args)
        return export(args) if args.verb == "export" else administer(args)
    except SQLAlchemyError as error:
        reason = first_line(error) if isinstance(error, DBAPIError) else str(error)
        raise RecordError(f"the board's database failed ({printable(reason)}); try again") from None


def config_of(args: argparse.Namespace) -> BoardConfig:
    """The board that the words name."""
    url = args.database or os.environ.get(DATABASE_VARIABLE) or None
    return BoardConfig(folder=args.folder, database_url=url)


def serve(args: argparse.Namespace) -> int:
    """Be a board until Ctrl-C or SIGTERM.

    Raises:
        UsageError: a word is not possible, or the port, folder or database cannot be had.
    """
    if args.workers < 0 or args.per_minute < 1:
        raise UsageError("--workers and --per-minute count; give at least 0 and 1")
    config = BoardConfig(
        folder=args.folder,
        database_url=config_of(args).database_url,
        name=args.name,
        public_url=args.public_url.rstrip("/") if args.public_url else None,
        num_workers=args.workers,
        trusted_path=args.trusted_keys,
        requests_per_minute=args.per_minute,
    )
    with listen(args.host, args.port) as listening:
        app = create_app(config)
        gc.freeze()  # what is there now stays; looking through it for garbage would cost a large board's pages 50 ms
        host, port = listening.getsockname()[:2]
        say(f"{config.name} answers at http://{host}:{port}, Ctrl-C ends it")
        settings = uvicorn.Config(
            app,
            proxy_headers=True,
            forwarded_allow_ips=args.behind,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
            log_config=None,
            log_level="warning",
        )
        uvicorn.Server(settings).run(sockets=[listening])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A port to answer at.

    Raises:
        UsageError: it cannot be had.
    """
    try:
        listening = socket.create_server((host, port), backlog=256)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen at {host}:{port} ({error}); give another --host or --port") from None
    # asyncio sets it on sockets of its own making only; without it a short answer waits 40 ms for the last one's ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def export(args: argparse.Namespace) -> int:
    """Write the board as static files.

    Raises:
        UsageError: the folder cannot be had.
    """
    from hpcai500.leaderboard.export import export_board

    database = config_of(args).open_database()
    try:
        number = export_board(database, Storage(args.folder), args.output, args.base_url)
    finally:
        database.close()
    say(f"{args.output}: {number:,} files")
    return 0


def administer(args: argparse.Namespace) -> int:
    """Do one of the operator's tasks.

    Raises:
        UsageError: the words are not possible.
        RecordError: a backup is not whole.
    """
    if args.task == "recheck":
        return recheck(args)
    tasks: dict[str, Callable[[argparse.Namespace, Database], None]] = {
        "organisation": _organisation,
        "token": _token,
        "challenge": _challenge,
        "withdraw": _withdraw,
        "audit": _audit,
        "backup": _backup,
        "restore": _restore,
    }
    database = config_of(args).open_database()
    try:
        tasks[args.task](args, database)
    finally:
        database.close()
    return 0


def _organisation(args: argparse.Namespace, database: Database) -> None:
    if args.step == "add":
        with database.writing() as session:
            accounts.add_organisation(session, args.slug, args.name)
        say(f"{args.slug} may submit; make a token with `hpcai500 leaderboard admin token create {args.slug}`")
        return
    with database.session() as session:
        for row in session.scalars(select(Organisation).order_by(Organisation.slug)):
            say(f"{row.slug:24} {row.created_at}  {row.name}")


def _token(args: argparse.Namespace, database: Database) -> None:
    if args.step == "create":
        with database.writing() as session:
            token = accounts.create_token(session, args.organisation, args.scopes, label=args.label, days=args.days)
        say(token)
        return
    if args.step == "revoke":
        with database.writing() as session:
            accounts.revoke_token(session, args.token)
        return
    with database.session() as session:
        for row in session.scalars(select(Token).order_by(Token.organisation_slug, Token.created_at)):
            end = f"revoked {row.revoked_at}" if row.revoked_at else f"until {row.expires_at}"
            used = f"used {row.last_used_at}" if row.last_used_at else "never used"
            say(f"{row.id} {row.organisation_slug:24} {end}, {used}: {row.scopes} ({row.label})")


def _challenge(args: argparse.Namespace, database: Database) -> None:
    if args.step == "decide":
        with database.writing() as session:
            closed = lifecycle.decide(session, args.challenge, uphold=args.uphold, decision=args.decision)
        say(f"challenge {closed.id} is {closed.state}")
        return
    with database.session() as session:
        for row in session.scalars(select(Challenge).where(Challenge.state == lifecycle.OPEN)):
            say(f"{row.id} {row.opened_at} by {row.organisation_slug} of {row.submission_sha256}: {row.claim}")
            say(f"    evidence: {row.evidence}")


def _withdraw(args: argparse.Namespace, database: Database) -> None:
    with database.writing() as session:
        row = session.get(Submission, args.sha256)
        if row is None:
            raise UsageError(f"there is no submission {args.sha256[:70]!r}; give the 64 digits of its address")
        lifecycle.withdraw(session, row, actor=OPERATOR, reason=args.reason)


def _audit(args: argparse.Namespace, database: Database) -> None:
    rows = select(Audit).order_by(Audit.id.desc()).limit(max(0, args.last))
    if args.subject:
        rows = rows.where(Audit.subject == args.subject)
    with database.session() as session:
        for row in reversed(session.scalars(rows).all()):
            say(f"{row.at} {row.actor} {row.action} {row.subject} {row.detail}")


def _backup(args: argparse.Namespace, database: Database) -> None:
    number = backup.back_up(database, Storage(args.folder), args.output)
    say(f"{args.output}: {number:,} submissions; it holds the board's key, so keep it to yourself")


def _restore(args: argparse.Namespace, database: Database) -> None:
    number = backup.restore(database, Storage(args.folder), args.backup)
    say(f"{args.folder}: {number:,} submissions")


def recheck(args: argparse.Namespace) -> int:
    """Verify what is stored once more, by the rules of this package; returns 1 if a shown one is not valid any more.

    Those of another edition keep what was found by their own rules, and stay on its board.

    Raises:
        UsageError: the board cannot be opened.
    """
    config = BoardConfig(
        folder=args.folder,
        database_url=config_of(args).database_url,
        name=args.name,
        trusted_path=args.trusted_keys,
        num_workers=0,
    )
    board = Board(config)
    try:
        return _recheck(board)
    finally:
        board.stop()


def _recheck(board: Board) -> int:
    edition = load_edition().number
    with board.database.session() as session:
        rows = session.execute(select(Submission.sha256, Submission.edition, Submission.state)).all()
    changed = kept = 0
    worker = board.make_worker()
    for sha256, of_edition, state in rows:
        if state == DRAFT:
            continue
        if of_edition not in (None, edition):
            kept += 1
            continue
        worker.verify(sha256)
        with board.database.session() as session:
            row = session.get(Submission, sha256)
            if row is not None and row.problem is not None and of_edition is not None:
                changed += 1
                say(f"{sha256}: {row.problem}")
    with board.database.writing() as session:
        detail = f"{len(rows):,} submissions, {changed} not valid any more, {kept} of other editions kept as they are"
        note(session, SERVER, "rechecked", f"edition {edition}", detail)
    say(detail)
    return 1 if changed else 0
