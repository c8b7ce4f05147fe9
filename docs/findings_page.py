"""Writes docs/findings.rst from hpcai500/rulebook.py, so that the page cannot differ from what the verifier applies."""

from __future__ import annotations

from pathlib import Path

from hpcai500.explain import example_of, groups, who_applies
from hpcai500.rulebook import RULEBOOK

HEAD = """.. This page is written from hpcai500/rulebook.py by docs/findings_page.py; edit the rulebook, not the page.

Findings
========

The rules that ``hpcai500-verify`` applies, by group. A finding of severity *error* makes a submission invalid; a
*warning* is shown and does not. ``hpcai500 explain RULE`` prints the same. The examples are what the verifier says of a
submission that was broken for its tests.

"""


def write_findings_page(path: Path) -> None:
    """Write the page, only if it changed, so that an unchanged page is not built anew."""
    text = findings_page()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def findings_page() -> str:
    """The page in reStructuredText."""
    parts = [HEAD]
    for group, rules in groups().items():
        parts.append(f"{group}\n{'-' * len(group)}\n\n")
        parts += map(section, rules)
    return "".join(parts)


def section(rule: str) -> str:
    entry, example = RULEBOOK[rule], example_of(rule)
    fields = [
        ("demands", escape(entry.sentence)),
        ("why", escape(entry.why)),
        ("what to do", f"{escape(entry.advice)}."),
        *(("checked by", escape(applier)) for applier in who_applies(rule)),
        ("severity", entry.severity),
    ]
    lines = [f":{name}: {text}" for name, text in fields]
    code = f"\n.. code-block:: text\n   :class: sentence\n\n   {example}\n" if example else ""
    return f"{rule}\n{'~' * len(rule)}\n\n" + "\n".join(lines) + f"\n{code}\n"


def escape(text: str) -> str:
    """Words of the rulebook as text; `commands` as such."""
    return text.replace("*", "\\*").replace("`", "``")
