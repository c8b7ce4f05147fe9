"""Run a board of verified submissions, or submit to one.

A board verifies each submission itself, ranks it and shows it. Submitters need nothing but this package; whoever runs a
board installs `hpcai500[leaderboard]`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hpcai500.command import run_command
from hpcai500.errors import BackendUnavailableError
from hpcai500.leaderboard import submitting
from hpcai500.leaderboard.admin import DEFAULT_NAME, REQUESTS_PER_MINUTE, add_admin_arguments, add_board_arguments
from hpcai500.register.asking import add_request_arguments

EPILOG = """examples:
  hpcai500 leaderboard upload runs/NAME/submission.json --to https://board.example
  hpcai500 leaderboard ticket --workload resnet50 --level free --size mini --submitter "Our Centre" --to https://board.example
  hpcai500 leaderboard serve --folder board
  hpcai500 leaderboard admin organisation add our-centre "Our Centre" --folder board

The token comes from the environment variable HPCAI500_TOKEN or from leaderboard.toml among your settings
(docs/submitting.rst), never from the command line."""
SERVE_EPILOG = """example:
  hpcai500 leaderboard serve --folder board --port 8510 --public-url https://board.example

It speaks plain HTTP; whoever offers it to the world puts a server with TLS before it (docs/leaderboard.rst)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_upload(verbs)
    _add_ticket(verbs)
    _add_moves(verbs)
    _add_serve(verbs)
    export = verbs.add_parser("export", help="write the whole board as static files")
    export.add_argument("output", type=Path, help="new folder, or one of an earlier export")
    export.add_argument("--base-url", default="", metavar="URL", help="where the files will be served")
    add_board_arguments(export)
    admin = verbs.add_parser("admin", help="organisations, tokens, challenges, backups: the operator's work")
    add_admin_arguments(admin)


def _add_upload(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    upload = verbs.add_parser("upload", help="verify a submission here, and send it to a board")
    upload.add_argument("submission", type=Path, help="a submission.json, or its folder")
    upload.add_argument("--to", required=True, metavar="URL", help="the board, as https://board.example")
    upload.add_argument("--system", metavar="NAME", help="of the machine (default: what it is made of)")
    upload.add_argument("--draft", action="store_true", help="do not publish it; that can be done later")
    upload.add_argument("--no-wait", action="store_true", help="do not wait until the board has verified it")


def _add_ticket(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ticket = verbs.add_parser("ticket", help="announce runs to a board before they are made")
    add_request_arguments(ticket, required=True)
    ticket.add_argument("--to", required=True, metavar="URL", help="the board, as https://board.example")


def _add_moves(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    texts = {
        "publish": "show a verified submission to everybody",
        "withdraw": "take a submission's rank away for good; it stays visible",
        "challenge": "doubt a published submission, with evidence",
    }
    for verb, text in texts.items():
        parser = verbs.add_parser(verb, help=text)
        parser.add_argument("address", help="of the submission's page, or its 64 digits")
        parser.add_argument("--to", required=True, metavar="URL", help="the board")
        if verb == "withdraw":
            parser.add_argument("--reason", required=True, help="shown to everybody")
        if verb == "challenge":
            parser.add_argument("--claim", required=True, help="what is wrong, in a sentence; shown to everybody")
            parser.add_argument("--evidence", required=True, help="how anybody can see that; shown to everybody")
    own = verbs.add_parser("list", help="list your organisation's submissions and what became of them")
    own.add_argument("--to", required=True, metavar="URL", help="the board")


def _add_serve(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = verbs.add_parser(
        "serve",
        help="be a board",
        description="Be a board: take submissions in, verify, rank and show them.",
        epilog=SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_board_arguments(serve)
    serve.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    serve.add_argument("--port", type=int, default=8510, help="port to listen at; 0 is any (default: %(default)s)")
    serve.add_argument("--name", default=DEFAULT_NAME, help="of the board (default: %(default)s)")
    serve.add_argument("--public-url", metavar="URL", help="where people find it (default: as they asked)")
    serve.add_argument("--workers", type=int, default=1, metavar="N", help="archives verified at once (default: 1)")
    serve.add_argument("--trusted-keys", type=Path, metavar="FILE", help="keys of other registers, and of signers")
    serve.add_argument(
        "--behind",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="of the server with TLS, which is believed about whose requests it passes on (default: %(default)s)",
    )
    serve.add_argument(
        "--per-minute",
        type=int,
        default=REQUESTS_PER_MINUTE,
        metavar="N",
        help="requests of an address (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Do what the verb says."""
    if args.verb in ("serve", "export", "admin"):
        return _run_board(args)
    verbs = {"upload": submitting.upload, "ticket": submitting.ticket, "list": submitting.show}
    return verbs.get(args.verb, submitting.move)(args)


def _run_board(args: argparse.Namespace) -> int:
    """What needs the libraries of a board.

    Raises:
        BackendUnavailableError: they are not installed.
    """
    try:
        from hpcai500.leaderboard import operating
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("hpcai500"):
            raise
        raise BackendUnavailableError(
            f"running a board needs {error.name}; `pip install 'hpcai500[leaderboard]'` installs all it needs"
        ) from None
    return operating.run(args)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.leaderboard.cli``."""
    return run_command("hpcai500 leaderboard", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
