"""README and documentation: they render, and the commands they show exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcai500.__main__ import COMMANDS
from hpcai500.edition import load_edition

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.rst"), *ROOT.glob("docs/*.rst"), *ROOT.glob("datasets/*/*.rst")])


@pytest.mark.parametrize("page", [*ROOT.glob("*.rst"), *ROOT.glob("datasets/*/*.rst"), *ROOT.glob("benchmarks/*.rst")])
def test_pages_render_without_a_warning(page: Path) -> None:
    command = [sys.executable, "-m", "docutils", "--halt=2", "--writer=null", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_pages_exist(page: Path) -> None:
    words = re.findall(r"(?:^ {4}|``)hpcai500 ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words) <= COMMANDS.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_in_pages_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^ {4}|``)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= targets


def test_make_help_explains_every_target() -> None:
    text = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony is not None
    for target in phony[1].split():
        assert re.search(rf"^  {target} +\w", text, re.MULTILINE), f"make help does not explain {target}"


def test_files_named_in_pages_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"``((?:hpcai500|docs|tests|rules|datasets|tools)/[\w/.]+)``", page.read_text("utf-8")):
            assert "NAME" in name or (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-q",
        "-d",
        str(tmp_path / "trees"),
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "rules.html").read_text(encoding="utf-8")
    for setting in load_edition().workload("resnet50").settings:
        assert setting in page
