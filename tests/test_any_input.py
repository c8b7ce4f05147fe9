"""Random JSON and bytes in every reader, and random values in any place of a submission: always a verdict in words."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import EDITION, record_submission

from hpcai500.errors import RecordError
from hpcai500.formats import RunConfig, RunResult, SignedTicket, Submission, System, decode
from hpcai500.ledger_reader import scan_ledger
from hpcai500.verify import verify_submission

NOT_CHECKED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
STEADY = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=NOT_CHECKED)
LEDGER = "run-1/ledger/node-00000.jsonl"
FILES = ["submission.json", "run-1/config.json", "run-1/result.json", "run-1/system.json", LEDGER]
ODD = [2**63 - 1, -(2**63), 1.7e308, 10**400, "", " ", "\0", []]
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
LINES = st.lists(TREES, max_size=3).map(lambda trees: "\n".join(map(json.dumps, trees)).encode())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_submission(tmp_path_factory.mktemp("any")).parent


@STEADY
@given(tree=TREES, form=st.sampled_from([Submission, RunConfig, RunResult, System, SignedTicket]))
def test_any_json_is_a_list_of_what_is_wrong(tree: object, form: type[object]) -> None:
    with contextlib.suppress(RecordError):
        found = decode(json.dumps(tree).encode("utf-8", "surrogatepass"), form)
        assert isinstance(found, list)
        assert all(isinstance(problem, str) and problem for problem in found)


@STEADY
@given(content=st.binary(max_size=300) | LINES)
def test_any_bytes_are_findings_of_a_ledger(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    assert [str(item) for item in scan_ledger(path)]  # an event is never made of chance


def places(value: object, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, part in inner for place in places(part, (*way, key)))]


@settings(STEADY, max_examples=150)
@given(data=st.data())
def test_any_value_in_any_place_ends_in_a_verdict(
    recorded: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-submission"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(recorded, folder)
    name = data.draw(st.sampled_from(FILES))
    lines: Any = [json.loads(line) for line in (folder / name).read_bytes().splitlines() if name == LEDGER]
    content = lines or json.loads((folder / name).read_bytes())
    *way, last = data.draw(st.sampled_from([place for place in places(content) if place]))
    holder = content
    for key in way:
        holder = holder[key]
    holder[last] = data.draw(TREES | st.sampled_from(ODD))
    text = "".join(json.dumps(line) + "\n" for line in lines) or json.dumps(content)
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(RecordError):
        verdict = verify_submission(folder / "submission.json", EDITION)
        assert verdict.valid == all(finding.severity == "warning" for finding in verdict.findings)
