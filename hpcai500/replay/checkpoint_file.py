"""Takes a checkpoint out of a submission, where it may be anything, and tells whether it can be one.

Only a copy with the ledger's sha256 is ever opened, and only after its container has been looked at: torch.save writes
a zip archive whose entries are stored as they are, so an archive that grows when it is opened was not written by it.
torch.load(weights_only=True) then builds tensors and tables and runs nothing of the file; it is given little more
memory than the file has bytes, and what it built is looked at too: the tensors may not claim more values than the file
holds. None of this says that the numbers are those of an honest run.
"""

from __future__ import annotations

import hashlib
import os
import resource
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20
# Of resnet50: 161 parameters with a momentum each and, on every rank, 159 buffers and a random state.
ENTRIES, ENTRIES_A_RANK = 4096, 1024
DIRECTORY_BYTES_AN_ENTRY = 256  # torch's own take 62
PICKLE_BYTES, PICKLE_BYTES_AN_ENTRY = 1 << 16, 512  # torch's own take 110 an entry
BYTES_A_PARAMETER = 16  # weight and momentum take 8
BYTES, BYTES_A_RANK = 16 << 20, 16 << 20  # buffers, random states, padding
SLACK_BYTES = 1 << 30  # what threads and libraries map beside the file while it is loaded
# The ends of a zip archive (PKWARE's APPNOTE.TXT 4.3.14 to 4.3.16), which torch writes one behind the other.
END_64, LOCATOR_64, END = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL"), struct.Struct("<4s4H2LH")


def largest_bytes(num_parameters: int, num_ranks: int) -> int:
    """More bytes than a checkpoint of a model on so many ranks has."""
    return BYTES + BYTES_A_PARAMETER * num_parameters + BYTES_A_RANK * num_ranks


def copy_checkpoint(source: Path, target: Path, *, sha256: str, max_bytes: int) -> str | None:
    """Copy a checkpoint, so that what is opened is what was looked at.

    Returns:
        What is wrong with it; None if it is the file with this digest.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)  # a pipe would block without
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return "no regular file"
        if status.st_size > max_bytes:
            return f"{status.st_size} bytes, and a checkpoint of this model has at most {max_bytes}"
        digest = hashlib.sha256()
        with target.open("xb") as copy:
            while (chunk := file.read(CHUNK_BYTES)) and copy.tell() <= max_bytes:
                digest.update(chunk)
                copy.write(chunk)
    return None if digest.hexdigest() == sha256 else f"a file with sha256 {digest.hexdigest()}"


def container_problem(path: Path, *, num_ranks: int) -> str | None:
    """What is wrong with the archive of a checkpoint, found without unpacking any of it; None if nothing is."""
    size_bytes = path.stat().st_size
    largest = ENTRIES + ENTRIES_A_RANK * num_ranks
    directory_bytes = _directory_bytes(path)
    if directory_bytes is None:
        return "no archive as torch.save writes it"
    if directory_bytes > DIRECTORY_BYTES_AN_ENTRY * largest:
        return f"an archive with a directory of {directory_bytes} bytes, too many for {num_ranks} ranks"
    try:
        with zipfile.ZipFile(path) as archive:
            return _entries_problem(archive.infolist(), size_bytes, largest)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError):
        return "an archive that is damaged"


def _entries_problem(entries: list[zipfile.ZipInfo], size_bytes: int, largest: int) -> str | None:
    if len(entries) > largest:
        return f"an archive with {len(entries)} entries, and one of this run has at most {largest}"
    unpacked_bytes = sum(entry.file_size for entry in entries)
    if unpacked_bytes > size_bytes or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return f"an archive of {size_bytes} bytes that unpacks to {unpacked_bytes}, and torch.save compresses nothing"
    pickle_bytes = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if pickle_bytes > PICKLE_BYTES + PICKLE_BYTES_AN_ENTRY * len(entries):
        return f"an archive whose table of contents takes {pickle_bytes} bytes for {len(entries)} entries"
    return None


def _directory_bytes(path: Path) -> int | None:
    """The length of an archive's directory, before anything of that length is read; None if there is none."""
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, END_64.size + LOCATOR_64.size + END.size), os.SEEK_END)
        tail = file.read()
    if len(tail) < END_64.size + LOCATOR_64.size + END.size:
        return None
    end_64 = END_64.unpack_from(tail)
    locator = LOCATOR_64.unpack_from(tail, END_64.size)
    end = END.unpack_from(tail, END_64.size + LOCATOR_64.size)
    signatures, comment_bytes = (end_64[0], locator[0], end[0]), end[-1]
    if signatures != (b"PK\x06\x06", b"PK\x06\x07", b"PK\x05\x06") or comment_bytes:
        return None
    return int(max(end_64[-2], end[-3] if end[-3] != 2**32 - 1 else 0))


def content_problem(path: Path) -> str | None:
    """What is wrong with what a checkpoint holds, as far as it could harm whoever loads it; None if nothing is."""
    import torch

    try:
        with limited_memory(2 * path.stat().st_size + SLACK_BYTES):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the file makes it raise
        return f"a file that torch does not load ({type(error).__name__}: {str(error).partition(chr(10))[0][:200]})"
    if not isinstance(state, dict) or not {"model", "optimizer", "scaler", "ranks"} <= state.keys():
        return "a file without model, optimizer, scaler and ranks"
    num_bytes = 0
    for tensor in _tensors(state):
        is_plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
        if not is_plain or tensor.device.type != "cpu":
            return f"a tensor of another kind ({tensor.layout}, {tensor.device})"
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            return f"a tensor that claims {tensor.numel()} values and has fewer"
        num_bytes += tensor.numel() * tensor.element_size()
    if num_bytes > path.stat().st_size:
        return f"tensors that claim {num_bytes} bytes and share fewer"
    return None


def _tensors(state: Any) -> Iterator[Any]:
    """All tensors in nested tables and lists; each table once, since one may hold itself many times over."""
    import torch

    seen: set[int] = set()
    left = [state]
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)


@contextmanager
def limited_memory(num_bytes: int) -> Iterator[None]:
    """While the block runs, this process gets at most so many more bytes of address space."""
    mapped_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = mapped_pages * resource.getpagesize() + num_bytes
    for bound in (soft, hard):
        if bound != resource.RLIM_INFINITY:
            limit = min(limit, bound)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
