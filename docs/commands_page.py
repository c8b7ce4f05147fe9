"""Writes docs/commands.rst from the parsers of all commands, so that the page cannot differ from what --help prints."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from hpcai500.__main__ import COMMANDS
from hpcai500.command import make_parser

HEAD = """.. This page is written from the parsers by docs/commands_page.py; edit the commands, not the page.

Every command
=============

What each command prints when it is asked with ``--help``. ``hpcai500-verify`` is ``hpcai500 verify``, and ``python -m
hpcai500.submit`` is ``hpcai500 submit``; likewise all others. Exit codes: 0 good, 1 failed or invalid, 2 wrong use or
not to be read, 130 interrupted; a stopped run has more (:doc:`resume`).

"""
WIDTH = 100  # columns of the help, as in a usual terminal


def write_commands_page(path: Path) -> None:
    """Write the page, only if it changed, so that an unchanged page is not built anew."""
    text = commands_page()
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def commands_page() -> str:
    """The page in reStructuredText."""
    parts = [HEAD]
    for name, (module, summary) in COMMANDS.items():
        prog = f"hpcai500 {name}"
        parts.append(f"{prog}\n{'-' * len(prog)}\n\n{summary[0].upper()}{summary[1:]}.\n\n")
        for title, parser in all_parsers(make_parser(prog, import_module(module))):
            head = "" if title == prog else f"``{title}``\n{'~' * (len(title) + 4)}\n\n"
            parts.append(f"{head}.. code-block:: text\n\n{indented(help_of(parser))}\n\n")
    return "".join(parts)


def all_parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A parser and those of its sub-commands, with what a user types to get there."""
    yield re.sub(r" \[.*| -.*", "", parser.prog), parser
    for action in parser._actions:  # argparse has no public way to ask for sub-commands
        if isinstance(action, argparse._SubParsersAction):
            for part in dict.fromkeys(action.choices.values()):
                yield from all_parsers(part)


def help_of(parser: argparse.ArgumentParser) -> str:
    """What ``--help`` prints in a terminal of WIDTH columns."""
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        return parser.format_help()
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


def indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.strip("\n").split("\n"))
