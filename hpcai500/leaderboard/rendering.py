"""Turns what was found into pages: the templates, what they may call, and where their links lead.

A server and the exported files have the same templates; they differ in ``link``, which turns an address of the board
("/boards/resnet50/official/free?sort=time") into what stands in the page.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jinja2
from markupsafe import Markup

from hpcai500.edition import Workload, load_edition
from hpcai500.leaderboard import display
from hpcai500.leaderboard.plots import interval_bar

TEMPLATES = Path(__file__).parent / "templates"
TITLES = {404: "Not found", 503: "The board cannot answer now"}
STATIC = Path(__file__).parent / "static"


class Files(Protocol):
    """Where the files of submissions lie (storage.py)."""

    def path(self, sha256: str, name: str) -> Path:
        """Where a file of a submission lies, or would."""


class Site:
    """A board as pages: the templates with a way to link.

    Args:
        files: of the submissions.
        link: what an address of the board is in the page that is made.
        is_static: whether the pages are files, without a server that could filter or compare.
        own_url: of the board, where it is known, for commands that a reader may copy.
    """

    def __init__(self, files: Files, link: Callable[[str], str], *, is_static: bool = False, own_url: str = "") -> None:
        self.files = files
        self.link = link
        self.is_static = is_static
        self.own_url = own_url

    def has_file(self, sha256: str, name: str) -> bool:
        """Whether the file of a submission is there."""
        return self.files.path(sha256, name).is_file()

    def render(self, template: str, here: str = "", **context: Any) -> str:
        """A page from a template of templates/; ``here`` is the address of the site's part that it belongs to."""
        shared = {"link": self.link, "is_static": self.is_static, "here_url": self.own_url, "here": here}
        return _environment().get_template(template).render(**shared, **context)


def refusal_page(root_path: str, status: int, sentence: str) -> str:
    """The page that says why there is no other, of a board below a path."""
    title = TITLES.get(status, "This cannot be shown now")
    shared = {"link": lambda address: root_path + address, "is_static": False, "here_url": "", "here": ""}
    return _environment().get_template("missing.html").render(**shared, title=title, problem=sentence)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "bar": lambda row, scale: Markup(interval_bar(row.vflops, row.vflops_low, row.vflops_high, scale)),  # noqa: S704
        "clean": display.clean,
        "day": display.day,
        "duration": display.duration,
        "moment": display.moment,
        "quality": display.quality,
        "size_in_bytes": display.size_in_bytes,
        "title_of": title_of,
        "unit_of": display.unit_of,
        "with_unit": display.with_unit,
    }
    return environment


def title_of(workload: str) -> str:
    """What people call a workload; its name if the rules of this edition do not have it."""
    known = _workload(workload)
    return known.title if known else workload


def quality_name_of(workload: str) -> str:
    """What its quality measures."""
    known = _workload(workload)
    return known.quality if known else "quality"


def level_names() -> list[str]:
    """The levels of the rules."""
    return sorted({level for workload in load_edition().workloads.values() for level in workload.levels})


def _workload(name: str) -> Workload | None:
    return load_edition().workloads.get(name)
