"""What a report says of a machine: its peak where the rules know it, MFU, and energy where it was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from forging import Forger
from recording import EDITION, SYSTEM, record_submission
from report_pages import Page

from hpcai500.formats import RunConfig, System
from hpcai500.report.machine import describe_machine
from hpcai500.report.page import render_subjects
from hpcai500.report.subject import read_subject
from hpcai500.report.tables import as_json


def machine_of(device: str, precision: str, accelerators: list[str]) -> Any:
    system = record_system(accelerators)
    config = msgspec.convert(
        {
            "run_id": "a", "workload": "resnet50", "level": "free", "size": "smoke", "edition": "0", "seed": 1,
            "rules_sha256": "0" * 64, "num_ranks": 8, "num_nodes": 2, "device": device,
            "data": {"path": "a", "dataset_sha256": "0" * 64, "source": "a"}, "settings": {"precision": precision},
        },
        RunConfig,
    )  # fmt: skip
    return describe_machine(config, system, EDITION)


def record_system(accelerators: list[str]) -> System:
    node: dict[str, Any] = SYSTEM["nodes"][0]  # type: ignore[assignment, index]
    cards = [{"name": name, "memory_bytes": 1 << 36} for name in accelerators]
    nodes = [node | {"host": host, "accelerators": cards} for host in ("a", "b")]
    return msgspec.convert(SYSTEM | {"nodes": nodes}, System)


def test_the_peak_is_that_of_the_rules_or_said_to_be_unknown() -> None:
    card = "NVIDIA H100 80GB HBM3"
    known = machine_of("cuda", "bf16", [card] * 4)
    assert (known.num_devices, known.peak_flops, known.is_peak) == (8, 989.4e12, True)
    assert known.peak_name == "dense bf16 peak"
    assert machine_of("cuda", "fp32", [card]).peak_name == "dense tf32 peak, which the rules allow for fp32 products"
    unknown = machine_of("cuda", "bf16", ["A card of tomorrow"])
    assert unknown.peak_flops is None
    assert unknown.not_known[0].startswith("The dense peak of A card of tomorrow is not in rules/devices.toml")
    assert machine_of("cuda", "bf16", [card, "NVIDIA A100-SXM4-80GB"]).peak_flops is None
    processors = machine_of("cpu", "fp32", [])
    assert (processors.num_devices, processors.is_peak) == (2, False)
    assert processors.peak_flops == EDITION.processors.flops_bound(["avx2"], "fp32") * 2


def test_mfu_stands_beside_the_score_with_its_peak(tmp_path: Path) -> None:
    path = record_submission(tmp_path, size="official", level="hardware", num_runs=1)
    subject = read_subject(path, EDITION)
    result = subject.runs[0].result
    assert subject.machine is not None
    assert result.flops is not None
    assert subject.machine.mfu(result) == pytest.approx(result.flops / (2 * 989.4e12))
    assert "of 2 x 989.4 TFLOPS dense bf16 peak" in Page(render_subjects([subject])).text


def measure(forger: Forger, number: int, **changes: Any) -> None:
    def change(lines: list[dict[str, Any]]) -> None:
        start, stop = (next(line for line in lines if line["event"] == f"clock_{word}") for word in ("start", "stop"))
        duration_ns = stop["time_ns"] - start["time_ns"]
        value = {"source": "rapl", "num_devices": 1, "energy_j": duration_ns / 10**7, "wall_ns": start["time_ns"]}
        value |= {"duration_ns": duration_ns, "num_readings": 9, "longest_gap_ns": duration_ns}
        lines.insert(lines.index(stop) + 1, stop | {"event": "energy", "value": value | changes})

    forger.edit_lines(change, number=number)


def test_energy_is_shown_with_its_label_and_what_it_is_of(forger: Forger) -> None:
    for number in (1, 2):
        measure(forger, number)
    forger.forge()
    subject = read_subject(forger.path, EDITION)
    assert [one.power_w for one in subject.runs[0].energy] == [pytest.approx(100, rel=0.05)]
    shown = Page(render_subjects([subject])).text
    assert "Informative: " in shown
    assert "VFLOPS/W, of processor packages (RAPL). That is no measurement of the machine" in shown
    assert "VFLOPS/W; informative, of processor packages (RAPL)" in shown  # in the tile beside the score
    assert "processor packages (RAPL) informative 1 on 1 of 1 nodes" in shown
    (row,) = json.loads(as_json([subject]))["subjects"][0]["runs"][:1]
    assert (row["energy_label"], row["energy_of"]) == ("informative", "processor packages (RAPL)")


def test_energy_with_a_gap_is_no_figure_and_the_page_says_what_is_missing(forger: Forger) -> None:
    measure(forger, 1)
    measure(forger, 2, longest_gap_ns=90 * 10**9)
    forger.forge()
    shown = Page(render_subjects([read_subject(forger.path, EDITION)])).text
    assert "There is no figure of all runs" in shown
    assert "node1: no reading for 90 s, and at most 60 s leave a figure" in shown
    assert "Informative: " not in shown
