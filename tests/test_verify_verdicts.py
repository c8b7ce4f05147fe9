"""What the verifier says of whole submissions: words, JSON, exit codes, and sentences about what cannot be read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import Forger
from recording import record_submission

from hpcai500.errors import RecordError
from hpcai500.events import Window
from hpcai500.record import read_segments
from hpcai500.rulebook import RULEBOOK
from hpcai500.verdict import format_flops
from hpcai500.verify import main, verify_submission

pytestmark = pytest.mark.usefixtures("edition_of_recorded")


def rules_found(forger: Forger) -> set[str]:
    return {finding.rule for finding in verify_submission(forger.path).findings}


def test_a_failed_run_is_listed_and_its_cut_ledger_is_no_fault(tmp_path: Path) -> None:
    path = record_submission(tmp_path, num_failed=1)
    ledger = tmp_path / "run-3" / "ledger" / "node-00000.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20])
    Forger(path).forge(configs=False)
    verdict = verify_submission(path)
    assert verdict.findings == []
    assert verdict.notes == ["run run-3 failed: it is listed and not counted"]


def test_an_official_submission_is_rankable(tmp_path: Path) -> None:
    path = record_submission(
        tmp_path, size="official", num_ranks=1, settings={"report_steps": 10**6, "checkpoint_every_s": 0.0}
    )
    verdict = verify_submission(path)
    assert verdict.findings == []
    assert verdict.rankable
    assert verdict.summary is not None
    assert verdict.summary.vflops_2020_n10 is not None


def test_a_small_submission_is_valid_but_not_rankable_and_says_so(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(recorded)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("VALID resnet50, free level, size smoke")
    assert "not rankable: size smoke is never ranked" in printed
    assert "VFLOPS = " in printed
    for part in ("FLOPS", "achieved", "target", "ranked clock", "training"):
        assert part in printed
    assert len(re.findall(r"^ +\d+ .*FLOPS .* s .* s ", printed, re.MULTILINE)) == 2  # a row a run


@pytest.mark.parametrize(
    ("rate", "text"), [(0.0, "0 FLOPS"), (999.0, "999 FLOPS"), (6.1234e10, "61.23 GFLOPS"), (1e18, "1 EFLOPS")]
)
def test_rates_are_printed_with_prefixes(rate: float, text: str) -> None:
    assert format_flops(rate) == text


def test_an_invalid_submission_prints_every_finding(forger: Forger, capsys: pytest.CaptureFixture[str]) -> None:
    (forger.run() / "steps.h5").write_bytes(b"x")
    forger.edit_submission(lambda submission: submission.update(edition="9.9"))
    assert main([str(forger.path)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("INVALID")
    assert "finding: form.edition at submission.json:edition: expected '0.1', found '9.9'" in printed
    assert "finding: form.files at run-1/steps.h5" in printed


def test_json_gives_the_verdict_to_a_program(forger: Forger, capsys: pytest.CaptureFixture[str]) -> None:
    forger.edit_submission(lambda submission: submission.update(edition="9.9"))
    assert main([str(forger.path), "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["valid"] is False
    assert verdict["findings"][0] == {
        "rule": "form.edition",
        "severity": "error",
        "place": "submission.json:edition",
        "location": {"file": "submission.json", "line": None, "field": "edition"},
        "expected": "'0.1'",
        "found": "'9.9'",
        "sentence": RULEBOOK["form.edition"].sentence,
    }


@pytest.mark.parametrize(
    "content",
    [None, b"", b"not JSON", b"[" * 100_000, b"\xff\xfe", b'{"a": NaN}'],
    ids=lambda content: str(content)[:12],
)
def test_what_cannot_be_read_exits_2_with_one_sentence(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "submission.json"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 2
    assert "cannot" in capsys.readouterr().err
    with pytest.raises(RecordError):
        verify_submission(path)
    assert main([str(path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["valid"] is False


def test_all_schema_errors_are_listed_with_their_places(forger: Forger) -> None:
    def change(submission: dict[str, Any]) -> None:
        submission["created"] = "yesterday"
        submission["system"]["os"] = " "
        submission["extra"] = 1
        del submission["runs"][0]["seed"]

    forger.edit_submission(change)
    findings = verify_submission(forger.path).findings
    assert {finding.rule for finding in findings} == {"form.schema"}
    text = "\n".join(finding.found for finding in findings)
    for word in ("$.created", "$.system.os", "extra", "seed"):
        assert word in text


@pytest.mark.parametrize("name", ["config.json", "result.json", "system.json"])
def test_a_missing_or_broken_file_of_a_run_is_a_finding(forger: Forger, name: str) -> None:
    (forger.run() / name).write_bytes(b"{}")
    assert "form.schema" in rules_found(forger)
    (forger.run() / name).unlink()
    assert "form.schema" in rules_found(forger)


@pytest.mark.parametrize("folder", ["/", "..", "run-1/../..", "link"])
def test_a_run_folder_outside_the_submission_is_refused(forger: Forger, tmp_path: Path, folder: str) -> None:
    (forger.path.parent / "link").symlink_to(tmp_path)
    forger.edit_submission(lambda submission: submission["runs"][0].update(folder=folder))
    assert rules_found(forger) == {"form.folder"} | ({"runs.number"} & rules_found(forger))


@pytest.mark.parametrize("field", ["workload", "size", "level"])
def test_an_unknown_name_is_a_finding_that_lists_the_known_ones(forger: Forger, field: str) -> None:
    forger.edit_submission(lambda submission: submission.update({field: "nothing"}))
    findings = verify_submission(forger.path).findings
    assert [finding.rule for finding in findings] == ["form.names"]
    assert "known:" in findings[0].found


def test_a_number_of_ranks_beyond_memory_does_not_stop_the_verifier(forger: Forger) -> None:
    forger.edit_config(lambda config: config.update(num_ranks=2**60))
    forger.forge()
    assert "chain.ranks" in rules_found(forger)


@pytest.mark.parametrize(
    "event",
    ["window", "epoch_part", "evaluation_shard", "evaluation", "model_built", "data_open", "start_up", "checkpoint"],
)
def test_no_huge_number_makes_the_verifier_raise(forger: Forger, event: str) -> None:
    def change(value: dict[str, Any]) -> None:
        value.update({key: 2**63 - 1 for key, old in value.items() if type(old) is int})
        value.update({key: 1.7e308 for key, old in value.items() if type(old) is float and key != "quality"})

    forger.edit_events(event, change, rank=0)
    forger.forge(figures=False)
    assert not verify_submission(forger.path).valid


def test_the_verifier_starts_without_the_run_half() -> None:
    code = (
        "import sys, hpcai500.verify; "
        "print([m for m in ('torch', 'numpy', 'pandas', 'h5py', 'mpi4py', 'jsonschema', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def break_nothing(_: Forger) -> None:
    pass


def break_losses(forger: Forger) -> None:
    forger.edit_events("window", lambda value: value.update(loss_sum=1.0), rank=1)


def break_digests(forger: Forger) -> None:
    forger.edit_events("epoch_part", lambda value: value.update(sample_digest="7"), rank=1)


@pytest.mark.parametrize("change", [break_nothing, break_losses, break_digests])
@pytest.mark.parametrize("resumed_on", [0, 4])
def test_ledgers_too_large_for_memory_are_judged_as_others(
    change: Callable[[Forger], None], resumed_on: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forger = Forger(record_submission(tmp_path, resumed_on=resumed_on))
    change(forger)
    forger.forge()
    kept = verify_submission(forger.path)
    monkeypatch.setattr("hpcai500.record.MAX_KEPT_BYTES", 0)
    assert not read_segments(tmp_path / "run-1", place="")[0].ledgers[0].entries.is_kept
    assert verify_submission(forger.path) == kept
    assert kept.valid == (change is break_nothing)


def test_of_ledgers_too_large_for_memory_too_an_event_behind_a_cut_line_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_submission(tmp_path)
    ledger = tmp_path / "run-1/ledger/node-00000.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    lines[3] = b'{"rank":1,"seq":9,"tim' + lines[3]
    ledger.write_bytes(b"".join(lines))
    [kept] = read_segments(tmp_path / "run-1", place="")
    monkeypatch.setattr("hpcai500.record.MAX_KEPT_BYTES", 0)
    [stored] = read_segments(tmp_path / "run-1", place="")
    assert [finding.rule for finding in stored.findings] == ["ledger.torn"]
    assert [list(one.entries) for one in stored.ledgers] == [list(one.entries) for one in kept.ledgers]
    assert [one.values(Window) for one in stored.ledgers] == [one.values(Window) for one in kept.ledgers]


def test_a_ledger_that_changes_while_it_is_judged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forger = Forger(record_submission(tmp_path))
    monkeypatch.setattr("hpcai500.record.MAX_KEPT_BYTES", 0)
    [segment] = read_segments(tmp_path / "run-1", place="")
    assert segment.ledgers[0].entries[0].event == "run_open"
    forger.edit_events("window", lambda value: value.update(loss_sum=1.0))
    with pytest.raises(RecordError, match="has changed while it was read; verify a copy"):
        segment.ledgers[0].entries[0]
    with pytest.raises(RecordError, match="has changed"):
        segment.ledgers[1].values(Window)


def test_a_node_s_ledger_larger_than_any_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_submission(tmp_path)
    monkeypatch.setattr("hpcai500.record.MAX_KEPT_BYTES", 0)
    monkeypatch.setattr("hpcai500.record.MAX_NODE_BYTES", 1000)
    with pytest.raises(RecordError, match=r"has \d+ bytes, and no node's more than 1000"):
        read_segments(tmp_path / "run-1", place="")
