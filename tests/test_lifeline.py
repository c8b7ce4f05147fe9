"""Lifelines: ranks of one process that are muted, cut off or attacked, and real ranks that are killed or stopped."""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import wait_for
from test_comm import MARKS, PROGRAMS, launch

from hpcai500.comm import lifeline, lifeline_ends
from hpcai500.comm.calls import Calls, CallState, collective
from hpcai500.comm.lifeline import Lifeline
from hpcai500.comm.lifeline_ends import Limits, overdue
from hpcai500.errors import CommunicationError, DataError, StoppedError
from hpcai500.failure import failure_path, note_failure, read_failure, report_failure

HOST = socket.gethostname()
QUICK = Limits(heartbeat_s=0.05, silence_s=0.6, leave_s=0.3, connect_s=0.5)


class ThreadComm:
    """A rank that is a thread, with what a lifeline needs of a communicator."""

    timeout_s = 60.0

    def __init__(self, rank: int, shared: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, barrier.parties
        self.local_rank, self.local_size = rank, self.size
        self.calls = Calls("threads", rank)
        self._shared, self._barrier = shared, barrier

    def barrier(self) -> None:
        self._barrier.wait(timeout=30)

    def allgather(self, obj: Any) -> list[Any]:
        self._shared[self.rank] = obj
        self.barrier()
        objects = list(self._shared)
        self.barrier()
        return objects

    def broadcast(self, obj: Any) -> Any:
        return self.allgather(obj)[0]


class Group:
    """Ranks that are threads of this process, each with an open lifeline; ``lost`` collects (rank, message)."""

    def __init__(self, num_ranks: int, limits: Limits = QUICK) -> None:
        barrier = threading.Barrier(num_ranks)
        shared: list[Any] = [None] * num_ranks
        self.comms = [ThreadComm(rank, shared, barrier) for rank in range(num_ranks)]
        self.lost: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self.lines: list[Lifeline] = [None] * num_ranks  # type: ignore[list-item]
        self.errors: list[Exception] = []

        def open_line(rank: int) -> None:
            try:
                self.lines[rank] = Lifeline(
                    self.comms[rank],  # type: ignore[arg-type]
                    lambda message: self.lost.put((rank, message)),
                    limits=limits,
                )
            except CommunicationError as error:
                self.errors.append(error)

        self.on_all_ranks(open_line)

    def on_all_ranks(self, action: Callable[[int], None]) -> None:
        threads = [threading.Thread(target=action, args=(comm.rank,)) for comm in self.comms]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        self.on_all_ranks(lambda rank: self.lines[rank].close())

    def cut(self, rank: int) -> None:
        """End a rank's line without a goodbye, as the kernel does for a process that was killed."""
        end = self.lines[rank]._end
        assert end is not None
        end._done, end._declare = True, lambda _: None  # type: ignore[method-assign]
        for peer in list(end._peers.values()):
            with suppress(OSError):  # already closed
                peer.line._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Close what a process that ended leaves to the kernel."""
        for line in self.lines:
            self.cut(line._comm.rank)
        for line in self.lines:
            end = line._end
            assert end is not None
            end._thread.join(timeout=20)
            end._close_lines()
            end._selector.close()
            if isinstance(end, lifeline_ends.Hub):
                end._listener.close()

    def messages(self, number: int) -> dict[int, str]:
        """What the next ``number`` ranks to be told were told."""
        told = [self.lost.get(timeout=20) for _ in range(number)]
        return dict(told)


@pytest.fixture(name="group")
def group_fixture() -> Iterator[Group]:
    group = Group(4)
    yield group
    group.end()


def test_a_rank_whose_process_ended_is_named_to_all_others(group: Group) -> None:
    group.cut(2)
    told = group.messages(3)
    assert set(told) == {0, 1, 3}
    assert set(told.values()) == {f"rank 2 on {HOST} is gone: its process has ended; the run can be resumed"}


def test_rank_0_is_missed_by_every_other(group: Group) -> None:
    group.cut(0)
    told = group.messages(3)
    assert set(told) == {1, 2, 3}
    assert set(told.values()) == {f"rank 0 on {HOST} is gone: its process has ended; the run can be resumed"}


def test_a_silent_rank_is_named(group: Group) -> None:
    end = group.lines[3]._end
    assert end is not None
    end._beat = lambda: None  # type: ignore[method-assign]
    told = group.messages(4)
    assert set(told.values()) == {
        f"rank 3 on {HOST} is gone: nothing was heard of it for 0.6 s; the run can be resumed"
    }


def test_whoever_does_not_enter_a_call_is_named_with_the_call(group: Group) -> None:
    for comm in group.comms:
        comm.timeout_s = 0.3
        if comm.rank != 1:
            comm.calls.enter("allgather")
    told = group.messages(4)
    assert set(told.values()) == {
        f"the allgather has not ended within 0.3 s: rank 1 on {HOST} did not enter it; the run can be resumed"
    }


def test_an_orderly_end_alarms_nobody() -> None:
    group = Group(4)
    group.close()
    group.close()
    time.sleep(3 * QUICK.heartbeat_s)
    assert group.lost.empty()
    assert not [thread for thread in threading.enumerate() if thread.name == "hpcai500-lifeline" and thread.is_alive()]


def test_one_rank_alone_has_no_thread() -> None:
    before = threading.active_count()
    group = Group(1)
    assert threading.active_count() == before
    group.close()


def test_strangers_are_ignored() -> None:
    group = Group(2, Limits(heartbeat_s=0.05, leave_s=0.2))
    hub = group.lines[0]._end
    assert isinstance(hub, lifeline_ends.Hub)
    address = hub.addresses[0]
    hostile = [
        b'{"rank": 1, "proof": "00"}\n',
        b'{"rank": 1, "proof": 7}\n',
        b'{"rank": 99}\n{"lost": "all of you"}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"[" * 8000 + b"\n",
        b"x" * 100_000,
        b"\xff\xfe\n",
        b"",
    ]
    for words in hostile:
        with socket.create_connection(address, timeout=10) as connection:
            with suppress(OSError):  # already refused
                connection.sendall(words)
            with suppress(OSError):
                while connection.recv(100):  # until rank 0 closes; the silent one after leave_s
                    pass
    assert group.lost.empty()
    group.close()
    assert group.lost.empty()


def test_a_rank_that_cannot_reach_rank_0_says_where_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:  # accepts, and is somebody else
        elsewhere = other.getsockname()
        monkeypatch.setattr(lifeline_ends, "offered_addresses", lambda *, local: ["127.0.0.1"])
        broadcast = ThreadComm.broadcast

        def misled(self: ThreadComm, obj: Any) -> Any:
            secret, addresses = broadcast(self, obj)
            return secret, [("127.0.0.1", 1), elsewhere] if self.rank == 1 else addresses

        monkeypatch.setattr(ThreadComm, "broadcast", misled)
        group = Group(2)
    assert len(group.errors) == 2
    assert all("rank 1" in str(error) and "127.0.0.1:1 (Connection refused)" in str(error) for error in group.errors)
    assert all("HPCAI500_NETWORK_INTERFACE" in str(error) for error in group.errors)


def test_a_rank_that_leaves_gives_its_launcher_time_and_then_ends_the_others(group: Group) -> None:
    group.lines[1].settle(DataError("its picture is damaged"))
    group.cut(1)
    told = group.messages(3)
    assert set(told.values()) == {f"rank 1 on {HOST} is gone: its picture is damaged; the run can be resumed"}


def test_an_error_of_the_library_waits_for_what_the_lifeline_says(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifeline, "END_PATIENCE_S", 0.1)
    threading.Timer(0.3, group.cut, [3]).start()
    group.lines[0].settle(RuntimeError("Connection closed by peer"))
    assert "rank 3" in group.messages(1).popitem()[1]


def test_ranks_that_stop_together_close_their_lines() -> None:
    group = Group(2)

    def stop(rank: int) -> None:
        with suppress(StoppedError), group.lines[rank]:
            raise StoppedError(10, epoch=0, step=1)

    group.on_all_ranks(stop)
    assert group.lost.empty()


def test_the_deadline_names_those_behind_the_first_call_and_not_too_many() -> None:
    hosts = [f"n{rank // 10}" for rank in range(100)]
    waiting = {rank: CallState(7, "barrier", 11.0) for rank in range(100)}
    assert overdue(waiting, hosts, 12.0) is None
    assert "all ranks have entered it" in str(overdue(waiting, hosts, 10.0))
    behind = waiting | {rank: CallState(6) for rank in range(20, 40)}
    message = str(overdue(behind, hosts, 10.0))
    assert "rank 20 on n2, rank 21 on n2" in message
    assert "and 12 more did not enter it" in message
    ahead = behind | {5: CallState(6, "gather", 20.0)}  # waits in an earlier call, which 20 to 39 have entered
    assert "the gather has not ended" in str(overdue(ahead, hosts, 10.0))


def test_a_call_within_a_call_counts_once_and_errors_name_the_rank() -> None:
    class Member:
        calls = Calls("mpi", 3)
        seen: list[CallState] = []  # noqa: RUF012

        @collective("barrier")
        def barrier(self) -> None:
            self.allreduce()

        @collective("allreduce")
        def allreduce(self) -> None:
            self.seen.append(self.calls.state())

        @collective("gather")
        def gather(self) -> None:
            raise RuntimeError("connection reset")

    member = Member()
    member.barrier()
    member.allreduce()
    assert [(state.num_entered, state.name) for state in member.seen] == [(1, "barrier"), (2, "allreduce")]
    with pytest.raises(CommunicationError, match=f"gather over mpi failed on rank 3 on {HOST}: connection reset"):
        member.gather()
    assert member.calls.state() == CallState(3)


def test_a_forked_child_does_not_keep_a_dead_rank_alive(group: Group) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        end = group.lines[2]._end
        assert end is not None
        end._done, end._declare = True, lambda _: None  # type: ignore[method-assign]
        for peer in end._peers.values():
            peer.line._socket.close()  # as the kernel does for a killed process: the last holder's close ends it
        assert "rank 2" in group.messages(1).popitem()[1]
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_the_first_failure_is_said_once_and_gives_all_ranks_its_exit_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert read_failure(tmp_path, 2) is None
    codes = [
        report_failure(tmp_path, 2, rank=rank, host="n1", reason=f"reason of rank {rank}", exit_code=code)
        for rank, code in ((4, 1), (0, 76), (1, 76))
    ]
    assert codes == [1, 1, 1]
    assert capfd.readouterr().err == "hpcai500 train: reason of rank 4\n"
    failure = read_failure(tmp_path, 2)
    assert failure is not None
    assert (failure.rank, failure.reason, failure.segment) == (4, "reason of rank 4", 2)
    assert json.loads(failure_path(tmp_path, 2).read_bytes())["exit_code"] == 1
    assert note_failure(tmp_path, 3, rank=0, host="n1", reason="another segment", exit_code=76)


def test_a_failure_that_cannot_be_noted_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "failures").write_text("in the way")
    assert report_failure(tmp_path, 0, rank=0, host="n1", reason="the disk is full", exit_code=1) == 1
    assert "the disk is full" in capfd.readouterr().err


RANKS = [pytest.param(comm, marks=MARKS[comm]) for comm in ("torchdist", "mpi", "horovod")]


@pytest.mark.parametrize("comm", RANKS)
@pytest.mark.parametrize("how", ["kill", "late", "end"])
def test_real_ranks(comm: str, how: str, tmp_path: Path) -> None:
    result = launch(comm, 3, PROGRAMS / "lifeline.py", comm, str(tmp_path), how, timeout_s=200)
    told = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("lost-*")}
    lines = [line for line in result.stderr.splitlines() if line.startswith("hpcai500")]
    if how == "end":
        assert (result.returncode, told, result.stderr) == (0, {}, "")
        return
    reason = {
        "kill": f"rank 2 on {HOST} is gone: its process has ended; the run can be resumed",
        "late": f"the allgather has not ended within 3 s: rank 2 on {HOST} did not enter it; the run can be resumed",
    }[how]
    ranks = (0, 1) if how == "kill" else (0, 1, 2)
    assert told == {f"lost-{rank}": f"76 {reason}" for rank in ranks}, result.stderr
    assert lines == [f"hpcai500 train: {reason}"]
    assert result.returncode == (137 if how == "kill" else 76)


def test_a_stopped_rank_is_named(tmp_path: Path) -> None:
    result = launch("torchdist", 3, PROGRAMS / "lifeline.py", "torchdist", str(tmp_path), "stop", timeout_s=200)
    told = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("lost-[01]")}
    reason = f"rank 2 on {HOST} is gone: nothing was heard of it for 4 s; the run can be resumed"
    assert told == {f"lost-{rank}": f"76 {reason}" for rank in (0, 1)}, result.stderr
    wait_for(lambda: read_failure(tmp_path, 0) is not None)
