"""What somebody says who asks for a ticket, whether of a register, a leaderboard or himself."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpcai500.edition import load_edition
from hpcai500.errors import UsageError
from hpcai500.register.ticket import MAX_NAME, MAX_RUNS, TICKET_NAME, TicketRequest, check_request


def add_request_arguments(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Declare the words; those that must be there are looked for by ``make_request`` if they are not required here."""
    parser.add_argument("--workload", required=required, help="what will be trained")
    parser.add_argument("--level", required=required, help="hardware, system or free")
    parser.add_argument("--size", required=required, help="official, mini or smoke")
    parser.add_argument("--submitter", required=required, help="who announces it, as the ranking shall show it")
    parser.add_argument("--runs", type=int, metavar="N", help="runs that will be made (default: as the size demands)")
    parser.add_argument(
        "--output", type=Path, default=Path(TICKET_NAME), metavar="FILE", help="new file (default: %(default)s)"
    )


def make_request(args: argparse.Namespace) -> TicketRequest:
    """What the words announce.

    Raises:
        UsageError: a word is missing or not possible.
        UnknownNameError: there is no such workload, level or size.
    """
    for name in ("workload", "level", "size", "submitter"):
        if not (getattr(args, name) or "").strip():
            raise UsageError(f"--{name} is missing; a ticket says which runs it is for, see `hpcai500 register --help`")
    edition = load_edition()
    num_runs = args.runs if args.runs is not None else edition.workload(args.workload).size(args.size).num_runs
    if not 1 <= num_runs <= MAX_RUNS:
        raise UsageError(f"--runs {num_runs} is not possible; give 1 to {MAX_RUNS}")
    if len(args.submitter) > MAX_NAME:
        raise UsageError(f"--submitter has {len(args.submitter)} characters; give a name of at most {MAX_NAME}")
    request = TicketRequest(
        workload=args.workload, level=args.level, size=args.size, num_runs=num_runs, submitter=args.submitter
    )
    check_request(request, edition)
    return request
