"""What is read while a run is trained: counters of powercap as files, of NVML as a library, recorded answers of Slurm
and of BMCs; and the thread that reads them.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
from recording import new_ledger

from hpcai500.energy.ipmi import IpmiSource, parse_power_w
from hpcai500.energy.nvml import NvmlSource
from hpcai500.energy.rapl import RaplSource
from hpcai500.energy.recorder import EnergyMeter
from hpcai500.energy.slurm import SlurmSource
from hpcai500.energy.sources import open_sources
from hpcai500.errors import BackendUnavailableError
from hpcai500.events import Energy
from hpcai500.ledger_reader import scan_ledger

RANGE_UJ = 65_532_610_987  # of a Skylake server
NVML_C = """
typedef void *device;
static unsigned long long energies_mj[2] = {1000, 5000};
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = NUM_GPUS; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *handle) { *handle = &energies_mj[index]; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(device handle, unsigned long long *energy_mj)
{ *energy_mj = *(unsigned long long *)handle += 2500; return STATUS; }
"""
# As ipmitool 1.8.18 and FreeIPMI 1.6 print them.
IPMITOOL = """
    Instantaneous power reading:                   228 Watts
    Minimum during sampling period:                  2 Watts
    Maximum during sampling period:                462 Watts
    Average power reading over sample period:      231 Watts
    IPMI timestamp:                           Thu Mar  2 14:28:50 2023
    Sampling period:                          00000001 Seconds.
    Power reading state is:                   activated

"""
FREEIPMI = """Current Power                        : 164 Watts
Minimum Power over sampling duration : 4 watts
Maximum Power over sampling duration : 416 watts
Average Power over sampling duration : 165 watts
Time Stamp                           : 03/02/2023 - 14:28:50
Statistics reporting time period     : 1000 milliseconds
Power Measurement                    : Active
"""
SLURM = Path(__file__).parent / "traces/slurm"  # recorded of Slurm 22.05 with acct_gather_energy/pm_counters


def write_zone(folder: Path, zone: str, name: str, energy_uj: int) -> Path:
    path = folder / zone
    path.mkdir(parents=True, exist_ok=True)
    for file, text in (("name", name), ("max_energy_range_uj", str(RANGE_UJ)), ("energy_uj", str(energy_uj))):
        (path / file).write_text(text + "\n")
    return path / "energy_uj"


def two_packages(folder: Path) -> tuple[Path, Path]:
    """Two packages, and zones that belong to them or to no processor and must not be counted."""
    write_zone(folder, "intel-rapl:0:0", "core", 10**9)
    write_zone(folder, "intel-rapl:2", "psys", 10**9)
    (folder / "intel-rapl").mkdir()
    first = write_zone(folder, "intel-rapl:0", "package-0", 1_000_000)
    return first, write_zone(folder, "intel-rapl:1", "package-1", RANGE_UJ - 500_000)


def program(folder: Path, name: str, script: str) -> Path:
    """A command that does what is written."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# ---- processors ------------------------------------------------------------------------------------------------------


def test_dies_of_a_package_are_added_up_and_counted_as_one_device(tmp_path: Path) -> None:
    zones = [write_zone(tmp_path, f"intel-rapl:{die}", f"package-{die // 2}-die-{die % 2}", 0) for die in range(4)]
    source = RaplSource(tmp_path)
    for zone in zones:
        zone.write_text("3000000\n")
    assert (source.num_devices, source.read()[1]) == (2, 12.0)


def test_packages_are_added_up_and_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    first, second = two_packages(tmp_path)
    source = RaplSource(tmp_path)
    assert (source.num_devices, source.read()[1]) == (2, 0)
    first.write_text("3000000\n")
    assert source.read()[1] == pytest.approx(2)
    second.write_text("1500000\n")  # half a J up to the end, one and a half after
    assert source.read()[1] == pytest.approx(4)


def test_what_cannot_be_read_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="no energy counters"):
        RaplSource(tmp_path)
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1).write_text("soon\n")
    with pytest.raises(BackendUnavailableError, match="cannot be read"):
        RaplSource(tmp_path)
    with pytest.raises(BackendUnavailableError, match="no energy on this machine"):
        NvmlSource("libno-such-driver.so.1")
    with pytest.raises(BackendUnavailableError, match="no energy on this machine"):
        NvmlSource("libc.so.6")  # a library without its functions


# ---- the thread that reads -------------------------------------------------------------------------------------------


class FastRapl(RaplSource):
    period_s = 0.01


def test_a_meter_reads_between_and_its_words_fit_into_a_ledger(tmp_path: Path) -> None:
    first, _ = two_packages(tmp_path / "powercap")
    meter = EnergyMeter([FastRapl(tmp_path / "powercap")])
    begin_ns = time.time_ns()
    meter.begin()
    time.sleep(0.2)
    for energy_uj in (RANGE_UJ - 1_000_000, 1_000_000):  # once round, seen only by whoever looks in between
        (tmp_path / "new").write_text(f"{energy_uj}\n")
        (tmp_path / "new").replace(first)  # as a kernel's file, which is never seen half written
        time.sleep(0.3)
    (value,) = meter.stop()
    end_ns = time.time_ns()
    with new_ledger(tmp_path / "node-00000.jsonl") as ledger:
        ledger.write("energy", value)
    (entry,) = scan_ledger(tmp_path / "node-00000.jsonl", place="")
    assert entry.value == Energy(**value)  # type: ignore[union-attr]
    assert value["energy_j"] == pytest.approx(RANGE_UJ * 1e-6)
    assert value["num_readings"] > 3
    assert begin_ns <= value["wall_ns"] <= value["wall_ns"] + value["duration_ns"] <= end_ns
    assert value["duration_ns"] >= 8e8
    assert value["duration_ns"] / (value["num_readings"] - 1) <= value["longest_gap_ns"] <= value["duration_ns"]


def test_a_source_that_fails_at_the_end_tells_nothing_and_one_that_fails_between_a_gap(tmp_path: Path) -> None:
    first, _ = two_packages(tmp_path)
    meter = EnergyMeter([FastRapl(tmp_path)])
    meter.begin()
    first.rename(tmp_path / "away")
    time.sleep(0.3)
    (tmp_path / "away").rename(first)
    time.sleep(0.1)
    (value,) = meter.stop()
    assert value["longest_gap_ns"] >= 3e8 > value["duration_ns"] / value["num_readings"]
    meter = EnergyMeter([FastRapl(tmp_path)])
    meter.begin()
    first.unlink()
    assert meter.stop() == []


# ---- GPUs ------------------------------------------------------------------------------------------------------------


def make_nvml(folder: Path, *, num_gpus: int = 2, status: int = 0) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "nvml.c").write_text(NVML_C)
    library = folder / f"libnvml-{num_gpus}-{status}.so"
    words = [f"-DNUM_GPUS={num_gpus}", f"-DSTATUS={status}"]
    subprocess.run([compiler, "-shared", "-fPIC", *words, "-o", library, folder / "nvml.c"], check=True)
    return str(library)


def test_gpus_are_added_up(tmp_path: Path) -> None:
    source = NvmlSource(make_nvml(tmp_path))
    assert (source.name, source.num_devices) == ("nvml", 2)
    assert source.read()[1] == pytest.approx(5)  # each draws 2.5 J between two readings
    assert source.read()[1] == pytest.approx(10)


@pytest.mark.parametrize(("num_gpus", "status", "words"), [(0, 0, "no GPU"), (2, 3, "no energy")])
def test_no_gpu_or_one_that_does_not_count_is_no_source(tmp_path: Path, num_gpus: int, status: int, words: str) -> None:
    with pytest.raises(BackendUnavailableError, match=words):
        NvmlSource(make_nvml(tmp_path, num_gpus=num_gpus, status=status))


# ---- nodes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "power_w"), [(IPMITOOL, 228), (FREEIPMI, 164)])
def test_what_a_bmc_says_by_either_command_is_power(text: str, power_w: float) -> None:
    assert parse_power_w(text) == power_w


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("DCMI request failed because: Invalid command (c1)", "no power reading"),
        (IPMITOOL.replace("228", "  0"), "no power reading"),
        (IPMITOOL.replace("activated", "deactivated"), "does not measure"),
        (FREEIPMI.replace("Active", "Not Available"), "no power reading|does not measure"),
    ],
)
def test_a_bmc_that_does_not_measure_gives_no_reading(text: str, words: str) -> None:
    if "Not Available" in text:
        text = text.replace("164", "0")
    with pytest.raises(ValueError, match=words):
        parse_power_w(text)


def test_the_command_that_works_reads_power_and_the_meter_integrates_it(tmp_path: Path) -> None:
    broken = program(tmp_path, "ipmitool", "echo 'Could not open device at /dev/ipmi0' >&2; exit 1")
    (tmp_path / "answer").write_text(FREEIPMI)
    works = program(tmp_path, "ipmi-dcmi", f"cat {tmp_path}/answer")
    source = IpmiSource(0.03, [[str(broken)], [str(works)]])
    source.period_s = 0.05
    meter = EnergyMeter([source])
    meter.begin()
    time.sleep(0.3)
    (value,) = meter.stop()
    assert (value["source"], value["accuracy"], value["plugin"]) == ("ipmi", 0.03, str(works))
    assert value["energy_j"] == pytest.approx(164 * value["duration_ns"] * 1e-9)
    with pytest.raises(BackendUnavailableError, match="Could not open device"):
        IpmiSource(0.03, [[str(broken)], [str(tmp_path / "missing")]])


def slurm_commands(folder: Path, monkeypatch: pytest.MonkeyPatch, *answers: str, plugin: str = "pm_counters") -> None:
    """Commands of Slurm that say what was recorded, sstat one line after the other."""
    config = (SLURM / "config.txt").read_text().replace("pm_counters", plugin)
    (folder / "config").write_text(config)
    (folder / "sstat.txt").write_text("\n".join(answers) + "\n")
    program(folder, "scontrol", f'[ "$*" = "show config" ] && cat {folder}/config')
    program(folder, "sstat", f"head -n 1 {folder}/sstat.txt; sed -i 1d {folder}/sstat.txt")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


STEP = {"SLURM_JOB_ID": "4", "SLURM_STEP_ID": "0"}


def test_slurm_tells_the_energy_of_all_nodes_of_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_commands(tmp_path, monkeypatch, *(SLURM / "sstat.txt").read_text().splitlines())
    source = SlurmSource(STEP)
    assert (source.num_devices, source.plugin) == (2, "pm_counters")
    assert [source.read()[1] for _ in range(3)] == [1140, 1680, 2280]


@pytest.mark.parametrize("answer", ["18446744073709549568|node[1-2]", "", "|node1", "0"])
def test_what_slurm_cannot_have_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    slurm_commands(tmp_path, monkeypatch, "540|node[1-2]", answer, "1140|node[1-2]")
    source = SlurmSource(STEP)
    with pytest.raises((ValueError, OSError)):
        source.read()
    assert source.read()[1] == 1140


def test_a_site_that_gathers_no_energy_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm_commands(tmp_path, monkeypatch, "0|node1", plugin="none")
    with pytest.raises(BackendUnavailableError, match="gathers no energy"):
        SlurmSource(STEP)
    with pytest.raises(BackendUnavailableError, match="no step"):
        SlurmSource({})
    (tmp_path / "scontrol").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailableError, match="tells no energy"):
        SlurmSource(STEP)


def test_the_sources_of_this_machine_count_and_other_ranks_read_none() -> None:
    sources = open_sources(local_rank=0, rank=0, on_cuda=True)
    readings = [source.read() for source in sources]
    assert all(source.read()[1] >= value >= 0 for source, (_, value) in zip(sources, readings, strict=True))
    assert open_sources(local_rank=1, rank=3, on_cuda=True, ipmi_accuracy=0.01) == []
