"""Runs a command that the kernel ends when its parent dies: ``python leash.py SIGNAL COMMAND [ARGUMENT ...]``.

mpiexec or its caller may be killed so hard that they cannot end the ranks; without this, ranks would go on and hold
the machine. Started as a file and with only the standard library, because it runs before every rank (about 20 ms).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    # Kept over exec, dropped over fork: it binds this process, not what it starts (prctl(2)).
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.Signals[sys.argv[1]])) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  (no shell is the point)
    except OSError as error:
        sys.exit(f"cannot start {sys.argv[2]!r}: {error.strerror}")


if __name__ == "__main__":
    main()
