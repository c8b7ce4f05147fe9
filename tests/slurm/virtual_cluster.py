"""A real Slurm cluster for tests: what they do with it, and how it ends in any case.

The cluster is tethered: when this process ends, however it ends, its nodes end. What is then left is a folder, which
the next run of the tests removes; it tells a folder in use from a left one by the lock that the user holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

TOOL = Path(__file__).parents[2] / "tools/slurm_cluster.py"
sys.path.insert(0, str(TOOL.parent))

import slurm_cluster  # noqa: E402

NUM_NODES, CPUS_PER_NODE, GPUS_PER_NODE = 3, 2, 2
PREFIX = "hpcai500-slurm-"


class RunningCluster:
    """What tests do with the cluster.

    Attributes:
        root: its folder; logs lie in ``log/``.
        local: the "local disk" of a node, a file system of 256 MiB that each node has for itself at this path.
        env: variables with which the commands of Slurm on PATH are those of this cluster, for ``subprocess``.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.local = root, root / "local"
        self.env = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI_", "PMIX"))
        }
        self.env |= {"PATH": f"{root}/bin:{os.environ['PATH']}", "SLURM_CONF": f"{root}/etc/slurm.conf"}
        self._tether, self._owners_end = os.pipe()

    def _tool(self, *words: str) -> None:
        command = [sys.executable, str(TOOL), "--folder", str(self.root), *words]
        done = subprocess.run(command, stdin=self._tether, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    def up(self) -> None:
        words = ("--nodes", NUM_NODES, "--cpus", CPUS_PER_NODE, "--gpus", GPUS_PER_NODE, "--tether")
        self._tool("up", *map(str, words))

    def down(self) -> None:
        self._tool("down")
        os.close(self._owners_end)
        os.close(self._tether)

    def kill_node(self, name: str) -> None:
        """A power failure; Slurm notices within 10 s or so."""
        self._tool("kill", name)

    def revive(self) -> None:
        """Start the killed nodes again and return when Slurm would use them."""
        self._tool("revive", "--tether")

    def run(self, argv: Sequence[str], node: str | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end outside the nodes, as a user on a login node does, or in one of them.

        Args:
            argv: the command.
            node: "node1" ..., or "ctl" for the controller.
            options: for subprocess.run; text is captured, and after 120 s it is killed, unless told otherwise.
        """
        prefix = [] if node is None else slurm_cluster.Cluster(self.root).enter(node)
        defaults = {"capture_output": True, "text": True, "timeout": 120, "env": self.env}
        return subprocess.run([*prefix, *argv], **{"check": False, **defaults, **options})  # noqa: PLW1510

    def sbatch(self, *argv: str) -> str:
        """Submit and return the job's number."""
        done = self.run(["sbatch", "--parsable", *argv])
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """What the controller says of a job, such as JobState, ExitCode, Restarts and NodeList."""
        words = self.run(["scontrol", "show", "job", "--oneliner", job_id]).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_job(self, job_id: str, states: Sequence[str] = (), *, within_s: float = 120) -> dict[str, str]:
        """Return what the controller says when a job is in one of these states, or has ended if none is named."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY")
        wait_until(lambda: self.job(job_id).get("JobState") in (states or ended), f"job {job_id}", within_s)
        return self.job(job_id)

    def clear(self) -> None:
        """Cancel what runs or waits, and start what was killed."""
        self.run(["scancel", "--user", "root"])
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.run(["squeue", "--noheader"]).stdout, "the end of jobs", 30)
        self.revive()
        # Slurm 22.05 keeps the GPUs of a whole-node job that was requeued while one of its nodes was dead.
        self.run(["scontrol", "reconfigure"])


def wait_until(condition: Callable[[], object], what: str, within_s: float) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, f"{what} did not come within {within_s} s"
        time.sleep(0.1)


def remove_leftovers(parent: Path) -> list[Path]:
    """End the clusters whose tests have ended without doing so, and remove their folders."""
    removed = []
    for lock in parent.glob(f"{PREFIX}*/owner"):
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            slurm_cluster.Cluster(lock.parent / "c").down()
            shutil.rmtree(lock.parent)
            removed.append(lock.parent)
    return removed


@contextlib.contextmanager
def owned_folder(parent: Path) -> Iterator[Path]:
    """A new folder that ``remove_leftovers`` leaves alone as long as this process holds it."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    with (folder / "new").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (folder / "new").rename(folder / "owner")  # so a lock that nobody holds is never seen
        try:
            yield folder
        finally:
            shutil.rmtree(folder)
