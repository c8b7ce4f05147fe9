"""The board as a register: its key, the tickets that it gave out, and whether a submission's ticket is its own."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import select
from sqlalchemy.orm import Session

from hpcai500.edition import Edition
from hpcai500.formats import SignedTicket
from hpcai500.leaderboard.audit import note
from hpcai500.leaderboard.database import utc_text
from hpcai500.leaderboard.tables import Submission, Ticket
from hpcai500.register.keys import load_key, make_key
from hpcai500.register.ticket import TicketRequest, check_request, describe_ticket, issue_ticket, ticket_sha256
from hpcai500.register.trusted import UNREGISTERED, TrustedKeys, describe_registration

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_NAME = "key.pem"


def board_key(folder: Path) -> Ed25519PrivateKey:
    """The key of the board, made the first time; servers that start together have the same.

    Raises:
        UsageError: it cannot be read or written, or may be read by others.
    """
    path = folder / KEY_NAME
    if not path.exists():
        new = folder / f".{KEY_NAME}.{secrets.token_hex(8)}"
        make_key(new)
        with suppress(FileExistsError):  # another server was faster
            os.link(new, path)
        new.unlink()
    return load_key(path)


def give_ticket(
    session: Session, request: TicketRequest, *, organisation: str, key: Ed25519PrivateKey, name: str, edition: Edition
) -> SignedTicket:
    """Sign a ticket for an organisation and keep it.

    Raises:
        UsageError: the edition has no such workload, level or size, or the submitter's name cannot be one.
    """
    check_request(request, edition)
    signed = issue_ticket(key, request, issuer=name)
    sha256 = ticket_sha256(signed.ticket)
    row = Ticket(
        sha256=sha256, organisation_slug=organisation, issued_at=utc_text(), signed=msgspec.to_builtins(signed)
    )
    session.add(row)
    note(session, organisation, "ticket given", sha256, describe_ticket(signed.ticket))
    return signed


def find_ticket(session: Session, sha256: str) -> SignedTicket | None:
    """The ticket with that digest; None if this board has not given it out."""
    row = session.get(Ticket, sha256)
    return msgspec.convert(row.signed, SignedTicket) if row else None


def judge_ticket(
    session: Session, row: Submission, signed: SignedTicket | None, *, board: str, trusted: TrustedKeys
) -> tuple[bool, str]:
    """Whether a submission counts as registered, and in words why.

    Args:
        session: of the board.
        row: the submission, which is valid.
        signed: its ticket, which is genuine.
        board: public key of the board.
        trusted: keys of this board and of registers that it trusts.
    """
    if signed is None:
        return False, UNREGISTERED
    ticket = signed.ticket
    if ticket.issuer_key not in trusted.issuers:
        return False, describe_registration(signed, trusted)
    sha256 = ticket_sha256(ticket)
    if ticket.issuer_key == board:
        kept = session.get(Ticket, sha256, with_for_update=True)  # of two submissions with it one is looked at first
        if kept is None:
            return False, f"{UNREGISTERED}: its ticket bears this board's signature and is not in its register"
        is_own = kept.organisation_slug == row.organisation_slug
    else:
        is_own = ticket.submitter.casefold() == row.organisation.name.casefold()
    if not is_own:
        return False, f"{UNREGISTERED}: its ticket was given to another organisation"
    same = select(Submission.sha256).where(
        Submission.ticket_sha256 == sha256, Submission.registered.is_(True), Submission.sha256 != row.sha256
    )
    if (used := session.scalars(same).first()) is not None:
        return False, f"{UNREGISTERED}: its ticket was used by submission {used}"
    return True, describe_registration(signed, trusted)
