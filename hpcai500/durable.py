"""Brings to the disk what must outlast a power failure."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def sync_path(path: Path) -> None:
    """Return when the content of a file, or the names in a folder, are on the disk.

    A file that was renamed is there after a power failure only if its folder was brought to the disk too.

    Raises:
        OSError: it cannot be opened, or the disk is full or broken.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of it: a short write means that the disk is full, or that a signal came, and the next call says which.

    Raises:
        OSError: the disk is full or broken; a part may be written.
    """
    num_written = os.write(descriptor, content)
    while num_written < len(content):
        num_written += os.write(descriptor, content[num_written:])


def write_whole(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that its name never stands for half of it; what was there stays until then.

    Raises:
        OSError: the disk is full or broken; nothing has changed then.
    """
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    sync_path(path.parent)
