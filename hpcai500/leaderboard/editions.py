"""Which edition of the rules a board shows: the newest if nothing is asked, since results compare only within one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sqlalchemy import ColumnElement, true

from hpcai500.leaderboard.tables import Submission

ALL = "all"  # what an address asks for in place of an edition, to see them beside each other
NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})*\Z")


def newest_first(editions: Iterable[str | None]) -> list[str]:
    """Editions without what is none; by their numbers, so that 0.10 stands before 0.9, and other words last."""
    return sorted({edition for edition in editions if edition}, key=_order, reverse=True)


def _order(edition: str) -> tuple[list[int], str]:
    return [int(part) for part in edition.split(".")] if NUMBER.match(edition) else [], edition


def of_edition(edition: str) -> ColumnElement[bool]:
    """What is of an edition; everything for ALL, or for "", the edition of a board on which nothing is."""
    return true() if edition in (ALL, "") else Submission.edition == edition
