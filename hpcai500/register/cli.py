"""Announce runs before they are started: get a ticket, which the runs and their submission then carry.

A ticket says how many runs of what will be made, and fixes their seeds by a random challenge. One from a register
proves to others when that was; one that you sign yourself does not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hpcai500.command import run_command
from hpcai500.errors import RecordError, UsageError
from hpcai500.formats import write_json
from hpcai500.register.asking import add_request_arguments, make_request
from hpcai500.register.client import request_ticket
from hpcai500.register.issuer import Register
from hpcai500.register.keys import add_key_arguments, key_of
from hpcai500.register.server import RegisterServer
from hpcai500.register.ticket import (
    SELF,
    describe_ticket,
    issue_ticket,
)
from hpcai500.register.trusted import default_trusted_path, describe_registration, find_trusted_keys

EPILOG = """examples:
  hpcai500 register --workload resnet50 --level free --size mini --submitter "Our Centre" --from https://board.example
  hpcai500 register --workload resnet50 --level free --size mini --submitter "Our Centre" --self-signed --new-key
  hpcai500 submit --ticket ticket.json --data data/mini.h5 --ranks 2
  hpcai500 register serve --name "Our Register" --folder register --key register.pem --new-key

A ticket is for one submission, in which all of its runs must appear, finished or not."""

SERVE_EPILOG = """example:
  hpcai500 register serve --name "Our Register" --folder register --key register.pem --port 8500

It speaks plain HTTP; whoever offers it to the world puts a server with TLS before it. Behind one all questions come
from one address, so raise --per-hour and let that server limit them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    add_request_arguments(parser)
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument("--from", dest="url", metavar="URL", help="the register that is asked, as https://board.example")
    whom.add_argument("--self-signed", action="store_true", help="sign it yourself (default without --from)")
    add_key_arguments(parser)
    verbs = parser.add_subparsers(dest="verb", metavar="[serve]", required=False)
    serve = verbs.add_parser(
        "serve",
        help="be a register: give tickets to whoever asks",
        description="Be a register: give tickets to whoever asks over HTTP.",
        epilog=SERVE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_serve_arguments(serve)


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="of the register, as people know it")
    parser.add_argument("--folder", type=Path, required=True, help="where all tickets are kept")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8500, help="port to listen at; 0 is any (default: %(default)s)")
    parser.add_argument(
        "--per-hour", type=int, default=60, metavar="N", help="tickets an address gets (default: %(default)s)"
    )
    add_key_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Get a ticket, or give tickets out until Ctrl-C."""
    return serve(args) if args.verb == "serve" else announce(args)


def announce(args: argparse.Namespace) -> int:
    """Get a ticket and write it.

    Raises:
        UsageError: a word is missing or not possible, or there is no ticket to be had.
        RecordError: the output exists or cannot be written.
    """
    request = make_request(args)
    if args.output.exists():  # before anybody is asked: a ticket that is lost leaves runs that never appear
        raise RecordError(f"{str(args.output)!r} exists and is never overwritten; name another --output")
    signed = request_ticket(args.url, request) if args.url else issue_ticket(key_of(args), request, issuer=SELF)
    write_json(args.output, signed)
    print(f"{args.output}: {describe_ticket(signed.ticket)}")
    print(f"status: {describe_registration(signed, find_trusted_keys())}")
    if not args.url:
        print("        it announces the runs, but only a register's ticket proves to others when that was")
    elif signed.ticket.issuer_key not in find_trusted_keys().issuers:
        print(
            f"        if that is the key the register publishes, write it under [issuers] of {default_trusted_path()}"
        )
    print(f"next:   hpcai500 submit --ticket {args.output}")
    return 0


def serve(args: argparse.Namespace) -> int:
    """Give tickets out until Ctrl-C.

    Raises:
        UsageError: a word is not possible, or the port or folder cannot be had.
    """
    if args.per_hour < 1:
        raise UsageError(f"--per-hour {args.per_hour} is not possible; give at least 1")
    register = Register(args.folder, key_of(args), name=args.name)
    try:
        server = RegisterServer((args.host, args.port), register, per_hour=args.per_hour)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen at {args.host}:{args.port} ({error}); give another --host or --port") from None
    with server:
        print(f"register {register.name!r} with {len(register)} tickets listens at {server.url}, Ctrl-C ends it")
        print(
            f'to trust it, write under [issuers] of trusted_keys.toml: {register.key} = "{register.name}"', flush=True
        )
        try:
            server.serve_forever()
        finally:
            register.close()
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.register.cli``."""
    return run_command("python -m hpcai500.register.cli", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
