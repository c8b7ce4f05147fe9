"""The time before the clock starts is split without loss."""

from __future__ import annotations

import subprocess
import sys
import time

import msgspec

from hpcai500.events import StartUp
from hpcai500.start_up import JOB_START_VARIABLE, LAUNCH_VARIABLE, StartUpTimer, process_start_ns


def test_the_start_of_a_process_is_told_to_a_tick() -> None:
    before_ns = time.time_ns()
    code = "from hpcai500.start_up import process_start_ns; print(process_start_ns())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert before_ns - 20_000_000 <= int(done.stdout) <= time.time_ns()


def test_all_time_since_the_job_started_is_in_a_part() -> None:
    start_ns = process_start_ns()
    timer = StartUpTimer({JOB_START_VARIABLE: str(start_ns - 5 * 10**9), LAUNCH_VARIABLE: str(start_ns - 10**9)})
    for part in ("import", "rendezvous", "import", "data_open", "model", "wait"):
        time.sleep(0.002)
        timer.lap(part)
    event = timer.event()
    passed_ns = time.time_ns() - (start_ns - 5 * 10**9)
    assert abs(sum(event.values()) - passed_ns) < 5e7
    assert abs(event["allocation_ns"] - 4 * 10**9) <= 10**7
    assert event["data_open_ns"] >= 2_000_000
    msgspec.convert(event, StartUp)


def test_without_a_driver_nothing_came_before_the_process() -> None:
    event = StartUpTimer({LAUNCH_VARIABLE: "soon"}).event()
    assert (event["allocation_ns"], event["launch_ns"]) == (0, 0)
