"""Say what a rule of the verifier demands and why, who checks it, what a finding looks like and what to do about it."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec

from hpcai500.applied_rules import appliers_of, check_name, checks_of
from hpcai500.errors import UsageError
from hpcai500.finding import Finding
from hpcai500.rulebook import RULEBOOK

EPILOG = """examples:
  hpcai500 explain                  all rules
  hpcai500 explain counts           those of a group
  hpcai500 explain counts.epochs    one"""
EXAMPLES = Path(__file__).parent / "example_findings.json"  # made by tests/example_findings.py
WHILE_READING = "the verifier, while it reads the files"
WIDTH = 120


def example_of(rule: str) -> Finding | None:
    """A finding of a rule as the verifier made it of a broken submission; None if none is known."""
    return msgspec.json.decode(EXAMPLES.read_bytes(), type=dict[str, Finding]).get(rule)


def who_applies(rule: str) -> list[str]:
    """Who applies a rule: the name of each check, and what it says of itself."""
    if appliers_of(rule) == ["replay"]:
        return ["a replay, `hpcai500-verify --replay STEPS`"]
    sentences = [(check_name(check), (check.__doc__ or "").partition("\n")[0]) for check in checks_of(rule)]
    return [f"{name}: {sentence}" for name, sentence in sentences] or [WHILE_READING]


def groups() -> dict[str, list[str]]:
    """The ids of all rules, by the word before the point."""
    found: dict[str, list[str]] = {}
    for rule in RULEBOOK:
        found.setdefault(rule.partition(".")[0], []).append(rule)
    return found


def explain(rule: str) -> Iterator[str]:
    """The lines that explain a rule."""
    entry = RULEBOOK[rule]
    yield f"{rule} ({entry.severity})"
    parts = [("demands", entry.sentence), ("why", entry.why), ("what to do", f"{entry.advice}.")]
    parts += [("checked by", text) for text in who_applies(rule)]
    example = example_of(rule)
    parts += [("example", str(example))] if example else []
    for word, text in parts:
        yield from textwrap.wrap(f"{word + ':':<12}{text}", WIDTH, initial_indent="  ", subsequent_indent=" " * 14)


def overview(chosen: list[str]) -> Iterator[str]:
    """One line for each rule of some groups."""
    width = max(map(len, RULEBOOK))
    for group in chosen:
        yield f"{group}:"
        for rule in groups()[group]:
            mark = " (warning)" if RULEBOOK[rule].severity == "warning" else ""
            yield f"  {rule:<{width}}  {RULEBOOK[rule].sentence}{mark}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("rule", nargs="?", help="a rule as findings name it, or its group; all rules by default")


def run(args: argparse.Namespace) -> int:
    """Print; returns 0.

    Raises:
        UsageError: there is no such rule.
    """
    name = args.rule
    if name is None:
        lines = overview(list(groups()))
    elif name in groups():
        lines = overview([name])
    elif name in RULEBOOK:
        lines = explain(name)
    else:
        close = difflib.get_close_matches(name, [*RULEBOOK, *groups()], n=1)
        hint = f", did you mean {close[0]!r}?" if close else ";"
        raise UsageError(f"unknown rule {name!r}{hint} `hpcai500 explain` lists all rules")
    print("\n".join(lines))
    return 0
