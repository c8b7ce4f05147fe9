"""docs/trouble.rst quotes what programs say: each sentence is found in the source, word for word."""

from __future__ import annotations

import ast
import functools
import re

import pytest
from doc_blocks import ROOT

PAGE = (ROOT / "docs/trouble.rst").read_text(encoding="utf-8")
QUOTED = re.findall(r"^   \* - ``(.+)``$", PAGE, re.MULTILINE)
VALUE = "\0"  # in the place of what is put into a sentence when it is said


@functools.cache
def sentences() -> str:
    """All texts of the package, one a line, with VALUE in the place of values."""
    found = []
    for path in sorted((ROOT / "hpcai500").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(map(_part, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(text.replace("\n", " ") for text in found)


def _part(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else VALUE


def is_said(sentence: str) -> bool:
    """Whether the package says a sentence in which ``...`` stands for anything."""
    parts = [part.strip() for part in sentence.split("...") if part.strip()]
    return re.search("[^\n]*?".join(map(re.escape, parts)), sentences()) is not None


@pytest.mark.parametrize("sentence", QUOTED)
def test_what_the_page_quotes_is_what_the_code_says(sentence: str) -> None:
    assert is_said(sentence)


def test_a_sentence_that_nobody_says_is_found() -> None:
    assert not is_said("data file ... is missing; prepare it with `hpcai500 data prepare`")
    assert len(QUOTED) > 40
