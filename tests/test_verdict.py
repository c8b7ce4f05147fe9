"""What the verifier prints and writes: for people, programs and CI systems, of one submission and of many."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from forging import Forger

from hpcai500.finding import Finding
from hpcai500.junit import junit_report
from hpcai500.rulebook import RULEBOOK, Rule
from hpcai500.sarif import sarif_log
from hpcai500.verdict import MAX_SHOWN, MAX_TEXT, Place, Verdict, invalid, place_of, print_verdict, verdict_form
from hpcai500.verify import judge, main, verify_submission

# What SARIF 2.1.0 demands of the parts written here; sections 3.13, 3.14, 3.18 to 3.20, 3.27 to 3.30, 3.49 and 3.58.
MESSAGE = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string", "minLength": 1}}}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
RULE = {
    "type": "object",
    "required": ["id"],
    "properties": {
        "id": {"type": "string"},
        "shortDescription": MESSAGE,
        "fullDescription": MESSAGE,
        "help": MESSAGE,
        "defaultConfiguration": {"type": "object", "properties": {"level": LEVEL}},
    },
    "additionalProperties": False,
}
LOCATION = {
    "type": "object",
    "properties": {
        "physicalLocation": {
            "type": "object",
            "required": ["artifactLocation"],
            "properties": {
                "artifactLocation": {
                    "type": "object",
                    "required": ["uri"],
                    "properties": {"uri": {"type": "string", "pattern": r"^[A-Za-z0-9%/._~:-]+$"}},
                },
                "region": {
                    "type": "object",
                    "required": ["startLine"],
                    "properties": {"startLine": {"type": "integer", "minimum": 1}},
                },
            },
            "additionalProperties": False,
        },
        "logicalLocations": {
            "type": "array",
            "items": {"type": "object", "properties": {"fullyQualifiedName": {"type": "string"}}},
        },
    },
    "additionalProperties": False,
}
RESULT = {
    "type": "object",
    "required": ["message"],
    "properties": {
        "ruleId": {"type": "string"},
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": LEVEL,
        "message": MESSAGE,
        "locations": {"type": "array", "items": LOCATION},
    },
    "additionalProperties": False,
}
NOTIFICATION = {
    "type": "object",
    "required": ["message"],
    "properties": {"level": LEVEL, "message": MESSAGE, "locations": {"type": "array", "items": LOCATION}},
    "additionalProperties": False,
}
INVOCATION = {
    "type": "object",
    "required": ["executionSuccessful"],
    "properties": {
        "executionSuccessful": {"type": "boolean"},
        "toolExecutionNotifications": {"type": "array", "items": NOTIFICATION},
    },
    "additionalProperties": False,
}
DRIVER = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "version": {"type": "string"},
        "rules": {"type": "array", "items": RULE, "uniqueItems": True},
    },
    "additionalProperties": False,
}
SARIF = {
    "type": "object",
    "required": ["version", "runs"],
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool"],
                "properties": {
                    "tool": {"type": "object", "required": ["driver"], "properties": {"driver": DRIVER}},
                    "invocations": {"type": "array", "items": INVOCATION},
                    "results": {"type": "array", "items": RESULT},
                },
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}


pytestmark = pytest.mark.usefixtures("edition_of_recorded")


@pytest.fixture
def three(recorded: Path, tmp_path: Path) -> Path:
    """A folder with a valid submission, an invalid one, and one that is no JSON."""
    for name in ("a-valid", "b-invalid", "c-unreadable"):
        shutil.copytree(recorded.parent, tmp_path / "all" / name)
    (tmp_path / "all/b-invalid/run-1/steps.h5").write_bytes(b"another")
    (tmp_path / "all/c-unreadable/submission.json").write_bytes(b"{")
    return tmp_path / "all"


def finding(rule: str = "times.order", number: int = 1) -> Finding:
    return Finding(rule, f"run-1/ledger/node-00000.jsonl:{number}:time_ns", "5", "4")


@pytest.fixture
def warning(monkeypatch: pytest.MonkeyPatch) -> Finding:
    """A finding that is a warning, whatever the rulebook has."""
    monkeypatch.setitem(RULEBOOK, "times.wall", Rule("Clocks agree.", "They might not.", "set them", "warning"))
    return finding("times.wall")


def verdict_on(*findings: Finding) -> Verdict:
    return invalid(list(findings))


def test_a_warning_leaves_a_submission_valid_and_is_shown_apart(
    recorded: Path, warning: Finding, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpcai500.verify._why_not", lambda case, findings: [])
    monkeypatch.setattr("hpcai500.verify.judge_runs", with_finding(warning))
    verdict = verify_submission(recorded)
    assert verdict.findings == [warning]
    assert verdict.valid
    assert main([str(recorded)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("VALID")
    assert f"\nwarning: {warning}\n  times.wall: Clocks agree.\n" in printed
    assert "finding:" not in printed


def with_finding(more: Finding) -> object:
    from hpcai500.verify import judge_runs

    def judged_runs(*args: object, **options: object) -> object:
        runs, findings = judge_runs(*args, **options)  # type: ignore[arg-type]
        runs[0].findings.append(more)
        return runs, findings

    return judged_runs


def test_many_findings_are_cut_and_none_of_the_rules_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    many = [finding("times.order", number) for number in range(10_000)]
    few = [finding("counts.epochs", number) for number in range(3)]
    print_verdict(verdict_on(*many, finding("form.files"), *few))
    lines = capsys.readouterr().out.splitlines()
    shown = Counter(line.split()[1] for line in lines if line.startswith("finding: "))
    assert shown == {"times.order": MAX_SHOWN - 4, "form.files": 1, "counts.epochs": 3}
    assert f"  ... and {10_000 - MAX_SHOWN + 4:,} more of rule times.order" in lines
    assert f"  times.order: {RULEBOOK['times.order'].sentence}" in lines
    assert len([line for line in lines if "more of rule" in line]) == 1


def test_a_hundred_broken_rules_show_one_finding_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = [f"times.rule{number}" for number in range(2 * MAX_SHOWN)]
    for rule in rules:
        monkeypatch.setitem(RULEBOOK, rule, RULEBOOK["times.order"])
    print_verdict(verdict_on(*[finding(rule, number) for rule in rules for number in range(2)]))
    assert capsys.readouterr().out.count("\nfinding: ") == len(rules)


def test_a_stranger_cannot_write_a_verdict_of_his_own(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("run\nVALID resnet50", "run\r\x1b[2JVALID", "run\u2028VALID", "run\udcffname", "x" * 10**6):
        print_verdict(verdict_on(Finding("form.files", text, text, text)))
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "INVALID"
        assert [line.split()[0] for line in lines] == ["INVALID", "not", "finding:", "form.files:"]
        assert all(line.isprintable() and len(line) < MAX_TEXT + 100 for line in lines)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("submission.json", Place("submission.json")),
        ("submission.json:runs[run-1].files", Place("submission.json", None, "runs[run-1].files")),
        ("run-1/ledger/node-00000.jsonl:12", Place("run-1/ledger/node-00000.jsonl", 12)),
        ("run-1/ledger/node-00000.jsonl:1:run_id", Place("run-1/ledger/node-00000.jsonl", 1, "run_id")),
        ("run-1/result.json:.parts.other_s", Place("run-1/result.json", None, "parts.other_s")),
        ("run-1/ledger:x:3", Place("run-1/ledger", None, "x:3")),
        ("x:" + "9" * 5000, Place("x", None, "9" * 5000)),
        ("x:\u00b2:y", Place("x", None, "\u00b2:y")),
        ("", Place("")),
        ("a\udcff:2", Place("a\\udcff", 2)),
    ],
)
def test_a_place_has_a_file_a_line_and_a_field(text: str, place: Place) -> None:
    assert place_of(Finding("form.files", text, "", "")) == place


def test_programs_get_all_findings_with_severity_place_and_sentence(warning: Finding) -> None:
    findings = [*(finding("times.order", number) for number in range(1, 101)), warning]
    form = verdict_form(verdict_on(*findings), "there/submission.json")
    assert form.submission == "there/submission.json"
    assert len(form.findings) == 101
    assert [one.severity for one in form.findings[-2:]] == ["error", "warning"]
    assert form.findings[6].location == Place("run-1/ledger/node-00000.jsonl", 7, "time_ns")
    assert form.findings[6].sentence == RULEBOOK["times.order"].sentence


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_several_submissions_have_a_verdict_each_and_a_last_line(
    three: Path, jobs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(three / name / "submission.json") for name in ("c-unreadable", "a-valid", "b-invalid")]
    assert main([*words, "--jobs", jobs]) == 2
    printed = capsys.readouterr().out
    places = [
        printed.index(f"{path}:\n{word}") for path, word in zip(words, ("CANNOT", "VALID", "INVALID"), strict=True)
    ]
    assert places == sorted(places)
    assert printed.splitlines()[-1] == "3 submissions: 1 valid, 1 invalid, 1 cannot be read"


@pytest.mark.parametrize(
    ("names", "code"),
    [(["a-valid"], 0), (["a-valid", "b-invalid"], 1), (["b-invalid", "c-unreadable"], 2), (["nowhere", "a-valid"], 2)],
)
def test_the_exit_code_is_that_of_the_worst(three: Path, names: list[str], code: int) -> None:
    assert main([*(str(three / name) for name in names), "--quiet", "--jobs", "1"]) == code


def test_a_folder_stands_for_its_submission_or_for_all_beneath(
    three: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(three / "a-valid")]) == 0
    assert capsys.readouterr().out.startswith("VALID")
    assert main([str(three), "--jobs", "1"]) == 2
    assert "3 submissions" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2
    assert "submission.json" in capsys.readouterr().err


def test_json_of_several_is_one_object_a_line(three: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(three), "--json", "--jobs", "1"]) == 2
    verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [verdict["valid"] for verdict in verdicts] == [True, False, False]
    assert "error" in verdicts[2]
    assert [Path(verdict["submission"]).parent.name for verdict in verdicts] == ["a-valid", "b-invalid", "c-unreadable"]


def test_the_verifiers_own_mistakes_are_one_sentence_and_exit_2(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (KeyError("x"), RecursionError("deep"), MemoryError(), UnicodeError("odd")):

        def fail(*args: object, error: Exception = error, **options: object) -> None:
            raise error

        monkeypatch.setattr("hpcai500.verify.judge_runs", fail)
        assert main([str(recorded)]) == 2
        told = capsys.readouterr().err
        assert len(told.splitlines()) == 1
        assert type(error).__name__ in told
        assert "test_verdict.py" in told
        assert str(recorded) in told
        assert judge(recorded).exit_code == 2
        with pytest.raises(type(error)):
            main([str(recorded), "--debug"])


def test_sarif_has_rules_results_and_regions(three: Path, tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sarif"
    forger = Forger(three / "b-invalid" / "submission.json")
    forger.edit_events("window", lambda window: window.update(learning_rate=99.0), rank=1)
    assert main([str(three), "--quiet", "--jobs", "1", "--sarif", str(file)]) == 2
    log = json.loads(file.read_bytes())
    jsonschema.Draft202012Validator(SARIF).validate(log)
    (run,) = log["runs"]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == set(RULEBOOK)
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    files = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in run["results"]}
    assert f"file://{three}/b-invalid/run-1/steps.h5" in files
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert len(invocation["toolExecutionNotifications"]) == 1


def test_sarif_places_are_lines_and_fields_of_relative_files(warning: Finding) -> None:
    log = sarif_log([(Path("my runs/submission.json"), verdict_on(finding(number=7), warning))], [])
    jsonschema.Draft202012Validator(SARIF).validate(log)
    error, other = log["runs"][0]["results"]
    assert error["locations"] == [
        {
            "physicalLocation": {
                "artifactLocation": {"uri": "my%20runs/run-1/ledger/node-00000.jsonl"},
                "region": {"startLine": 7},
            },
            "logicalLocations": [{"fullyQualifiedName": "time_ns"}],
        }
    ]
    assert (error["level"], other["level"]) == ("error", "warning")


def test_junit_has_a_case_for_each_rule(three: Path, tmp_path: Path) -> None:
    file = tmp_path / "verdicts.xml"
    assert main([str(three), "--quiet", "--jobs", "1", "--junit", str(file)]) == 2
    valid, broken, unreadable = ElementTree.parse(file).getroot()
    for suite in (valid, broken):
        assert [case.get("name") for case in suite] == list(RULEBOOK)
        assert suite.get("tests") == str(len(RULEBOOK))
    assert (valid.get("failures"), valid.get("errors")) == ("0", "0")
    assert {case.get("classname") for case in valid if case.find("skipped") is not None} == {"hpcai500.replay"}
    failed = {case.get("name"): case.find("failure") for case in broken if case.find("failure") is not None}
    assert set(failed) == {"form.files"}
    assert "run-1/steps.h5" in (failed["form.files"].text or "")
    assert unreadable.get("errors") == "1"
    assert unreadable.find("testcase/error") is not None


def test_junit_skips_what_was_not_checked_and_does_not_fail_for_a_warning(three: Path, warning: Finding) -> None:
    forger = Forger(three / "a-valid" / "submission.json")
    forger.ledger().write_bytes(b"")
    verdict = verify_submission(forger.path)
    suite = ElementTree.fromstring(junit_report([(forger.path, verdict)], []))[0]
    skipped = {case.get("name") for case in suite if case.find("skipped") is not None}
    assert {"counts.epochs", "times.order", "figures.quality"} <= skipped
    assert {"form.files", "ledger.empty", "form.schema"}.isdisjoint(skipped)
    assert suite.get("skipped") == str(len(skipped))
    text = junit_report([(forger.path, verdict_on(warning, Finding("form.files", "\x00\x1b\ufffe", "<", "&")))], [])
    cases = {case.get("name"): case for case in ElementTree.fromstring(text)[0]}
    assert cases["times.wall"].find("failure") is None
    assert str(warning) in (cases["times.wall"].findtext("system-out") or "")
    assert cases["form.files"].find("failure") is not None


def test_a_report_that_cannot_be_written_is_one_sentence(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recorded), "--quiet", "--sarif", str(tmp_path / "none" / "x.sarif")]) == 2
    assert "cannot write" in capsys.readouterr().err
