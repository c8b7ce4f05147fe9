"""How a rank ends when something is wrong: one line is said for all ranks, its ledger is closed, the others end."""

from __future__ import annotations

import signal
import socket
import sys
import traceback
from pathlib import Path

from hpcai500.comm.communicator import Communicator, exit_now
from hpcai500.command import INTERRUPTED_EXIT_CODE, LOST_RANK_EXIT_CODE
from hpcai500.errors import HpcAi500Error, RecordError
from hpcai500.failure import report_failure
from hpcai500.ledger import LedgerWriter


def say(text: str) -> None:
    """Tell the user, at once."""
    sys.stderr.write(f"hpcai500 train: {text}\n")
    sys.stderr.flush()


def ignore_interrupts() -> None:
    """From now on SIGINT and SIGTERM change nothing; call it in the main thread, once something ends this rank.

    Of several ranks that end at once the launcher interrupts those that are slower, which still have to close their
    ledgers.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Ending:
    """Ends this rank.

    Args:
        run_folder: of the run.
        comm: the ranks.

    Attributes:
        segment: of the run, once it is known; before that failures are only said and not noted.
        ledger: of this rank, once it is open.
    """

    def __init__(self, run_folder: Path, comm: Communicator) -> None:
        self._run_folder, self._comm, self._host = run_folder, comm, socket.gethostname()
        self.segment: int | None = None
        self.ledger: LedgerWriter | None = None

    def lose_rank(self, message: str) -> None:
        """End because another rank is gone; called in the lifeline's thread, does not return."""
        exit_now(self._close("interrupted", message, LOST_RANK_EXIT_CODE))

    def fail(self, error: BaseException) -> None:
        """End because of what happened on this rank, and end the others; does not return."""
        status, reason, exit_code = "failed", f"{type(error).__name__}: {error}", 1
        if isinstance(error, KeyboardInterrupt):
            status, reason, exit_code = "interrupted", "interrupted by a signal", INTERRUPTED_EXIT_CODE
        elif isinstance(error, HpcAi500Error):
            reason, exit_code = str(error), error.exit_code
        else:
            traceback.print_exception(error)
        exit_code = self._close(status, f"rank {self._comm.rank} on {self._host}: {reason}", exit_code)
        self._comm.abort(exit_code)
        sys.exit(exit_code)

    def _close(self, status: str, reason: str, exit_code: int) -> int:
        """Say the reason if no other rank has said one, close the ledger, and return the exit code of all."""
        if self.segment is None:
            say(reason)
        else:
            exit_code = report_failure(
                self._run_folder,
                self.segment,
                rank=self._comm.rank,
                host=self._host,
                reason=reason,
                exit_code=exit_code,
            )
        if self.ledger is not None:
            try:
                self.ledger.close(status, reason)
            except RecordError as error:  # a full disk must not hide why the run ended
                say(f"rank {self._comm.rank}: {error}")
        return exit_code
