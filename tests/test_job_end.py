"""What becomes of a run when its ranks have ended."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from hpcai500.failure import Failure
from hpcai500.job_end import Decision, End, decide, is_stuck
from hpcai500.launch.launch_config import LaunchConfig
from hpcai500.launch.queue import JobRecord
from hpcai500.launch.step_output import BadEnd
from hpcai500.record import Position

LAUNCH = LaunchConfig(cluster="slurm", num_nodes=2, ranks_per_node=1, gpus_per_node=0, max_restarts=3, python="python3")
RUNNING = JobRecord(state="RUNNING", can_requeue=True)
START, LATER = Position(0, 0), Position(0, 5)
STOPPED = End(75, is_complete=False, record=RUNNING)
KILLED = End(137, is_complete=False, bad_end=BadEnd("1", "node2", 137), record=RUNNING)


def failure(exit_code: int, reason: str) -> Failure:
    return Failure(segment=0, rank=1, host="node2", reason=reason, exit_code=exit_code, wall_ns=0)


def judge(end: End, launch: LaunchConfig = LAUNCH, restarts: int = 0, positions: tuple[Position, ...] = ()) -> Decision:
    return decide(end, launch, restarts=restarts, positions=list(positions or (START, LATER)))


def test_a_complete_run_is_over_even_if_the_job_is_being_ended() -> None:
    assert judge(End(0, is_complete=True, terminated=True)).outcome == "completed"


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (replace(STOPPED, stop_asked=True), "its time limit was near"),
        (
            replace(STOPPED, stop_asked=True, record=replace(RUNNING, is_preempted=True)),
            "a job of higher priority was given its nodes",
        ),
        (KILLED, "rank 1 on node2 was ended by SIGKILL"),
        (replace(KILLED, failure=failure(76, "rank 1 on node2 is gone")), "rank 1 on node2 is gone"),
        (End(76, is_complete=False, bad_end=BadEnd("", "node2", None), record=RUNNING), "node node2 failed"),
    ],
)
def test_what_can_go_on_goes_back_to_the_queue(end: End, reason: str) -> None:
    decision = judge(end)
    assert (decision.outcome, decision.must_requeue, decision.reason) == ("requeued", True, reason)
    assert decision.exit_code in (75, 76)


@pytest.mark.parametrize("exit_code", [1, 2])
def test_what_would_fail_again_is_final_although_the_launcher_killed_the_others(exit_code: int) -> None:
    noted = judge(replace(KILLED, failure=failure(exit_code, "no such file")))
    seen = judge(replace(KILLED, bad_end=BadEnd("1", "node2", exit_code)))
    assert [noted.outcome, seen.outcome] == ["failed", "failed"]
    assert [noted.exit_code, seen.exit_code] == [exit_code, exit_code]
    assert noted.reason == "rank 1 on node2: no such file"


def test_a_cancelled_job_stays_cancelled() -> None:
    end = replace(STOPPED, terminated=True, cancelled_by=" by ada at 12:00:00")
    for state in ("CANCELLED", "COMPLETING", ""):
        decision = judge(replace(end, record=JobRecord(state=state)))
        assert (decision.outcome, decision.must_requeue) == ("cancelled", False)
        assert decision.reason == "the job was cancelled by ada at 12:00:00"


def test_what_slurm_requeued_itself_is_left_to_it() -> None:
    end = replace(KILLED, bad_end=BadEnd("", "node2", None), terminated=True)
    decision = judge(replace(end, record=JobRecord(state="COMPLETING", restarts=1)))
    assert (decision.outcome, decision.must_requeue, decision.reason) == ("requeued", False, "node node2 failed")


def test_a_job_that_was_ended_at_its_limit_is_requeued() -> None:
    decision = judge(replace(KILLED, bad_end=None, terminated=True, record=replace(RUNNING, state="TIMEOUT")))
    assert decision.must_requeue
    assert decision.reason == "the time limit came before a checkpoint"


def test_two_starts_that_got_nowhere_are_the_last() -> None:
    stuck = (LATER, LATER, LATER)
    decision = judge(KILLED, positions=stuck)
    assert (decision.outcome, decision.must_requeue) == ("given up", False)
    assert "twice in a row it did not get beyond epoch 0, step 5" in decision.reason
    preempted = replace(STOPPED, stop_asked=True, record=replace(RUNNING, is_preempted=True))
    assert judge(preempted, positions=stuck).must_requeue  # that was no fault of its own
    assert not is_stuck([START, START])
    assert not is_stuck([START, LATER, LATER])


def test_restarts_have_an_end_and_can_be_switched_off() -> None:
    decision = judge(KILLED, restarts=3)
    assert decision.outcome == "given up"
    assert "3 restarts are the most allowed" in decision.reason
    assert judge(KILLED, msgspec.structs.replace(LAUNCH, requeue=False)).outcome == "stopped"
    assert judge(replace(KILLED, record=replace(RUNNING, can_requeue=False))).outcome == "stopped"


def test_ctrl_c_in_an_allocation_is_no_failure() -> None:
    assert judge(End(130, is_complete=False, record=RUNNING)).outcome == "interrupted"
