"""A real PostgreSQL server for tests, in a temporary folder, reached over a Unix socket alone.

initdb refuses to run as root, so as root the server runs as the user nobody.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED_S = 30.0


def find_programs() -> Path | None:
    """The folder of initdb and postgres; the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return found[-1].parent if found else None


class PostgresqlServer:
    """A server that runs until ``stop``; ``fresh_url`` makes an empty database."""

    def __init__(self) -> None:
        programs = find_programs()
        assert programs is not None
        self.programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="hpcai500-pg-"))
        self.user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self.user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self.folder, "nobody", "nogroup")
        words = [programs / "initdb", "-D", self.folder / "data", "-U", "board", "-A", "trust", "-E", "UTF8"]
        self.run([*words, "--locale=C", "--no-sync"])
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server and wait until it answers."""
        words = [self.programs / "postgres", "-D", self.folder / "data", "-k", self.folder, "-c", "listen_addresses="]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd=self.folder, **self.user)
        deadline = time.monotonic() + STARTED_S
        while subprocess.run([self.programs / "pg_isready", "-q", "-h", self.folder], check=False).returncode:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.05)
        return self.process

    def kill(self) -> None:
        """Kill the server and all of its processes at once, as a power cut would."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for process in (self.process.pid, *map(int, children)):
            os.kill(process, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it and remove its folder."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # "fast": ends connections that are open
            self.process.wait()
        shutil.rmtree(self.folder)

    def run(self, words: list[Any]) -> None:
        subprocess.run(words, check=True, capture_output=True, cwd=self.folder, **self.user)

    def fresh_url(self) -> str:
        """The URL of a database that is new and empty."""
        name = f"board_{secrets.token_hex(6)}"
        self.run([self.programs / "createdb", "-h", self.folder, "-U", "board", name])
        return f"postgresql://board@/{name}?host={self.folder}"
