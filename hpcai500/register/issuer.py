"""The register of an issuer: gives tickets out, and keeps each in a file before anybody hears of it."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hpcai500.durable import write_all
from hpcai500.edition import Edition, load_edition
from hpcai500.errors import RecordError, UsageError
from hpcai500.formats import SignedTicket
from hpcai500.register.keys import public_key
from hpcai500.register.ticket import SELF, TicketRequest, check_request, issue_ticket, ticket_sha256

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

REGISTER_NAME = "tickets.jsonl"
MAX_LINE_BYTES = 1 << 14


class Register:
    """All tickets of an issuer: ``tickets.jsonl`` in a folder, a line each, only ever added to.

    Any thread may use it; one process at a time holds the folder.

    Args:
        folder: made if it is not there.
        key: private key of the issuer.
        name: of the issuer.
        edition: whose workloads, levels and sizes may be announced; this package's by default.

    Raises:
        UsageError: the name cannot be one, the folder cannot be written, or another process holds it.
        RecordError: a line of the file is no ticket.
    """

    def __init__(self, folder: Path, key: Ed25519PrivateKey, *, name: str, edition: Edition | None = None) -> None:
        if not name.strip() or not name.isprintable() or name == SELF:
            raise UsageError(f"{name!r} cannot be the name of a register; give the one that people know it by")
        self.name, self.key = name, public_key(key)
        self._private_key, self._edition = key, edition or load_edition()
        self._path = folder / REGISTER_NAME
        self._lock = threading.Lock()
        self._file = _open_alone(self._path)
        self._places: dict[str, int] = {}
        self._end = 0
        for place, signed in self._read():
            self._places[ticket_sha256(signed.ticket)] = place

    def __len__(self) -> int:
        return len(self._places)

    def issue(self, request: TicketRequest, *, now_ns: int | None = None) -> SignedTicket:
        """Give a ticket out.

        Raises:
            UsageError: the edition has no such workload, level or size, or the name cannot be one.
            RecordError: the ticket cannot be kept, so it is not given out.
        """
        check_request(request, self._edition)
        signed = issue_ticket(self._private_key, request, issuer=self.name, now_ns=now_ns)
        line = msgspec.json.encode(signed) + b"\n"
        with self._lock:
            try:
                self._append(line)
            except OSError as error:
                os.ftruncate(self._file, self._end)
                raise RecordError(f"the register cannot keep a ticket ({error.strerror}); try again later") from None
            self._places[ticket_sha256(signed.ticket)] = self._end
            self._end += len(line)
        return signed

    def find(self, sha256: str) -> SignedTicket | None:
        """The ticket with that digest; None if this register has not given it out."""
        place = self._places.get(sha256)
        if place is None:
            return None
        line = os.pread(self._file, MAX_LINE_BYTES, place).partition(b"\n")[0]
        return msgspec.json.decode(line, type=SignedTicket)

    def close(self) -> None:
        """Give the folder back."""
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        write_all(self._file, line)
        os.fsync(self._file)

    def _read(self) -> Iterator[tuple[int, SignedTicket]]:
        """Every ticket with its place in bytes; a last line that a crash cut, and that nobody got, is taken away."""
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, self._end)
                    return
                try:
                    signed = msgspec.json.decode(line, type=SignedTicket)
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise RecordError(f"line {number} of {str(self._path)!r} is no ticket; mend the file") from error
                yield self._end, signed
                self._end += len(line)


class Quota:
    """How often each address may ask within a period; the counts of a period are forgotten with it.

    Args:
        limit: answers an address gets in a period.
        period_s: length of a period.
        clock_s: a clock that never steps back, in seconds.
    """

    def __init__(self, limit: int, period_s: float, clock_s: Callable[[], float]) -> None:
        self._limit, self._period_s, self._clock_s = limit, period_s, clock_s
        self._counts: dict[str, int] = {}
        self._since_s = clock_s()
        self._lock = threading.Lock()

    def take(self, address: str) -> bool:
        """Count one question; whether it may be answered."""
        with self._lock:
            now_s = self._clock_s()
            if now_s - self._since_s >= self._period_s:
                self._counts, self._since_s = {}, now_s
            self._counts[address] = self._counts.get(address, 0) + 1
            return self._counts[address] <= self._limit


def _open_alone(path: Path) -> int:
    """Open the file for appending, and hold it against other processes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise UsageError(f"register {str(path)!r} cannot be written ({error.strerror}); name another folder") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        raise UsageError(
            f"register {str(path)!r} is held by another process; end that one, or name another folder"
        ) from None
    return file
