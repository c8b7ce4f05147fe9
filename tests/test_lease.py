"""A run folder belongs to one job at a time, and to nobody whose job is gone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hpcai500 import lease
from hpcai500.errors import RecordError, UsageError
from hpcai500.lease import LEASE_NAME, RunLease


def write_lease(folder: Path, **holder: object) -> None:
    (folder / LEASE_NAME).write_text(json.dumps({"token": "other", "job": "", "host": "node9", "pid": 1} | holder))


def test_a_lease_is_there_while_it_is_held_and_gone_afterwards(tmp_path: Path) -> None:
    held = RunLease(tmp_path, job="12")
    assert json.loads((tmp_path / LEASE_NAME).read_text())["job"] == "12"
    held.close()
    held.close()
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_is_alive_keeps_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "TOUCH_PERIOD_S", 0.05)
    held = RunLease(tmp_path, job="12")
    try:
        with pytest.raises(UsageError, match=r"is in use by job 12 on .*, which is alive; wait for its end"):
            RunLease(tmp_path, job="13", stale_s=5.0)
    finally:
        held.close()


def test_the_lease_of_a_job_that_is_gone_is_taken_over(tmp_path: Path) -> None:
    write_lease(tmp_path, job="12")
    held = RunLease(tmp_path, job="13", stale_s=0.3)
    assert json.loads((tmp_path / LEASE_NAME).read_text())["job"] == "13"
    held.close()
    assert list(tmp_path.iterdir()) == []


def test_a_requeued_job_takes_its_own_lease_over_at_once(tmp_path: Path) -> None:
    write_lease(tmp_path, job="12")
    RunLease(tmp_path, job="12", stale_s=1e6).close()


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_over_at_once(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write_lease(tmp_path, host=socket.gethostname(), pid=dead.pid)
    RunLease(tmp_path, job="", stale_s=1e6).close()


def test_a_lease_that_a_crash_cut_off_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / LEASE_NAME).write_text('{"token": "ab')
    RunLease(tmp_path, job="1", stale_s=0.3).close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot write in run folder"):
        RunLease(tmp_path / "missing", job="")


def test_closing_leaves_the_lease_of_another_alone(tmp_path: Path) -> None:
    held = RunLease(tmp_path, job="12")
    write_lease(tmp_path, job="13", pid=os.getpid())
    held.close()
    assert json.loads((tmp_path / LEASE_NAME).read_text())["job"] == "13"
