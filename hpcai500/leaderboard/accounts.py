"""Organisations and their tokens: made by the board's operator, kept as digests, with scopes and an end."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from hpcai500.errors import UnknownNameError, UsageError
from hpcai500.leaderboard.audit import OPERATOR, note
from hpcai500.leaderboard.database import utc_text
from hpcai500.leaderboard.tables import SCOPES, Organisation, Token

SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")
TOKEN = re.compile(r"hpcai500_([0-9a-f]{16})_([0-9a-f]{64})\Z")
DAY_S = 86_400
MAX_DAYS = 3660
MAX_NAME = 200
NO_SECRET = hashlib.sha256(b"").hexdigest()


class Account(NamedTuple):
    """Who asks: the organisation, and what the token may do."""

    organisation: str
    organisation_name: str
    token_id: str
    scopes: frozenset[str]


class TokenRefusedError(UsageError):
    """The token is none, unknown, expired or revoked; the message says which."""


def check_text(what: str, text: str, most: int = MAX_NAME) -> str:
    """Refuse a name that could not be shown.

    Raises:
        UsageError: it is blank, too long or has control characters.
    """
    if not text.strip() or len(text) > most or not text.isprintable():
        raise UsageError(f"{what} {text[:100]!r} cannot be one; give at most {most} characters that can be printed")
    return text


def slug_of(name: str, most: int = 64) -> str:
    """A name as it stands in addresses: small letters, digits and single hyphens.

    Of a name in another script nothing or a number is left, which many share; so a digest of the name goes with it.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:most].strip("-")
    if slug and (name.isascii() or re.search("[a-z]", slug)):
        return slug
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode()).hexdigest()[:8]
    return f"{slug[: most - 9].strip('-') or 'system'}-{digest}"


def add_organisation(session: Session, slug: str, name: str) -> Organisation:
    """Let an organisation in.

    Raises:
        UsageError: the slug or name cannot be one, or is taken.
    """
    if not SLUG.match(slug) or len(slug) > 64:
        raise UsageError(f"{slug!r} cannot stand in addresses; give small letters, digits and single hyphens")
    check_text("the name", name)
    taken = session.scalar(select(Organisation).where((Organisation.slug == slug) | (Organisation.name == name)))
    if taken is not None:
        raise UsageError(f"there is the organisation {taken.slug!r}, {taken.name!r}, already; choose another name")
    organisation = Organisation(slug=slug, name=name, created_at=utc_text())
    session.add(organisation)
    note(session, OPERATOR, "organisation added", slug, name)
    return organisation


def find_organisation(session: Session, slug: str) -> Organisation:
    """The organisation of that slug.

    Raises:
        UnknownNameError: there is none; lists those that there are.
    """
    organisation = session.get(Organisation, slug)
    if organisation is None:
        raise UnknownNameError("organisation", slug, session.scalars(select(Organisation.slug)))
    return organisation


def create_token(session: Session, slug: str, scopes: Sequence[str], *, label: str, days: float) -> str:
    """Make a token; what is returned is not kept and cannot be had again.

    Raises:
        UsageError: there is no such organisation or scope, or the days or the label cannot be.
    """
    organisation = find_organisation(session, slug)
    for scope in scopes:
        if scope not in SCOPES:
            raise UnknownNameError("scope", scope, SCOPES)
    if not 0 < days <= MAX_DAYS:
        raise UsageError(f"a token cannot be good for {days:g} days; give more than 0 and at most {MAX_DAYS}")
    check_text("the label", label)
    token_id, secret = secrets.token_hex(8), secrets.token_hex(32)
    row = Token(
        id=token_id,
        organisation_slug=organisation.slug,
        secret_sha256=_digest(secret),
        label=label,
        scopes=" ".join(scope for scope in SCOPES if scope in scopes),
        created_at=utc_text(),
        expires_at=utc_text(time.time() + days * DAY_S),
    )
    session.add(row)
    note(session, OPERATOR, "token created", slug, f"{token_id} ({row.scopes}) until {row.expires_at}: {label}")
    return f"hpcai500_{token_id}_{secret}"


def revoke_token(session: Session, token_id: str) -> None:
    """End a token now.

    Raises:
        UsageError: there is no such token.
    """
    row = session.get(Token, token_id)
    if row is None:
        raise UsageError(f"there is no token {token_id[:40]!r}; `hpcai500 leaderboard admin token list` shows them")
    if row.revoked_at is None:
        row.revoked_at = utc_text()
        note(session, OPERATOR, "token revoked", row.organisation_slug, token_id)


def authenticate(session: Session, token: str, *, now_s: float | None = None) -> Account:
    """Who shows this token.

    Raises:
        TokenRefusedError: nobody whose requests are answered.
    """
    found = TOKEN.match(token)
    row = session.get(Token, found[1]) if found else None
    digest = _digest(found[2]) if found else NO_SECRET
    is_right = hmac.compare_digest(digest, row.secret_sha256 if row else NO_SECRET)
    if row is None or not is_right:
        raise TokenRefusedError("the token is not known here; ask the board's operator for one")
    if row.revoked_at is not None:
        raise TokenRefusedError(f"the token was revoked at {row.revoked_at}; ask the board's operator for a new one")
    if row.expires_at <= utc_text(now_s):
        raise TokenRefusedError(f"the token expired at {row.expires_at}; ask the board's operator for a new one")
    return Account(row.organisation_slug, row.organisation.name, row.id, frozenset(row.scopes.split()))


def _digest(secret: str) -> str:
    """Of 256 random bits one round of SHA-256 is enough: nobody can try them all."""
    return hashlib.sha256(secret.encode()).hexdigest()
