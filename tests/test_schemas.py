"""The shipped JSON Schemas are those of the types, and what is written and what was written once validates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from recording import EDITION, record_submission

from hpcai500.ledger_reader import check_chain
from hpcai500.schemas import SHIPPED, schemas, write_schemas
from hpcai500.verify import main, verify_submission

GOLDEN = Path(__file__).parent / "golden" / "format-1" / "submission.json"
NAMES = sorted(schemas())


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_submission(tmp_path_factory.mktemp("submission"), resumed_on=1, num_failed=1)


def problems(name: str, content: Any) -> list[str]:
    schema = json.loads((SHIPPED / f"{name}.json").read_bytes())
    validator = jsonschema.Draft202012Validator(schema)
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(content)]


def files_of(path: Path) -> list[tuple[str, Any]]:
    """Every record of a submission with the name of its schema."""
    records = [("submission", json.loads(path.read_bytes()))]
    for run in path.parent.glob("run-*"):
        for file in sorted(run.glob("*.json")):
            records.append((file.stem.split("-")[0], json.loads(file.read_bytes())))
        for ledger in sorted(run.glob("ledger/**/*.jsonl")):
            records += [("ledger", json.loads(line)) for line in ledger.read_bytes().splitlines()]
    return records


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_schema_is_that_of_the_types(name: str) -> None:
    shipped = json.loads((SHIPPED / f"{name}.json").read_bytes())
    assert shipped == schemas()[name], "run `python -m hpcai500.schemas`"
    jsonschema.Draft202012Validator.check_schema(shipped)
    assert shipped["$id"] == f"urn:hpcai500:format-1:{name}"


def test_nothing_else_is_shipped_and_all_can_be_written_elsewhere(tmp_path: Path) -> None:
    assert sorted(path.name for path in SHIPPED.iterdir()) == [f"{name}.json" for name in NAMES]
    for path in write_schemas(tmp_path / "new"):
        assert path.read_bytes() == (SHIPPED / path.name).read_bytes()


@pytest.mark.parametrize("is_golden", [False, True], ids=["written today", "written in format 1"])
def test_a_submission_validates_against_the_schemas(submission: Path, is_golden: bool) -> None:
    records = files_of(GOLDEN if is_golden else submission)
    assert {name for name, _ in records} >= {"submission", "config", "result", "system", "ledger"}
    for name, content in records:
        assert problems(name, content) == []


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("submission", "created", "today"), ("config", "seed", -1), ("result", "wall_s", 0), ("system", "os", " ")],
)
def test_a_schema_refuses_what_the_package_refuses(submission: Path, name: str, field: str, value: object) -> None:
    content = next(content for other, content in files_of(submission) if other == name)
    assert problems(name, {**content, field: value})
    assert problems(name, {**content, "more": 1})
    assert problems(name, {key: part for key, part in content.items() if key != field})


def test_a_line_of_a_ledger_must_carry_what_its_event_carries(submission: Path) -> None:
    lines = [content for name, content in files_of(submission) if name == "ledger"]
    window = next(line for line in lines if line["event"] == "window")
    assert problems("ledger", {**window, "event": "clock_start"})
    assert problems("ledger", {**window, "event": "lunch"})


def test_verdicts_validate(submission: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.json").write_bytes(b"{")
    for path in (submission, GOLDEN, tmp_path / "broken.json"):
        main(["--json", str(path)])
        assert problems("verdict", json.loads(capsys.readouterr().out)) == []


def test_a_submission_of_format_1_is_read_by_every_later_reader() -> None:
    verdict = verify_submission(GOLDEN, EDITION)
    groups = {finding.rule.split(".")[0] for finding in verdict.findings}
    assert "ledger" not in groups
    assert "form.schema" not in {finding.rule for finding in verdict.findings}
    assert any("run-1 was resumed once" in note for note in verdict.notes)
    assert any("run-3 failed" in note for note in verdict.notes)
    for ledger in GOLDEN.parent.glob("run-*/ledger/node-*.jsonl"):
        assert check_chain(ledger) == []
