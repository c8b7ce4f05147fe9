"""How often and how much anybody may ask of a board."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hpcai500.leaderboard.answers import Refused, refusal
from hpcai500.register.server import counted_address

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY_BYTES = 1 << 16  # of every request but a piece of an archive
MAX_KEYS = 10_000


class Rate:
    """A bucket for each key, which fills evenly and from which each request takes one.

    Each server process counts for itself.

    Args:
        per_minute: requests that may go on for ever.
        burst: requests that may come at once.
        clock_s: a clock that never steps back.
    """

    def __init__(self, per_minute: float, burst: int, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock_s = per_minute / 60, burst, clock_s
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, key: str) -> int:
        """Count one request; returns 0, or after how many seconds to ask again."""
        with self._lock:
            now_s = self._clock_s()
            level, then_s = self._buckets.get(key, (float(self._burst), now_s))
            level = min(float(self._burst), level + (now_s - then_s) * self._per_s)
            if level < 1:
                return max(1, math.ceil((1 - level) / self._per_s))
            self._forget(now_s)
            self._buckets[key] = level - 1, now_s
            return 0

    def _forget(self, now_s: float) -> None:
        """Drop the buckets that are full again, once there are many."""
        if len(self._buckets) >= MAX_KEYS:
            is_full = self._burst / self._per_s
            self._buckets = {key: one for key, one in self._buckets.items() if now_s - one[1] < is_full}


def too_often(wait_s: int) -> Refused:
    """What is answered to who asks too often."""
    return Refused(429, f"that is too often; ask again in {wait_s} s", {"Retry-After": str(wait_s)})


def address_of(scope: Scope) -> str:
    """What counts as the address of who asks."""
    host = str((scope.get("client") or ("",))[0])
    try:
        return counted_address(host)
    except ValueError:  # a Unix socket has no address
        return host


class Limited:
    """Lets no address ask too often, and no request be too long.

    Args:
        app: what is asked.
        rate: of each address.
    """

    def __init__(self, app: ASGIApp, rate: Rate) -> None:
        self.app, self.rate = app, rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if wait_s := self.rate.take(address_of(scope)):
            await refusal(too_often(wait_s))(scope, receive, send)
            return
        if scope["method"] == "PATCH":  # a piece of an archive, which is measured by what was announced
            await self.app(scope, receive, send)
            return
        body = await _read_body(receive)
        if body is None:
            sentence = f"a request has at most {MAX_BODY_BYTES:,} bytes; archives are sent in pieces by PATCH"
            await refusal(Refused(413, sentence))(scope, receive, send)
            return
        await self.app(scope, _once(body, receive), send)


async def _read_body(receive: Receive) -> bytes | None:
    """The whole body; None if it is too long."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        body += bytes(message.get("body", b""))
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body", False):
            return body


def _once(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_next() -> Message:
        return messages.pop() if messages else await receive()

    return receive_next
