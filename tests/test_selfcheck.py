"""The self-check: what it measures, what it makes of it, and that sick parts and ranks do not hold up the rest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from machines import make_nvidia_smi

from hpcai500.comm.serial import SerialCommunicator
from hpcai500.edition import load_edition
from hpcai500.errors import BackendUnavailableError, DataError
from hpcai500.probes import compute, storage
from hpcai500.probes.alone import RankReport, new_report, read_versions
from hpcai500.probes.clocks import measure_clock
from hpcai500.probes.gpus import read_gpus
from hpcai500.probes.network import pair_phases
from hpcai500.probes.report import as_dictionary, as_table
from hpcai500.probes.verdict import Verdict, judge
from hpcai500.selfcheck import main

PROGRAMS = Path(__file__).with_name("mpi")
SMALL = compute.ComputeSizes(matrix=64, array_bytes=2**16, budget_s=0.0)
HEALTHY_GPU = {
    "index": "0",
    "name": "NVIDIA H100 80GB HBM3",
    "pci.bus_id": "00000000:1B:00.0",
    "driver_version": "570.10",
    "memory.total": "81559",
    "temperature.gpu": "41",
    "ecc.errors.uncorrected.volatile.total": "0",
    "retired_pages.pending": "No",
    "clocks_throttle_reasons.hw_slowdown": "Not Active",
    "clocks_throttle_reasons.hw_thermal_slowdown": "Not Active",
    "clocks_throttle_reasons.hw_power_brake_slowdown": "Not Active",
    "clocks_throttle_reasons.sw_thermal_slowdown": "Not Active",
}


@pytest.fixture
def program_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for pretended programs, first on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path / "bin"


def node_report(number: int, **changes: Any) -> RankReport:
    """The report of a healthy node with one rank."""
    healthy: dict[str, Any] = {
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "figures": {"fp32": {"cpu": 1e12}, "memory": {"cpu": 2e11}},
        "clock": (0.0, 1e5),
    }
    return RankReport(number, 0, f"n{number}", f"boot-{number}", **{**healthy, **changes})


def verdict_of(*changes: dict[str, Any], num_nodes: int = 4) -> Verdict:
    """The verdict on healthy nodes, of which the last ones have changes."""
    reports = [node_report(number) for number in range(num_nodes - len(changes))]
    reports += [node_report(len(reports) + number, **change) for number, change in enumerate(changes)]
    return judge(reports, load_edition())


def told(verdict: Verdict) -> list[tuple[str, str, bool]]:
    return [(problem.host, problem.text, problem.fails) for problem in verdict.problems]


# --------------------------------------------------------------------------------------------------- what is measured


def test_rates_are_work_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "best_s", lambda work, device, budget_s: (work(), 0.5)[1])
    assert compute.product_flops(compute.CPU, torch.float32, SMALL) == 2 * 64**3 / 0.5
    assert compute.triad_bytes_per_s(compute.CPU, SMALL) == 3 * 2**16 / 0.5


def test_the_fastest_repeat_after_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, work_s = 0.0, iter([0.5, 3.0, 2.0, 5.0, 4.0])

    def work() -> None:
        nonlocal now_s
        now_s += next(work_s)

    monkeypatch.setattr(compute.time, "perf_counter", lambda: now_s)
    assert compute.best_s(work, compute.CPU, 0.0) == 2.0
    assert next(work_s) == 4.0  # three repeats where the time is over at once


def test_a_processor_that_computes_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    report = new_report(0, 0)
    wrong = lambda *args, out, **options: out.fill_(float("nan"))  # noqa: E731
    monkeypatch.setattr(torch, "mm", wrong)
    monkeypatch.setattr(torch, "add", wrong)
    compute.measure_devices(report, 1, {"cpu": SMALL, "cuda": SMALL})
    assert report.errors == {
        "matrix product": "ArithmeticError: the product of two finite matrices on cpu is not finite",
        "memory": "ArithmeticError: 1 + 3 * 2 is not 7 everywhere on cpu",
    }


def test_a_part_that_fails_or_hangs_is_noted_and_the_next_goes_on() -> None:
    report = new_report(0, 0)
    assert report.attempt("hanging", threading.Event().wait, limit_s=0.05) is None
    assert report.attempt("failing", lambda: 1 // 0) is None
    assert report.attempt("good", lambda: "answer") == "answer"
    assert report.errors["hanging"] == "no answer in 0.05 s"
    assert report.errors["failing"].startswith("ZeroDivisionError")
    assert report.seconds.keys() == {"hanging", "failing", "good"}


def test_a_rate_of_reading_is_that_of_the_part_that_was_read(tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    path.write_bytes(os.urandom(3_000_000))
    whole = storage.read_file(path, storage.ReadSize(10**9, 60.0), place=5)
    assert whole["read_bytes"] == whole["file_bytes"] == 3_000_000
    part = storage.read_file(path, storage.ReadSize(1_000_000, 60.0), place=5)
    assert part["read_bytes"] == 1_000_000
    assert part["bytes_per_s"] == pytest.approx(part["read_bytes"] / part["seconds"])
    assert part["head_sha256"] == whole["head_sha256"]


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "empty"])
def test_what_cannot_be_read_as_data_is_an_error_and_no_wait(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data.h5"
    make = {"missing": lambda: None, "folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "empty": path.touch}
    make[kind]()
    with pytest.raises(DataError, match="cannot open" if kind == "missing" else "is not a file with data in it"):
        storage.read_file(path, storage.QUICK, place=0)


def test_pairs_of_a_phase_have_no_node_in_common_and_all_neighbours_meet() -> None:
    assert pair_phases(1) == []
    assert pair_phases(2) == [[(0, 1)]]
    for num_places in range(3, 9):
        phases = pair_phases(num_places)
        assert len(phases) == 2 + num_places % 2
        for phase in phases:
            places = [place for pair in phase for place in pair]
            assert len(places) == len(set(places))
        links = sorted(pair for phase in phases for pair in phase)
        assert links == sorted((place, (place + 1) % num_places) for place in range(num_places))


def test_the_clock_of_one_rank_agrees_with_itself() -> None:
    with SerialCommunicator() as comm:
        assert measure_clock(comm) == (0.0, 0.0)


def test_versions_are_those_that_are_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_versions("serial")
    make_metadata(tmp_path, "h5py", "0.0.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert read_versions("serial") == {**before, "h5py": "0.0.1"}
    assert before["torch"] == torch.__version__


def make_metadata(folder: Path, name: str, version: str) -> None:
    """What pip leaves beside a package; importlib.metadata takes the first one on the path."""
    path = folder / f"{name}-{version}.dist-info" / "METADATA"
    path.parent.mkdir(parents=True)
    path.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


# --------------------------------------------------------------------------------------------------------------- GPUs


def test_a_machine_without_nvidia_smi_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_gpus() == []


def test_a_healthy_gpu_has_no_problems(program_path: Path) -> None:
    make_nvidia_smi(program_path, [HEALTHY_GPU, {**HEALTHY_GPU, "index": "1", "retired_pages.pending": "[N/A]"}])
    first, second = read_gpus()
    assert first["problems"] == second["problems"] == []
    assert first["temperature_c"] == 41
    assert first["health_known"]


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("ecc.errors.uncorrected.volatile.total", "3", "uncorrected ECC errors since boot (3)"),
        ("retired_pages.pending", "Yes", "memory pages wait to be retired"),
        ("clocks_throttle_reasons.hw_thermal_slowdown", "Active", "slowed down by heat"),
        ("temperature.gpu", "93", "93 degrees Celsius, over 90"),
    ],
)
def test_a_sick_gpu_is_told(field: str, value: str, problem: str, program_path: Path) -> None:
    make_nvidia_smi(program_path, [{**HEALTHY_GPU, field: value}])
    (gpu,) = read_gpus()
    assert gpu["problems"] == [problem]
    verdict = verdict_of({"gpus": [gpu]}, num_nodes=1)
    assert told(verdict) == [("n0", f"GPU 0 (00000000:1B:00.0): {problem}", True)]


def test_a_broken_driver_is_an_error(program_path: Path) -> None:
    make_nvidia_smi(program_path, [], exit_code=9)
    with pytest.raises(BackendUnavailableError, match="could not communicate with the NVIDIA driver"):
        read_gpus()


def test_a_driver_that_does_not_know_all_fields_still_shows_its_gpus(program_path: Path) -> None:
    program = make_nvidia_smi(program_path, [HEALTHY_GPU])
    text = program.read_text()
    refusal = "if 'retired_pages' in query:\n    sys.exit('Field is not valid')\n"
    program.write_text(text.replace("for row in rows", f"{refusal}for row in rows"))
    (gpu,) = read_gpus()
    assert gpu["name"] == HEALTHY_GPU["name"]
    assert not gpu["health_known"]


# -------------------------------------------------------------------------------------------------- what is made of it


def test_equal_nodes_pass() -> None:
    verdict = verdict_of()
    assert verdict.passed
    assert told(verdict) == []
    assert as_table(verdict).endswith("pass: 4 nodes are fit")


def test_a_node_with_another_version_is_named() -> None:
    verdict = verdict_of({"versions": {"python": "3.11.7", "torch": "2.12.0"}}, {"versions": {"python": "3.11.7"}})
    assert told(verdict) == [
        ("n2", "rank 2 has torch 2.12.0, the others 2.13.0", True),
        ("n3", "rank 3 has torch none, the others 2.13.0", True),
    ]


def test_a_clock_that_is_off_by_more_than_50_ms_fails() -> None:
    assert verdict_of({"clock": (49e6, 1e5)}).passed
    verdict = verdict_of({"clock": (80e6, 1e5)}, {"clock": (-80e6, 1e5)})
    assert [problem[:1] + problem[2:] for problem in told(verdict)] == [("n2", True), ("n3", True)]
    assert "80 ms ahead of the others" in verdict.problems[0].text
    assert "80 ms behind the others" in verdict.problems[1].text


def test_a_clock_that_cannot_be_told_exactly_is_no_reason_to_fail() -> None:
    verdict = verdict_of({"clock": (60e6, 70e6)})
    assert verdict.passed
    assert "can be told only to 70 ms" in verdict.problems[0].text


@pytest.mark.parametrize(("share", "named", "fails"), [(0.95, False, False), (0.85, True, False), (0.7, True, True)])
def test_a_slow_node_is_named_from_10_percent_and_fails_from_25(share: float, named: bool, fails: bool) -> None:
    verdict = verdict_of({"figures": {"fp32": {"cpu": share * 1e12}, "memory": {"cpu": 2e11}}})
    assert verdict.passed is not fails
    expected = (
        f"fp32 product {1000 * share:.4g} GFLOP/s, {1 - share:.0%} worse than the median of the others, 1000 GFLOP/s"
    )
    assert told(verdict) == ([("n3", expected, fails)] if named else [])


def test_a_long_latency_is_worse_and_not_better() -> None:
    figures = [{"figures": {"link_latency": {"0": seconds}}} for seconds in (2e-6, 2e-6, 2e-6, 5e-6)]
    verdict = verdict_of(*figures)
    assert told(verdict) == [("n3", "latency 5 us, 150% worse than the median of the others, 2 us", False)]


def test_a_bad_node_is_told_from_its_good_neighbours_by_both_of_its_links() -> None:
    links = [{"1": 10e9, "3": 2e9}, {"0": 10e9, "2": 10e9}, {"1": 10e9, "3": 2e9}, {"2": 2e9, "0": 2e9}]
    verdict = verdict_of(*({"figures": {"link_bandwidth": link}} for link in links))
    assert [problem.host for problem in verdict.problems] == ["n3"]


def test_processors_of_a_node_add_up_and_of_gpus_the_slowest_counts() -> None:
    first = node_report(0, figures={"memory": {"cpu": 1e11}, "fp32": {"cuda:0": 5e13, "cuda:1": 3e13}})
    first.devices = {"cuda:0": "NVIDIA H100 80GB HBM3", "cuda:1": "NVIDIA H100 80GB HBM3"}
    second = RankReport(1, 1, "n0", "boot-0", versions=first.versions, figures={"memory": {"cpu": 2e11}})
    (node,) = judge([first, second], load_edition()).nodes
    assert node.figures == {"memory": pytest.approx(3e11), "fp32": 3e13}
    assert node.share_of_peak["fp32"] == pytest.approx(3e13 / 66.9e12)


def test_a_gpu_far_below_its_peak_fails_also_where_all_are_alike() -> None:
    change = {"figures": {"bf16": {"cuda:0": 1e14}}, "devices": {"cuda:0": "NVIDIA H100 80GB HBM3"}}
    verdict = verdict_of(change, change, num_nodes=2)
    assert [text for _, text, _ in told(verdict)] == 2 * [
        "cuda:0 reaches 10% of its peak in bf16 products; 40% are expected"
    ]


def test_a_node_with_fewer_gpus_or_another_driver_is_named() -> None:
    gpu = {"index": 0, "bus_id": "1B", "name": "H100", "driver": "570", "problems": []}
    four, three = {"gpus": [gpu] * 4}, {"gpus": [gpu] * 3}
    other = {"gpus": [{**gpu, "driver": "535"}] * 4}
    assert told(verdict_of(four, four, three, other)) == [
        ("n2", "3 GPUs, the others have 4", True),
        ("n3", "GPU driver 535, the others have 570", True),
    ]


def test_a_node_with_another_data_file_is_named() -> None:
    data = [{"data": [{"path": "/d", "file_bytes": size, "head_sha256": head}]} for size, head in
            ((10, "a"), (10, "a"), (10, "b"), (9, "a"))]  # fmt: skip
    assert told(verdict_of(*data)) == [
        ("n2", "'/d' is not the file that the others have: one with other bytes", True),
        ("n3", "'/d' is not the file that the others have: one of 9 bytes and not of 10", True),
    ]


def test_nodes_that_are_one_machine_do_not_fail_for_their_speed() -> None:
    reports = [node_report(0), node_report(1, figures={"fp32": {"cpu": 1e11}})]
    assert not judge(reports, load_edition()).passed
    reports[1].boot_id = reports[0].boot_id
    verdict = judge(reports, load_edition())
    assert verdict.passed
    assert verdict.is_one_machine
    assert "90% worse" in verdict.problems[0].text


def test_table_and_json_tell_the_same() -> None:
    verdict = verdict_of({"errors": {"data /d": "cannot open '/d'"}})
    table, told_as_json = as_table(verdict), json.loads(json.dumps(as_dictionary(verdict)))
    assert "FAIL  n3: rank 3: cannot open '/d'" in table.splitlines()
    assert table.endswith("fail: 1 of 4 nodes (n3)")
    assert not told_as_json["passed"]
    assert [node["passed"] for node in told_as_json["nodes"]] == [True, True, True, False]
    assert told_as_json["problems"][0]["text"] == "rank 3: cannot open '/d'"
    assert told_as_json["limits"]["max_clock_difference_s"] == 0.05


# ----------------------------------------------------------------------------------------------------------- as a whole


def test_one_machine_alone_passes(smoke_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "check.json"
    assert main(["--quick", "--data", str(smoke_data), "--json", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "pass: 1 node is fit"
    (node,) = json.loads(file.read_text())["nodes"]
    assert node["figures"].keys() >= {"fp32", "memory", "read"}
    assert all(value > 0 for value in node["figures"].values())


def test_a_missing_file_fails_and_json_goes_to_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--data", "/no/such/file.h5", "--json"]) == 1
    captured = capsys.readouterr()
    assert "cannot open '/no/such/file.h5'" in json.loads(captured.out)["problems"][0]["text"]
    assert "FAIL" in captured.err


@pytest.mark.parametrize("comm", ["torchdist", pytest.param("mpi", marks=pytest.mark.mpi),
                                  pytest.param("horovod", marks=[pytest.mark.mpi, pytest.mark.horovod])])  # fmt: skip
def test_what_is_wrong_with_one_of_two_ranks_is_found(comm: str, tmp_path: Path) -> None:
    make_metadata(tmp_path / "site-packages", "h5py", "0.0.1")
    make_nvidia_smi(tmp_path / "bin", [], exit_code=9)
    done = launch(comm, "faults", tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "verdict.json").read_text())
    texts = [problem["text"] for problem in found["problems"] if problem["fails"]]
    assert any("nvidia-smi failed" in text and text.startswith("rank 0") for text in texts)
    assert any(text.startswith("rank 1 has h5py 0.0.1, the others") for text in texts)
    ahead_ms = [int(match[1]) for text in texts if (match := re.search(r"clock is (\d+) ms ahead of the others", text))]
    assert ahead_ms == [pytest.approx(200, abs=100)]
    assert len(texts) == 3
    (node,) = found["nodes"]
    assert node["figures"].keys() >= {"fp32", "memory", "link_latency", "link_bandwidth"}
    assert found["sum_bandwidth_bytes_per_s"] > 0


@pytest.mark.mpi
@pytest.mark.parametrize("comm", ["torchdist", "mpi"])
def test_a_rank_that_dies_ends_the_check(comm: str, tmp_path: Path) -> None:
    done = launch(comm, "death", tmp_path)
    assert done.returncode != 0
    assert re.search(r"^FAIL  rank 1 on .* is gone", done.stderr, re.MULTILINE)
    assert not (tmp_path / "verdict.json").exists()


def launch(comm: str, how: str, folder: Path) -> subprocess.CompletedProcess[str]:
    run = (
        "import sys; from hpcai500.launch.local import run_ranks;"
        "sys.exit(run_ranks(sys.argv[1], 2, [sys.executable, *sys.argv[2:]]))"
    )
    command = [sys.executable, "-c", run, comm, str(PROGRAMS / "selfcheck.py"), comm, how, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
