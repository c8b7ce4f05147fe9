"""Asks a board over HTTP, with nothing but the standard library: upload, publish, withdraw, challenge, ticket.

The token comes from the environment variable HPCAI500_TOKEN, or from a file that only its owner may read::

    # ~/.config/hpcai500/leaderboard.toml
    [tokens]
    "https://board.example" = "hpcai500_..."
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import stat
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from hpcai500.errors import HpcAi500Error, UsageError
from hpcai500.register.keys import config_folder
from hpcai500.verdict import printable

TOKEN_VARIABLE = "HPCAI500_TOKEN"  # noqa: S105, a name
CONFIG_NAME = "leaderboard.toml"
TIMEOUT_S = 60.0
PATIENCE_S = 900.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
PIECE_BYTES = 8 << 20
MAX_ANSWER_BYTES = 4 << 20
AGAIN = (429, 502, 503, 504)
HOW_TO_GET_A_TOKEN = f"ask the board's operator for one, and put it into the environment variable {TOKEN_VARIABLE}"


class BoardError(HpcAi500Error):
    """A board cannot be reached, or refuses; the message has its sentence."""

    exit_code = 1


class Answer(NamedTuple):
    """What a board answered."""

    status: int
    headers: dict[str, str]
    content: Any


class NotReachedError(Exception):
    """No answer came; trying again may do."""


def parse_url(url: str) -> SplitResult:
    """The address of a board.

    Raises:
        UsageError: it is none, or would send a token in the clear over a network.
    """
    try:
        parts = urlsplit(url.rstrip("/"))
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("https", "http") or not host or parts.query or parts.fragment or parts.username:
        raise UsageError(f"--to {url!r} is no address of a leaderboard; give one as https://board.example")
    if parts.scheme == "http" and not _is_this_machine(host):
        raise UsageError(f"--to {url!r} would send your token in the clear; begin the address with https://")
    return parts


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_token(url: str) -> str:
    """The token for a board.

    Raises:
        UsageError: there is none, or its file may be read by others or is not of that form.
    """
    if token := os.environ.get(TOKEN_VARIABLE, "").strip():
        return _checked(token)
    path = config_folder() / CONFIG_NAME
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            tokens = tomllib.load(file).get("tokens", {})
    except FileNotFoundError:
        tokens, mode = {}, 0
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{str(path)!r} cannot be read ({error}); it is TOML with [tokens]") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{str(path)!r} may be read by others; `chmod 600 {path}`, and have its tokens revoked")
    found = {str(key).rstrip("/"): value for key, value in dict(tokens).items()}.get(url.rstrip("/"))
    if not isinstance(found, str):
        raise UsageError(f"there is no token for {url!r}; {HOW_TO_GET_A_TOKEN}, or into {str(path)!r} under [tokens]")
    return _checked(found.strip())


def _checked(token: str) -> str:
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(f"the token is none, since it has characters that no token has; {HOW_TO_GET_A_TOKEN}")
    return token


class BoardClient:
    """Asks one board.

    Args:
        url: of the board.
        token: that is shown.
        patience_s: how long a board that does not answer is asked again.
        sleep: waits so many seconds.
    """

    def __init__(
        self, url: str, token: str, *, patience_s: float = PATIENCE_S, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.url, self._parts, self._token = url.rstrip("/"), parse_url(url), token
        self._patience_s, self._sleep = patience_s, sleep
        self._has_answered = False

    def ask(self, method: str, path: str, form: dict[str, Any] | None = None) -> Answer:
        """Ask until there is an answer; what asks twice is done once.

        Raises:
            BoardError: the board refuses, or cannot be reached.
        """
        body = None if form is None else json.dumps(form).encode()
        begin_s, wait_s = time.monotonic(), FIRST_WAIT_S
        while True:
            try:
                answer = self.ask_once(method, path, body, {"Content-Type": "application/json"} if body else {})
                if answer.status not in AGAIN:
                    return self._good(answer)
                reason = self._sentence(answer)
                wait_s = max(wait_s, _seconds(answer.headers.get("retry-after", "")))
            except NotReachedError as error:
                reason = str(error)
                if not self._has_answered:
                    raise BoardError(
                        f"the leaderboard {self.url!r} cannot be reached ({reason}); check the address"
                    ) from None
            if time.monotonic() + wait_s - begin_s > self._patience_s:
                raise BoardError(f"the leaderboard {self.url!r} does not go on ({reason}); run the same command later")
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def ask_once(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        """Ask once.

        Raises:
            NotReachedError: there was no answer.
        """
        parts = self._parts
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
        try:
            words = {"Authorization": f"Bearer {self._token}", "Accept": "application/json", **headers}
            connection.request(method, f"{parts.path}{path}", body, words)
            reply = connection.getresponse()
            content = reply.read(MAX_ANSWER_BYTES)
            found = {name.lower(): value for name, value in reply.getheaders()}
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NotReachedError(printable(str(error) or type(error).__name__)) from None
        finally:
            connection.close()
        return Answer(reply.status, found, _json(content))

    def _good(self, answer: Answer) -> Answer:
        if answer.status in (200, 201, 204):
            if answer.status != 204 and not isinstance(answer.content, dict | list):
                raise BoardError(f"{self.url!r} does not answer as a leaderboard does; check the address")
            self._has_answered = True
            return answer
        raise BoardError(f"the leaderboard {self.url!r} refuses: {self._sentence(answer)}")

    def _sentence(self, answer: Answer) -> str:
        if isinstance(answer.content, dict) and isinstance(answer.content.get("error"), str):
            return printable(answer.content["error"])
        if answer.status in (301, 302, 307, 308):
            return printable(f"it has moved to {answer.headers.get('location', 'elsewhere')}; give that address")
        return f"HTTP status {answer.status}, which is not how a leaderboard answers; check the address"

    def send(self, archive: Path, form: dict[str, Any], report: Callable[[int, int], None]) -> Any:
        """Send an archive in pieces, going on after every break, and hand it over; returns what the board says of it.

        Args:
            archive: the file.
            form: what announces it.
            report: told how many bytes are there, of how many.

        Raises:
            BoardError: the board refuses, or cannot be reached any more.
        """
        size_bytes = archive.stat().st_size
        upload = self.ask("POST", "/api/uploads", form).content
        path = f"/api/uploads/{upload['id']}"
        offset, last_s, wait_s = int(upload["offset"]), time.monotonic(), FIRST_WAIT_S
        with archive.open("rb") as file:
            while offset < size_bytes:
                report(offset, size_bytes)
                file.seek(offset)
                there = self._send_piece(path, file.read(PIECE_BYTES), offset)
                if there is not None and there > offset:
                    offset, last_s, wait_s = there, time.monotonic(), FIRST_WAIT_S
                    continue
                if time.monotonic() + wait_s - last_s > self._patience_s:
                    raise BoardError(f"the leaderboard {self.url!r} takes no more; run the same command later to go on")
                self._sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                offset = int(self.ask("POST", "/api/uploads", form).content["offset"])
        report(size_bytes, size_bytes)
        return self.ask("POST", f"{path}/finish").content

    def _send_piece(self, path: str, piece: bytes, offset: int) -> int | None:
        """Send one piece; returns how much is there then, None if that is to be asked."""
        headers = {"Upload-Offset": str(offset), "Content-Type": "application/octet-stream"}
        try:
            answer = self.ask_once("PATCH", path, piece, headers)
        except NotReachedError:
            return None
        if answer.status == 409 or answer.status in AGAIN:
            return None
        return int(self._good(answer).headers.get("upload-offset", offset))

    def wait_until_verified(self, sha256: str) -> Any:
        """What the board says of a submission once it has verified it, or after all patience."""
        begin_s, wait_s = time.monotonic(), FIRST_WAIT_S
        while True:
            found = self.ask("GET", f"/api/submissions/{sha256}").content
            if found["state"] != "draft" or time.monotonic() + wait_s - begin_s > self._patience_s:
                return found
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _seconds(text: str) -> float:
    return float(min(int(text), 3600)) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0
