"""Staging: the copy is whole, used again, made once a node, and a full disk ends as chosen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import wait_for

from hpcai500 import staging, verified_copy
from hpcai500.comm.serial import SerialCommunicator
from hpcai500.errors import DataError
from hpcai500.staging import Stage, StagedFile, collect, copy_name

NUM_BYTES = 1_000_003  # several blocks of those below, and a rest
STAGE = """
import json, pathlib, sys
from hpcai500.staging import Stage
stage = Stage(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
stage.start()
staged = stage.wait()
assert not {"torch", "numpy", "h5py"} & sys.modules.keys(), "staging must be under way before these are imported"
print(json.dumps(staged.event()))
"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified_copy, "BLOCK_BYTES", 2**16)
    monkeypatch.setattr(verified_copy, "PIECE_BYTES", 10_000)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "shared" / "data.h5"
    path.parent.mkdir()
    path.write_bytes(os.urandom(NUM_BYTES))
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 KiB, half as large as the file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root and the capability to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run_stage(source: Path, folder: Path, **options: object) -> StagedFile:
    stage = Stage(source, folder, **options)  # type: ignore[arg-type]
    stage.start()
    return stage.wait()


def test_the_copy_equals_the_source_and_says_how_long_it_took(source: Path, tmp_path: Path) -> None:
    staged = run_stage(source, tmp_path / "local" / "new")
    assert staged.path.parent == tmp_path / "local" / "new"
    assert staged.path.read_bytes() == source.read_bytes()
    assert staged.num_bytes == NUM_BYTES
    assert staged.copy_ns > 0
    assert staged.verify_ns > 0
    assert staged.bandwidth_bytes_per_s == pytest.approx(NUM_BYTES / (staged.copy_ns * 1e-9))
    assert not staged.reused
    assert staged.fell_back is None
    assert staged.event()["path"] == str(staged.path)
    assert {path.suffix for path in staged.path.parent.iterdir()} == {".h5", ".json", ".lock"}  # nothing half done


@pytest.mark.parametrize("num_bytes", [0, 1, 2**16, 2**16 + 1])
def test_files_of_any_size_are_copied(num_bytes: int, tmp_path: Path) -> None:
    source = tmp_path / "data.h5"
    source.write_bytes(os.urandom(num_bytes))
    assert run_stage(source, tmp_path / "local").path.read_bytes() == source.read_bytes()


def test_a_verified_copy_is_used_again(source: Path, tmp_path: Path) -> None:
    first = run_stage(source, tmp_path / "local")
    second = run_stage(source, tmp_path / "local")
    assert second.reused
    assert second.path == first.path
    assert second.bandwidth_bytes_per_s == 0


@pytest.mark.parametrize("what", ["source changed", "copy changed", "copy cut", "marker damaged", "marker gone"])
def test_a_copy_that_may_be_another_is_made_anew(what: str, source: Path, tmp_path: Path) -> None:
    copy = run_stage(source, tmp_path / "local").path
    marker = copy.with_name(f"{copy.name}.json")
    if what == "source changed":
        source.write_bytes(os.urandom(NUM_BYTES))
    elif what == "copy changed":
        with copy.open("r+b") as file:
            file.write(b"damage")
    elif what == "copy cut":
        os.truncate(copy, 10)
    elif what == "marker damaged":
        marker.write_text('{"format": 1')
    else:
        marker.unlink()
    again = run_stage(source, tmp_path / "local")
    assert not again.reused
    assert again.path.read_bytes() == source.read_bytes()


def test_files_of_the_same_name_do_not_meet(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / source.name
    other.parent.mkdir()
    other.write_bytes(b"other")
    assert run_stage(source, tmp_path / "local").path.read_bytes() == source.read_bytes()
    assert run_stage(other, tmp_path / "local").path.read_bytes() == b"other"
    assert run_stage(source, tmp_path / "local").reused


def test_what_a_killed_job_has_left_is_begun_anew(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    partial = folder / f"{copy_name(source)}.part"
    partial.write_bytes(b"half")
    staged = run_stage(source, folder)
    assert staged.path.read_bytes() == source.read_bytes()
    assert not partial.exists()


def test_a_link_that_somebody_has_put_in_the_way_is_not_written_through(source: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "local"
    folder.mkdir()
    (folder / f"{copy_name(source)}.part").symlink_to(victim)
    assert run_stage(source, folder).path.read_bytes() == source.read_bytes()
    assert victim.read_text() == "precious"


def test_two_jobs_on_one_node_copy_once(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STAGE, str(source), str(tmp_path / "local")]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    events = [json.loads(job.communicate(timeout=60)[0]) for job in jobs]
    assert sorted(event["reused"] for event in events) == [False, True]
    assert len({event["path"] for event in events}) == 1


@pytest.fixture
def source_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shared" / "weather"
    folder.mkdir(parents=True)
    for number, name in enumerate(("a.h5", "b.h5", "unused.h5")):
        (folder / name).write_bytes(bytes([number]) * (NUM_BYTES // 2))
    return folder


def test_of_a_folder_the_files_that_are_read_are_copied_under_their_names(source_folder: Path, tmp_path: Path) -> None:
    files = ("a.h5", "b.h5")
    staged = run_stage(source_folder, tmp_path / "local", files=files)
    assert staged.path == tmp_path / "local" / copy_name(source_folder)
    assert sorted(path.name for path in staged.path.glob("*.h5")) == list(files)
    for name in files:
        assert (staged.path / name).read_bytes() == (source_folder / name).read_bytes()
    assert staged.num_bytes == NUM_BYTES // 2 * 2
    assert not staged.reused
    assert run_stage(source_folder, tmp_path / "local", files=files).reused
    (source_folder / "b.h5").write_bytes(b"another year")
    again = run_stage(source_folder, tmp_path / "local", files=files)
    assert not again.reused
    assert (again.path / "b.h5").read_bytes() == b"another year"


def test_a_disk_that_is_too_small_for_all_files_gets_none(source_folder: Path, small_disk: Path) -> None:
    staged = run_stage(source_folder, small_disk, files=("a.h5", "b.h5", "unused.h5"))
    assert staged.path == source_folder
    assert "are needed and" in (staged.fell_back or "")
    assert list(small_disk.rglob("*.h5")) == []


def test_a_file_that_the_folder_lacks_is_said(source_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        run_stage(source_folder, tmp_path / "local", files=("a.h5", "z.h5"))


def test_the_second_job_waits_for_the_first(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    with staging.locked(folder, copy_name(source)):
        stage = Stage(source, folder)
        stage.start()
        done = threading.Event()
        threading.Thread(target=lambda: (stage.wait(), done.set())).start()
        assert not done.wait(0.2)
        assert not stage.is_done
    assert stage.wait().path.exists()
    wait_for(lambda: stage.is_done)


def test_a_full_disk_is_seen_beforehand_and_the_source_is_read(source: Path, small_disk: Path) -> None:
    staged = run_stage(source, small_disk)
    assert staged.path == source
    assert staged.fell_back is not None
    assert f"{NUM_BYTES:,} bytes are needed and 524,288 are free" in staged.fell_back
    assert [path.suffix for path in small_disk.iterdir()] == [".lock"]


def test_a_full_disk_stops_where_that_is_chosen(source: Path, small_disk: Path) -> None:
    with pytest.raises(
        DataError, match=r"bytes are needed and 524,288 are free; make room, .* --on-full-disk fallback"
    ):
        run_stage(source, small_disk, on_full_disk="stop")


def test_a_disk_that_fills_up_while_it_is_copied_to_leaves_nothing_behind(
    source: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As another job would that takes the room just after we have looked.
    usage = shutil.disk_usage(small_disk)._replace(free=2 * NUM_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    staged = run_stage(source, small_disk)
    assert staged.path == source
    assert "the disk filled up meanwhile" in (staged.fell_back or "")
    assert [path.suffix for path in small_disk.iterdir()] == [".lock"]


@pytest.mark.parametrize("on_full_disk", ["fallback", "stop"])
def test_a_disk_that_does_not_give_back_what_was_written_is_found_out(
    on_full_disk: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def write_wrongly(descriptor: int, piece: memoryview, position: int) -> int:
        return write(descriptor, bytes(len(piece)) if position == 2**16 else piece, position)

    monkeypatch.setattr(os, "pwrite", write_wrongly)
    if on_full_disk == "stop":
        with pytest.raises(DataError, match=r"differs from what was written, from byte 65,536 on"):
            run_stage(source, tmp_path / "local", on_full_disk=on_full_disk)
    else:
        staged = run_stage(source, tmp_path / "local", on_full_disk=on_full_disk)
        assert staged.path == source
        assert "from byte 65,536 on" in (staged.fell_back or "")
    assert [path.suffix for path in (tmp_path / "local").iterdir()] == [".lock"]


def test_a_folder_that_cannot_be_made_falls_back(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    staged = run_stage(source, tmp_path / "file" / "local")
    assert staged.path == source
    assert "Not a directory" in (staged.fell_back or "")


def test_a_missing_source_is_an_error_whatever_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read '.*/none.h5' on .*; it was to be staged"):
        run_stage(tmp_path / "none.h5", tmp_path / "local")


def test_a_source_that_changes_meanwhile_is_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def write_and_change(descriptor: int, piece: memoryview, position: int) -> int:
        os.utime(source, ns=(0, 0))
        return write(descriptor, piece, position)

    monkeypatch.setattr(os, "pwrite", write_and_change)
    with pytest.raises(DataError, match=r"changed while it was copied"):
        run_stage(source, tmp_path / "local")


def test_ranks_learn_the_path_of_their_node(source: Path, tmp_path: Path) -> None:
    with SerialCommunicator() as comm:
        assert collect(None, comm, source) == (source, None)
        stage = Stage(source, tmp_path / "local")
        stage.start()
        path, staged = collect(stage, comm, source)
    assert staged is not None
    assert path == staged.path
    assert path.read_bytes() == source.read_bytes()


@pytest.mark.mpi
def test_all_ranks_of_a_node_read_the_one_copy(source: Path, tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from hpcai500.comm.communicator import open_communicator\n"
        "from hpcai500.comm.launchers import find_place\n"
        "from hpcai500.staging import Stage, collect\n"
        "source, folder, output = map(pathlib.Path, sys.argv[1:])\n"
        "stage = Stage(source, folder) if find_place().local_rank == 0 else None\n"
        "if stage: stage.start()\n"
        "with open_communicator('mpi') as comm:\n"
        "    path, staged = collect(stage, comm, source)\n"
        "    (output / str(comm.rank)).write_text(f'{path} {staged is not None}')\n"
    )
    run = (
        "import sys; from hpcai500.launch.local import run_ranks;"
        "sys.exit(run_ranks('mpi', 2, [sys.executable, '-c', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", run, program, str(source), str(tmp_path / "local"), str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
    copy = tmp_path / "local" / copy_name(source)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [f"{copy} True", f"{copy} False"]
