"""One TCP connection of a lifeline: messages are lines of JSON; the kernel notices the end of a peer or of its node."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import socket
from contextlib import suppress
from typing import Any

Message = dict[str, Any]
MAX_LINE_BYTES = 8192
# A process that ended leaves its connections to the kernel, which closes them (or resets one with unread messages).
ENDED = "its process has ended"


class LineEndedError(Exception):
    """The peer is gone; the message says how it shows."""


class Line:
    """A connection that never blocks: a peer that does not read must not stop the one who watches it.

    Args:
        connection: is taken over.
        node_silence_s: the connection ends when the peer's node has not acknowledged anything for so long.
    """

    def __init__(self, connection: socket.socket, *, node_silence_s: float) -> None:
        self._socket = connection
        self._buffer = b""
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A node without power sends no goodbye. Probes find that where nothing is under way, the timeout where
        # heartbeats are (tcp(7)). Both are answered by the peer's kernel, whatever its process does.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        seconds = max(1, int(node_silence_s / 4))
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            connection.setsockopt(socket.IPPROTO_TCP, option, seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(node_silence_s * 1000))

    def fileno(self) -> int:
        """For selectors."""
        return self._socket.fileno()

    def send(self, message: Message) -> None:
        """Send if the connection takes it; a peer that is gone shows when its messages are received."""
        with suppress(OSError):
            self._socket.send(_encode(message))

    def receive(self) -> list[Message]:
        """The messages that have come.

        Raises:
            LineEndedError: no more will come, and all that came have been returned.
        """
        try:
            received = self._socket.recv(65536)
        except BlockingIOError:
            return []
        except OSError as error:
            raise LineEndedError(_how_it_ended(error)) from None
        if not received:
            raise LineEndedError(ENDED)
        *lines, self._buffer = (self._buffer + received).split(b"\n")
        if len(self._buffer) > MAX_LINE_BYTES:
            raise LineEndedError("it sent no messages but bytes")
        return [_parse(line) for line in lines]

    def end_sending(self) -> None:
        """Tell the peer that nothing more will come, after what was sent."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _parse(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise LineEndedError("it sent no messages but bytes") from None
    return message if isinstance(message, dict) else {}


def _how_it_ended(error: OSError) -> str:
    if error.errno in (errno.ECONNRESET, errno.EPIPE):
        return ENDED
    return f"its node does not answer ({error.strerror or error})"


def introduced(connection: socket.socket, rank: int, secret: bytes) -> bool:
    """Introduce this rank to whoever accepted a connection, and tell whether it is rank 0 of the same run.

    The secret itself is not sent: on another node the address may be somebody else's.
    """
    expected = _encode(welcome(secret, rank))
    answer = b""
    with suppress(OSError):  # no answer is a wrong answer
        connection.sendall(_encode({"rank": rank, "proof": _proof(secret, f"rank {rank}")}))
        while len(answer) < len(expected) and (received := connection.recv(len(expected) - len(answer))):
            answer += received
    return hmac.compare_digest(answer, expected)


def welcome(secret: bytes, rank: int) -> Message:
    """What only rank 0 of the same run can answer to a rank that introduces itself."""
    return {"welcome": _proof(secret, f"welcome {rank}")}


def is_proof(shown: object, secret: bytes, words: str) -> bool:
    """Whether the sender of ``words`` has shown that it knows the secret."""
    return isinstance(shown, str) and hmac.compare_digest(shown.encode(), _proof(secret, words).encode())


def _proof(secret: bytes, words: str) -> str:
    return hmac.new(secret, words.encode(), hashlib.sha256).hexdigest()


def _encode(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"
