"""The help of every command: it is there, its examples are taken by its own parser, and docs/commands.rst has it."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from doc_blocks import ROOT, problems_of_line

from hpcai500.__main__ import COMMANDS, EPILOG
from hpcai500.command import make_parser

sys.path.insert(0, str(ROOT / "docs"))
from commands_page import all_parsers, commands_page, help_of

PARSERS = {
    title: parser
    for name, (module, _) in COMMANDS.items()
    for title, parser in all_parsers(make_parser(f"hpcai500 {name}", import_module(module)))
}


def examples_of(epilog: str) -> list[str]:
    """The commands of an epilog, without the words about them, which two spaces set apart."""
    lines = re.sub(r"\\\n *", "", epilog).split("\n")
    ours = re.compile(r"^ +(?:[A-Z_]+=\S+ )*(?:hpcai500|python|sbatch|srun|mpiexec)\b")
    return [re.split(r" {2,}", line.strip())[0] for line in lines if ours.match(line)]


@pytest.mark.parametrize("title", PARSERS)
def test_help_says_what_the_command_does_and_what_each_word_means(title: str) -> None:
    parser = PARSERS[title]
    assert parser.description, f"{title} --help does not say what it does"
    for action in parser._actions:
        words = action.option_strings or [action.metavar or action.dest]
        if action.help is None and not isinstance(action, argparse._SubParsersAction):
            pytest.fail(f"{title} --help does not say what {words[0]} is")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_examples(name: str) -> None:
    assert examples_of(PARSERS[f"hpcai500 {name}"].epilog or "") != []


@pytest.mark.parametrize("title", PARSERS)
def test_examples_of_the_help_are_taken_by_the_parsers(title: str) -> None:
    examples = examples_of(PARSERS[title].epilog or "")
    assert [(example, problems) for example in examples if (problems := problems_of_line(example))] == []


def test_examples_of_the_umbrella_are_taken_by_the_parsers() -> None:
    examples = examples_of(EPILOG)
    assert len(examples) >= 3
    assert [problems for example in examples if (problems := problems_of_line(example))] == []


def test_the_page_of_commands_has_the_help_of_each_and_all_sub_commands() -> None:
    page = commands_page()
    assert {"hpcai500 data prepare imagenet", "hpcai500 register serve"} <= PARSERS.keys()
    for title, parser in PARSERS.items():
        assert title in page
        usage = help_of(parser).split("\n")[0]
        assert f"    {usage}\n" in page


def test_the_page_of_commands_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    narrow = commands_page()
    assert os.environ["COLUMNS"] == "40"
    monkeypatch.delenv("COLUMNS")
    assert commands_page() == narrow


def test_what_the_page_shows_is_what_help_prints(tmp_path: Path) -> None:
    env = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "hpcai500", "explain", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=tmp_path).stdout
    assert printed == help_of(PARSERS["hpcai500 explain"])
