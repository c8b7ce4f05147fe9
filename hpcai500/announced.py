"""Turns a ticket into runs: what it announced is what is planned, with the seeds that follow from it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from hpcai500.errors import HpcAi500Error, UsageError
from hpcai500.formats import RunConfig, SignedTicket, read_config
from hpcai500.launches import list_submissions
from hpcai500.register.client import check_clock
from hpcai500.register.ticket import read_ticket, ticket_sha256

# What a ticket says: its field, the name in ``args``, and the word typed.
TICKET_WORDS = {
    "workload": ("workload", "--workload"),
    "level": ("level", "--level"),
    "size": ("size", "--size"),
    "num_runs": ("runs", "--runs"),
    "submitter": ("submitter", "--submitter"),
}


def take_ticket(args: argparse.Namespace) -> tuple[argparse.Namespace, SignedTicket | None]:
    """The words of ``submit`` as the ticket of ``args.ticket`` completes them, and the ticket; None if there is none.

    Raises:
        RecordError: the ticket cannot be read.
        UsageError: it was altered, is from the future, or a word says something else than the ticket.
    """
    if args.ticket is None:
        return args, None
    signed = read_ticket(args.ticket)
    check_clock(signed.ticket, now_ns=time.time_ns())
    completed = argparse.Namespace(**vars(args))
    for field, (name, word) in TICKET_WORDS.items():
        announced, typed = getattr(signed.ticket, field), getattr(args, name)
        if typed not in (None, announced):
            raise UsageError(
                f"{word} {typed!r} is not what ticket {str(args.ticket)!r} announces, {announced!r}; leave the word "
                "away, or get another ticket with `hpcai500 register`"
            )
        setattr(completed, name, announced)
    if args.seed is not None:
        raise UsageError("--seed cannot be given with --ticket, from which the seeds follow; leave the word away")
    return completed, signed


def check_unused(signed: SignedTicket, folder: Path) -> None:
    """Refuse a ticket whose runs are in another submission of this user, as far as that is known here.

    Args:
        signed: the ticket.
        folder: of the submission that wants it.

    Raises:
        UsageError: names the submission that has it.
    """
    digest = ticket_sha256(signed.ticket)
    for other in list_submissions():
        announced = _announced_by(other)
        if announced == digest and other.resolve() != folder.resolve():
            raise UsageError(
                f"the ticket is that of {str(other)!r}, and announces the runs of one submission only; go on there "
                f"with `hpcai500 submit --resume {other}`, or get another ticket with `hpcai500 register`"
            )


def _announced_by(folder: Path) -> str | None:
    """The digest of the ticket that announced the runs of a submission, if that can be told."""
    try:
        config: RunConfig = read_config(folder / "run-1")[0]
    except HpcAi500Error:  # what somebody else has put there is no reason not to train
        return None
    return config.announced.ticket_sha256 if config.announced else None
