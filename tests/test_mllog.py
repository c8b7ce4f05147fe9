"""MLPerf's own compliance checker reads the exported logs, and fails them for what they say it fails them for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from forging import Forger
from mlperf_logging.compliance_checker import mlp_compliance, mlp_parser
from recording import EDITION, record_submission

from hpcai500.__main__ import main
from hpcai500.errors import RecordError, UsageError
from hpcai500.events import ClockStart, ClockStop, Evaluation
from hpcai500.export import export_logs
from hpcai500.mllog import DEMANDS, RULESET
from hpcai500.record import read_run
from hpcai500.submission import read_config

OBEYING = {"weight_decay": 0.00005, "momentum": 0.9}
QUICK = {"report_steps": 10**6, "checkpoint_every_s": 0.0}
ALWAYS = {"sgd_opt_end_learning_rate", "sgd_opt_learning_rate_decay_poly_power"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A submission of official size with the reference's settings."""
    return record_official(tmp_path_factory.mktemp("reference"), {})


@pytest.fixture(scope="module")
def obeying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with settings that MLPerf's checks accept."""
    return record_official(tmp_path_factory.mktemp("obeying"), OBEYING)


def record_official(folder: Path, settings: dict[str, object]) -> Path:
    return record_submission(folder, size="official", num_ranks=1, num_runs=1, settings=QUICK | settings)


def failures(log: Path) -> set[str]:
    """The keys that MLPerf's checker complains about; empty if it says SUCCESS."""
    checker = mlp_compliance.make_checker("training", RULESET, quiet=True, werror=False)
    passes = checker.check_file(str(log), f"training_{RULESET}/common.yaml")
    keys = set(checker.overwritable)
    for message in checker.not_overwritable:
        found = re.search(r"Failed checks for (\w+)", message)
        assert found is not None, message
        keys.add(found[1])
    assert passes == (not keys)
    return keys


def lines_of(log: Path) -> list[dict[str, Any]]:
    prefix = ":::MLLOG "
    return [json.loads(line.removeprefix(prefix)) for line in log.read_text().splitlines() if line.startswith(prefix)]


def named_at_the_end(log: Path) -> set[str]:
    return set(re.findall(r"^# hpcai500: (\w+) should be", log.read_text(), re.MULTILINE))


def good_quality(path: Path, quality: float) -> None:
    """Let every evaluation reach a quality."""
    forger = Forger(path)

    def change(value: dict[str, Any]) -> None:
        value["counts"]["correct"] = [round(quality * value["samples"])]
        if "quality" in value:
            value["quality"] = value["counts"]["correct"][0] / value["samples"]

    for event in ("evaluation_shard", "evaluation"):
        forger.edit_events(event, change, rank=0)
    forger.forge()


def test_the_checker_says_success_of_an_open_log(reference: Path, tmp_path: Path) -> None:
    (log,) = export_logs(reference, tmp_path / "logs")
    assert mlp_parser.parse_file(str(log), ruleset=RULESET)[1] == []
    assert failures(log) == set()
    assert named_at_the_end(log) == set()


def test_the_checker_fails_the_reference_for_what_the_log_names(reference: Path, tmp_path: Path) -> None:
    (log,) = export_logs(reference, tmp_path, division="closed")
    assert failures(log) == named_at_the_end(log) == ALWAYS | {"sgd_opt_weight_decay"}


def test_with_settings_that_obey_only_the_schedule_is_left(obeying: Path, tmp_path: Path) -> None:
    (log,) = export_logs(obeying, tmp_path, division="closed", status="onprem")
    assert failures(log) == named_at_the_end(log) == ALWAYS


@pytest.mark.parametrize(
    ("settings", "quality", "more"),
    [
        ({"learning_rate_per_256": 0.2565}, 0.77, {"sgd_opt_base_learning_rate"}),
        ({}, 0.7589, {"eval_accuracy"}),
        ({"weight_decay": 0.0}, 0.76, {"sgd_opt_weight_decay"}),
    ],
)
def test_each_demand_is_the_checkers(
    tmp_path: Path, settings: dict[str, object], quality: float, more: set[str]
) -> None:
    path = record_official(tmp_path, OBEYING | settings)
    good_quality(path, quality)
    (log,) = export_logs(path, tmp_path / "logs", division="closed")
    assert failures(log) == named_at_the_end(log) == ALWAYS | more
    stop = next(line for line in lines_of(log) if line["key"] == "run_stop")
    assert stop["metadata"]["status"] == ("success" if quality >= 0.763 else "aborted")


def test_a_start_up_that_takes_too_long_is_named(obeying: Path, tmp_path: Path) -> None:
    path = record_official(tmp_path, OBEYING)

    def delay(lines: list[dict[str, Any]]) -> None:
        for line in lines[1:]:
            line["time_ns"] += 1800 * 10**9

    Forger(path).edit_lines(delay)
    (log,) = export_logs(path, tmp_path / "logs", division="closed")
    assert failures(log) == named_at_the_end(log) == ALWAYS | {"init_stop"}
    assert failures(export_logs(path, tmp_path / "open")[0]) == set()


def test_values_times_and_places_are_those_of_the_ledger(obeying: Path, tmp_path: Path) -> None:
    (log,) = export_logs(obeying, tmp_path)
    lines = lines_of(log)
    values = {line["key"]: line["value"] for line in lines}
    size = EDITION.workload("resnet50").size("official")
    assert values["train_samples"] == size.num_train_samples
    assert values["global_batch_size"] == values["model_bn_span"] == 256
    assert values["sgd_opt_base_learning_rate"] == pytest.approx(0.256)
    assert values["sgd_opt_weight_decay"] == 0.00005
    assert values["seed"] == read_config(obeying.parent / "run-1")[0].seed
    assert values["submission_org"] == "somebody"
    assert values["cache_clear"] is False
    folder = obeying.parent / "run-1"
    root = read_run(folder, read_config(folder)[0]).roots[0]
    times = {line["key"]: line["time_ms"] for line in lines}
    assert times["run_start"] == root.entries_of(ClockStart)[0].time_ns // 10**6
    assert times["run_stop"] == root.entries_of(ClockStop)[0].time_ns // 10**6
    accuracies = [(line["metadata"]["epoch_num"], line["value"]) for line in lines if line["key"] == "eval_accuracy"]
    assert accuracies == [(value.epoch, value.quality) for value in root.values(Evaluation)]
    reached = root.values(Evaluation)[-1].quality >= size.target_quality
    stop = next(line for line in lines if line["key"] == "run_stop")
    assert stop["metadata"]["status"] == ("success" if reached else "aborted")
    assert [line["time_ms"] for line in lines] == sorted(line["time_ms"] for line in lines)
    for line in lines:
        if line["metadata"]["file"].startswith("hpcai500/"):
            continue
        text = (obeying.parent / line["metadata"]["file"]).read_text().splitlines()[line["metadata"]["lineno"] - 1]
        if line["key"] == "eval_accuracy":
            assert json.loads(text)["value"]["quality"] == line["value"]
        if line["key"] == "submission_platform":
            assert text.strip() == '"nodes": ['
        if line["key"] == "sgd_opt_momentum":
            assert text.strip().rstrip(",") == '"momentum": 0.9'


def test_a_resumed_run_has_every_epoch_once(tmp_path: Path) -> None:
    path = record_submission(tmp_path / "submission", resumed_on=1, num_failed=1)
    logs = export_logs(path, tmp_path / "logs")
    assert [log.name for log in logs] == ["result_0.txt", "result_1.txt"]  # not the failed one
    for log in logs:
        for key in ("epoch_start", "epoch_stop", "eval_start", "eval_stop", "eval_accuracy"):
            numbers = [line["metadata"]["epoch_num"] for line in lines_of(log) if line["key"] == key]
            assert numbers == [1, 2]
        assert failures(log) == set()
    status = {line["metadata"].get("status") for line in lines_of(logs[0]) if line["key"] == "run_stop"}
    assert status == {"aborted"}  # size smoke is not meant to reach its target


def test_the_command_writes_and_never_overwrites(
    obeying: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--mllog", str(tmp_path / "logs"), str(obeying)]
    assert main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'logs' / 'result_0.txt'}\n"
    assert main(words) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert main(["export", "--schemas", str(tmp_path / "schemas")]) == 0
    assert (tmp_path / "schemas" / "ledger.json").exists()


@pytest.mark.parametrize(
    "words", [["export"], ["export", "--mllog", "logs"], ["export", "--mllog", "logs", "none.json"]]
)
def test_wrong_use_is_one_sentence(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_workload_that_mlperf_has_not_is_refused(tmp_path: Path) -> None:
    path = record_submission(tmp_path, workload="fasterrcnn")
    with pytest.raises(UsageError, match="none of MLPerf"):
        export_logs(path, tmp_path / "logs")


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["settings"].pop("momentum"),
        lambda config: config["settings"].update(weight_decay="none"),
        lambda config: config.update(size="huge"),
    ],
)
def test_a_run_of_other_rules_is_an_error_of_the_record(obeying: Path, tmp_path: Path, change: Any) -> None:
    path = record_submission(tmp_path / "submission")
    Forger(path).edit_config(change, numbers=(1,))
    with pytest.raises((RecordError, UsageError)):
        export_logs(path, tmp_path / "logs")


@pytest.mark.parametrize("event", ["data_open", "clock_start", "evaluation", "clock_stop"])
def test_a_run_without_what_a_log_needs_is_one_sentence(
    tmp_path: Path, event: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = record_submission(tmp_path / "submission")
    for rank in (0, 1):
        Forger(path).edit_lines(
            lambda lines: lines.__setitem__(slice(None), [line for line in lines if line["event"] != event]), rank=rank
        )
    assert main(["export", "--mllog", str(tmp_path / "logs"), str(path)]) == 2
    assert event in capsys.readouterr().err


def test_help_and_documentation_list_all_that_may_differ(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = capsys.readouterr().out
    page = (Path(__file__).parent.parent / "docs" / "interchange.rst").read_text(encoding="utf-8")
    for key in DEMANDS:
        assert key in text
        assert f"   * - {key}\n" in page
