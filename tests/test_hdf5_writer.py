"""The writer of data files: the same bytes however it is interrupted, constant memory, and what it refuses."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pictures import inputs_below, make_class_folders, picture_bytes

from hpcai500.errors import DataError, UsageError
from hpcai500.pipelines.conversion_journal import open_journal
from hpcai500.pipelines.hdf5 import ImageSplit, open_images
from hpcai500.pipelines.hdf5_copy import Chunk, Places, copy_chunk
from hpcai500.pipelines.hdf5_writer import journal_path, partial_path, write_images

# Converts a folder of train and validation; with a delay after each chunk, so that it can be interrupted; prints the
# numbers of its worker processes.
CONVERT = """
import multiprocessing, sys, time
from pathlib import Path
from hpcai500.datasets import folder

def report(stage, done, total):
    if stage == "writing" and done > 0:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(float(sys.argv[3]))

if __name__ == "__main__":
    folder.prepare(Path(sys.argv[2]), Path(sys.argv[1]), num_workers=2, report=report)
"""


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def large_picture(seed: int) -> bytes:
    return picture_bytes(seed, 450, 600)


def make_large_folders(root: Path, num_train: int) -> Path:
    """Train and validation of two classes, pictures of about 0.3 MB that all differ in their last bytes."""
    for split, number in (("train", num_train), ("val", 2)):
        for k in range(number):
            path = root / split / f"class{k % 2}" / f"{k:05d}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(large_picture(k % 3) + f"{split}{k:06d}".encode())
    return root


@pytest.fixture(scope="module")
def large_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_large_folders(tmp_path_factory.mktemp("large"), 100)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "convert.py"
    path.write_text(CONVERT)
    return path


def start_conversion(script: Path, source: Path, output: Path, delay_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), str(source), str(output), str(delay_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_after_chunks(script: Path, source: Path, output: Path, num_chunks: int) -> list[int]:
    """Kill a conversion when it has finished some chunks; returns the process numbers of its workers."""
    with start_conversion(script, source, output, 0.15) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(num_chunks)]
        process.kill()
        process.wait()
    assert partial_path(output).exists(), "killed too late"
    assert not output.exists()
    return [int(word) for word in lines[-1].split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def convert(source: Path, output: Path) -> list[int]:
    """Convert to the end; returns how many bytes were done at each report."""
    done_bytes: list[int] = []
    from hpcai500.datasets import folder

    def report(stage: str, done: int, total: int) -> None:
        if stage == "writing":
            done_bytes.append(done)

    folder.prepare(output, source, num_workers=2, report=report)
    return done_bytes


def test_a_killed_conversion_resumes_and_gives_the_same_bytes(
    script: Path, large_folders: Path, tmp_path: Path
) -> None:
    undisturbed, output = tmp_path / "undisturbed.h5", tmp_path / "output.h5"
    convert(large_folders, undisturbed)
    workers = kill_after_chunks(script, large_folders, output, num_chunks=3)
    assert len(workers) == 2
    deadline_s = time.monotonic() + 20
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline_s, "a worker outlived its parent"
        time.sleep(0.05)
    done_bytes = convert(large_folders, output)
    assert done_bytes[0] >= 2 * 3_000_000, "finished chunks were copied again"
    assert digest_of(output) == digest_of(undisturbed)
    assert sorted(path.name for path in tmp_path.glob("output*")) == ["output.h5"]


def test_after_a_crash_of_the_machine_finished_chunks_are_verified(
    script: Path, large_folders: Path, tmp_path: Path
) -> None:
    undisturbed, output = tmp_path / "undisturbed.h5", tmp_path / "output.h5"
    convert(large_folders, undisturbed)
    kill_after_chunks(script, large_folders, output, num_chunks=4)
    # As if the machine had gone down: another boot, and what was not on the disk yet reads as zeros.
    lines = journal_path(output).read_text().splitlines()
    first = json.loads(lines[0])
    lines[0] = json.dumps({**first, "boot": "an earlier one"})
    journal_path(output).write_text("\n".join(lines) + '\n{"split": "tr')
    position = open_images(undisturbed).splits["train"].position_bytes
    with partial_path(output).open("r+b") as file:
        file.seek(position + 100_000)
        file.write(bytes(50_000))
    assert convert(large_folders, output)[0] == 0
    assert digest_of(output) == digest_of(undisturbed)


def test_inputs_that_changed_since_a_kill_are_converted_anew(script: Path, tmp_path: Path) -> None:
    source, output = make_large_folders(tmp_path / "source", 60), tmp_path / "output.h5"
    kill_after_chunks(script, source, output, num_chunks=2)
    changed = source / "train" / "class0" / "00000.JPEG"
    data = changed.read_bytes()[:-1] + b"!"
    changed.write_bytes(data)
    assert convert(source, output)[0] == 0
    assert ImageSplit(output, "train").read_one(0) == data


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    inputs = inputs_below(make_class_folders(tmp_path / "source", ["a", "b"], 30))
    splits = {"train": inputs, "validation": inputs}
    for workers in (1, 3):
        write_images(tmp_path / f"{workers}.h5", splits, ["a", "b"], {"source": "folder"}, num_workers=workers)
    assert digest_of(tmp_path / "1.h5") == digest_of(tmp_path / "3.h5")


def test_memory_does_not_grow_with_the_size_of_the_input(large_folders: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom hpcai500.datasets import folder\n"
        "if __name__ == '__main__':\n"
        "    folder.prepare(Path(sys.argv[2]), Path(sys.argv[1]), num_workers=1)\n"
        "    print(*(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))\n"
    )
    (tmp_path / "measure.py").write_text(code)
    larger = tmp_path / "larger"
    for path in large_folders.rglob("*.JPEG"):
        for copy in range(4):
            link = larger / path.relative_to(large_folders).with_name(f"{copy}-{path.name}")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(path)
    peaks_kib = []
    for source in (large_folders, larger):
        command = [sys.executable, tmp_path / "measure.py", source, tmp_path / f"{source.name}.h5"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks_kib.append([int(word) for word in answer.stdout.split()])
    added_bytes = (tmp_path / "larger.h5").stat().st_size - (tmp_path / f"{large_folders.name}.h5").stat().st_size
    assert added_bytes > 60e6
    for small_kib, large_kib in zip(*peaks_kib, strict=True):
        assert (large_kib - small_kib) * 1024 < added_bytes / 4


def test_odd_pictures_are_stored_as_published_and_counted(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "source", ["a"], 2)
    png, cmyk, grey = picture_bytes(1, kind="PNG"), picture_bytes(2, mode="CMYK"), picture_bytes(3, mode="L")
    for name, data in (("png.JPEG", png), ("cmyk.JPEG", cmyk), ("grey.JPEG", grey)):
        (root / "a" / name).write_bytes(data)
    inputs = inputs_below(root)
    write_images(tmp_path / "out.h5", {"train": inputs, "validation": inputs}, ["a"], {"source": "folder"})
    split = ImageSplit(tmp_path / "out.h5", "validation")
    assert split.provenance["formats"] == {"jpeg_cmyk": 2, "jpeg_colour": 4, "jpeg_grey": 2, "png": 2}
    stored = {split.name(index): split.read_one(index) for index in range(split.num_samples)}
    assert (stored["a/png.JPEG"], stored["a/cmyk.JPEG"], stored["a/grey.JPEG"]) == (png, cmyk, grey)
    assert np.all(split.sizes[2:] == [40, 48])


def convert_one(root: Path, output: Path) -> Path:
    inputs = inputs_below(root)
    return write_images(output, {"train": inputs, "validation": inputs}, ["a"], {"source": "folder"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GIF89a" + bytes(100), r"a/odd.JPEG' is neither a JPEG nor a PNG \(it begins with b'GIF8'\)"),
        (b"\xff\xd8\xff\xd9 nothing", "a/odd.JPEG' is a JPEG without a frame header"),
        (picture_bytes(0)[:100], "a/odd.JPEG' is a JPEG that ends within its header, at byte 100"),
        (b"\xff\xd8" + bytes(50), "a/odd.JPEG' is a damaged JPEG: no marker at byte 2"),
        (b"\x89PNG\r\n\x1a\n", "a/odd.JPEG' is a PNG without a header"),
        (
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x04\0\0\0\x04\x10\x02\0\0\0",
            "a/odd.JPEG' is a PNG of 16 bits a channel, and 8 are the most; convert it to 8 bits first",
        ),
    ],
)
def test_an_input_that_is_no_picture_is_named(tmp_path: Path, data: bytes, message: str) -> None:
    root = make_class_folders(tmp_path / "source", ["a"], 1)
    (root / "a" / "odd.JPEG").write_bytes(data)
    with pytest.raises(DataError, match=message):
        convert_one(root, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_an_input_that_changes_or_goes_between_the_passes_is_named(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "source", ["a"], 2)
    inputs, changed = inputs_below(root), root / "a" / "a_0001.JPEG"
    size = changed.stat().st_size
    changed.write_bytes(changed.read_bytes() + b"more")
    splits = {"train": inputs, "validation": inputs}
    with pytest.raises(DataError, match=f"a_0001.JPEG' changed from {size} to {size + 4} bytes"):
        write_images(tmp_path / "out.h5", splits, ["a"], {"source": "folder"})
    changed.unlink()
    with pytest.raises(DataError, match=r"a_0001.JPEG' cannot be opened \(No such file"):
        write_images(tmp_path / "out.h5", splits, ["a"], {"source": "folder"})


def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path) -> None:
    picture = tmp_path / "picture.JPEG"
    picture.write_bytes(picture_bytes(0))
    chunk = Chunk("train", 0, [str(picture)], None, [picture.stat().st_size], Places(0, 0, 0), verify=False)
    with pytest.raises(DataError, match=r"no space left for '/dev/full' .* make room and run the same command"):
        copy_chunk("/dev/full", chunk)


def test_an_output_that_may_not_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "source", ["a"], 1)
    with pytest.raises(DataError, match=r"'/sys/out.h5' cannot be written .* give an --output you may write"):
        convert_one(root, Path("/sys/out.h5"))  # refuses even root
    with pytest.raises(UsageError, match="of --output does not exist; make it first"):
        convert_one(root, tmp_path / "none" / "out.h5")


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "source", ["a"], 1)
    (tmp_path / "out.h5").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not overwritten"):
        convert_one(root, tmp_path / "out.h5")
    assert (tmp_path / "out.h5").read_text() == "mine"


def test_two_conversions_do_not_write_the_same_file(tmp_path: Path) -> None:
    root, output = make_class_folders(tmp_path / "source", ["a"], 1), tmp_path / "out.h5"
    with open_journal(journal_path(output)), pytest.raises(DataError, match="another process is writing"):
        convert_one(root, output)
    convert_one(root, output)


def test_an_incomplete_file_is_refused_with_what_to_do(script: Path, large_folders: Path, tmp_path: Path) -> None:
    output = tmp_path / "output.h5"
    kill_after_chunks(script, large_folders, output, num_chunks=1)
    with pytest.raises(DataError, match=r"is incomplete; .* resumes when run again"):
        open_images(partial_path(output))


def test_a_killed_worker_is_noticed(script: Path, large_folders: Path, tmp_path: Path) -> None:
    output = tmp_path / "output.h5"
    with start_conversion(script, large_folders, output, 0.3) as process:
        assert process.stdout is not None
        os.kill(int(process.stdout.readline().split()[0]), signal.SIGKILL)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 1
    assert "a worker process ended with exit code -9" in errors
