"""What Slurm's commands and launchers print is understood; recorded from Slurm 22.05 and Open MPI 5 and 4.1."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from hpcai500.errors import BackendUnavailableError
from hpcai500.launch.queue import Queue, parse_sacct, parse_scontrol, parse_squeue, reason_in_words
from hpcai500.launch.step_output import BadEnd, LauncherOutput

SQUEUE = """\
31_2|31|PENDING|JobArrayTaskLimit|N/A|N/A||1|main
32|32|PENDING|PartitionConfig|N/A|N/A||9|main
31_0|33|RUNNING|None|1795513541|1827049541|node1|1|main
31_1|34|COMPLETED|None|1795513541|1795513543|node[1-2]|2|main
"""
SACCT = """\
17|17|CANCELLED by 0|None|1700000000|1700000100|node[1-2]|2|main
18|18|CANCELLED by 4294967294|None|1795512995|1795512999|node[1-2]|2|main
20|20|PREEMPTED|None|1795513079|1795513108|node[1-2]|2|low
31_1|34|RUNNING|None|1795513541|Unknown|node1|1|main
31_3|31|PENDING|JobArrayTaskLimit|Unknown|Unknown|None assigned|1|main
"""
SCONTROL = (
    "JobId=34 ArrayJobId=31 ArrayTaskId=1 ArrayTaskThrottle=2 JobName=wrap UserId=root(0) GroupId=root(0) "
    "MCS_label=N/A Priority=4294901729 Nice=0 Account=root QOS=normal JobState={state} Reason={reason} "
    "Dependency=(null) Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:03 "
    "StartTime=1795513541 EndTime=1827049541 PreemptEligibleTime=1795513541 PreemptTime={preempted} Deadline=N/A "
    "Partition=main NodeList=node1 BatchHost=node1 NumNodes=1\n"
)


def test_squeue_tells_state_reason_and_nodes() -> None:
    jobs = parse_squeue(SQUEUE)
    assert jobs["31_2"].describe() == "in the queue: waiting for another run of this submission"
    assert jobs["32"].describe() == "in the queue: the partition has not so many nodes; cancel it and ask for fewer"
    assert jobs["31_0"].describe() == "running on node1"
    assert jobs["31_0"].ended_s is None  # squeue gives the time limit's end of a job that runs
    assert (jobs["31_1"].raw_id, jobs["31_1"].ended_s, jobs["31_1"].num_nodes) == ("34", 1795513543.0, 2)
    assert [job.is_active for job in jobs.values()] == [True, True, True, False]


def test_sacct_tells_who_cancelled_a_job() -> None:
    jobs = parse_sacct(SACCT)
    assert (jobs["17"].state, jobs["17"].cancelled_by, jobs["17"].ended_s) == ("CANCELLED", "root", 1700000100.0)
    assert "cancelled by root on 2023-11-1" in jobs["17"].describe()
    assert jobs["18"].cancelled_by == "user 4294967294"
    assert (jobs["20"].state, jobs["20"].is_active) == ("PREEMPTED", False)
    assert (jobs["31_1"].ended_s, jobs["31_3"].nodes) == (None, "")


def test_scontrol_tells_at_once_what_becomes_of_a_job() -> None:
    def parse(state: str, reason: str = "None", restarts: int = 0, preempted: str = "None") -> object:
        return parse_scontrol(SCONTROL.format(state=state, reason=reason, restarts=restarts, preempted=preempted))

    record = parse_scontrol(SCONTROL.format(state="RUNNING", reason="None", restarts=2, preempted="1795513600"))
    assert (record.state, record.restarts, record.can_requeue, record.is_preempted) == ("RUNNING", 2, True, True)
    assert record.started_s == 1795513541.0
    assert not parse("RUNNING").is_preempted  # type: ignore[attr-defined]
    assert parse("COMPLETING", reason="TimeLimit").state == "TIMEOUT"  # type: ignore[attr-defined]
    assert parse_scontrol("").state == ""


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Resources", "waiting for nodes to become free"),
        ("(Priority)", "waiting behind jobs of higher priority"),
        ("None", "waiting"),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-2]", "waiting for nodes that are down or reserved"),
        ("SomethingNew", "waiting (SomethingNew)"),
    ],
)
def test_reasons_are_put_in_words(reason: str, words: str) -> None:
    assert reason_in_words(reason) == words


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is PATH; see ``write_command``."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def write_command(folder: Path, name: str, output: str = "", error: str = "", code: int = 0) -> None:
    shell = shutil.which("sh", path="/bin:/usr/bin")
    (folder / f"{name}.out").write_text(output)
    (folder / f"{name}.err").write_text(error)
    read = 'while IFS= read -r line; do printf "%s\\n" "$line"; done'
    lines = [f"{read} <{folder / name}.out", f"{read} <{folder / name}.err >&2", f'echo "$@" >>{folder / name}.args']
    (folder / name).write_text("\n".join([f"#!{shell}", *lines, f"exit {code}"]) + "\n")
    (folder / name).chmod(stat.S_IRWXU)


def test_sacct_completes_what_squeue_does_not_know(commands: Path) -> None:
    write_command(commands, "squeue", SQUEUE)
    write_command(commands, "sacct", SACCT)
    jobs = Queue().ask(["31_0", "17", "999"])
    assert {job: told.state for job, told in jobs.items()} == {
        "31_0": "RUNNING",
        "17": "CANCELLED",
        "999": "UNKNOWN",
    }
    assert jobs["999"].describe() == "no longer known to Slurm"


def test_without_sacct_jobs_that_squeue_forgot_are_unknown(commands: Path) -> None:
    write_command(commands, "squeue", error="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert Queue().ask(["17"])["17"].state == "UNKNOWN"


def test_what_has_ended_is_not_asked_for_again(commands: Path) -> None:
    write_command(commands, "squeue", SQUEUE)
    queue = Queue()
    for _ in range(3):
        assert queue.ask(["31_1"])["31_1"].state == "COMPLETED"
    assert len((commands / "squeue.args").read_text().splitlines()) == 1


def test_a_controller_that_does_not_answer_is_said(commands: Path) -> None:
    error = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
    write_command(commands, "squeue", error=error, code=1)
    with pytest.raises(BackendUnavailableError, match=r"Slurm does not answer squeue .*Unable to contact"):
        Queue().ask(["17"])


def test_no_slurm_here_is_said(commands: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="'squeue' is not on PATH, so there is no Slurm here"):
        Queue().ask(["17"])


SRUN_EXIT = b"""\
hpcai500 train: rank 3: no such file
srun: error: node2: task 3: Exited with exit code 2
srun: launch/slurm: _step_signal: Terminating StepId=1.0
slurmstepd-node1: error: *** STEP 1.0 ON node1 CANCELLED AT 2026-11-24T09:31:58 ***
srun: error: node1: tasks 0-1: Killed
srun: error: node2: task 2: Terminated
"""
SRUN_KILL = b"""\
srun: cluster configuration lacks support for cpu binding
srun: error: node1: task 1: Killed
srun: Force Terminated StepId=5.0
"""
SRUN_NODE = b"""\
slurmstepd-node1: error: *** STEP 22.0 ON node1 CANCELLED AT 2026-11-24T09:38:46 DUE TO NODE FAILURE, SEE SLURMCTLD LOG
srun: error: Node failure on node2
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
"""
RULE = b"-" * 74 + b"\n"
PRTE_SIGNAL = b"\n".join(
    [b"prterun noticed that process rank 1 with PID 1325 on node node1 exited on", b"signal 9 (Killed).", b""]
)
PRTE_CODE = b"""\
prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-node1-1442@1,1]
   Exit code:    76
"""
ORTE_CHATTER = b"""\
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
"""
ORTE_CODE = b"""\
mpirun.openmpi detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[19815,1],3]
  Exit code:    2
"""


def take(output: bytes) -> tuple[BadEnd | None, bytes]:
    launcher = LauncherOutput()
    shown = b"".join(map(launcher.take, output.splitlines(keepends=True)))
    return launcher.first, shown + launcher.close()


@pytest.mark.parametrize(
    ("output", "words", "shown"),
    [
        (SRUN_EXIT, "rank 3 on node2 ended with exit code 2", b"hpcai500 train: rank 3: no such file\n"),
        (SRUN_KILL, "rank 1 on node1 was ended by SIGKILL", b""),
        (SRUN_NODE, "node node2 failed", SRUN_NODE.splitlines(keepends=True)[0]),
        (RULE + PRTE_SIGNAL + RULE, "rank 1 on node1 was ended by SIGKILL", b""),
        (RULE + PRTE_CODE + RULE, "rank 1 ended with exit code 76", b""),
        (RULE + ORTE_CHATTER + RULE + RULE + ORTE_CODE + RULE, "rank 3 ended with exit code 2", b""),
        (b"srun: error: node2: tasks 2-3: Segmentation fault (core dumped)\n", "ranks 2-3 on node2 were ended", b""),
        (b"srun: error: node2: task 2: Out Of Memory\n", "rank 2 on node2 was ended by SIGKILL", b""),
    ],
)
def test_the_first_that_ended_badly_is_read_from_the_launcher(output: bytes, words: str, shown: bytes) -> None:
    first, passed = take(output)
    assert first is not None
    assert first.describe().startswith(words)
    assert passed == shown


def test_what_ranks_write_passes_unchanged() -> None:
    output = b"a line\n" + RULE + b"a table of somebody else\n" + RULE + b"srun is a word\n" + RULE + b"unfinished"
    assert take(output) == (None, output)
