"""Runs in jobs of a real Slurm: they end well, are stopped, preempted, lose ranks and nodes, and go on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from virtual_cluster import RunningCluster, wait_until

from hpcai500.launches import read_launches
from hpcai500.ledger_reader import RANK
from hpcai500.record import list_ledgers
from hpcai500.verify import verify_submission

pytestmark = [pytest.mark.slurm, pytest.mark.mpi]

# Two ranks do 16 steps, which takes some seconds; a checkpoint is never far.
STEPS = ["report_steps=1", "batch_size_per_rank=8", "checkpoint_every_s=1"]


@dataclass
class Submitted:
    """A submission in the queue, made with the command that users type."""

    cluster: RunningCluster
    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def submit(self, data: Path, *words: object, settings: list[str] = STEPS) -> None:
        command = [sys.executable, "-m", "hpcai500.submit", "--cluster", "slurm", "--size", "smoke", "--device", "cpu"]
        command += ["--data", str(data), "--output", str(self.folder)]
        command += [word for setting in settings for word in ("--set", setting)]
        done = self.cluster.run([*command, *map(str, words)], env=self.env, cwd=self.folder.parent)
        assert done.returncode == 0, done.stderr

    def hpcai500(self, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hpcai500", *map(str, words)]
        return self.cluster.run(command, env=self.env, **options)

    @property
    def job(self) -> str:
        return next(launch.job for launch in read_launches(self.folder) if launch.what == "queued")

    def log(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((self.folder / "log").glob("slurm-*.out")))

    def wait_for(self, condition: Callable[[], object], what: str, within_s: float = 90) -> None:
        try:
            wait_until(condition, what, within_s)
        except AssertionError as error:
            nodes = self.cluster.run(["sinfo", "--long", "--Node"]).stdout
            raise AssertionError(f"{error}\n{self.cluster.job(self.job)}\n{nodes}\n{self.log()}") from None

    def wait_for_line(self, words: str, within_s: float = 90) -> str:
        """The whole line of the job's output that has these words, once it is there."""
        self.wait_for(lambda: words in self.log(), repr(words), within_s)
        return next(line for line in self.log().splitlines() if words in line)

    def wait_for_training(self, segment: int = 0, num_ranks: int = 2) -> None:
        """Return when all ranks of a segment are past some steps and a checkpoint."""

        def trains() -> bool:
            texts: dict[int, bytes] = defaultdict(bytes)
            for path in list_ledgers(self.folder / "run-1").get(segment, {}).values():
                for line in path.read_bytes().splitlines():
                    if rank := RANK.match(line):
                        texts[int(rank.group(1))] += line
            has_trained = (b'"checkpoint"' in text.split(b'"window"', 2)[-1] for text in texts.values())
            return len(texts) == num_ranks and all(has_trained)

        self.wait_for(trains, f"training in segment {segment}")

    def wait_for_valid(self, within_s: float = 120) -> None:
        path = self.folder / "submission.json"
        self.wait_for(path.exists, "the submission", within_s)
        verdict = verify_submission(path)
        assert verdict.valid, verdict.findings
        self.wait_for(lambda: "VALID" in self.log(), "the verdict")

    def processes(self) -> list[str]:
        """Processes on any node that have to do with this submission."""
        word, found = str(self.folder).encode(), []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(path.read_bytes())
            except OSError:  # it has just ended
                continue
        return [line.replace(b"\0", b" ").decode(errors="replace") for line in found if word in line]

    def kill_rank(self, node: str) -> None:
        done = self.cluster.run(["pkill", "--signal", "KILL", "--full", f"train {self.folder}"], node=node)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def submitted(cluster: RunningCluster, tmp_path: Path) -> Iterator[Submitted]:
    env = {**cluster.env, "XDG_STATE_HOME": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"}
    # The nodes share /tmp, and process numbers: Open MPI's folders, which bear such a number, would be the same.
    env["TMPDIR"] = "/dev/shm"
    submission = Submitted(cluster, tmp_path / "out", env)
    yield submission
    cluster.clear()
    # Slurm 22.05 forgets to free the GPUs of a job with whole nodes that was requeued while one of them was dead.
    cluster.run(["scontrol", "reconfigure"], check=True)
    assert submission.processes() == []


def test_runs_of_an_array_are_assembled_by_the_last_though_the_watcher_was_killed(
    submitted: Submitted, smoke_data: Path
) -> None:
    words = ["--nodes", 1, "--runs", 2, "--runs-at-once", 2, "--launcher", "mpirun", "--no-selfcheck"]
    submitted.submit(smoke_data, *words, settings=["communicator=torchdist"])
    command = [sys.executable, "-m", "hpcai500", "watch"]  # finds the newest submission by itself
    watcher = subprocess.Popen(command, env=submitted.env, cwd="/", stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert f"watching {submitted.folder.relative_to('/')}" in watcher.stdout.readline()
    assert watcher.stdout.readline().startswith("run 1: ")
    os.kill(watcher.pid, signal.SIGKILL)
    watcher.communicate()
    (state,) = json.loads(submitted.hpcai500("status", "--json", cwd="/").stdout)
    assert state["folder"] == str(submitted.folder)
    assert [run["job"] for run in state["runs"]] == [f"{submitted.job}_0", f"{submitted.job}_1"]
    again = submitted.hpcai500("watch", submitted.folder, timeout=120)
    assert again.returncode == 0, again.stdout + submitted.log()
    assert "run 2: completed, quality" in again.stdout
    submitted.wait_for_valid()
    assert submitted.log().count("VALID") == 1  # one of the two jobs, not both
    assert len(json.loads((submitted.folder / "submission.json").read_text())["runs"]) == 2


def test_a_job_near_its_time_limit_saves_itself_and_goes_on_later_with_fewer_nodes(
    submitted: Submitted, smoke_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "site.toml").write_text("signal_before_end_s = 45\n")
    words = ["--nodes", 2, "--time", "1", "--launcher", "mpirun", "--site", tmp_path / "site.toml", "--no-selfcheck"]
    # Twice 32 steps take longer than the 15 s until Slurm's signal, also where nothing else runs.
    submitted.submit(smoke_data, *words, settings=[*STEPS, "communicator=mpi", "batch_size_per_rank=2"])
    submitted.wait_for_line("goes back to the queue, since its time limit was near")
    submitted.wait_for(lambda: submitted.cluster.job(submitted.job)["JobState"] == "PENDING", "its place in the queue")
    changes = ["TimeLimit=10", "NumNodes=1", "NumTasks=1"]
    submitted.cluster.run(["scontrol", "update", f"JobId={submitted.job}", *changes], check=True)
    line = submitted.wait_for_line("before, its time limit was near")
    assert re.search(r" on node\d \(restart", line)  # one
    submitted.wait_for_valid()


def test_a_preempted_run_gives_way_and_goes_on(submitted: Submitted, smoke_data: Path) -> None:
    submitted.submit(
        smoke_data, "--nodes", 2, "--partition", "low", "--no-selfcheck", settings=[*STEPS, "communicator=mpi"]
    )
    submitted.wait_for_training()
    urgent = submitted.cluster.run(["srun", "-p", "main", "-N3", "--exclusive", "true"])
    assert urgent.returncode == 0, urgent.stderr
    words = "a job of higher priority was given its nodes"
    assert "epoch 0, step" in submitted.wait_for_line(f"goes back to the queue, since {words}")
    assert f"before, {words}" in submitted.wait_for_line("restart 1")
    submitted.wait_for_valid()


def test_a_run_survives_a_killed_rank_and_a_dead_node_and_goes_on_with_another(
    submitted: Submitted, smoke_data: Path
) -> None:
    cluster = submitted.cluster
    submitted.submit(smoke_data, "--nodes", 2, "--no-selfcheck", settings=[*STEPS, "communicator=mpi"])
    submitted.wait_for_training()
    submitted.kill_rank("node2")
    line = submitted.wait_for_line("goes back to the queue")
    assert "rank 1 on node2" in line
    assert "rank 1 on node2" in submitted.wait_for_line("restart 1")
    submitted.wait_for_training(segment=1)
    cluster.kill_node("node2")
    submitted.wait_for(lambda: cluster.job(submitted.job)["Restarts"] == "2", "the requeue", 60)
    line = submitted.wait_for_line("restart 2")
    assert "node2" in line.split("before, ")[1]
    assert "node2" not in line.split("before, ")[0]
    assert "node3" in line.split("before, ")[0]
    submitted.wait_for_valid()
    outcomes = [launch.outcome for launch in read_launches(submitted.folder) if launch.what == "ended"]
    assert outcomes == ["requeued", "requeued", "completed"]


def test_a_cancelled_run_is_over_and_its_canceller_is_named(submitted: Submitted, smoke_data: Path) -> None:
    submitted.submit(smoke_data, "--nodes", 2, "--no-selfcheck", settings=[*STEPS, "communicator=mpi"])
    submitted.wait_for_training()
    submitted.cluster.run(["scancel", submitted.job])
    watched = submitted.hpcai500("watch", submitted.folder, timeout=60)
    assert watched.returncode == 1
    assert "cancelled" in watched.stdout
    assert "by root at " in watched.stdout
    assert submitted.cluster.wait_for_job(submitted.job)["JobState"] == "CANCELLED"


@pytest.mark.parametrize("selfcheck", ["off", "require"])
def test_data_that_one_node_does_not_see_names_that_node(
    selfcheck: str, submitted: Submitted, smoke_data: Path
) -> None:
    cluster = submitted.cluster
    data = cluster.local / "smoke.h5"
    data.parent.mkdir(exist_ok=True)
    shutil.copy(smoke_data, data)  # seen here, where the plan is made, and on one of the nodes
    cluster.run(["cp", str(smoke_data), str(data)], node="node1", check=True)
    submitted.submit(data, "--nodes", 2, "--selfcheck", selfcheck, settings=[*STEPS, "communicator=mpi"])
    line = submitted.wait_for_line("hpcai500 job: run 1 failed")
    if selfcheck == "off":
        assert "rank 1 on node2" in line
        assert str(data) in line
    else:
        assert "the self-check refused a node" in line
        assert "node2" in next(line for line in submitted.log().splitlines() if str(data) in line)
    job = cluster.wait_for_job(submitted.job)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
