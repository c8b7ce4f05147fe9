"""Tickets: what an issuer signs before the first run, and what follows from it for the runs.

A ticket carries a random challenge. The seeds of all announced runs follow from it (``run_seed``), and every ledger
opens with the ticket's digest, so a run that carries a ticket cannot have been made before the ticket was.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from hpcai500.edition import Edition
from hpcai500.errors import UsageError
from hpcai500.formats import AnnouncedRun, SignedTicket, Ticket, read_record
from hpcai500.register.keys import is_signed, public_key, sign, signed_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NS_PER_S = 10**9
TICKET_NAME = "ticket.json"
SELF = "self"  # the issuer of a ticket that the submitter gave himself
MAX_RUNS = 1000
SEED_BITS = 53  # JSON readers lose integers beyond 2**53
CLOCK_SLACK_NS = 60 * NS_PER_S  # how far the clocks of issuer and nodes may be apart
MAX_NAME = 200  # characters


class TicketRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody announces: so many runs of this, under this name."""

    workload: Annotated[str, Meta(min_length=1, max_length=100)]
    level: Annotated[str, Meta(min_length=1, max_length=100)]
    size: Annotated[str, Meta(min_length=1, max_length=100)]
    num_runs: Annotated[int, Meta(ge=1, le=MAX_RUNS)]
    submitter: Annotated[str, Meta(min_length=1, max_length=MAX_NAME, pattern=r"\S")]


def check_request(request: TicketRequest, edition: Edition) -> None:
    """Refuse what the edition does not know, and names that could not be printed.

    Raises:
        UnknownNameError: of workload, level or size; lists those that exist.
        UsageError: the submitter's name has control characters.
    """
    edition.workload(request.workload).size(request.size)
    edition.level(request.level)
    if not request.submitter.isprintable():
        raise UsageError(f"submitter {request.submitter!r} has characters that cannot be printed; give a plain name")


def ticket_bytes(ticket: Ticket) -> bytes:
    """What the issuer signs (hpcai500.register.keys.signed_bytes with the purpose "ticket")."""
    return signed_bytes("ticket", ticket)


def ticket_sha256(ticket: Ticket) -> str:
    """The digest by which configurations and ledgers name a ticket: of what the issuer signs."""
    return hashlib.sha256(ticket_bytes(ticket)).hexdigest()


def issue_ticket(
    key: Ed25519PrivateKey, request: TicketRequest, *, issuer: str = SELF, now_ns: int | None = None
) -> SignedTicket:
    """Make a ticket with a challenge that nobody can know before, and sign it.

    Args:
        key: private key of the issuer.
        request: what is announced.
        issuer: name of the issuer.
        now_ns: Unix time of the issuer's clock; now by default.
    """
    ticket = Ticket(
        issuer=issuer,
        issuer_key=public_key(key),
        issued_ns=time.time_ns() if now_ns is None else now_ns,
        challenge=secrets.token_hex(32),
        num_runs=request.num_runs,
        workload=request.workload,
        level=request.level,
        size=request.size,
        submitter=request.submitter,
    )
    return SignedTicket(ticket=ticket, signature=sign(key, ticket_bytes(ticket)))


def is_genuine(signed: SignedTicket) -> bool:
    """Whether the ticket was signed with the key that it names; whose key that is, it does not say."""
    return is_signed(ticket_bytes(signed.ticket), signature=signed.signature, by=signed.ticket.issuer_key)


def run_seed(challenge: str, number: int) -> int:
    """The seed of an announced run, at least 0 and below 2**53.

    The first 53 bits of sha256 over the ASCII text ``hpcai500 seed 1``, the challenge and the number in decimal, each
    followed by a newline.

    Args:
        challenge: of the ticket, 64 hexadecimal digits.
        number: of the run, from 1.
    """
    digest = hashlib.sha256(f"hpcai500 seed 1\n{challenge}\n{number}\n".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def announced_run(ticket: Ticket, number: int) -> AnnouncedRun:
    """What the configuration of a run says of the ticket that announced it."""
    return AnnouncedRun(ticket_sha256=ticket_sha256(ticket), number=number)


def read_ticket(path: Path) -> SignedTicket:
    """Read a ticket and look at its signature.

    Raises:
        RecordError: it cannot be read or is no ticket.
        UsageError: it was altered.
    """
    signed = read_record(path, SignedTicket)
    if not is_genuine(signed):
        raise UsageError(
            f"ticket {str(path)!r} does not bear the signature of its issuer, so it was altered; get a new one with "
            "`hpcai500 register`"
        )
    return signed


def describe_ticket(ticket: Ticket) -> str:
    """A ticket in a line, for people."""
    runs = f"{ticket.num_runs} run{'s' if ticket.num_runs > 1 else ''}"
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ticket.issued_ns // NS_PER_S))
    what = f"{ticket.workload}, {ticket.level} level, size {ticket.size}"
    return f"{runs} of {what}, for {ticket.submitter!r}, issued {when} by {ticket.issuer!r}"
