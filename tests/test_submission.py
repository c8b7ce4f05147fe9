from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from forging import Forger
from msgspec.structs import replace
from recording import EDITION, NS_PER_S, record_submission

from hpcai500.errors import RecordError, UsageError
from hpcai500.flop_forms import resnet50_flop
from hpcai500.metrics import bootstrap_interval, window_median
from hpcai500.submission import (
    RunConfig,
    RunResult,
    Submission,
    System,
    assemble_submission,
    json_schema,
    read_config,
    read_record,
    result_from_ledgers,
    summarise,
    write_json,
)

SIZE = EDITION.workload("resnet50").size("smoke")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return record_submission(tmp_path)


def test_the_figures_of_a_run_follow_from_its_ledgers(path: Path) -> None:
    result = result_from_ledgers(path.parent / "run-1", EDITION)
    steps = SIZE.num_train_samples // 32
    assert result.status == "completed"
    assert result.epochs == SIZE.epochs
    assert result.samples == SIZE.epochs * steps * 32
    # What recording.py writes: a step takes 1 s and 10 ms a window around it, and so on.
    parts = result.parts
    assert parts is not None
    assert result.train_s == SIZE.epochs * steps
    assert parts.forward_backward_s == pytest.approx(0.7 * SIZE.epochs * steps)
    assert parts.data_wait_s == pytest.approx(0.1 * SIZE.epochs * steps)
    assert parts.evaluation_s == pytest.approx(2.05 * SIZE.epochs)  # rank 0 alone takes 0.1 s for the whole
    assert parts.checkpoint_s == 0.25 * SIZE.epochs  # 0.5 s on rank 0, nothing on rank 1
    assert result.wall_s == pytest.approx(sum(msgspec.structs.astuple(parts)))
    flop = resnet50_flop(32, SIZE.num_classes)[1]
    assert result.flop_total == result.samples * flop
    assert result.flops == pytest.approx(result.samples * flop / result.wall_s)
    assert result.flops_2020 is None


def test_the_ranked_clock_runs_from_the_first_start_to_the_last_stop(path: Path) -> None:
    before = result_from_ledgers(path.parent / "run-1", EDITION).wall_s
    assert before is not None

    def start_later(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line["time_ns"] += 3 * NS_PER_S

    Forger(path).edit_lines(start_later, rank=1)
    after = result_from_ledgers(path.parent / "run-1", EDITION).wall_s
    assert after == pytest.approx(before + 3)


def test_the_achieved_quality_is_the_last_never_the_best(path: Path) -> None:
    def change(value: dict[str, Any]) -> None:
        value["quality"] = {1: 0.9}.get(value["epoch"], 0.2)

    Forger(path).edit_events("evaluation", change, rank=0)
    assert result_from_ledgers(path.parent / "run-1", EDITION).achieved_quality == 0.2


def test_a_failed_run_has_the_figures_it_got_far_enough_for(tmp_path: Path) -> None:
    record_submission(tmp_path, num_failed=1)
    result = result_from_ledgers(tmp_path / "run-3", EDITION)
    assert result.status == "failed"
    assert result.samples > 0
    assert result.wall_s is None
    assert result.vflops is None


def test_a_run_without_a_rank_s_last_word_is_interrupted(path: Path) -> None:
    Forger(path).edit_lines(lambda lines: lines.pop(), rank=1)
    assert result_from_ledgers(path.parent / "run-1", EDITION).status == "interrupted"


def test_a_damaged_ledger_is_named(path: Path) -> None:
    ledger = path.parent / "run-1" / "ledger" / "node-00000.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"samples":', b'"samples":1', 1))
    with pytest.raises(RecordError, match=r"node-00000\.jsonl:\d+.*prev"):
        result_from_ledgers(path.parent / "run-1", EDITION)


def test_a_submission_holds_all_started_runs_and_medians_over_the_completed(tmp_path: Path) -> None:
    submission = read_record(record_submission(tmp_path, num_failed=1), Submission)
    assert [run.status for run in submission.runs] == ["completed", "completed", "failed"]
    assert (submission.summary.num_runs, submission.summary.num_completed) == (3, 2)
    scores = [read_record(tmp_path / f"run-{number}" / "result.json", RunResult).vflops for number in (1, 2)]
    assert None not in scores
    of_all = [*(score for score in scores if score), 0.0]
    assert submission.summary.vflops == pytest.approx(window_median(of_all, 2))
    assert submission.summary.vflops_interval == bootstrap_interval(of_all, window=2)
    assert not submission.summary.rankable
    assert submission.summary.why_not


def results_with(scores: list[float | None], path: Path) -> list[RunResult]:
    """Results with these scores; None is a run that failed."""
    result = read_record(path.parent / "run-1" / "result.json", RunResult)
    return [
        replace(result, vflops=score, status="failed" if score is None else "completed", run_id=f"run-{number}")
        for number, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("scores", "rankable", "reason"),
    [
        ([100.0, 101.0, 99.0, 102.0, 98.0], True, ""),
        (
            [100.0, 120.0, 80.0, 110.0, 90.0],
            False,
            r"too noisy: .* \+-20.0 % of it, and at most 5 % .*; 75 more runs would",
        ),
        ([100.0, 105.2, 94.8, 100.0, 100.0], False, "5.2 % of it, and at most 5 % is ranked; 1 more run would do"),
        ([100.0], False, "cannot be told from one run"),
        ([100.0, None, None, None, None, None], False, "runs without a score"),
    ],
)
def test_a_score_that_is_too_noisy_is_not_ranked_and_says_how_many_more_runs_would_do(
    path: Path, scores: list[float | None], rankable: bool, reason: str
) -> None:
    summary = summarise(results_with(scores, path), EDITION.workload("resnet50").size("official"))
    assert summary.rankable == rankable
    assert re.search(reason, " ".join(summary.why_not))


def test_a_size_that_is_never_ranked_says_only_that(path: Path) -> None:
    assert len(summarise(results_with([1.0, 100.0], path), SIZE).why_not) == 1
    assert summarise(results_with([1.0, 100.0], path), SIZE).more_runs_needed is None


def test_runs_are_listed_in_the_order_in_which_they_started(path: Path) -> None:
    folders = [path.parent / "run-2", path.parent / "run-1"]
    submission = assemble_submission(folders, path.parent / "second.json", EDITION)
    assert [run.folder for run in submission.runs] == ["run-1", "run-2"]


def test_every_file_of_a_run_but_its_checkpoints_is_digested(path: Path) -> None:
    run = read_record(path, Submission).runs[0]
    expected = {"config.json", "result.json", "system.json", "steps.h5"}
    assert set(run.files) == expected | {"ledger/node-00000.jsonl"}
    assert run.folder == "run-1"


def test_checkpoints_are_not_digested(path: Path) -> None:
    folder = path.parent / "run-1"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "epoch-0001.pt").write_bytes(b"weights")
    submission = assemble_submission([folder, path.parent / "run-2"], path.parent / "second.json", EDITION)
    assert not any(name.startswith("checkpoints") for name in submission.runs[0].files)


def test_nothing_is_overwritten(path: Path) -> None:
    content = path.read_bytes()
    with pytest.raises(RecordError, match="exists and is never overwritten"):
        assemble_submission([path.parent / "run-1"], path)
    assert path.read_bytes() == content


def test_runs_that_do_not_lie_beneath_the_submission_are_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(UsageError, match="write the submission above its runs"):
        assemble_submission([path.parent / "run-1"], tmp_path / "elsewhere" / "submission.json")
    with pytest.raises(UsageError, match="at least one run folder"):
        assemble_submission([], tmp_path / "submission-2.json")


def test_no_completed_run_makes_no_submission(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no run completed"):
        record_submission(tmp_path, num_runs=0, num_failed=1)
    assert not (tmp_path / "submission.json").exists()


def test_a_folder_without_a_ledger_is_refused(path: Path) -> None:
    for ledger in (path.parent / "run-1" / "ledger").iterdir():
        ledger.unlink()
    with pytest.raises(RecordError, match="has no ledger; has the run started"):
        result_from_ledgers(path.parent / "run-1", EDITION)


@pytest.mark.parametrize("form", [Submission, RunResult, RunConfig, System])
def test_the_json_schema_accepts_what_was_written_and_refuses_a_blank_or_unknown_field(path: Path, form: type) -> None:
    names = {Submission: path, RunResult: "result.json", RunConfig: "config.json", System: "system.json"}
    file = path.parent / "run-1" / names[form]
    content = json.loads(file.read_bytes())
    validator = jsonschema.Draft202012Validator(json_schema(form))
    validator.validate(content)
    assert not validator.is_valid(content | {"unknown": 1})
    blank = "os" if form is System else "run_id" if form is not Submission else "edition"
    assert not validator.is_valid(content | {blank: " "})
    file.write_text(json.dumps(content | {"unknown": 1, blank: " "}))
    with pytest.raises(RecordError, match=rf"\$\.{blank}.*") as error:
        read_record(file, form)
    assert "unknown" in str(error.value)


def test_config_comes_with_the_digest_of_its_file(path: Path) -> None:
    file = path.parent / "run-1" / "config.json"
    config, digest = read_config(path.parent / "run-1")
    assert config.seed == 100
    file.write_bytes(file.read_bytes() + b"\n")
    assert read_config(path.parent / "run-1")[1] != digest


def test_settings_keep_their_types_through_the_file(path: Path) -> None:
    config, _ = read_config(path.parent / "run-1")
    expected = EDITION.workload("resnet50").resolve("smoke", "free", {})
    assert {key: (type(value), value) for key, value in config.settings.items()} == {
        key: (type(value), value) for key, value in expected.items()
    }


def test_a_record_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot write"):
        write_json(tmp_path / "missing" / "config.json", {})
    with pytest.raises(RecordError, match="cannot read"):
        read_record(tmp_path / "missing.json", RunConfig)
