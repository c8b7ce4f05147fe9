"""Archives of submissions: the same bytes from the same submission, and nothing unpacked that could hurt."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from boards import record_for_board

from hpcai500.errors import RecordError
from hpcai500.leaderboard import archive
from hpcai500.leaderboard.archive import pack, read_first, unpack
from hpcai500.verify import verify_submission

Add = Callable[[tarfile.TarFile], None]


@pytest.fixture(scope="module")
def submission(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_for_board(tmp_path_factory.mktemp("recorded"))


def test_what_is_packed_unpacks_to_a_valid_submission(submission: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    archive_sha256, sha256 = pack(submission, tmp_path / "a.tar.gz", lambda *progress: done.append(progress))
    unpacked = unpack(tmp_path / "a.tar.gz", tmp_path / "unpacked")
    assert verify_submission(unpacked).valid
    assert hashlib.sha256(unpacked.read_bytes()).hexdigest() == sha256
    assert hashlib.sha256((tmp_path / "a.tar.gz").read_bytes()).hexdigest() == archive_sha256
    assert read_first(tmp_path / "a.tar.gz") == submission.read_bytes()
    assert done[-1][0] == done[-1][1] == sum(path.stat().st_size for path in submission.parent.rglob("*.*"))


def test_the_same_submission_packs_to_the_same_bytes(submission: Path, tmp_path: Path) -> None:
    first = pack(submission, tmp_path / "a.tar.gz")
    shutil.copytree(submission.parent, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    (tmp_path / "copy" / "submission.json").rename(tmp_path / "copy" / "other.json")
    (tmp_path / "copy" / "run-1" / "notes.txt").write_text("nobody lists this")
    assert pack(tmp_path / "copy" / "other.json", tmp_path / "b.tar.gz") == first


def test_names_that_are_long_or_not_ascii_are_packed_too(submission: Path, tmp_path: Path) -> None:
    shutil.copytree(submission.parent, tmp_path / "copy")
    name = f"läufe/{'x' * 150}"
    (tmp_path / "copy" / "läufe").mkdir()
    (tmp_path / "copy" / "run-1").rename(tmp_path / "copy" / name)
    path = tmp_path / "copy" / "submission.json"
    path.write_text(path.read_text().replace('"run-1"', f'"{name}"'))
    pack(path, tmp_path / "a.tar.gz")
    unpack(tmp_path / "a.tar.gz", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / name / "config.json").is_file()


def test_what_is_missing_or_outside_is_not_packed(submission: Path, tmp_path: Path) -> None:
    shutil.copytree(submission.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "submission.json"
    path.write_text(path.read_text().replace('"run-1"', '"../run-1"'))
    with pytest.raises(RecordError, match="not beneath its folder"):
        pack(path, tmp_path / "a.tar.gz")
    shutil.copy(submission, path)
    (tmp_path / "copy" / "run-1" / "steps.h5").unlink()
    with pytest.raises(RecordError, match=r"cannot read .*steps\.h5"):
        pack(path, tmp_path / "a.tar.gz")


def member(name: str, content: bytes = b"x", **fields: object) -> Add:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        for field, value in ({"size": len(content)} | fields).items():
            setattr(info, field, value)
        tar.addfile(info, io.BytesIO(content))

    return add


def write_archive(path: Path, *adds: Add, form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w:gz", format=form) as tar:
        for add in (member("submission.json", b"{}"), *adds):
            add(tar)
    return path


def of_type(kind: bytes, **fields: object) -> Add:
    return member("run-1/odd", b"", type=kind, **fields)


HOSTILE = {
    "symbolic link": (of_type(tarfile.SYMTYPE, linkname="/etc/passwd"), "not a regular file"),
    "hard link": (of_type(tarfile.LNKTYPE, linkname="submission.json"), "not a regular file"),
    "device": (of_type(tarfile.CHRTYPE), "not a regular file"),
    "pipe": (of_type(tarfile.FIFOTYPE), "not a regular file"),
    "folder": (of_type(tarfile.DIRTYPE), "not a regular file"),
    "sparse file": (of_type(tarfile.GNUTYPE_SPARSE), "not a regular file"),
    "absolute": (member("/etc/cron.d/x"), "not plain"),
    "parent": (member("run-1/../../x"), "not plain"),
    "dot": (member("./run-1/x"), "not plain"),
    "empty part": (member("run-1//x"), "not plain"),
    "backslash": (member("run-1\\x"), "not plain"),
    "control": (member("run-1/\x1b[2Jx"), "not plain"),
    "deep": (member("/".join("x" * 20)), "not plain"),
    "long": (member("x" * 250), "not plain"),
    "twice": (member("submission.json"), "one file name"),
    "case": (member("Submission.JSON"), "one file name"),
    "width": (member("\uff53ubmission.json"), "one file name"),
    "beneath a file": (member("submission.json/x"), "one file name"),
    "headers": (member("x", pax_headers={"comment": "y" * 10_000}), "not a regular file"),
    "other header": (member("x", pax_headers={"mtime": "1.5"}), "extended header"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archives_are_refused(what: str, tmp_path: Path) -> None:
    add, message = HOSTILE[what]
    path = write_archive(tmp_path / "a.tar.gz", add)
    with pytest.raises(RecordError, match=message):
        unpack(path, tmp_path / "unpacked")
    assert [one.name for one in (tmp_path / "unpacked").rglob("*")] == ["submission.json"]


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "a.tar.gz", member("x/y"), member("x"))
    with pytest.raises(RecordError, match="one file name"):
        unpack(path, tmp_path / "unpacked")


def test_a_bomb_is_stopped_before_it_fills_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1 << 20)
    path = write_archive(tmp_path / "a.tar.gz", *(member(f"x{number}", bytes(300_000)) for number in range(10)))
    assert path.stat().st_size < 50_000
    with pytest.raises(RecordError, match="more than 1,048,576 bytes"):
        unpack(path, tmp_path / "unpacked")
    assert sum(one.stat().st_size for one in (tmp_path / "unpacked").iterdir()) <= 1 << 20


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 5)
    path = write_archive(tmp_path / "a.tar.gz", *(member(f"x{number}") for number in range(10)))
    with pytest.raises(RecordError, match="more than 5 files"):
        unpack(path, tmp_path / "unpacked")


def test_what_is_no_archive_is_refused(submission: Path, tmp_path: Path) -> None:
    pack(submission, tmp_path / "a.tar.gz")
    whole = (tmp_path / "a.tar.gz").read_bytes()
    tar = gzip.decompress(whole)
    cases = {
        "half": (whole[: len(whole) // 2], "ends in the middle"),
        "empty": (b"", "ends in the middle"),
        "text": (b"hello, world", "no archive"),
        "damaged": (whole[:1000] + bytes(100) + whole[1100:], "no archive|ends in the middle"),
        "no tar": (gzip.compress(b"x" * 5000), "no archive"),
        "goes on": (gzip.compress(tar + b"x" * 20_000), "goes on after its end"),
        "two": (whole + gzip.compress(b"x" * 20_000), "goes on after its end"),
        "garbage": (whole + b"garbage", "no archive|goes on"),
        "other first": (gzip.compress(tar.replace(b"submission.json", b"submissiom.json", 1)), "no archive"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / "bad.tar.gz"
        path.write_bytes(content)
        with pytest.raises(RecordError, match=message):
            unpack(path, tmp_path / name)


def test_an_archive_begins_with_its_submission(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        member("x")(tar)
        member("submission.json", b"{}")(tar)
    with pytest.raises(RecordError, match="does not begin with"):
        read_first(tmp_path / "a.tar.gz")
