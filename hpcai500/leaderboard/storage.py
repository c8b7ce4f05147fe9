"""Where a board keeps files: archives on their way, and for each submission its archive and what is made of it.

::

    FOLDER/board.db                     with SQLite
    FOLDER/key.pem                      with which the board signs tickets; mode 0600
    FOLDER/uploads/ID                   as much of an archive as is there
    FOLDER/submissions/SHA256/archive.tar.gz   as it came, mode 0444
    FOLDER/submissions/SHA256/verdict.json     what the server found
    FOLDER/submissions/SHA256/report.html
    FOLDER/work/                        unpacked while it is verified

Files come into being under their name only when they are whole and on the disk, so a crash leaves them whole or absent.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from pathlib import Path

from hpcai500.durable import sync_path, write_whole
from hpcai500.errors import UsageError

ARCHIVE, VERDICT, REPORT = "archive.tar.gz", "verdict.json", "report.html"
NAMES = (ARCHIVE, VERDICT, REPORT)
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
UPLOAD_ID = re.compile(r"[0-9a-f]{32}\Z")


class Storage:
    """The folder of a board; several servers may share it.

    Args:
        folder: made if it is not there.

    Raises:
        UsageError: it cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        try:
            for name in ("uploads", "submissions", "work"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"folder {str(folder)!r} cannot be used ({error.strerror}); name another --folder"
            ) from None
        if not os.access(self.folder / "uploads", os.W_OK):
            raise UsageError(f"folder {str(folder)!r} cannot be written by this user; name another --folder")

    def path(self, sha256: str, name: str) -> Path:
        """Where a file of a submission lies, or would.

        Args:
            sha256: address of the submission.
            name: of NAMES.
        """
        assert SHA256.match(sha256), sha256
        assert name in NAMES, name
        return self.folder / "submissions" / sha256 / name

    def upload_path(self, upload_id: str) -> Path:
        """Where an archive on its way lies, or would."""
        assert UPLOAD_ID.match(upload_id), upload_id
        return self.folder / "uploads" / upload_id

    def keep(self, upload: Path, sha256: str) -> None:
        """Make a whole upload the archive of a submission; it also stays where it is, until that is in the database.

        Raises:
            OSError: the disk is full or broken; nothing has changed then.
        """
        archive = self.path(sha256, ARCHIVE)
        archive.parent.mkdir(exist_ok=True)
        upload.chmod(0o444)
        sync_path(upload)
        new = archive.with_name(f".{ARCHIVE}.{secrets.token_hex(8)}")
        os.link(upload, new)
        new.replace(archive)
        new.unlink(missing_ok=True)  # the same file under both names is not renamed (rename(2))
        sync_path(archive.parent)
        sync_path(archive.parent.parent)

    def write(self, sha256: str, name: str, content: bytes) -> None:
        """Write a file of a submission that is made of it, over that of an earlier verification.

        Raises:
            OSError: the disk is full or broken; the earlier one is still there then.
        """
        write_whole(self.path(sha256, name), content)


def is_full(error: OSError) -> bool:
    """Whether the error says that there is no room, which an operator mends and no submission is to blame for."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
