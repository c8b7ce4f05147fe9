"""From readings to figures: what is whole becomes one, with its label; what has a gap or lacks a node does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import Forger
from msgspec.structs import replace
from recording import EDITION, NS_PER_S, record_submission

from hpcai500.energy.command import main
from hpcai500.energy.figures import headline_of
from hpcai500.energy.label import Readings, label_of
from hpcai500.energy.meter_file import parse_time_ns, read_meter
from hpcai500.errors import RecordError
from hpcai500.formats import EnergyResult, RunResult, read_record
from hpcai500.submission import result_from_ledgers
from hpcai500.verify import verify_submission

pytestmark = pytest.mark.usefixtures("edition_of_recorded")
MEASURED = Readings("meter", is_power=True, mean_spacing_s=1.0, longest_gap_s=1.2, accuracy=0.01)


def clock_of(forger: Forger, number: int = 1) -> tuple[int, int]:
    lines = [json.loads(line) for line in forger.ledger(number).read_bytes().splitlines()]
    times = {
        event: [line["time_ns"] for line in lines if line["event"] == event] for event in ("clock_start", "clock_stop")
    }
    return min(times["clock_start"]), max(times["clock_stop"])


def tell(forger: Forger, *, number: int = 1, rank: int = 0, mean_w: float = 100, **changes: Any) -> None:
    """Let a rank's ledger tell of energy as a recorder does that read every 10 s."""

    def change(lines: list[dict[str, Any]]) -> None:
        start, stop = (next(line for line in lines if line["event"] == f"clock_{word}") for word in ("start", "stop"))
        wall_ns = start["time_ns"] - NS_PER_S // 100
        duration_ns = stop["time_ns"] + NS_PER_S // 100 - wall_ns
        value = {"source": "rapl", "num_devices": 1, "energy_j": mean_w * duration_ns / NS_PER_S}
        value |= {"wall_ns": wall_ns, "duration_ns": duration_ns, "longest_gap_ns": 10 * NS_PER_S}
        value |= {"num_readings": 2 + duration_ns // (10 * NS_PER_S)}
        lines.insert(-1, {**lines[-2], "event": "energy", "value": value | changes})

    forger.edit_lines(change, number=number, rank=rank)


def two_nodes(forger: Forger) -> None:
    """Put rank 1 onto a node of its own."""
    for number in (1, 2):
        forger.edit_events("run_open", lambda value: value.update(host="node2.cluster"), number=number, rank=1)


def write_meter(
    path: Path,
    clock: tuple[int, int],
    *,
    nodes: tuple[str, ...] = ("node1",),
    power_w: Callable[[float], float] = lambda _: 200.0,
    period_s: float = 1.0,
    header: str = "# accuracy: 1 %\n",
    around_s: float = 5.0,
) -> Path:
    """A file of meters that read before, in and after a clock."""
    begin_s, end_s = clock[0] / NS_PER_S - around_s, clock[1] / NS_PER_S + around_s
    lines = []
    for node in nodes:
        number = 0
        while (time_s := begin_s + 0.3 + number * period_s) < end_s:
            lines.append(f"{time_s:.6f},{node},{power_w(time_s)}\n")
            number += 1
    path.write_text(f"{header}time,node,power_w\n{''.join(lines)}")
    return path


def energies_of(forger: Forger, number: int = 1) -> dict[str, EnergyResult]:
    return {one.source: one for one in result_from_ledgers(forger.run(number), EDITION).energy or []}


# ---- from ledgers ----------------------------------------------------------------------------------------------------


def test_counters_become_informative_figures_of_the_clock(forger: Forger) -> None:
    tell(forger, mean_w=100)
    result = result_from_ledgers(forger.run(), EDITION)
    assert result.wall_s is not None
    (energy,) = result.energy or []
    assert (energy.source, energy.label, energy.num_nodes, energy.lacks) == ("rapl", "informative", 1, [])
    assert energy.power_w == pytest.approx(100, rel=1e-3)
    assert energy.energy_j == pytest.approx(100 * result.wall_s, rel=1e-3)
    assert energy.joules_per_sample == pytest.approx(100 * result.wall_s / result.samples, rel=1e-3)
    assert energy.vflops_per_w == pytest.approx((result.vflops or 0) / 100, rel=1e-3)
    assert energy.node_j == (energy.energy_j,) * 3


def test_nodes_are_added_up_and_their_spread_is_told(forger: Forger) -> None:
    two_nodes(forger)
    tell(forger, rank=0, mean_w=100)
    tell(forger, rank=1, mean_w=140)
    energy = energies_of(forger)["rapl"]
    assert (energy.num_nodes, energy.num_devices) == (2, 2)
    assert energy.power_w == pytest.approx(240, rel=1e-2)
    assert energy.node_j is not None
    assert energy.node_j[2] / energy.node_j[0] == pytest.approx(1.4, rel=1e-2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"longest_gap_ns": 61 * NS_PER_S}, "node1: no reading for 61 s, and at most 60 s leave a figure"),
        ({"duration_ns": 3 * NS_PER_S}, "node1: read for 3 s, which are not the"),
        ({"wall_ns": 1_700_000_000 * NS_PER_S}, "node1: read for"),
    ],
)
def test_a_gap_or_a_part_of_the_clock_is_no_figure(forger: Forger, changes: dict[str, Any], words: str) -> None:
    tell(forger, **changes)
    energy = energies_of(forger)["rapl"]
    assert (energy.energy_j, energy.power_w, energy.label, energy.vflops_per_w) == (None, None, None, None)
    assert [text for text in energy.lacks if text.startswith(words)]


def test_a_node_that_tells_nothing_leaves_no_figure_and_is_named(forger: Forger) -> None:
    two_nodes(forger)
    tell(forger, rank=0)
    energy = energies_of(forger)["rapl"]
    assert (energy.energy_j, energy.num_nodes) == (None, 1)
    assert energy.lacks == ["node2.cluster: none read all the time"]


def test_a_resumed_run_lacks_the_segment_that_was_cut_short(resumed: Forger) -> None:
    def change(lines: list[dict[str, Any]]) -> None:
        start = next(line for line in lines if line["event"] == "clock_start")
        duration_ns = lines[-2]["time_ns"] - start["time_ns"]
        value = {"source": "rapl", "num_devices": 1, "energy_j": 1.0, "wall_ns": start["time_ns"]}
        value |= {"duration_ns": duration_ns, "num_readings": 2, "longest_gap_ns": duration_ns}
        lines.insert(-1, {**lines[-2], "event": "energy", "value": value})

    resumed.edit_lines(change, segment=1)
    assert energies_of(resumed)["rapl"].lacks == ["node1: none read all the time in segment 0"]


@pytest.mark.parametrize(("num_nodes", "is_whole"), [(2, True), (1, False), (3, False)])
def test_a_step_of_slurm_tells_of_all_nodes_or_is_no_figure(forger: Forger, num_nodes: int, is_whole: bool) -> None:
    two_nodes(forger)
    tell(forger, source="slurm", plugin="pm_counters", num_devices=num_nodes)
    energy = energies_of(forger)["slurm"]
    assert (energy.energy_j is not None, energy.label) == (is_whole, "informative" if is_whole else None)
    assert (energy.plugin, energy.node_j) == ("pm_counters", None)
    assert bool(energy.lacks) is not is_whole


def test_power_supplies_read_once_a_second_are_measured(forger: Forger) -> None:
    begin_ns, end_ns = clock_of(forger)
    dense = {"source": "ipmi", "num_readings": (end_ns - begin_ns) * 10 // 8 // NS_PER_S + 2}
    dense |= {"longest_gap_ns": NS_PER_S, "accuracy": 0.03}
    tell(forger, **dense)
    assert energies_of(forger)["ipmi"].label == "measured"
    tell(forger, number=2, **dense | {"accuracy": None})
    assert energies_of(forger, 2)["ipmi"].label == "informative"


# ---- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "rapl"},
        {"source": "nvml"},
        {"source": "slurm"},
        {"mean_spacing_s": 1.03},
        {"longest_gap_s": 1.6},
        {"accuracy": None},
        {"accuracy": 0.051},
    ],
)
def test_one_criterion_that_fails_makes_it_informative(changes: dict[str, Any]) -> None:
    assert label_of(MEASURED) == label_of(MEASURED._replace(source="ipmi", accuracy=0.05)) == "measured"
    assert label_of(MEASURED._replace(**changes)) == "informative"


# ---- from meters -----------------------------------------------------------------------------------------------------


def test_a_meter_added_afterwards_is_measured_and_the_submission_stays_valid(
    forger: Forger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcai500.energy.command.load_edition", lambda: EDITION)
    files = [
        str(write_meter(tmp_path / f"pdu-{number}.csv", clock_of(forger, number), power_w=lambda _: 250.0))
        for number in (1, 2)
    ]
    assert main([str(forger.path.parent), *files]) == 0
    output = capsys.readouterr().out
    assert "run-1: measured" in output
    assert "250 W in the mean, on 1 node;" in output
    for number in (1, 2):
        begin_ns, end_ns = clock_of(forger, number)
        (energy,) = read_record(forger.run(number) / "result.json", RunResult).energy or []
        assert (energy.source, energy.label, energy.accuracy) == ("meter", "measured", 0.01)
        assert energy.energy_j == pytest.approx(250 * (end_ns - begin_ns) / NS_PER_S)
        assert len((forger.run(number) / "meter.csv").read_text().splitlines()) == energy.num_readings + 2
    assert verify_submission(forger.path, EDITION).valid
    assert forger.path.with_name("submission-before-1.json").exists()
    assert main([str(forger.path.parent), *files]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_power_that_changes_is_cut_at_the_clock(forger: Forger) -> None:
    begin_ns, end_ns = clock_of(forger)
    begin_s, duration_s = begin_ns / NS_PER_S, (end_ns - begin_ns) / NS_PER_S
    write_meter(forger.run() / "meter.csv", (begin_ns, end_ns), power_w=lambda time_s: 1000 + time_s - begin_s)
    assert energies_of(forger)["meter"].energy_j == pytest.approx(1000 * duration_s + duration_s**2 / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nodes": ("node1",)}, "node2: no reading"),
        ({"nodes": ("node1", "node2"), "around_s": -1}, "node1: its readings do not enclose the clock"),
        ({"nodes": ("node1", "node2", "node1 node2")}, "a node is behind this meter and behind another"),
        ({"nodes": ("node1", "node2 node3")}, "nodes that were not the run's"),
    ],
)
def test_a_meter_that_misses_a_node_or_the_clock_is_no_figure(
    forger: Forger, options: dict[str, Any], words: str
) -> None:
    two_nodes(forger)
    write_meter(forger.run() / "meter.csv", clock_of(forger), **options)
    energy = energies_of(forger)["meter"]
    assert (energy.energy_j, energy.label) == (None, None)
    assert any(words in text for text in energy.lacks), energy.lacks


def test_meters_of_a_node_are_added_up_and_one_may_be_before_several_nodes(forger: Forger) -> None:
    two_nodes(forger)
    clock = clock_of(forger)
    write_meter(forger.run() / "meter.csv", clock, nodes=("node1,psu1", "node1,psu2", "node2,", "other,"))
    text = (forger.run() / "meter.csv").read_text().replace("time,node,", "time,node,meter,")
    (forger.run() / "meter.csv").write_text(text)
    energy = energies_of(forger)["meter"]
    assert (energy.num_nodes, energy.num_devices, energy.power_w) == (2, 3, pytest.approx(600))
    write_meter(forger.run(2) / "meter.csv", clock_of(forger, 2), nodes=("node2 node1",))
    energy = energies_of(forger, 2)["meter"]
    assert (energy.num_nodes, energy.power_w, energy.node_j) == (2, pytest.approx(200), None)


def test_a_seldom_read_meter_is_informative_and_one_with_a_long_gap_no_figure(forger: Forger) -> None:
    write_meter(forger.run() / "meter.csv", clock_of(forger), period_s=2.0)
    assert energies_of(forger)["meter"].label == "informative"
    write_meter(forger.run(2) / "meter.csv", clock_of(forger, 2), period_s=61.0, around_s=62)
    assert energies_of(forger, 2)["meter"].energy_j is None


def test_a_counter_of_joules_is_read_by_difference(forger: Forger) -> None:
    begin_ns, end_ns = clock_of(forger)
    path = write_meter(forger.run() / "meter.csv", (begin_ns, end_ns), power_w=lambda time_s: 300 * (time_s - 1.7e9))
    path.write_text(path.read_text().replace("power_w", "energy_j"))
    assert energies_of(forger)["meter"].energy_j == pytest.approx(300 * (end_ns - begin_ns) / NS_PER_S)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("time,node\n", "has the columns"),
        ("time,node,power_w,energy_j\n", "has the columns"),
        ("# accuracy: 200 %\ntime,node,power_w\n", "above 100 %"),
        ("time,node,power_w\n2026-11-27T12:00:00,node1,5\n", "line 2 of .* has no zone"),
        ("time,node,power_w\n1,node1,many\n", "line 2 of .* is no reading"),
        ("time,node,power_w\n1,,5\n", "names no node"),
        ("time,node,power_w\n1,node1\n", "it has 2 cells"),
        ("time,node,power_w\nyesterday,node1,5\n", "neither Unix time nor ISO 8601"),
        ("x" * 70_000, "longer than"),
    ],
)
def test_an_error_names_the_line_of_a_meters_file_and_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "pdu.csv").write_text(text)
    with pytest.raises(RecordError, match=words):
        list(read_meter(tmp_path / "pdu.csv")[1])


def test_times_are_unix_or_iso_with_a_zone() -> None:
    assert parse_time_ns("1795777200.000000001") == 1795777200_000000001
    assert parse_time_ns("2026-11-27T12:00:00.25+01:00") == parse_time_ns("2026-11-27T11:00:00.250Z")
    assert parse_time_ns("2026-11-27 11:00:00Z") == parse_time_ns("1795777200")


def test_readings_of_another_time_or_node_change_nothing(
    forger: Forger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcai500.energy.command.load_edition", lambda: EDITION)
    before = {path: path.read_bytes() for path in forger.path.parent.rglob("*") if path.is_file()}
    files = [
        write_meter(tmp_path / "early.csv", (0, 10 * NS_PER_S), around_s=0),
        write_meter(tmp_path / "node9.csv", clock_of(forger), nodes=("node9",)),
    ]
    for file in files:
        assert main([str(forger.path.parent), str(file)]) == 1
        assert "run-1: no figure, and nothing is changed: node1: no reading. It takes" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in forger.path.parent.rglob("*") if path.is_file()}


def test_readings_out_of_order_leave_nothing_behind(
    forger: Forger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_meter(tmp_path / "pdu.csv", clock_of(forger))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], *lines[2:][::-1]]))
    assert main([str(forger.path.parent), str(path)]) == 2
    assert "not in the order of their time" in capsys.readouterr().err
    assert not (forger.run() / "meter.csv").exists()


# ---- of all runs -----------------------------------------------------------------------------------------------------


def results_with(forger: Forger, *tables: dict[str, tuple[str | None, float]]) -> list[RunResult]:
    tell(forger)
    result = result_from_ledgers(forger.run(), EDITION)
    (energy,) = result.energy or []
    return [
        replace(
            result,
            energy=[
                replace(energy, source=source, label=label, energy_j=label and power_w * 10, power_w=label and power_w)
                for source, (label, power_w) in table.items()
            ],
        )
        for table in tables
    ]


def test_the_figure_of_a_submission_is_of_the_best_source_that_all_runs_have(forger: Forger) -> None:
    first = {"rapl": ("informative", 100.0), "nvml": ("informative", 700.0), "ipmi": ("measured", 1000.0)}
    results = results_with(forger, first, first | {"ipmi": (None, 0.0)})
    both = headline_of(results[:1], on_accelerators=True)
    assert both is not None
    assert (both.label, both.sources, both.power_w) == ("measured", ("ipmi",), 1000)
    chips = headline_of(results, on_accelerators=True)
    assert chips is not None
    assert (chips.label, chips.sources, chips.power_w) == ("informative", ("nvml", "rapl"), 800)
    assert chips.scope == "GPUs (NVML) and processor packages (RAPL)"


def test_processors_alone_are_no_figure_of_a_run_on_gpus(forger: Forger) -> None:
    results = results_with(forger, {"rapl": ("informative", 100.0)})
    assert headline_of(results, on_accelerators=True) is None
    assert headline_of(results, on_accelerators=False) is not None
    assert headline_of([], on_accelerators=False) is None


# ---- what the verifier finds -----------------------------------------------------------------------------------------


def rules_found(forger: Forger) -> set[str]:
    return {finding.rule for finding in verify_submission(forger.path, EDITION).findings}


def test_a_label_that_readings_do_not_earn_is_found(forger: Forger) -> None:
    tell(forger)
    forger.forge()
    assert rules_found(forger) == set()
    forger.edit_json(forger.run() / "result.json", lambda result: result["energy"][0].update(label="measured"))
    forger.forge(figures=False)
    assert rules_found(forger) == {"figures.result"}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_readings": 2},
        {"longest_gap_ns": NS_PER_S},
        {"source": "ipmi", "num_devices": 2},
        {"source": "ipmi", "energy_j": 1e7},
        {"source": "slurm", "energy_j": 1e7},
        {"source": "slurm", "energy_j": 0.0},
    ],
)
def test_readings_that_cannot_be_are_found(forger: Forger, changes: dict[str, Any]) -> None:
    tell(forger, **changes)
    forger.forge()
    assert rules_found(forger) == {"physics.energy"}


@pytest.mark.parametrize(
    ("power_w", "rules"), [(250.0, set()), (9000.0, {"physics.energy"}), (0.0, {"physics.energy"})]
)
def test_a_meter_reads_what_nodes_can_draw(forger: Forger, power_w: float, rules: set[str]) -> None:
    write_meter(forger.run() / "meter.csv", clock_of(forger), power_w=lambda _: power_w)
    forger.edit_submission(
        lambda submission: submission["runs"][0]["files"].update({"meter.csv": {"sha256": "0" * 64, "size_bytes": 0}})
    )
    forger.forge()
    assert rules_found(forger) == rules


def test_a_meters_file_that_is_not_listed_is_found(tmp_path: Path) -> None:
    path = record_submission(tmp_path)
    (tmp_path / "run-1/meter.csv").write_text("time,node,power_w\n")
    assert "form.files" in {finding.rule for finding in verify_submission(path, EDITION).findings}
