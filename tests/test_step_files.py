"""Step times: what ranks append becomes columns, a crash loses nothing that was written, hostile files are refused."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcai500 import step_files
from hpcai500.errors import RecordError
from hpcai500.step_files import (
    HEADER,
    MAGIC,
    STEP_PHASES,
    append_epoch,
    create_raw,
    raw_path,
    read_rank_times,
    turn_into_columns,
)

ONE = np.ones(1, dtype=np.int64)
FORWARD_BACKWARD, COMMUNICATION = STEP_PHASES.index("forward_backward"), STEP_PHASES.index("communication")


def times_of(own_ns: list[int], step_ns: int = 160) -> np.ndarray:
    times = np.zeros((len(own_ns), len(STEP_PHASES)), dtype=np.int64)
    times[:, FORWARD_BACKWARD] = own_ns
    times[:, COMMUNICATION] = step_ns - times[:, FORWARD_BACKWARD]
    return times


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two epochs of ranks 4 to 7, which append as they come."""
    path = raw_path(tmp_path, 0, node=1)
    create_raw(path)
    for epoch, ranks in ((0, (6, 4, 7, 5)), (1, (4, 5, 6, 7))):
        for rank in ranks:
            append_epoch(path, rank, epoch, times_of([150, 149, 151] if rank == 6 else [100, 101, 99]))
    return path


def test_the_layout_is_that_of_the_ledgers(tmp_path: Path) -> None:
    assert raw_path(tmp_path, 0, 3) == tmp_path / "steps" / "node-00003.raw"
    assert raw_path(tmp_path, 2, 3) == tmp_path / "steps" / "segment-002" / "node-00003.raw"


def test_a_slow_rank_is_a_straggler_though_all_steps_take_the_same_time(raw: Path) -> None:
    rows = read_rank_times(raw.parent)
    assert [(row.rank, row.is_straggler) for row in rows] == [(4, False), (5, False), (6, True), (7, False)]
    assert {row.median_step_s for row in rows} == {160e-9}


def test_records_become_columns_and_say_the_same(raw: Path) -> None:
    before = read_rank_times(raw.parent)
    turn_into_columns(raw)
    assert [path.name for path in raw.parent.iterdir()] == ["node-00001.h5"]
    with h5py.File(raw.with_suffix(".h5")) as file:
        assert list(file) == ["epoch-0000", "epoch-0001"]
        assert file["epoch-0000/ranks"][:].tolist() == [4, 5, 6, 7]
        assert file["epoch-0000/forward_backward_ns"][2].tolist() == [150, 149, 151]
        assert set(file["epoch-0000"]) == {"ranks", *(f"{phase}_ns" for phase in STEP_PHASES)}
    assert read_rank_times(raw.parent) == before
    turn_into_columns(raw)  # a second time changes nothing
    assert read_rank_times(raw.parent) == before


def test_a_record_that_a_crash_cut_is_passed_over_and_all_others_are_read(raw: Path) -> None:
    whole = raw.read_bytes()
    size_bytes = len(whole) // 8
    raw.write_bytes(whole[: 5 * size_bytes] + whole[: size_bytes - 9] + whole[5 * size_bytes :] + whole[:20])
    assert len(read_rank_times(raw.parent)) == 4


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_the_records_stay_until_the_columns_are_on_the_disk(
    raw: Path, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = raw.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
    with pytest.raises(
        RecordError, match=r"node-00001.raw' cannot be turned into HDF5 .*No space left.*they stay there"
    ):
        turn_into_columns(raw)
    assert [path.name for path in raw.parent.iterdir()] == ["node-00001.raw"]
    assert raw.read_bytes() == content


def test_columns_win_where_the_end_came_before_the_records_were_removed(raw: Path) -> None:
    content = raw.read_bytes()
    turn_into_columns(raw)
    raw.write_bytes(content)
    assert len(read_rank_times(raw.parent)) == 4


def test_an_epoch_in_which_a_rank_wrote_nothing_keeps_the_others(tmp_path: Path) -> None:
    path = raw_path(tmp_path, 0, 0)
    create_raw(path)
    append_epoch(path, 1, 0, times_of([100]))
    turn_into_columns(path)
    assert [row.rank for row in read_rank_times(path.parent)] == [1]


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot be written to '/dev/full' \(No space left on device\); free some"):
        append_epoch(Path("/dev/full"), 0, 0, times_of([1]))
    (tmp_path / "steps").write_text("no folder")
    with pytest.raises(RecordError, match="free some space there and start again"):
        create_raw(raw_path(tmp_path, 0, 0))


def bomb(group: h5py.Group) -> None:
    """Eight gigabytes in a few kilobytes."""
    group.create_dataset("own_ns", shape=(1, 2**30), dtype=np.int64, chunks=(1, 2**20), compression="gzip")


@pytest.fixture
def columns(tmp_path: Path) -> Path:
    (tmp_path / "steps").mkdir()
    path = tmp_path / "steps" / "node-00000.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("epoch-0000")
        group["ranks"] = np.zeros(1, dtype=np.int64)
        group["communication_ns"] = np.zeros((1, 2), dtype=np.int64)
    assert len(read_rank_times(path.parent)) == 1
    return path


@pytest.mark.parametrize(
    "spoil",
    [
        bomb,
        lambda group: group.create_dataset("own_ns", shape=(1, 2**30), dtype=np.int64),  # never written
        lambda group: group.create_dataset("own_ns", (1, 2), np.int64, external=[("/dev/zero", 0, 16)]),
        lambda group: group.__setitem__("own_ns", h5py.ExternalLink("other.h5", "epoch-0000/communication_ns")),
        lambda group: group.__setitem__("own_ns", h5py.SoftLink("/epoch-0000/communication_ns")),
        lambda group: group.__setitem__("own_ns", np.zeros((1, 3), dtype=np.int64)),  # other steps than the others
        lambda group: group.__setitem__("own_ns", np.zeros((1, 2))),
        lambda group: group.__setitem__("own_ns", np.int64(1)),
        lambda group: group.create_group("own_ns"),
        lambda group: group.move("communication_ns", "own_ns"),
        lambda group: group.move("ranks", "other_ns"),
        lambda group: group.pop("ranks") is None or group.__setitem__("ranks", np.zeros(1)),
        lambda group: group.pop("ranks") is None or group.__setitem__("ranks", np.zeros(2, dtype=np.int64)),
        lambda group: group.file.create_group("epoch-0001"),
        lambda group: group.file.__setitem__("epoch-0001", np.zeros(3)),
        lambda group: group.file.copy(group, "epoch-0001") or group.file["epoch-0001/ranks"].write_direct(ONE),
    ],
)
def test_columns_of_a_stranger_are_read_only_if_they_are_plain_tables(
    columns: Path, spoil: Callable[[h5py.Group], object]
) -> None:
    with h5py.File(columns, "a") as file:
        group = file["epoch-0000"]
        spoil(group)
    with pytest.raises(RecordError, match=r"step times cannot be read from .*node-00000.h5'; is it a run's\?"):
        read_rank_times(columns.parent)


def test_one_table_under_many_names_is_read_no_more_often_than_the_file_is_long(columns: Path) -> None:
    with h5py.File(columns, "a") as file:
        group = file["epoch-0000"]
        del group["communication_ns"]
        group["communication_ns"] = np.zeros((1, 2**16), dtype=np.int64)
        for number in range(8):
            group[f"phase_{number}_ns"] = group["communication_ns"]
    with pytest.raises(RecordError, match="step times cannot be read") as caught:
        read_rank_times(columns.parent)
    assert "is larger than the file" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no record",
        MAGIC * 1000,
        HEADER.pack(MAGIC, 0, 0, 2**62, len(STEP_PHASES)),
        HEADER.pack(MAGIC, 0, 0, -1, len(STEP_PHASES)),
        HEADER.pack(MAGIC, -1, 0, 1, len(STEP_PHASES)) + bytes(8 * len(STEP_PHASES)),
        HEADER.pack(MAGIC, 0, 0, 1, 2**40) + bytes(8 * len(STEP_PHASES)),
        2 * (HEADER.pack(MAGIC, 0, 0, 1, len(STEP_PHASES)) + bytes(8 * len(STEP_PHASES))),  # a rank twice
    ],
)
def test_records_of_a_stranger_are_refused(tmp_path: Path, content: bytes) -> None:
    path = raw_path(tmp_path, 0, 0)
    create_raw(path)
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"step times cannot be read from .*node-00000.raw'"):
        read_rank_times(path.parent)


def test_a_file_of_endlessly_many_records_is_refused(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_files, "MAX_RECORDS", 7)
    with pytest.raises(RecordError, match="step times cannot be read") as caught:
        read_rank_times(raw.parent)
    assert "more than 7 records" in str(caught.value.__cause__)


def test_a_pipe_blocks_nobody_and_an_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="which has none; is it a run's steps folder"):
        read_rank_times(tmp_path)
    for name in ("node-00000.raw", "node-00000.h5"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(RecordError):
            read_rank_times(tmp_path)


def test_two_nodes_cannot_both_have_a_rank(raw: Path) -> None:
    (raw.parent / "node-00002.raw").write_bytes(raw.read_bytes())
    with pytest.raises(RecordError, match=r"node-00002.raw'"):
        read_rank_times(raw.parent)
