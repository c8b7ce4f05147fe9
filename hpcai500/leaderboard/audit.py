"""The audit log: every action is noted in the same transaction that does it."""

from __future__ import annotations

from sqlalchemy.orm import Session

from hpcai500.leaderboard.database import utc_text
from hpcai500.leaderboard.tables import Audit

OPERATOR, SERVER = "operator", "server"
MAX_DETAIL = 4000


def note(session: Session, actor: str, action: str, subject: str, detail: str = "") -> None:
    """Add a row.

    Args:
        session: in which the action is done.
        actor: slug of an organisation, OPERATOR or SERVER.
        action: in the past tense.
        subject: address of a submission, slug of an organisation, id of an upload.
        detail: in a sentence; of a submission that is shown everybody sees it.
    """
    row = Audit(at=utc_text(), actor=actor, action=action, subject=subject[:100], detail=detail[:MAX_DETAIL])
    session.add(row)
