"""`hpcai500 plan`: what is measured of a recorded run, what is predicted of it, what is shown, and mistakes."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording import EDITION
from report_pages import Page

from hpcai500.__main__ import main
from hpcai500.edition import load_edition
from hpcai500.errors import UsageError
from hpcai500.scaling.calibration import Calibration, Spread, calibrate, with_ranks_per_node
from hpcai500.scaling.command import parse_sizes
from hpcai500.scaling.job import Job, make_job
from hpcai500.scaling.measured import MeasuredRun, measure_run, measure_selfcheck, step_noise
from hpcai500.scaling.model import Link, Machine, expected_maximum
from hpcai500.scaling.prediction import START_UP_PER_DOUBLING_S, fastest, plan, predict
from hpcai500.scaling.text import as_table
from hpcai500.submission import result_from_ledgers

MACHINE = Machine(
    ranks_per_node=8,
    fixed_s=4e-3,
    per_sample_s=0.13e-3,
    noise=0.02,
    within=Link(5e-6, 230e9),
    between=Link(20e-6, 200e9),
    start_up_s=60.0,
)


@pytest.fixture(autouse=True)
def same_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcai500.scaling.command.load_edition", lambda: EDITION)


@pytest.fixture(scope="module")
def measured(recorded: Path) -> MeasuredRun:
    return measure_run(recorded.parent / "run-1", EDITION)


def smoke_job() -> Job:
    return make_job(EDITION, "resnet50", "smoke", EDITION.workload("resnet50").resolve("smoke", "free", {}))


def official_job() -> Job:
    """The real one: that of the recorded edition has a hundredth of its samples."""
    settings = EDITION.workload("resnet50").resolve("official", "free", {})
    return replace(make_job(EDITION, "resnet50", "official", settings), num_train_samples=1_281_167)


def test_a_run_tells_the_parts_of_its_steps(measured: MeasuredRun) -> None:
    assert (measured.num_ranks, measured.num_nodes, measured.batch_size) == (2, 1, 16)
    assert measured.cores_per_rank == 1.0  # both are bound to cores 0 and 1
    assert measured.step_s == pytest.approx(1.0)
    assert measured.own_s == pytest.approx(0.9)
    assert measured.optimizer_s == pytest.approx(0.1)
    assert measured.noise == pytest.approx(0.0, abs=1e-6)
    assert measured.checkpoint_s == 0.5
    assert measured.start_up_s == pytest.approx(5.0)


def test_a_calibrated_machine_takes_as_long_as_the_run_that_it_was_calibrated_with(measured: MeasuredRun) -> None:
    calibration = calibrate([replace(measured, noise=0.05)], smoke_job())
    run = predict(calibration.machine, smoke_job(), num_nodes=1, batch_size=16)
    assert run.step.total_s == pytest.approx(measured.step_s)
    assert run.step.fixed_s == pytest.approx(0.1)
    assert run.step.stragglers_s == pytest.approx(0.05 * expected_maximum(2) * 0.9)
    assert run.step.network_s == pytest.approx(0.1 - run.step.stragglers_s)


def test_a_plan_of_the_measured_size_is_the_run_itself(recorded: Path, measured: MeasuredRun) -> None:
    wall_s = result_from_ledgers(recorded.parent / "run-1", EDITION).wall_s
    run = predict(calibrate([measured], smoke_job()).machine, smoke_job(), num_nodes=1, batch_size=16)
    assert run.clock_s == pytest.approx(wall_s, rel=0.05)  # the one checkpoint was earlier than its period


def test_a_resumed_run_tells_of_the_ranks_that_it_was_planned_with(recorded_resumed: Path) -> None:
    measured = measure_run(recorded_resumed.parent / "run-1", EDITION)
    assert (measured.step_s, measured.num_ranks) == (pytest.approx(1.0), 2)


def keep_events(folder: Path, number: int) -> None:
    """Cut off all but so many events of each rank."""
    for path in (folder / "ledger").iterdir():
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if json.loads(line)["seq"] < number))


def test_a_run_that_was_stopped_early_is_enough(recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run-1"
    shutil.copytree(recorded.parent / "run-1", folder)
    keep_events(folder, 8)  # up to the second window
    (folder / "result.json").unlink()
    measured = measure_run(folder, EDITION)
    assert (measured.step_s, measured.evaluation_per_sample_s, measured.epoch_fixed_s) == (
        pytest.approx(1.0),
        None,
        0.0,
    )
    assert "no evaluation was measured" in str(calibrate([measured], smoke_job()).notes)
    keep_events(folder, 5)
    with pytest.raises(UsageError, match="has no finished window of steps"):
        measure_run(folder, EDITION)


def test_two_batch_sizes_tell_the_fixed_part_of_a_step(measured: MeasuredRun) -> None:
    other = replace(measured, batch_size=8, own_s=0.6)
    machine = calibrate([measured, other], smoke_job()).machine
    assert (machine.fixed_s, machine.per_sample_s) == (pytest.approx(0.3), pytest.approx(0.0375))


def test_runs_of_different_sizes_are_not_mixed(measured: MeasuredRun) -> None:
    with pytest.raises(UsageError, match="name runs that differ in their batch size only"):
        calibrate([measured, replace(measured, num_ranks=4)], smoke_job())


def test_twice_as_many_ranks_on_the_same_cores_take_twice_as_long(measured: MeasuredRun) -> None:
    calibration = with_ranks_per_node(calibrate([measured], smoke_job()), 4)
    run = predict(calibration.machine, smoke_job(), num_nodes=1, batch_size=16)
    assert run.num_ranks == 4
    assert run.step.samples_s == pytest.approx(2 * 0.8)
    assert run.step.network_s == pytest.approx(2 * 0.1 * (3 / 4) / (1 / 2))


def test_ranks_that_find_a_free_core_are_not_slowed_down(measured: MeasuredRun) -> None:
    alone = replace(measured, num_ranks=1, cores_per_rank=1.0, cores_per_node=2.0)
    calibration = with_ranks_per_node(calibrate([alone], smoke_job()), 2)
    assert (calibration.machine.slowdown, calibration.machine.sharing) == (1.0, 1.0)
    both = replace(alone, cores_per_rank=2.0)
    calibration = with_ranks_per_node(calibrate([both], smoke_job()), 4)
    assert (calibration.machine.slowdown, calibration.machine.sharing) == (4.0, 2.0)
    assert "a rank was measured with 2 cores and gets 0.5" in calibration.notes[-1]


@pytest.mark.parametrize(("of_ranks", "of_steps"), [(0.05, 0.0), (0.0, 0.1), (0.03, 0.1)])
def test_noise_is_told_from_windows_of_many_steps(of_ranks: float, of_steps: float) -> None:
    generator = np.random.default_rng(3)
    ranks = generator.normal(0, of_ranks, 64)
    windows = [1 + ranks + generator.normal(0, of_steps, (20, 64)).mean(axis=0) for _ in range(50)]
    expected = math.hypot(float(ranks.std(ddof=1)), of_steps)
    assert step_noise([list(row) for row in windows], [20] * 50) == pytest.approx(expected, rel=0.05)


def test_noise_of_a_single_rank_is_not_its_drift() -> None:
    generator = np.random.default_rng(4)
    drift = np.linspace(1, 2, 400)
    rows = [[float(value)] for value in drift + generator.normal(0, 0.01, 400)]
    assert step_noise(rows, [4] * 400) == pytest.approx(0.02, rel=0.15)


def test_a_prediction_adds_up() -> None:
    job = official_job()
    run = predict(MACHINE, job, num_nodes=16, batch_size=64)
    assert run.epochs_to_quality is not None
    assert run.quality_s is not None
    assert sum(run.parts_s.values()) == pytest.approx(run.start_up_s + run.quality_s)
    assert run.quality_s / run.clock_s == pytest.approx(run.epochs_to_quality / 90)
    assert run.steps_per_epoch == 1_281_167 // (16 * 8 * 64)
    assert run.start_up_s == 60 + 4 * START_UP_PER_DOUBLING_S
    assert run.node_hours == pytest.approx(16 * (run.start_up_s + run.clock_s) / 3600)
    assert run.samples_per_s == pytest.approx(16 * 8 * 64 / run.step.total_s)


def test_the_batch_size_is_the_fastest_that_reaches_the_quality() -> None:
    job = official_job()
    for num_nodes in (1, 32, 1024):
        best = fastest(MACHINE, job, num_nodes)
        assert best is not None
        assert best.quality_s is not None
        for batch_size in range(8, min(256, 1_281_167 // best.num_ranks) + 1, 8):
            other = predict(MACHINE, job, num_nodes=num_nodes, batch_size=batch_size)
            assert other.quality_s is None or other.quality_s >= best.quality_s
        assert job.is_reached(best.global_batch)
    assert fastest(MACHINE, job, 2000) is None  # 8 samples of each of 16,000 ranks are too many
    assert [one.run.num_nodes for one in plan(calibration_of(MACHINE), job, [1, 2000])] == [1]


def calibration_of(machine: Machine, **spread: float) -> Calibration:
    return Calibration(machine, Spread(**{"computation": 0.05, **spread}))


def limit_of(machine: Machine, num_nodes: int = 16, batch_size: int = 64) -> str:
    return predict(machine, official_job(), num_nodes=num_nodes, batch_size=batch_size).limits[0][0]


def test_the_limit_is_what_is_slow() -> None:
    quick = replace(MACHINE, start_up_s=0.0, measured_nodes=4096)
    assert limit_of(quick) == "compute"
    assert limit_of(replace(quick, between=Link(1e-2, 1e9))) == "network"
    assert limit_of(replace(quick, storage_bytes_per_s=1e6)) == "compute"  # the size of samples is not known
    slow = replace(official_job(), sample_bytes=1e5)
    starved = predict(replace(quick, storage_bytes_per_s=1e9), slow, num_nodes=16, batch_size=64)
    assert starved.limits[0][0] == "input"
    assert limit_of(replace(quick, noise=0.9)) == "stragglers"
    assert limit_of(replace(quick, fixed_s=1.0)) == "overhead"
    assert limit_of(replace(quick, evaluation_fixed_s=100.0)) == "evaluation"
    assert limit_of(replace(quick, start_up_s=1e4)) == "start-up"
    assert limit_of(quick, num_nodes=128) == "batch"


def test_what_is_less_sure_has_a_wider_interval_and_the_same_seed_the_same() -> None:
    job = official_job()
    (sure,) = plan(calibration_of(MACHINE, computation=0.01), job, [1])
    (less,) = plan(calibration_of(MACHINE, computation=0.1), job, [1])
    again = plan(calibration_of(MACHINE, computation=0.1), job, [1])[0]
    assert less.spread == again.spread

    def width(planned: Any) -> float:
        return planned.spread.clock_s.high / planned.spread.clock_s.low

    assert width(sure) < 1.1 < width(less)
    assert less.spread.clock_s.low < less.run.clock_s < less.spread.clock_s.high
    (far,) = plan(calibration_of(MACHINE, computation=0.01), job, [256])
    assert width(far) > 1.5  # the model's own error


def test_energy_is_that_of_the_measured_power_over_the_clock() -> None:
    (one,) = plan(calibration_of(replace(MACHINE, power_w=5000.0)), official_job(), [4])
    assert one.energy_j == pytest.approx(5000 * 4 * one.run.clock_s)
    assert plan(calibration_of(MACHINE), official_job(), [4])[0].energy_j is None


def test_the_table_says_which_limit_bites_from_where() -> None:
    sizes = [1, 8, 64, 512, 4096]
    planned = plan(calibration_of(MACHINE), official_job(), sizes)
    text = as_table(official_job(), calibration_of(MACHINE), planned, sizes)
    assert "from 1 node the largest part of the time is compute" in text
    assert "nodes the largest part of the time is start-up" in text
    assert "left out: 4,096 nodes, where no batch size is known to reach the quality within 90 epochs" in text


def say(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["plan", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_recorded_submission_is_planned(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figures = tmp_path / "plan.html", tmp_path / "plan.json"
    words = [recorded, "--nodes", "1,2", "--latency-us", 20, "--bandwidth-gb-s", 10]
    status, out, err = say(capsys, *words, "--output", page, "--json", figures)
    assert (status, err) == (0, "")
    assert "resnet50, smoke size" in out
    content = json.loads(figures.read_bytes())
    assert [size["num_ranks"] for size in content["sizes"]] == [2, 4]
    assert content["sizes"][0]["step_s"]["total"] == pytest.approx(1.0)
    assert content["machine"]["between"] == {"latency_s": pytest.approx(20e-6), "bandwidth_bytes_per_s": 10e9}
    shown = Page(page.read_text(encoding="utf-8"))
    assert "What limits it" in shown.text
    status, out, _ = say(capsys, *words, "--json")
    assert json.loads(out)["sizes"] == content["sizes"]
    assert say(capsys, *words, "--output", page, "--json", figures)[0] == 0  # a plan is written anew
    for option in ("--output", "--json"):
        status, _, err = say(capsys, *words, option, recorded)
        assert status == 2
        assert "exists and was not written by this command" in err


def test_a_network_that_nobody_measured_is_asked_for(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = say(capsys, recorded)
    assert status == 2
    assert "nothing tells how fast 1,024 nodes exchange gradients" in err
    assert "hpcai500 selfcheck --json FILE" in err


def selfcheck_file(folder: Path, num_nodes: int = 2, **figures: float) -> Path:
    rates = {"fp32": 5e13, "bf16": 7e14, "link_latency": 12e-6, "link_bandwidth": 2e10} | figures
    nodes = [{"host": f"n{number}", "figures": rates, "gpus": [{}] * 8, "ranks": [{}]} for number in range(num_nodes)]
    path = folder / "selfcheck.json"
    content = {"format": 1, "passed": True, "sum_bandwidth_bytes_per_s": 1.8e11 if num_nodes > 1 else None}
    path.write_text(json.dumps(content | {"nodes": nodes}, indent=2), encoding="utf-8")
    return path


def test_a_selfcheck_alone_is_planned_with_less_certainty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = say(capsys, selfcheck_file(tmp_path), "--nodes", "1,4", "--json")
    assert status == 0
    content = json.loads(out)
    assert content["machine"]["between"] == {"latency_s": 12e-6, "bandwidth_bytes_per_s": 1.8e11}
    assert content["machine"]["within"] == {"latency_s": 0.0, "bandwidth_bytes_per_s": None}  # no time of its own
    assert content["machine"]["ranks_per_node"] == 8
    low, high = content["sizes"][0]["intervals"]["step_s"]
    assert high / low > 1.4
    assert "no training was measured" in content["notes"][0]


def test_a_selfcheck_gives_a_run_its_network(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = say(capsys, recorded, selfcheck_file(tmp_path), "--nodes", "1,2", "--json")
    assert status == 0
    assert json.loads(out)["machine"]["between"]["latency_s"] == 12e-6


def test_what_the_selfcheck_really_writes_is_read(tmp_path: Path) -> None:
    from hpcai500.probes.alone import RankReport
    from hpcai500.probes.report import as_dictionary
    from hpcai500.probes.verdict import judge

    reports = []
    for rank in range(2):
        report = RankReport(rank=rank, local_rank=rank, host="here", boot_id="1")
        report.add_rate("fp32", "cpu", 1e11)
        report.add_rate("link_latency", str(1 - rank), 2e-5)
        report.add_rate("link_bandwidth", str(1 - rank), 3e9)
        report.add_rate("sum_bandwidth", "all", 1e9)
        reports.append(report)
    path = tmp_path / "selfcheck.json"
    path.write_text(json.dumps(as_dictionary(judge(reports, load_edition())), indent=2), encoding="utf-8")
    check = measure_selfcheck(path)
    assert (check.num_nodes, check.ranks_per_node, check.product_flops) == (1, 2, {"fp32": 1e11})
    assert check.link == Link(2e-5, 1e9)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere"], "has nothing to plan from; name a run's folder, a submission.json"),
        (["--nodes", "1,x"], "--nodes '1,x' is not possible; give numbers"),
        (["--latency-us", "20"], "belong together; give both"),
        (["--latency-us", "-1", "--bandwidth-gb-s", "1"], "--latency-us -1 is not possible"),
        (["--ranks-per-node", "0"], "--ranks-per-node 0 is not possible"),
        (["--batch-size-per-rank", "0"], "--batch-size-per-rank 0 is not possible"),
        (["--batch-size-per-rank", "99", "--nodes", "1"], "makes 198 samples a step on 1 nodes, but an epoch has 130"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    recorded: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    paths = [] if words == ["nowhere"] else [recorded]
    status, _, err = say(capsys, *paths, *words)
    assert status == 2
    assert sentence in err


def test_a_damaged_selfcheck_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "selfcheck.json"
    path.write_text('{"format": 1, "passed": true}', encoding="utf-8")
    status, _, err = say(capsys, path)
    assert status == 2
    assert "make it anew" in err


def test_a_real_run_is_planned(smoke_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["submit", "--size", "smoke", "--data", smoke_data, "--ranks", 1, "--runs", 1, "--no-selfcheck"]
    assert main([*map(str, words), "--output", str(tmp_path / "run")]) in (0, 1)  # one run may be too few to be valid
    capsys.readouterr()
    result = result_from_ledgers(tmp_path / "run/run-1", load_edition())
    status, out, _ = say(capsys, tmp_path / "run/run-1", "--nodes", 1, "--json")
    assert status == 0
    (size,) = json.loads(out)["sizes"]
    assert size["clock_s"] == pytest.approx(result.wall_s, rel=0.1)


def test_numbers_of_nodes_are_put_in_order() -> None:
    assert parse_sizes("8, 1,4,4") == [1, 4, 8]
