"""Asks a register for a ticket, and believes nothing it answers that cannot be right."""

from __future__ import annotations

import contextlib
import time
import urllib.error
import urllib.request
from http.client import HTTPException

import msgspec

from hpcai500.errors import UsageError
from hpcai500.formats import SignedTicket, Ticket
from hpcai500.register.ticket import CLOCK_SLACK_NS, NS_PER_S, SELF, TicketRequest, is_genuine

TIMEOUT_S = 20.0
MAX_ANSWER_BYTES = 1 << 16
MAX_AGE_NS = 3600 * NS_PER_S  # of a ticket that has just been asked for
WAY_ON = "with --self-signed the runs are announced without a register, and the submission is then unregistered"


def request_ticket(url: str, request: TicketRequest, *, timeout_s: float = TIMEOUT_S) -> SignedTicket:
    """Ask the register at ``url`` ("https://board.example" or with a path) for a ticket.

    Raises:
        UsageError: the address is none, the register cannot be reached or refuses, or it answers what was not asked
            for or cannot be right.
    """
    if not url.startswith(("https://", "http://")):
        raise UsageError(f"--from {url!r} is no address of a register; it begins with https:// or http://")
    content = _post(f"{url.rstrip('/')}/tickets", msgspec.json.encode(request), timeout_s)
    try:
        signed = msgspec.json.decode(content, type=SignedTicket)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"register {url!r} answers with what is no ticket ({error}); {WAY_ON}") from None
    check_answer(url, request, signed, now_ns=time.time_ns())
    return signed


def _post(url: str, body: bytes, timeout_s: float) -> bytes:
    reason = ""
    try:
        question = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.urlopen(question, timeout=timeout_s) as reply:  # noqa: S310, since the scheme was looked at
            content: bytes = reply.read(MAX_ANSWER_BYTES)
    except urllib.error.HTTPError as error:
        with error, contextlib.suppress(OSError, HTTPException):  # the rest of the answer may never come
            reason = _sentence(error.read(MAX_ANSWER_BYTES))
        reason = reason or f"HTTP status {error.code}"
        raise UsageError(f"register {url!r} refuses: {reason}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = _printable(str(getattr(error, "reason", "")) or str(error) or type(error).__name__)
        raise UsageError(f"register {url!r} cannot be reached ({reason}); check the address, or {WAY_ON}") from None
    return content


def _sentence(body: bytes) -> str:
    """The sentence in which a register says why it refuses; "" if it says nothing."""
    try:
        return _printable(msgspec.json.decode(body, type=dict[str, str]).get("error", ""))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""


def _printable(text: str) -> str:
    """What a stranger says, on one line and without what would move the cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:1000]).strip()


def check_answer(url: str, request: TicketRequest, signed: SignedTicket, *, now_ns: int) -> None:
    """Refuse a ticket that is not what was asked for, or that will be of no use.

    Raises:
        UsageError: says what is wrong with it.
    """
    ticket = signed.ticket
    if not is_genuine(signed):
        raise UsageError(f"register {url!r} answers with a ticket that it has not signed; {WAY_ON}")
    asked = msgspec.structs.asdict(request)
    other = [name for name, value in asked.items() if getattr(ticket, name) != value]
    if other or ticket.issuer == SELF:
        what = other[0] if other else "issuer"
        found = f"{what} {getattr(ticket, what)!r}"
        raise UsageError(f"register {url!r} answers with a ticket of {found}, which nobody asked for; {WAY_ON}")
    check_clock(ticket, now_ns=now_ns)
    if now_ns - ticket.issued_ns > MAX_AGE_NS:
        age_s = (now_ns - ticket.issued_ns) / NS_PER_S
        raise UsageError(
            f"the ticket that was asked for now is {age_s:.0f} s old by this machine's clock; set the clock by NTP, or "
            "tell the register"
        )


def check_clock(ticket: Ticket, *, now_ns: int) -> None:
    """Refuse a ticket of the future: runs that begin before it was issued are not valid.

    Raises:
        UsageError: this machine's clock is behind that of the issuer.
    """
    ahead_ns = ticket.issued_ns - now_ns
    if ahead_ns > CLOCK_SLACK_NS:
        raise UsageError(
            f"the ticket was issued {ahead_ns / NS_PER_S:.0f} s after now by this machine's clock, so runs would look "
            "older than their ticket; set the clocks of all nodes by NTP"
        )
