"""Every rule is in the rulebook, is applied, is explained and documented, and the page is that of the rulebook."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcai500.__main__ import main
from hpcai500.applied_rules import check_name, checks_of, rules_of
from hpcai500.checks import CONTENT_CHECKS, FORM_CHECKS
from hpcai500.explain import WHILE_READING, example_of, groups, who_applies
from hpcai500.rulebook import RULEBOOK

ROOT = Path(__file__).parent.parent
SOURCES = [path for path in sorted((ROOT / "hpcai500").rglob("*.py")) if path.name != "rulebook.py"]


def strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def rules_of_findings(tree: ast.AST) -> Iterator[str]:
    """The rule that stands in each call of Finding, where it is written out there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
            rule = node.args[0] if node.args else next(word.value for word in node.keywords if word.arg == "rule")
            yield from (text for text in strings(rule) if re.fullmatch(r"[a-z]+\.[a-z_]+", text))


TREES = [ast.parse(path.read_bytes()) for path in SOURCES]


def test_every_rule_that_a_finding_names_is_in_the_rulebook() -> None:
    named = {rule for tree in TREES for rule in rules_of_findings(tree)}
    assert len(named) > 20
    assert named - RULEBOOK.keys() == set()


def test_every_rule_of_the_rulebook_is_used() -> None:
    assert RULEBOOK.keys() - {text for tree in TREES for text in strings(tree)} == set()


@pytest.mark.parametrize("check", [*FORM_CHECKS, *CONTENT_CHECKS], ids=check_name)
def test_every_check_applies_a_rule(check: object) -> None:
    assert rules_of(check)  # type: ignore[arg-type]


def test_only_what_is_found_while_reading_is_applied_by_no_check() -> None:
    without = {rule for rule in RULEBOOK if not checks_of(rule)}
    groups_without = {rule.split(".")[0] for rule in without}
    assert groups_without <= {"form", "replay"}
    assert {"form.schema", "form.names", "form.folder"} <= without
    assert who_applies("form.schema") == [WHILE_READING]


def test_rules_are_read_off_the_checks_that_apply_them() -> None:
    assert "counts.check_epochs" in map(check_name, checks_of("counts.epochs"))  # it has the id itself
    assert "figures.check_result" in map(check_name, checks_of("figures.result"))  # and hands it on
    assert "chain.check_ledgers" in map(check_name, checks_of("ledger.chain"))  # its docstring names the group
    assert "level.check_settings" in map(check_name, checks_of("level.closed_setting"))
    assert "counts.check_epochs" not in map(check_name, checks_of("counts.windows"))


@pytest.mark.parametrize("rule", RULEBOOK)
def test_every_rule_is_explained_with_an_example(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = RULEBOOK[rule]
    assert main(["explain", rule]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for text in (rule, entry.severity, entry.sentence, entry.why, entry.advice, *who_applies(rule)):
        assert " ".join(text.split()) in printed
    example = example_of(rule)
    assert example is not None, "run `python tests/example_findings.py`"
    assert example.rule == rule


def test_without_a_rule_all_are_listed_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    everything = capsys.readouterr().out
    for rule in RULEBOOK:
        assert f"\n  {rule} " in everything
    assert main(["explain", "times"]) == 0
    times = capsys.readouterr().out
    assert times in everything
    assert times.splitlines()[0] == "times:"
    assert len(times.splitlines()) == 1 + len(groups()["times"])


@pytest.mark.parametrize(
    ("name", "meant"), [("counts.epoch", "counts.epochs"), ("time", "times"), ("times.clocks", "times.clock")]
)
def test_an_unknown_rule_is_asked_about(name: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 2
    assert f"did you mean {meant!r}?" in capsys.readouterr().err


def test_rules_are_sentences_and_advice_has_no_point() -> None:
    for entry in RULEBOOK.values():
        assert entry.sentence.endswith(".")
        assert entry.why.endswith(".")
        assert not entry.advice.endswith(".")


def test_the_page_of_findings_has_every_rule_and_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
    import findings_page

    page = findings_page.findings_page()
    for rule, entry in RULEBOOK.items():
        assert f"\n{rule}\n" in page
        assert entry.sentence in page
    for check in (*FORM_CHECKS, *CONTENT_CHECKS):
        assert check_name(check) in page
