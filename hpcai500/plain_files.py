"""Opens files that somebody else has put there: plain files of a bounded size, and nothing that blocks or never ends.

A run folder from outside may hold a pipe, a device, a link to either, or a sparse file of petabytes under the name of a
ledger. What is opened here is a regular file, and reading it ends.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from hpcai500.errors import RecordError

MAX_FILE_BYTES = 2 << 30  # a submission of 5 runs on 10,000 ranks has no file that is half as large


def open_plain(path: Path) -> io.BufferedReader:
    """Open a file for reading.

    Raises:
        RecordError: it cannot be opened, is no regular file, or is larger than MAX_FILE_BYTES.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block without
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RecordError(f"cannot read {str(path)!r} ({reason})") from None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size <= MAX_FILE_BYTES:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISREG(status.st_mode):
        raise RecordError(f"cannot read {str(path)!r} (its {status.st_size} bytes are more than {MAX_FILE_BYTES})")
    raise RecordError(f"cannot read {str(path)!r} (it is not a regular file)")
