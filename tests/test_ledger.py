from __future__ import annotations

import hashlib
import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from forging import chain_lines
from recording import Clock, new_ledger

from hpcai500.errors import RecordError
from hpcai500.events import EVENTS, ClockStart, Window
from hpcai500.ledger import ChainHead, LedgerWriter, create_ledger
from hpcai500.ledger_reader import MAX_LINE_BYTES, Entry, check_chain, read_heads, read_ledger, scan_ledger

WINDOW = {
    "epoch": 0,
    "first_step": 0,
    "num_steps": 2,
    "samples": 32,
    "loss_sum": 4.25,
    "learning_rate": 0.1,
    "duration_ns": 10,
    "data_wait_ns": 1,
    "forward_backward_ns": 2,
    "communication_ns": 3,
    "optimizer_ns": 4,
}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger of a clock start and five windows."""
    path = tmp_path / "ledger" / "node-00000.jsonl"
    with new_ledger(path) as writer:
        writer.write("clock_start", {"wall_ns": 7})
        for step in range(5):
            writer.write("window", WINDOW | {"first_step": 2 * step})
    return path


def rules(path: Path) -> list[str]:
    return [finding.rule for finding in check_chain(path)]


def test_what_is_written_is_read(ledger: Path) -> None:
    entries = list(read_ledger(ledger))
    assert [entry.seq for entry in entries] == list(range(6))
    assert entries[0].value == ClockStart(wall_ns=7)
    assert entries[1].value == Window(**WINDOW)
    assert check_chain(ledger) == []


def test_each_line_carries_the_digest_of_the_line_before(ledger: Path) -> None:
    lines = ledger.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert json.loads(lines[0])["prev"] == "0" * 64
    for before, line in itertools.pairwise(lines):
        assert json.loads(line)["prev"] == hashlib.sha256(before).hexdigest()


def test_an_existing_ledger_is_never_overwritten(ledger: Path) -> None:
    content = ledger.read_bytes()
    with pytest.raises(RecordError, match="exists and is never overwritten"):
        new_ledger(ledger)
    assert ledger.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_a_record_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RecordError, match="cannot create ledger"):
        new_ledger(tmp_path / "file" / "node-00000.jsonl")


def test_time_never_steps_back_with_the_wall_clock(tmp_path: Path) -> None:
    clock = Clock(10**18)
    with mock.patch("hpcai500.ledger.time", clock), new_ledger(tmp_path / "node-00000.jsonl") as writer:
        first = writer.write("clock_start", {"wall_ns": 1})
        clock.advance(5)
        clock.time_ns = lambda: 1  # type: ignore[method-assign]  # somebody sets the wall clock to 1970
        assert writer.write("clock_stop", {"wall_ns": 1}) == first + 5 * 10**9


def test_a_flipped_byte_breaks_the_chain_at_the_next_line(ledger: Path) -> None:
    content = ledger.read_bytes()
    ledger.write_bytes(content.replace(b'"samples":32', b'"samples":33', 1))
    [finding] = check_chain(ledger)
    assert finding.rule == "ledger.chain"
    assert finding.place.endswith(":3")


@pytest.mark.parametrize("change", ["lose", "move", "repeat"])
def test_a_lost_moved_or_repeated_line_breaks_the_chain(ledger: Path, change: str) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    if change == "lose":
        del lines[2]
    elif change == "move":
        lines[2], lines[3] = lines[3], lines[2]
    else:
        lines.insert(2, lines[2])
    ledger.write_bytes(b"".join(lines))
    assert "ledger.chain" in rules(ledger)


def test_a_line_cut_by_a_crash_is_told_from_a_broken_chain_and_loses_nothing_else(ledger: Path) -> None:
    content = ledger.read_bytes()
    ledger.write_bytes(content[:-10])
    assert rules(ledger) == ["ledger.torn"]
    with pytest.raises(RecordError, match=r"ledger\.torn"):
        list(read_ledger(ledger))
    assert content[:-10].count(b"\n") == 5


def test_an_empty_ledger_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "node-00000.jsonl").write_bytes(b"")
    assert rules(tmp_path / "node-00000.jsonl") == ["ledger.empty"]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b"\xff\xfe", "ledger.line"),
        (b"[" * 100_000, "ledger.line"),
        (b"", "ledger.line"),
        (b'{"seq":6}', "ledger.line"),
        (b"x" * (MAX_LINE_BYTES + 1), "ledger.line"),
    ],
    ids=["not text", "deep", "blank", "fields missing", "endless"],
)
def test_a_hostile_line_is_a_finding(ledger: Path, line: bytes, rule: str) -> None:
    ledger.write_bytes(ledger.read_bytes() + line + b"\n")
    assert rules(ledger)[0] == rule


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"event": "coffee"}, "ledger.event"),
        ({"value": {"wall_ns": -1}}, "ledger.value"),
        ({"value": {"wall_ns": "7"}}, "ledger.value"),
        ({"value": {"wall_ns": 7, "more": 1}}, "ledger.value"),
        ({"value": {}}, "ledger.value"),
        ({"time_ns": 10**30}, "ledger.line"),
        ({"time_ns": 1.5}, "ledger.line"),
    ],
)
def test_what_an_event_may_not_carry_is_a_finding(tmp_path: Path, change: dict[str, object], rule: str) -> None:
    path = tmp_path / "node-00000.jsonl"
    chain_lines(path, [{"seq": 0, "time_ns": 1, "event": "clock_start", "value": {"wall_ns": 7}, "prev": ""} | change])
    assert rules(path) == [rule]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused_and_named(ledger: Path, tmp_path: Path, value: float) -> None:
    with new_ledger(tmp_path / "other.jsonl") as writer:
        with pytest.raises(RecordError, match=r"loss_sum of event window is (nan|inf)"):
            writer.write("window", WINDOW | {"loss_sum": value})
        writer.write("window", WINDOW)
    assert check_chain(tmp_path / "other.jsonl") == []


def test_closing_writes_what_became_of_the_run_once(tmp_path: Path) -> None:
    path = tmp_path / "node-00000.jsonl"
    writer = new_ledger(path)
    writer.close("interrupted", "Ctrl-C")
    writer.close("completed")
    [entry] = read_ledger(path)
    assert entry.event == "run_close"
    assert json.loads(path.read_bytes())["value"]["status"] == "interrupted"


def test_every_event_has_its_word() -> None:
    assert next(iter(EVENTS)) == "run_open"
    assert list(EVENTS)[-1] == "run_close"
    assert all(name == event.EVENT for name, event in EVENTS.items())


FULL_DISK = """
import resource, sys
from hpcai500.errors import RecordError
from hpcai500.ledger import LedgerWriter, create_ledger
create_ledger(sys.argv[1])
writer = LedgerWriter(sys.argv[1], 0)
writer.write("clock_start", {"wall_ns": 7})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # stands in for a full disk: writes end in the middle of a line
try:
    while True:
        writer.write("clock_start", {"wall_ns": 7})
except RecordError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
"""


def test_a_full_disk_is_one_sentence_and_loses_nothing_already_written(tmp_path: Path) -> None:
    path = tmp_path / "node-00000.jsonl"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot write ledger" in done.stdout
    assert "what stands in it is safe, so free some space" in done.stdout
    assert rules(path) == ["ledger.torn"]  # what the disk took of the last line
    assert len(read_heads(path)) == 1
    assert 800 < path.stat().st_size <= 1000


TWO_RANKS = """
import sys
from hpcai500.ledger import LedgerWriter
with LedgerWriter(sys.argv[1], int(sys.argv[2])) as writer:
    for step in range(2000):
        writer.write("clock_start", {"wall_ns": step})
"""


def test_processes_of_a_node_write_into_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "node-00000.jsonl"
    create_ledger(path)
    ranks = [subprocess.Popen([sys.executable, "-c", TWO_RANKS, str(path), str(rank)]) for rank in (5, 8)]
    assert [process.wait() for process in ranks] == [0, 0]
    assert check_chain(path) == []
    entries = list(read_ledger(path))
    for rank in (5, 8):
        assert [entry.seq for entry in entries if entry.rank == rank] == list(range(2000))
    heads = read_heads(path)
    assert {rank: head.seq for rank, head in heads.items()} == {5: 2000, 8: 2000}


@pytest.mark.parametrize("left", [20, 7, 3, 0], ids=["half a line", "no number", "no rank", "no end"])
def test_behind_a_line_that_was_cut_another_rank_s_is_read(tmp_path: Path, left: int) -> None:
    path = tmp_path / "node-00000.jsonl"
    with new_ledger(path) as of_0, LedgerWriter(path, 1) as of_1:
        of_0.write("clock_start", {"wall_ns": 7})
        of_1.write("clock_start", {"wall_ns": 8})
        whole = path.read_bytes()
        of_0.write("clock_stop", {"wall_ns": 9})
        cut = path.read_bytes()[len(whole) :]
        path.write_bytes(whole + (cut[:left] if left else cut[:-1]))
        of_1.write("clock_stop", {"wall_ns": 10})
    assert rules(path) == ["ledger.torn"]
    heads: dict[int, ChainHead] = {}
    entries = [item for item in scan_ledger(path, heads=heads) if isinstance(item, Entry)]
    assert [(entry.rank, entry.event) for entry in entries] == [
        (0, "clock_start"), (1, "clock_start"), (1, "clock_stop"),
    ]  # fmt: skip
    assert heads == read_heads(path)


def test_a_rank_goes_on_with_its_own_chain_in_a_new_file(tmp_path: Path) -> None:
    first, second = tmp_path / "node-00000.jsonl", tmp_path / "node-00001.jsonl"
    with new_ledger(first) as of_0, LedgerWriter(first, 1) as of_1:
        of_0.write("clock_start", {"wall_ns": 7})
        of_1.write("clock_start", {"wall_ns": 7})
        of_1.write("clock_stop", {"wall_ns": 7})
    heads = read_heads(first)
    create_ledger(second)
    with LedgerWriter(second, 1, heads[1]) as of_1:
        of_1.write("clock_start", {"wall_ns": 8})
    [entry] = list(scan_ledger(second, heads=read_heads(first)))
    assert isinstance(entry, Entry)
    assert (entry.rank, entry.seq) == (1, 2)
    assert rules(second) == ["ledger.chain", "ledger.chain"]


def test_a_rank_whose_node_has_no_ledger_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="which the first rank of the node has made"):
        LedgerWriter(tmp_path / "node-00000.jsonl", 1)


KILLED = """
import os, signal, sys
from hpcai500.ledger import LedgerWriter, create_ledger
create_ledger(sys.argv[1])
writer = LedgerWriter(sys.argv[1], 0)
for _ in range(100):
    writer.write("clock_start", {"wall_ns": 7})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_rank_leaves_all_that_it_wrote(tmp_path: Path) -> None:
    path = tmp_path / "node-00000.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(read_ledger(path))) == 100


def test_a_folder_nobody_may_write_to_is_a_record_error() -> None:
    with pytest.raises(RecordError, match=r"cannot create ledger '/proc/node-00000\.jsonl'.*name a folder"):
        new_ledger("/proc/node-00000.jsonl")  # refuses root too
