"""A submission as one file: ``submission.json`` first, then what lies beside it, then all files that its runs list.

The form is tar (PAX where a name needs it) in gzip, with nothing in it that depends on when or by whom it was packed,
so the same submission packs to the same bytes on the same machine. ``unpack`` takes what ``pack`` makes and nothing
else: an archive is written by strangers, and tarfile reads much that nobody needs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from hpcai500.checks.form import is_inside
from hpcai500.equivalence.proof import PROOF_NAME
from hpcai500.errors import RecordError
from hpcai500.formats import MAX_RECORD_BYTES, SUBMISSION_NAME, Submission, read_record
from hpcai500.plain_files import MAX_FILE_BYTES, open_plain
from hpcai500.register.ticket import TICKET_NAME
from hpcai500.signature import signature_path

MAX_ARCHIVE_BYTES = 2 << 30
MAX_UNPACKED_BYTES = 8 << 30  # ledgers are text, which packs to a quarter
MAX_FILES = 200_000  # 5 runs on 10,000 ranks have 50,000 ledgers
MAX_NAME_BYTES, MAX_PART_BYTES, MAX_DEPTH = 400, 200, 12
MAX_PAX_BYTES = 4096
BLOCK, PIECE_BYTES = 512, 1 << 20
LENGTH_FIELD = re.compile(rb"([0-9]{1,4}) (path)=")
Report = Callable[[int, int], None]


def pack(submission: Path, output: Path, report: Report = lambda done, total: None) -> tuple[str, str]:
    """Pack a submission with all of its files.

    Args:
        submission: its submission.json.
        output: the archive, written over.
        report: told how many bytes are done, of how many.

    Returns:
        SHA-256 of the archive, and of submission.json, which is the submission's address.

    Raises:
        RecordError: a file is missing, too large or outside of the submission's folder, or the archive cannot be
            written.
    """
    base = submission.parent
    names = list_files(submission)
    sizes = {name: _size_of(base / source) for name, source in names.items()}
    total = sum(sizes.values())
    digests: dict[str, str] = {}
    done = 0
    try:
        with (
            output.open("wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name, source in names.items():
                digests[name] = _add(archive, name, base / source, sizes[name])
                done += sizes[name]
                report(done, total)
    except OSError as error:
        raise RecordError(f"cannot write {str(output)!r} ({error.strerror}); make room or name another place") from None
    if output.stat().st_size > MAX_ARCHIVE_BYTES:
        size = f"{output.stat().st_size:,} bytes packed"
        raise RecordError(f"the submission has {size}, and a leaderboard takes {MAX_ARCHIVE_BYTES:,}")
    with output.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), digests[SUBMISSION_NAME]


def list_files(submission: Path) -> dict[str, str]:
    """Names in the archive and the files beneath the submission's folder that they stand for, in order.

    Raises:
        RecordError: the submission cannot be read or lists what is outside of its folder.
    """
    record = read_record(submission, Submission)
    names = {SUBMISSION_NAME: submission.name}
    if (signature := signature_path(submission)).exists():
        names[f"{SUBMISSION_NAME}.sig"] = signature.name
    names |= {name: name for name in (TICKET_NAME, PROOF_NAME) if (submission.parent / name).exists()}
    for run in record.runs:
        for name in sorted(run.files):
            path = f"{run.folder}/{name}"
            if not is_inside(submission.parent, path):
                raise RecordError(f"{str(submission)!r} lists {path!r}, which is not beneath its folder; verify it")
            names[path] = path
    return names


def _size_of(path: Path) -> int:
    with open_plain(path) as file:
        return os.fstat(file.fileno()).st_size


def _add(archive: tarfile.TarFile, name: str, source: Path, size_bytes: int) -> str:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size_bytes, 0o644
    with open_plain(source) as file:
        digest = _Digesting(file)
        try:
            archive.addfile(member, digest)
        except OSError as error:
            if error.errno is not None:
                raise
            raise RecordError(f"{str(source)!r} changed while it was packed; begin again") from None
    return digest.sha256.hexdigest()


class _Digesting(io.RawIOBase):
    """Digests what is read."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file, self.sha256 = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self.file.read(size)
        self.sha256.update(piece)
        return piece


class Member(NamedTuple):
    """A file of an archive: its name, how long it is, and its content in pieces, which must be read to the end."""

    name: str
    size_bytes: int
    pieces: Iterator[bytes]


def read_first(archive: Path) -> bytes:
    """The submission.json of an archive, in bounded time and memory.

    Raises:
        RecordError: it is no archive, or does not begin with a submission.json.
    """
    with _opened(archive) as members:
        for member in members:
            if member.name == SUBMISSION_NAME and member.size_bytes <= MAX_RECORD_BYTES:
                return b"".join(member.pieces)
            break
    raise RecordError("the archive does not begin with submission.json; pack it with `hpcai500 leaderboard upload`")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive into a new folder.

    Returns:
        The path of its submission.json.

    Raises:
        RecordError: it is no whole archive of a submission, or too large; what was unpacked until then stays.
    """
    names = _Names()
    total = 0
    folder.mkdir(parents=True)
    with _opened(archive) as members:
        for member in members:
            names.add(member.name)
            total += member.size_bytes
            if member.size_bytes > MAX_FILE_BYTES or total > MAX_UNPACKED_BYTES:
                raise RecordError(
                    f"the archive unpacks to more than {MAX_UNPACKED_BYTES:,} bytes, or a file of it to more than "
                    f"{MAX_FILE_BYTES:,}"
                )
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as output:
                for piece in member.pieces:
                    output.write(piece)
    if SUBMISSION_NAME not in names.files:
        raise RecordError("the archive has no submission.json; pack it with `hpcai500 leaderboard upload`")
    return folder / SUBMISSION_NAME


class _Names:
    """The names of an archive so far: plain, and different also for a file system that folds case or accents."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._folders: set[str] = set()
        self._spelled: dict[str, str] = {}  # files and folders as they were first spelled, by what they fold to

    def add(self, name: str) -> None:
        """Take a name in.

        Raises:
            RecordError: it is not plain, or collides with another, or there are too many.
        """
        if not _is_plain(name):
            raise RecordError(f"the archive has the file name {name[:100]!r}, which is not plain and relative")
        *folders, path = accumulate(name.split("/"), "{}/{}".format)
        for one in (*folders, path):
            spelled = self._spelled.setdefault(_fold(one), one)
            if spelled != one or path in self._folders or path in self.files or one in self.files:
                raise RecordError(f"the archive has {name[:100]!r} and {spelled[:100]!r}, which are one file name")
        self.files.add(name)
        self._folders.update(folders)
        if len(self.files) > MAX_FILES:
            raise RecordError(f"the archive has more than {MAX_FILES:,} files")


def _is_plain(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and name == "/".join(parts)
        and not name.startswith("/")
        and not {"..", "."}.intersection(parts)
        and name.isprintable()
        and "\\" not in name
        and len(parts) <= MAX_DEPTH
        and len(name.encode()) <= MAX_NAME_BYTES
        and all(len(part.encode()) <= MAX_PART_BYTES for part in parts)
    )


def _fold(path: str) -> str:
    return unicodedata.normalize("NFKC", path).casefold()


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[Member]]:
    """The files of an archive, one after the other; what is wrong with it while they are read becomes a RecordError."""
    try:
        with open_plain(archive) as file, gzip.GzipFile(fileobj=file, mode="rb") as stream:
            yield _read_members(stream)
    except EOFError:
        raise RecordError("the archive ends in the middle; upload it again") from None
    except (gzip.BadGzipFile, zlib.error, tarfile.HeaderError) as error:
        raise RecordError(
            f"it is no archive of a submission ({error}); pack one with `hpcai500 leaderboard upload`"
        ) from None


def _read_members(stream: gzip.GzipFile) -> Iterator[Member]:
    long_name: str | None = None
    while any(block := _read_exactly(stream, BLOCK)):
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except UnicodeDecodeError:
            raise RecordError("the archive has a file name that is not UTF-8") from None
        if header.type == tarfile.XHDTYPE and long_name is None and header.size <= MAX_PAX_BYTES:
            long_name = _pax_path(b"".join(_pieces(stream, header.size)))
            continue
        if header.type != tarfile.REGTYPE or header.size < 0:
            raise RecordError(f"the archive has {header.name[:100]!r}, which is not a regular file")
        yield Member(long_name or header.name, header.size, _pieces(stream, header.size))
        long_name = None
    _check_end(stream)


def _pax_path(records: bytes) -> str:
    """The name in an extended header, which has nothing else."""
    found = LENGTH_FIELD.match(records)
    if found is None or int(found[1]) != len(records) or not records.endswith(b"\n"):
        raise RecordError("the archive has an extended header of another kind than `hpcai500 leaderboard upload` makes")
    try:
        return records[found.end() : -1].decode()
    except UnicodeDecodeError:
        raise RecordError("the archive has a file name that is not UTF-8") from None


def _check_end(stream: gzip.GzipFile) -> None:
    """After the last file there is nothing but the padding."""
    padding = stream.read(tarfile.RECORDSIZE + 1)
    if len(padding) > tarfile.RECORDSIZE or any(padding):
        raise RecordError("the archive goes on after its end; pack it with `hpcai500 leaderboard upload`")


def _pieces(stream: gzip.GzipFile, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    while left:
        piece = _read_exactly(stream, min(left, PIECE_BYTES))
        left -= len(piece)
        yield piece
    _read_exactly(stream, -size_bytes % BLOCK)


def _read_exactly(stream: gzip.GzipFile, size_bytes: int) -> bytes:
    content = stream.read(size_bytes)
    if len(content) < size_bytes:
        raise EOFError
    return content
