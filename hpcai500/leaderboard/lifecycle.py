"""The states of a submission and who may move it: draft, rejected, verified, published, challenged, withdrawn.

::

    draft -> rejected                    the server found it invalid
    draft -> verified -> published       the server; then its organisation, or at once if it said so
    published <-> challenged             anybody with an account; the operator decides
    published, challenged -> withdrawn   its organisation, or the operator by a challenge that he upholds

Nothing is deleted: what was published stays visible, and each move is in the audit log with its reason.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hpcai500.errors import UsageError
from hpcai500.leaderboard.audit import OPERATOR, SERVER, note
from hpcai500.leaderboard.database import utc_text
from hpcai500.leaderboard.entries import Entry
from hpcai500.leaderboard.tables import (
    CHALLENGED,
    DRAFT,
    PUBLISHED,
    RANKED_STATES,
    REJECTED,
    VERIFIED,
    WITHDRAWN,
    Challenge,
    Submission,
)

OPEN, UPHELD, DISMISSED = "open", "upheld", "dismissed"
MAX_TEXT = 4000
MAX_OPEN_CHALLENGES = 10  # of an organisation; more is a nuisance


class StateError(UsageError):
    """A submission's state does not allow it; the message says which would."""


def check_words(what: str, text: str) -> str:
    """Refuse a text that is blank or too long, or has control characters other than line breaks and tabs.

    Raises:
        UsageError: says so.
    """
    plain = text.replace("\n", " ").replace("\t", " ").replace("\r", " ")
    if not plain.strip() or len(text) > MAX_TEXT or not plain.isprintable():
        raise UsageError(f"{what} cannot be {text[:60]!r}; give at most {MAX_TEXT} characters that can be printed")
    return text


def mark_verified(session: Session, row: Submission, entry: Entry, *, registered: bool, registration: str) -> None:
    """What the server found valid; published at once if its organisation said so."""
    _fill(row, entry, registered=registered, registration=registration)
    row.problem, row.verified_at = None, utc_text()
    if row.state not in (DRAFT, REJECTED):  # verified once more; only its figures are new
        note(session, SERVER, "verified again", row.sha256, f"valid, {entry.vflops:.6g} flop/s")
        _settle(row)
        return
    row.state = VERIFIED
    note(session, SERVER, "verified", row.sha256, f"valid, {entry.vflops:.6g} flop/s, {registration}")
    if row.publish:
        publish(session, row, actor=row.organisation_slug)


def _fill(row: Submission, entry: Entry, *, registered: bool, registration: str) -> None:
    columns: dict[str, Any] = msgspec.structs.asdict(entry)
    for name, value in columns.items():
        setattr(row, name, value)
    row.registered, row.registration = registered, registration


def mark_rejected(session: Session, row: Submission, problem: str) -> None:
    """What the server found invalid.

    One that is shown counts as challenged instead: what the public has seen does not vanish, and the operator decides.
    """
    row.problem, row.verified_at = problem, utc_text()
    if row.state in RANKED_STATES:
        row.state = CHALLENGED
        note(session, SERVER, "invalid by later rules", row.sha256, problem)
    elif row.state != WITHDRAWN:
        row.state = REJECTED
        note(session, SERVER, "rejected", row.sha256, problem)


def publish(session: Session, row: Submission, *, actor: str) -> None:
    """Show it to everybody; of one that is shown already, nothing.

    Raises:
        StateError: it is not verified, or was withdrawn.
    """
    if row.state in RANKED_STATES:
        return
    if row.state == DRAFT:
        row.publish = True
        note(session, actor, "asked to publish", row.sha256, "as soon as it is verified")
        return
    if row.state != VERIFIED:
        raise StateError(f"it is {row.state}, and only a verified submission can be published; upload another one")
    row.state, row.published_at = PUBLISHED, utc_text()
    note(session, actor, "published", row.sha256)


def withdraw(session: Session, row: Submission, *, actor: str, reason: str) -> None:
    """Take its rank away for good; it stays visible, struck through.

    Raises:
        UsageError: the reason cannot be one.
        StateError: it is not published.
    """
    check_words("the reason", reason)
    if row.state == WITHDRAWN:
        return
    if row.state not in RANKED_STATES:
        raise StateError(f"it is {row.state}, and only what is published can be withdrawn; nobody else sees it")
    row.state = WITHDRAWN
    note(session, actor, "withdrawn", row.sha256, reason)


def challenge(session: Session, row: Submission, *, actor: str, claim: str, evidence: str) -> Challenge:
    """Doubt a published submission; it keeps its rank with a mark until the operator decides.

    Raises:
        UsageError: claim or evidence cannot be one, or the organisation has too many challenges open.
        StateError: it is not published, or the organisation's own.
    """
    check_words("the claim", claim)
    check_words("the evidence", evidence)
    if row.state not in RANKED_STATES:
        raise StateError(f"it is {row.state}, and only what is published can be challenged")
    if row.organisation_slug == actor:
        raise StateError("it is your own; withdraw it if it is wrong")
    of_actor = select(func.count()).where(Challenge.organisation_slug == actor, Challenge.state == OPEN)
    if (session.scalar(of_actor) or 0) >= MAX_OPEN_CHALLENGES:
        raise UsageError(f"your organisation has {MAX_OPEN_CHALLENGES} open challenges; wait until they are decided")
    opened = Challenge(
        id=secrets.token_hex(16),
        submission_sha256=row.sha256,
        organisation_slug=actor,
        claim=claim,
        evidence=evidence,
        opened_at=utc_text(),
        state=OPEN,
    )
    session.add(opened)
    row.state = CHALLENGED
    note(session, actor, "challenged", row.sha256, claim)
    return opened


def decide(session: Session, challenge_id: str, *, uphold: bool, decision: str) -> Challenge:
    """Close a challenge: one that is upheld withdraws the submission; after the last dismissed one it is published.

    Raises:
        UsageError: there is no such challenge, it is closed, or the decision cannot be one.
    """
    check_words("the decision", decision)
    closed = session.get(Challenge, challenge_id)
    if closed is None or closed.state != OPEN:
        what = "is no challenge" if closed is None else f"was {closed.state}"
        raise UsageError(
            f"{challenge_id[:40]!r} {what}; `hpcai500 leaderboard admin challenge list` shows the open ones"
        )
    closed.state, closed.decision, closed.closed_at = (UPHELD if uphold else DISMISSED), decision, utc_text()
    row = closed.submission
    note(session, OPERATOR, f"challenge {closed.state}", row.sha256, decision)
    if uphold:
        withdraw(session, row, actor=OPERATOR, reason=f"a challenge was upheld: {decision}")
    _settle(row)
    return closed


def _settle(row: Submission) -> None:
    """Without an open challenge or a finding a challenged submission is published again."""
    if row.state == CHALLENGED and row.problem is None and all(one.state != OPEN for one in row.challenges):
        row.state = PUBLISHED
