"""What devices draw: counters of the kernel's powercap as files, and of NVML as a library with its functions."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from hpcai500.energy import EnergyMeter, NvmlCounter, RaplCounter, open_counters
from hpcai500.errors import BackendUnavailableError
from hpcai500.events import Energy
from hpcai500.ledger import LedgerWriter, scan_ledger

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


def test_dies_of_a_package_are_added_up_and_counted_as_one_device(tmp_path: Path) -> None:
    zones = [write_zone(tmp_path, f"intel-rapl:{die}", f"package-{die // 2}-die-{die % 2}", 0) for die in range(4)]
    counter = RaplCounter(tmp_path)
    for zone in zones:
        zone.write_text("3000000\n")
    assert (counter.num_devices, counter.read_j()) == (2, 12.0)


def test_packages_are_added_up_and_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    first, second = two_packages(tmp_path)
    counter = RaplCounter(tmp_path)
    assert (counter.num_devices, counter.read_j()) == (2, 0)
    first.write_text("3000000\n")
    assert counter.read_j() == pytest.approx(2)
    second.write_text("1500000\n")  # half a J up to the end, one and a half after
    assert counter.read_j() == pytest.approx(4)


def test_what_cannot_be_read_is_no_counter(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="no energy counters"):
        RaplCounter(tmp_path)
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1).write_text("soon\n")
    with pytest.raises(BackendUnavailableError, match="cannot be read"):
        RaplCounter(tmp_path)
    with pytest.raises(BackendUnavailableError, match="no energy on this machine"):
        NvmlCounter("libno-such-driver.so.1")
    with pytest.raises(BackendUnavailableError, match="no energy on this machine"):
        NvmlCounter("libc.so.6")  # a library without its functions


def test_a_meter_reads_between_and_its_words_fit_into_a_ledger(tmp_path: Path) -> None:
    first, _ = two_packages(tmp_path / "powercap")
    meter = EnergyMeter([RaplCounter(tmp_path / "powercap")], period_s=0.01)
    for energy_uj in (RANGE_UJ - 1_000_000, 1_000_000):  # once round, seen only by whoever looks in between
        (tmp_path / "new").write_text(f"{energy_uj}\n")
        (tmp_path / "new").replace(first)  # as a kernel's file, which is never seen half written
        time.sleep(0.3)
    (value,) = meter.stop()
    with LedgerWriter(tmp_path / "rank-00000.jsonl") as ledger:
        ledger.write("energy", value)
    (entry,) = scan_ledger(tmp_path / "rank-00000.jsonl", place="")
    assert entry.value == Energy(**value)  # type: ignore[union-attr]
    assert value["energy_j"] == pytest.approx(RANGE_UJ * 1e-6)
    assert value["num_readings"] > 3
    assert 0.6 <= value["duration_ns"] * 1e-9 < 60


def test_a_counter_that_fails_later_tells_nothing(tmp_path: Path) -> None:
    first, _ = two_packages(tmp_path)
    meter = EnergyMeter([RaplCounter(tmp_path)])
    first.unlink()
    assert meter.stop() == []
    assert EnergyMeter([]).stop() == []


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
    counter = NvmlCounter(make_nvml(tmp_path))
    assert (counter.source, counter.num_devices) == ("nvml", 2)
    assert counter.read_j() == pytest.approx(5)  # each draws 2.5 J between two readings
    assert counter.read_j() == pytest.approx(10)


@pytest.mark.parametrize(("num_gpus", "status", "words"), [(0, 0, "no GPU"), (2, 3, "no energy")])
def test_no_gpu_or_one_that_does_not_count_is_no_counter(
    tmp_path: Path, num_gpus: int, status: int, words: str
) -> None:
    with pytest.raises(BackendUnavailableError, match=words):
        NvmlCounter(make_nvml(tmp_path, num_gpus=num_gpus, status=status))


def test_the_counters_of_this_machine_count(tmp_path: Path) -> None:
    counters = open_counters(on_cuda=True)
    readings = [counter.read_j() for counter in counters]
    assert all(counter.read_j() >= reading >= 0 for counter, reading in zip(counters, readings, strict=True))
