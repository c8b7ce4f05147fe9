"""The report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere.

Names in a submission are a stranger's: the templates escape every text, and ``printable`` takes control characters out
of it and cuts it, before it stands anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from hpcai500.edition import Edition, load_edition
from hpcai500.register.trusted import TrustedKeys
from hpcai500.report import amounts
from hpcai500.report.compare import compare
from hpcai500.report.comparison_view import comparison_view
from hpcai500.report.sections import subject_view
from hpcai500.report.subject import Subject, read_subject
from hpcai500.verdict import printable
from hpcai500.version import __version__

MAX_SUBJECTS = 20
MAX_SHEETS_BYTES = 3 << 19  # of all subjects together, as they stand in the page
FILTERS = {
    "flops": amounts.flops_text,
    "seconds": amounts.seconds_text,
    "quality": amounts.quality_text,
    "share": amounts.share_text,
    "rate": amounts.rate_text,
    "ratio": amounts.ratio_text,
    "bytes": amounts.bytes_text,
    "prefixed": amounts.prefixed,
}


def render_report(paths: Sequence[Path], *, edition: Edition | None = None, trusted: TrustedKeys | None = None) -> str:
    """One page about what lies at some paths; several are compared with the first.

    Args:
        paths: of submission.json files, of run folders, or of folders of submissions.
        edition: the rules; those of this package by default.
        trusted: keys that the reader knows.

    Raises:
        UsageError: there is nothing to report on at one of them.
        RecordError: a file there cannot be read at all.
    """
    rules = edition or load_edition()
    return render_subjects([read_subject(path, rules, trusted=trusted) for path in paths])


def render_subjects(subjects: Sequence[Subject]) -> str:
    """One page about subjects that were read."""
    assert subjects
    subjects = _with_few_sheets(_with_own_names(subjects))
    several = len(subjects) > 1
    views = [
        subject_view(subject, prefix=f"s{number}-" if several else "")
        for number, subject in enumerate(subjects, start=1)
    ]
    comparison = comparison_view(compare(subjects), subjects) if several else None
    template = _environment().get_template("report.html")
    page: str = template.render(subjects=views, comparison=comparison, version=__version__, style=_style())
    return page


def _with_own_names(subjects: Sequence[Subject]) -> list[Subject]:
    """The same, but of those whose folders have one name each gets a number behind it."""
    names = [subject.name for subject in subjects]
    return [
        replace(subject, name=f"{subject.name} ({number})") if names.count(subject.name) > 1 else subject
        for number, subject in enumerate(subjects, start=1)
    ]


def _with_few_sheets(subjects: Sequence[Subject]) -> list[Subject]:
    """The same, but without the pictures of a detector where those before them take MAX_SHEETS_BYTES already."""
    kept, left_bytes = [], MAX_SHEETS_BYTES
    for subject in subjects:
        num_bytes = sum(len(run.sheet) for run in subject.runs)
        if num_bytes > left_bytes:
            note = "the page would be too large with them; a report of this one alone has them"
            runs = tuple(replace(run, sheet="", sheet_note=note) for run in subject.runs)
            kept.append(replace(subject, runs=runs))
        else:
            left_bytes -= num_bytes
            kept.append(subject)
    return kept


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hpcai500.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_clean,
    )
    environment.filters.update(FILTERS)
    return environment


def _clean(value: Any) -> Any:
    """Every text that a template writes, without control characters and not too long."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _style() -> Markup:
    """The style sheet, which stands in the page; it is ours, so it may stand there as it is."""
    source, _, _ = PackageLoader("hpcai500.report").get_source(Environment(), "style.css")  # noqa: S701
    return Markup(source)  # noqa: S704
