"""A run folder belongs to one job at a time: the lease says to whom, and shows that its holder is alive.

``lease.json`` is created by the first rank of a job and touched while the job runs. File locks are no help here: many
parallel file systems have none, or forget those of a node that died.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from hpcai500.errors import RecordError, UsageError

LEASE_NAME = "lease.json"
TOUCH_PERIOD_S = 5.0
STALE_S = 15.0  # untouched for three periods: its holder is gone


class RunLease:
    """Holds a run folder for this process; closed when the run's part is done.

    Args:
        run_folder: the folder.
        job: the scheduler's id of this job, or "". A requeued job keeps its id, so it takes its own lease over.
        stale_s: how long to look whether another holder is alive.

    Raises:
        UsageError: another job holds it and is alive.
        RecordError: the folder cannot be written.
    """

    def __init__(self, run_folder: Path, *, job: str, stale_s: float = STALE_S) -> None:
        self._path = run_folder / LEASE_NAME
        self._token = str(uuid.uuid4())
        self._holder = {"token": self._token, "job": job, "host": socket.gethostname(), "pid": os.getpid()}
        while not self._create():
            self._take_over(job, stale_s)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._touch, name="hpcai500-lease", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the folder back; a second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        if self._read().get("token") == self._token:
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        try:
            with self._path.open("x", encoding="utf-8") as file:
                json.dump(self._holder, file)
        except FileExistsError:
            return False
        except OSError as error:
            raise RecordError(
                f"cannot write in run folder {str(self._path.parent)!r} ({error.strerror}); free some space or give "
                "yourself the right to write there"
            ) from None
        return True

    def _take_over(self, job: str, stale_s: float) -> None:
        """Remove the lease of a holder that is gone.

        Raises:
            UsageError: it is alive.
        """
        holder = self._read()
        gone = bool(job) and holder.get("job") == job
        if holder.get("host") == socket.gethostname() and isinstance(holder.get("pid"), int):
            gone = gone or not Path(f"/proc/{holder['pid']}").exists()
        if not gone and self._is_touched(stale_s):
            who = f"job {holder['job']}" if holder.get("job") else f"process {holder.get('pid')}"
            raise UsageError(
                f"run folder {str(self._path.parent)!r} is in use by {who} on {holder.get('host')}, which is alive; "
                "wait for its end, or cancel it"
            )
        aside = self._path.with_name(f"{LEASE_NAME}.{self._token}")
        try:
            self._path.rename(aside)  # only one of several that want it can
            aside.unlink()
        except FileNotFoundError:
            return

    def _is_touched(self, stale_s: float) -> bool:
        """Whether somebody touches the file while we look; times of different machines are never compared."""
        try:
            before = self._path.stat().st_mtime_ns
            deadline_s = time.monotonic() + stale_s
            while time.monotonic() < deadline_s:
                time.sleep(min(0.5, stale_s / 10))
                if self._path.stat().st_mtime_ns != before:
                    return True
        except FileNotFoundError:
            pass
        return False

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # gone meanwhile, or cut by a crash
            return {}
        return content if isinstance(content, dict) else {}

    def _touch(self) -> None:
        while not self._stop.wait(TOUCH_PERIOD_S):
            try:
                os.utime(self._path)
            except OSError:  # a file system that hangs for a while is not ours to judge
                continue
