"""`hpcai500 status` and `watch`: what they make of a submission's files and of Slurm's answers; no cluster needed."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from recording import EDITION, record_submission
from rich.console import Console

from hpcai500 import launches, over, run_states, watch
from hpcai500.errors import BackendUnavailableError, UsageError
from hpcai500.formats import read_config
from hpcai500.last_words import describe_before, saved_position
from hpcai500.launch.queue import Job, Queue
from hpcai500.over import assemble_if_over, is_over
from hpcai500.record import Position
from hpcai500.status import main as status
from hpcai500.straggler_record import StragglerNote
from hpcai500.watch import main as watch_main


class FakeQueue(Queue):
    """A queue that answers from a table, or not at all if there is none."""

    def __init__(self, jobs: dict[str, Job] | None) -> None:
        super().__init__()
        self.jobs = jobs

    def ask(self, ids: object) -> dict[str, Job]:
        if self.jobs is None:
            raise BackendUnavailableError("Slurm does not answer squeue")
        return {job: self.jobs.get(job, Job(job, "UNKNOWN")) for job in ids}  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A submission of two runs, the second of which ended half-way without a last word, not assembled yet."""
    folder = record_submission(tmp_path / "out", num_runs=1, num_failed=1).parent
    (folder / "submission.json").unlink()
    for path in (folder / "run-2" / "ledger").iterdir():
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if b'"run_close"' not in line))
    launches.note_launch(folder, job="7", runs={"0": [1], "1": [2]})
    for run in (1, 2):
        launches.note_start(folder, run, job=f"7_{run - 1}", nodes=["node1"], position=(0, 0))
    launches.note_submission(folder)
    return folder


def states(folder: Path, jobs: dict[str, Job] | None) -> list[tuple[str, str]]:
    view = run_states.SubmissionFollower(folder, FakeQueue(jobs)).look()
    return [(run.state, run.detail) for run in view.runs]


def test_a_run_that_trains_shows_how_far_it_is(folder: Path) -> None:
    first, second = states(folder, {"7_1": Job("7_1", "RUNNING", nodes="node1")})
    assert first[0] == "completed"
    assert first[1].startswith("quality 0.")
    assert second[0] == "running"
    assert "epoch 2/2" in second[1]
    assert "images/s" in second[1]


@pytest.mark.parametrize(
    ("job", "state", "words"),
    [
        (Job("7_1", "PENDING", reason="Priority"), "in the queue", "waiting behind jobs of higher priority"),
        (Job("7_1", "CANCELLED", cancelled_by="ada", ended_s=1.7e9), "cancelled", "by ada on 2023-11-1"),
        (Job("7_1", "UNKNOWN"), "interrupted", "ranks 0, 1 on node1 left no last word"),
        (Job("7_1", "TIMEOUT"), "interrupted", "ended at its time limit; ranks 0, 1 on node1 left no last word"),
    ],
)
def test_what_slurm_says_of_a_job_is_shown(job: Job, state: str, words: str, folder: Path) -> None:
    _, second = states(folder, {"7_1": job})
    assert second[0] == state
    assert words in second[1]


def test_a_requeued_run_says_what_ended_it(folder: Path) -> None:
    launches.note_end(
        folder, 2, job="7_1", outcome="requeued", exit_code=76, reason="rank 1 on node2 is gone", position=(1, 0)
    )
    _, second = states(folder, {"7_1": Job("7_1", "PENDING", reason="BeginTime")})
    assert second[0] == "in the queue"
    assert "before, rank 1 on node2 is gone" in second[1]


def test_a_slurm_that_does_not_answer_is_said_and_ends_nothing(folder: Path) -> None:
    view = run_states.SubmissionFollower(folder, FakeQueue(None)).look()
    assert [run.state for run in view.runs] == ["completed", "unknown"]
    assert view.problem == "Slurm does not answer squeue"
    assert not view.is_over


def test_a_run_of_this_machine_is_alive_as_long_as_its_starter(tmp_path: Path) -> None:
    folder = record_submission(tmp_path / "here", num_runs=1, num_failed=1).parent
    launches.note_launch(folder, job="", runs={"": [1, 2]})
    assert [state for state, _ in states(folder, {})] == ["completed", "waiting"]
    launches.note_start(folder, 2, nodes=["here"], position=(0, 0))
    assert [state for state, _ in states(folder, {})] == ["completed", "running"]
    path = folder / "launches-run-2.jsonl"
    path.write_text(path.read_text().replace(f'"pid":{os.getpid()}', '"pid":999999999'))
    assert [state for state, _ in states(folder, {})] == ["completed", "failed"]


def test_submissions_are_found_from_any_folder_the_newest_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer, removed = tmp_path / "newer", tmp_path / "removed"
    for copy in (newer, removed):
        shutil.copytree(folder, copy)
        launches.note_submission(copy)
    shutil.rmtree(removed)
    monkeypatch.chdir("/usr")
    monkeypatch.setenv("PATH", "/nowhere")  # no Slurm here
    assert status([]) == 0
    output = capsys.readouterr().out
    assert output.index(str(newer)) < output.index(str(folder))
    assert str(removed) not in output
    assert "run 2: unknown (job 7_1), Slurm could not be asked" in output
    assert "'squeue' is not on PATH" in output


def test_status_for_programs(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert status(["--json", str(folder)]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(folder)
    assert (told["is_over"], told["submission"]) == (False, None)
    assert [run["job"] for run in told["runs"]] == ["7_0", "7_1"]
    assert told["runs"][1]["epoch"] == 1


def test_a_folder_that_is_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status([str(tmp_path)]) == 1
    assert "holds no submission; name the folder that `hpcai500 submit` made" in capsys.readouterr().err
    assert status([]) == 0
    assert "no submissions yet" in capsys.readouterr().out
    assert watch_main([]) == 2
    with pytest.raises(UsageError, match="holds no submission"):
        watch.watch(tmp_path)


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def shown(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_watching_ends_with_the_verdict_when_all_runs_are_over(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [{"7_1": Job("7_1", "PENDING", reason="Resources")}, {"7_1": Job("7_1", "RUNNING")}, {}]
    queue = FakeQueue({})
    monkeypatch.setattr(
        queue, "ask", lambda ids: FakeQueue(answers[0] if len(answers) == 1 else answers.pop(0)).ask(ids)
    )
    on = console()
    code = watch.watch(folder, console=on, queue=queue, period_s=0.0)
    lines = shown(on).splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [
        "run 1: completed",
        "run 2: in the queue (job 7_1)",
        "run 2: running (job 7_1)",
        "run 2: interrupted",
    ]
    assert (folder / "submission.json").exists()
    assert code == (0 if "\nVALID" in capsys.readouterr().out else 1)


def test_a_job_that_is_still_there_is_left_to_assemble(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both runs are over, and the job of the first one has yet to end: the verdict belongs into its log."""
    launches.note_end(folder, 2, job="7_1", outcome="failed", exit_code=2, reason="no data", position=(1, 0))
    ending = FakeQueue({"7_0": Job("7_0", "COMPLETING")})
    monkeypatch.setattr("hpcai500.status.Queue", lambda: ending)
    assert status([str(folder)]) == 0
    assert not (folder / "submission.json").exists()

    def end_job(_: float) -> None:
        assert not (folder / "submission.json").exists()
        ending.jobs = {}

    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=end_job, monotonic=time.monotonic))
    watch.watch(folder, console=console(), queue=ending)
    assert (folder / "submission.json").exists()


def test_on_a_terminal_a_run_has_a_line_of_what_its_report_would_show(folder: Path) -> None:
    on = Console(file=io.StringIO(), width=100, force_terminal=True)
    view = run_states.SubmissionFollower(folder, FakeQueue({"7_1": Job("7_1", "RUNNING")})).look()
    with watch._Display(on) as display:
        display.show(view)
    written = shown(on)
    assert "run 2: running (job 7_1)" in written
    assert "  quality 0." in written
    assert "; time: forward backward " in written


def slow_node(*, is_slow: bool) -> bytes:
    note = StragglerNote(
        time_ns=1,
        segment=0,
        epoch=1,
        step=20,
        what="node",
        host="nid0007",
        rank=28,
        num_ranks=4,
        is_slow=is_slow,
        evidence="data",
        step_s=(0.15, 0.16, 0.17),
        usual_s=0.1,
        lost_s=0.05,
        num_slow=4,
    )
    return msgspec.json.encode(note) + b"\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_slow_node_is_shown_until_it_recovers(folder: Path, is_terminal: bool) -> None:
    follower = run_states.SubmissionFollower(folder, FakeQueue({"7_1": Job("7_1", "RUNNING")}))
    on = Console(file=io.StringIO(), width=400, force_terminal=is_terminal)
    words = "node nid0007 is slow: each of its 4 ranks takes 160.0 ms a step without communication, 1.60 times"
    with (folder / "run-2" / "stragglers.jsonl").open("ab") as file, watch._Display(on) as display:
        file.write(slow_node(is_slow=True) + b'{"cut')
        file.flush()
        for _ in range(3):
            display.show(follower.look())
        assert "slow: node nid0007" in follower.look().runs[1].detail
        assert words in shown(on)
        assert is_terminal or shown(on).count(words) == 1
        file.truncate(file.tell() - 5)
        file.write(slow_node(is_slow=False))
        file.flush()
        assert "slow" not in follower.look().runs[1].detail


def test_ctrl_c_leaves_the_runs_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = FakeQueue({"7_1": Job("7_1", "RUNNING")})

    def press_ctrl_c(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=press_ctrl_c, monotonic=time.monotonic))
    on = console()
    assert watch.watch(folder, console=on, queue=queue) == 130
    assert "the runs go on without being watched; see them again with `hpcai500 watch" in shown(on)


def test_a_submission_is_not_over_while_a_run_may_go_on(folder: Path) -> None:
    for state in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED"):
        assert not is_over(folder, queue=FakeQueue({"7_1": Job("7_1", state)}))
    assert is_over(folder, queue=FakeQueue({}))
    launches.note_end(folder, 2, job="7_1", outcome="stopped", exit_code=75, reason="told to", position=(1, 0))
    assert not is_over(folder, queue=FakeQueue({}))
    launches.note_end(folder, 2, job="7_1", outcome="failed", exit_code=2, reason="no data", position=(1, 0))
    assert is_over(folder, queue=FakeQueue(None))  # what is noted needs no answer of Slurm


def test_many_who_assemble_make_one_submission(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: over._assemble(folder, folder / "submission.json"), range(8)))
    assert sorted(made) == [False] * 7 + [True]
    assert [path.name for path in folder.iterdir() if "submission.json" in path.name] == ["submission.json"]
    assert assemble_if_over(folder, queue=FakeQueue({})) is None


def test_no_completed_run_is_no_submission(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "run-2", folder / "run-1", dirs_exist_ok=True)
    (folder / "run-1" / "result.json").unlink()
    assert assemble_if_over(folder, queue=FakeQueue({})) is False
    assert "all runs are over, but there is no submission: no figures can be given" in capsys.readouterr().out
    assert not (folder / "submission.json").exists()


def test_what_ended_a_run_before_is_read_from_its_ledgers(folder: Path) -> None:
    launches.note_end(folder, 2, job="7_1", outcome="requeued", exit_code=76, reason="a node failed", position=(1, 0))
    last = launches.last_of(launches.read_launches(folder), 2)
    assert last is not None
    path = folder / "run-2" / "ledger" / "node-00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith(b'{"rank":1,'))
    path.write_bytes(b"".join(lines[:first]) + lines[first][:-9])  # rank 1 had just begun to write
    described = describe_before(folder / "run-2", last)
    assert described == ("a node failed; rank 0 on node1 and rank 1, which had not begun, left no last word")
    assert saved_position(folder / "run-2") == Position(1, 0)
    assert saved_position(folder / "run-3") == Position(0, 0)


def test_lines_of_launches_that_a_crash_cut_are_left_out(folder: Path) -> None:
    with (folder / "launches-run-1.jsonl").open("a") as file:
        file.write('{"what":"ended","time')
    whats = [launch.what for launch in launches.read_launches(folder)]
    assert whats == ["queued", "started", "started"]
    assert launches.queued_jobs(launches.read_launches(folder)) == {1: "7_0", 2: "7_1"}
    assert read_config(folder / "run-1")[0].edition == EDITION.number
