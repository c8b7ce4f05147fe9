"""What can go wrong because of a user, a file or a machine; never because of a bug (those are assertions).

::

    HpcAi500Error
    +-- UsageError              a word or number the user gave is not possible
    |   +-- UnknownNameError    ... names something that does not exist; lists what does
    +-- RulesError              the rules of the level forbid it, or a rules file is broken
    +-- DataError               a data file is missing, damaged or of another kind
    |   +-- SampleError         ... one sample of it; names the sample
    +-- RecordError             a ledger, result or submission cannot be read or written
    +-- BackendUnavailableError a library is not installed or does not work here; says how to get it
    +-- ReplayError             steps of a submitted run cannot be replayed here; says nothing about them
    +-- RunError                a run cannot go on
        +-- DivergedError       the loss is no longer a finite number
        +-- StoppedError        ... was asked to stop, and has written a checkpoint to go on from
        +-- CommunicationError  ... since the ranks cannot talk any more; it can be resumed

Each message is one sentence: what is wrong with the offending value, what would be valid, what to do next.
"""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class HpcAi500Error(Exception):
    """Base of all errors a user can meet; the command line prints it in one line and exits with ``exit_code``."""

    exit_code = 2

    def __str__(self) -> str:
        """Join the message with those of its causes, so that ``raise X(...) from e`` reads as one sentence."""
        message = super().__str__()
        cause = self.__cause__
        return f"{message}: {cause}" if cause is not None and str(cause) else message


class UsageError(HpcAi500Error):
    """A word or number the user gave is not possible."""


class UnknownNameError(UsageError):
    """A name that does not exist; the message lists those that do, the most similar first."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        super().__init__(f"unknown {kind} {name!r}{hint}; known: {', '.join(names) or 'none'}")


class RulesError(HpcAi500Error):
    """The rules of the level forbid it, or a rules file is broken."""


class DataError(HpcAi500Error):
    """A data file is missing, damaged or of another kind."""


class SampleError(DataError):
    """One sample of a data file is damaged; the message names the file, the split and the sample."""


class RecordError(HpcAi500Error):
    """A ledger, result or submission cannot be read or written."""


class BackendUnavailableError(HpcAi500Error):
    """A library is not installed or does not work here; the message says how to get it."""


class ReplayError(HpcAi500Error):
    """Steps of a submitted run cannot be replayed here; says nothing about whether the submission is valid."""


class RunError(HpcAi500Error):
    """A run cannot go on; what it has measured so far is in its folder."""

    exit_code = 1


class DivergedError(RunError):
    """The loss is no longer a finite number."""


class StoppedError(RunError):
    """The run was asked to stop by a signal and has written a checkpoint to go on from.

    Attributes:
        epoch, step: how far it is.
    """

    exit_code = 75  # hpcai500.command.STOPPED_EXIT_CODE

    def __init__(self, number: int, *, epoch: int, step: int) -> None:
        self.epoch, self.step = epoch, step
        name = signal.Signals(number).name
        super().__init__(
            f"stopped by {name} after epoch {epoch}, step {step}, with a checkpoint; resume the run to go on from there"
        )


class CommunicationError(RunError):
    """The ranks cannot talk any more: one is gone, or the network failed; the run can be resumed."""

    exit_code = 76  # hpcai500.command.LOST_RANK_EXIT_CODE
