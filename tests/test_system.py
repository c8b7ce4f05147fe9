"""The description of a machine: complete, never blank, nothing private."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hpcai500 import system


def test_the_node_is_this_one() -> None:
    node = system.describe_node()
    assert node["host"] == os.uname().nodename
    assert node["num_cores"] == len(os.sched_getaffinity(0))
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        total_kib = int(next(line for line in file if line.startswith("MemTotal")).split()[1])
    assert node["memory_bytes"] == pytest.approx(total_kib * 1024, rel=0.01)
    assert node["processor"]


def test_libraries_carry_their_versions() -> None:
    import torch

    software = system.describe_software()
    assert software["libraries"]["torch"] == torch.__version__
    assert {"hpcai500", "numpy", "h5py"} <= software["libraries"].keys()
    assert software["python"]
    assert software["os"]


def test_nothing_is_blank() -> None:
    def walk(value: object, place: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{place}.{key}")
        elif isinstance(value, str):
            assert value.strip(), f"{place} is blank"

    walk(system.describe_node() | system.describe_software(), "system")


def test_only_variables_that_matter_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("NCCL_API_TOKEN", "x")
    monkeypatch.setenv("MY_PASSWORD", "x")
    monkeypatch.setenv("FINANCE", "x")
    environment = system.describe_software()["environment"]
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["NCCL_DEBUG"] == "INFO"
    assert not {"NCCL_API_TOKEN", "MY_PASSWORD", "FINANCE", "HOME", "PATH"} & environment.keys()


def test_network_speeds_are_bits_per_second_and_unknown_ones_are_null(tmp_path: Path) -> None:
    for name, speed in (("ib0", "100000\n"), ("eth0", "-1\n"), ("lo", "1\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "speed").write_text(speed)
        (tmp_path / name / "operstate").write_text("up\n")
    assert system._read_network(tmp_path, tmp_path / "none") == [
        {"name": "eth0", "state": "up", "speed_bits_per_s": None},
        {"name": "ib0", "state": "up", "speed_bits_per_s": 100_000_000_000},
    ]


def test_an_rdma_adapter_without_an_interface_is_a_network_too(tmp_path: Path) -> None:
    ports = (("efa_0", "4: ACTIVE", "100 Gb/sec (4X EDR)"), ("hca_0", "1: DOWN", "2.5 Gb/sec (1X SDR)"))
    for name, state, rate in (*ports, ("mlx5_0", "4: ACTIVE", "200 Gb/sec (4X HDR)"), ("odd_0", "4: ACTIVE", "fast")):
        port = tmp_path / name / "ports/1"
        port.mkdir(parents=True)
        (port / "state").write_text(state + "\n")
        (port / "rate").write_text(rate + "\n")
    (tmp_path / "mlx5_0/device/net/ib0").mkdir(parents=True)  # listed as ib0
    (tmp_path / "usnic_0/ports/1").mkdir(parents=True)
    assert system._read_network(tmp_path / "none", tmp_path) == [
        {"name": "efa_0:1", "state": "up", "speed_bits_per_s": 100_000_000_000},
        {"name": "hca_0:1", "state": "down", "speed_bits_per_s": 2_500_000_000},
        {"name": "odd_0:1", "state": "up", "speed_bits_per_s": None},
        {"name": "usnic_0:1", "state": "unknown", "speed_bits_per_s": None},
    ]


def test_a_processor_of_another_kind_is_read_too(tmp_path: Path) -> None:
    power = tmp_path / "cpuinfo"
    power.write_text("processor\t: 0\ncpu\t\t: POWER9, altivec supported\n")
    assert system._read_processor(power)["name"] == "POWER9, altivec supported"
    assert system._read_processor(tmp_path / "missing")["name"].startswith("unknown: ")


def test_the_description_is_json() -> None:
    assert json.loads(json.dumps(system.describe_node() | system.describe_software()))
