"""The filters of a board, as they stand in an address.

What an address says wrongly is left out and said on the page: a link that somebody mistyped still shows a board.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from hpcai500.leaderboard.display import clean

SORTS = ("vflops", "per_device", "per_watt", "quality", "time", "date")
DEFAULT_SORT = SORTS[0]
MAX_NUMBER = 10**9
NUMBERS = {"nodes_min": (1, MAX_NUMBER), "nodes_max": (1, MAX_NUMBER), "year": (1900, 9998), "page": (1, MAX_NUMBER)}


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows of a board, in which order, and which page of them.

    ``sort`` is of SORTS. ``edition`` is "" for the newest that the board has, or editions.ALL.
    """

    precision: str = ""
    edition: str = ""
    size_class: str = ""
    accelerator: str = ""
    nodes_min: int | None = None
    nodes_max: int | None = None
    year: int | None = None
    registered: bool = False
    energy: bool = False
    sort: str = DEFAULT_SORT
    is_reversed: bool = False  # worst first
    page: int = 1

    @property
    def is_narrowing(self) -> bool:
        """Whether it leaves anything of its edition out."""
        return dataclasses.replace(self, edition="", sort=DEFAULT_SORT, is_reversed=False, page=1) != Filters()

    def query(self, **changes: object) -> str:
        """What follows the board in an address, "" if it would say nothing; all changes but of page lead to page 1."""
        changed = dataclasses.replace(self, **({"page": 1} | changes))  # type: ignore[arg-type]
        words: dict[str, str] = {}
        for field in dataclasses.fields(changed):
            value = getattr(changed, field.name)
            if value != field.default and field.name not in ("is_reversed", "sort"):
                words[field.name] = "1" if value is True else str(value)
        if changed.sort != DEFAULT_SORT or changed.is_reversed:
            words["sort"] = f"{'-' if changed.is_reversed else ''}{changed.sort}"
        return f"?{urlencode(words)}" if words else ""


def parse_filters(words: Mapping[str, str]) -> tuple[Filters, list[str]]:
    """Filters from the words of an address, and in sentences which of them were left out."""
    values: dict[str, object] = {}
    problems: list[str] = []
    for name in ("precision", "edition", "size_class", "accelerator"):
        values[name] = clean(words.get(name, ""), 100)
    for name, (least, most) in NUMBERS.items():
        text = words.get(name, "").strip()
        if text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most:
            values[name] = int(text)
        elif text:
            problems.append(
                f"{name} is {clean(text, 40)!r}, which is no whole number from {least} to {most}: left out."
            )
    for name in ("registered", "energy"):
        values[name] = words.get(name, "") not in ("", "0")
    sort = words.get("sort", DEFAULT_SORT) or DEFAULT_SORT
    if sort.removeprefix("-") in SORTS:
        values |= {"sort": sort.removeprefix("-"), "is_reversed": sort.startswith("-")}
    else:
        problems.append(
            f"A board cannot be sorted by {clean(sort, 40)!r}, only by {', '.join(SORTS)}: sorted by VFLOPS."
        )
    return Filters(**values), problems  # type: ignore[arg-type]
