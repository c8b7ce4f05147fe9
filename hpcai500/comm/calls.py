"""Which collective call a rank is in, and how many it has entered.

All ranks enter the same calls in the same order, so a rank that has entered fewer than one that waits is a rank that
is waited for. The lifeline's thread reads this and holds every call to its deadline, whatever the library.
"""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from hpcai500.errors import CommunicationError

Method = TypeVar("Method", bound=Callable[..., Any])


class CallState(NamedTuple):
    """A rank's place in the order of collective calls.

    Attributes:
        num_entered: how many calls this rank has entered.
        name: of the one it is in; "" if in none.
        waited_s: for how long.
    """

    num_entered: int
    name: str = ""
    waited_s: float = 0.0


class Calls:
    """Counts the collective calls of one rank; written by its main thread, read by any."""

    def __init__(self, communicator: str, rank: int) -> None:
        self.communicator, self.rank = communicator, rank
        self._num_entered = 0
        self._current: tuple[str, int] | None = None

    @property
    def in_call(self) -> bool:
        """Whether a call has been entered and not left."""
        return self._current is not None

    def enter(self, name: str) -> None:
        """Note that this rank now waits in a call for the others."""
        self._num_entered += 1
        self._current = (name, time.monotonic_ns())

    def leave(self) -> None:
        """Note that the call has ended."""
        self._current = None

    def state(self) -> CallState:
        """The state now."""
        current, num_entered = self._current, self._num_entered
        if current is None:
            return CallState(num_entered)
        return CallState(num_entered, current[0], (time.monotonic_ns() - current[1]) / 1e9)


class _HasCalls(Protocol):
    calls: Calls


def collective(words: str) -> Callable[[Method], Method]:
    """Decorator of a blocking collective method: notes the call while it lasts, which costs about 1 us.

    An error of the library becomes a CommunicationError that names call, rank and node. Within another call nothing is
    noted: a barrier made of an all-reduce is one call.

    Args:
        words: what to call it in messages.
    """

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def noted(self: _HasCalls, *args: Any, **kwargs: Any) -> Any:
            calls = self.calls
            if calls.in_call:
                return method(self, *args, **kwargs)
            calls.enter(words)
            try:
                return method(self, *args, **kwargs)
            except RuntimeError as error:  # what torch, mpi4py and Horovod raise
                raise CommunicationError(
                    f"{words} over {calls.communicator} failed on rank {calls.rank} on {socket.gethostname()}"
                ) from error
            finally:
                calls.leave()

        return cast(Method, noted)

    return decorate
