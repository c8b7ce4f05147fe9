"""The words of ``hpcai500 leaderboard admin``, and those that name a board; operating.py does what they say."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

DEFAULT_NAME = "HPC AI500 leaderboard"
DEFAULT_DAYS = 365.0
REQUESTS_PER_MINUTE = 1200
Verbs = Any  # argparse's own type of it is private


def add_board_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the words by which a command is told which board it works at."""
    parser.add_argument(
        "--folder", type=Path, default=Path("board"), help="where the board's files lie (default: %(default)s)"
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        help="postgresql://user@host/name (default: the variable HPCAI500_DATABASE, which keeps a password out of the "
        "list of processes, or else SQLite in the folder)",
    )


def add_admin_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the operator's words."""
    board = argparse.ArgumentParser(add_help=False)
    add_board_arguments(board)
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    _add_organisation(tasks, board)
    _add_token(tasks, board)
    _add_challenge(tasks, board)
    withdraw = tasks.add_parser("withdraw", help="withdraw a submission, visibly", parents=[board])
    withdraw.add_argument("sha256", help="address of the submission")
    withdraw.add_argument("--reason", required=True, help="shown to everybody")
    audit = tasks.add_parser("audit", help="show who did what", parents=[board])
    audit.add_argument("--subject", help="only of this submission, organisation or upload")
    audit.add_argument("--last", type=int, default=100, metavar="N", help="so many (default: %(default)s)")
    backup = tasks.add_parser("backup", help="write all of a board into a new folder", parents=[board])
    backup.add_argument("output", type=Path, help="new folder")
    restore = tasks.add_parser("restore", help="make a board of a backup, in a new folder", parents=[board])
    restore.add_argument("backup", type=Path, help="folder of the backup")
    recheck = tasks.add_parser("recheck", help="verify all submissions once more by today's rules", parents=[board])
    recheck.add_argument("--trusted-keys", type=Path, metavar="FILE", help="keys of other registers, and of signers")
    recheck.add_argument("--name", default=DEFAULT_NAME, help="of the board (default: %(default)s)")


def _add_organisation(tasks: Verbs, board: argparse.ArgumentParser) -> None:
    parser = tasks.add_parser("organisation", help="who may submit")
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    add = steps.add_parser("add", help="let an organisation in", parents=[board])
    add.add_argument("slug", help="how it stands in addresses: small letters, digits, hyphens")
    add.add_argument("name", help="how the ranking shows it")
    steps.add_parser("list", help="show all", parents=[board])


def _add_token(tasks: Verbs, board: argparse.ArgumentParser) -> None:
    parser = tasks.add_parser("token", help="secrets by which people of an organisation are known")
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    create = steps.add_parser("create", help="make one and print it, once", parents=[board])
    create.add_argument("organisation", help="slug of the organisation")
    create.add_argument("--label", required=True, help="whose it is, for you")
    create.add_argument(
        "--scopes",
        nargs="+",
        default=["upload", "challenge", "ticket"],
        metavar="SCOPE",
        help="what it may do: upload, challenge, ticket (default: all)",
    )
    create.add_argument("--days", type=float, default=DEFAULT_DAYS, help="how long it is good (default: %(default)g)")
    steps.add_parser("list", help="show all, without the secrets", parents=[board])
    revoke = steps.add_parser("revoke", help="end one now", parents=[board])
    revoke.add_argument("token", help="its id, as `token list` shows it")


def _add_challenge(tasks: Verbs, board: argparse.ArgumentParser) -> None:
    parser = tasks.add_parser("challenge", help="doubts about submissions")
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    steps.add_parser("list", help="show the open ones", parents=[board])
    decide = steps.add_parser("decide", help="close one", parents=[board])
    decide.add_argument("challenge", help="its id")
    how = decide.add_mutually_exclusive_group(required=True)
    how.add_argument("--uphold", action="store_true", help="it is right: the submission is withdrawn")
    how.add_argument("--dismiss", action="store_true", help="it is not: the submission stays")
    decide.add_argument("--decision", required=True, help="why; shown to everybody")
