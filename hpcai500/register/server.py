"""A register that answers over HTTP, in JSON.

========================  ==============================================================================
``POST /tickets``         takes a TicketRequest; 201 with a SignedTicket
``GET /tickets/SHA256``   200 with the ticket of that digest, 404 if this register has not given it out
``GET /key``              200 with the name and the public key of the issuer
========================  ==============================================================================

Anything else is answered with 4xx or 503 and ``{"error": "one sentence"}``. ``answer`` is all of it but the sockets, so
another server can mount it. It speaks plain HTTP: whoever offers it to the world puts a server with TLS before it.
"""

from __future__ import annotations

import ipaddress
import re
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from hpcai500.errors import HpcAi500Error, RecordError
from hpcai500.formats import SignedTicket
from hpcai500.register.issuer import Quota, Register
from hpcai500.register.ticket import TicketRequest, describe_ticket, ticket_sha256

MAX_REQUEST_BYTES = 4096
SOCKET_TIMEOUT_S = 10.0
HOUR_S = 3600.0
IPV6_PREFIX = 64  # one customer has at least so much of IPv6
TICKET_PATH = re.compile(r"/tickets/([0-9a-f]{64})\Z")


class IssuerKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``GET /key`` answers."""

    issuer: str
    issuer_key: str


class Refusal(msgspec.Struct, frozen=True):
    """Why a question is not answered, in a sentence."""

    error: str


Answer = tuple[HTTPStatus, SignedTicket | IssuerKey | Refusal]


def answer(register: Register, quota: Quota, *, method: str, path: str, body: bytes, address: str) -> Answer:
    """Answer one question.

    Args:
        register: that is asked.
        quota: of tickets an address gets.
        method: of the question.
        path: of the question.
        body: of the question.
        address: IP address of who asks.
    """
    found = TICKET_PATH.match(path)
    if method == "GET" and path == "/key":
        return HTTPStatus.OK, IssuerKey(issuer=register.name, issuer_key=register.key)
    if method == "GET" and found is not None:
        signed = register.find(found[1])
        return (HTTPStatus.OK, signed) if signed else _refuse(HTTPStatus.NOT_FOUND, "this register gave no such ticket")
    if path != "/tickets":
        return _refuse(HTTPStatus.NOT_FOUND, "there are POST /tickets, GET /tickets/SHA256 and GET /key")
    if method != "POST":
        return _refuse(HTTPStatus.METHOD_NOT_ALLOWED, "POST /tickets gives a ticket; GET /tickets/SHA256 shows one")
    return _issue(register, quota, body, address)


def _issue(register: Register, quota: Quota, body: bytes, address: str) -> Answer:
    if not quota.take(counted_address(address)):
        return _refuse(HTTPStatus.TOO_MANY_REQUESTS, "this address got all tickets of this hour; try again in an hour")
    try:
        request = msgspec.json.decode(body, type=TicketRequest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return _refuse(HTTPStatus.BAD_REQUEST, f"that is no request for a ticket: {error}")
    try:
        return HTTPStatus.CREATED, register.issue(request)
    except RecordError as error:
        return _refuse(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
    except HpcAi500Error as error:
        return _refuse(HTTPStatus.BAD_REQUEST, str(error))


def _refuse(status: HTTPStatus, sentence: str) -> Answer:
    return status, Refusal(sentence)


def counted_address(address: str) -> str:
    """What counts as one address: an IPv4 address, or a customer's part of IPv6."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((int(parsed), IPV6_PREFIX), strict=False))


class RegisterServer(ThreadingHTTPServer):
    """Serves a register until it is shut down.

    Args:
        place: host and port; port 0 is any that is free.
        register: it is not closed with the server.
        per_hour: tickets that an address gets in an hour.

    Raises:
        OSError: the port cannot be had.
    """

    daemon_threads = True

    def __init__(self, place: tuple[str, int], register: Register, *, per_hour: int) -> None:
        self.register = register
        self.quota = Quota(per_hour, HOUR_S, time.monotonic)
        super().__init__(place, _Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.server_address[0]!s}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: RegisterServer
    timeout = SOCKET_TIMEOUT_S  # of each read; who sends nothing is let go
    server_version = "hpcai500"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit() and len(length) < 10):
            self._send(*_refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length must tell the length of the request"))
        elif int(length) > MAX_REQUEST_BYTES:
            self._send(
                *_refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {MAX_REQUEST_BYTES} bytes")
            )
        else:
            self._answer(self.rfile.read(int(length)))

    def _answer(self, body: bytes) -> None:
        server = self.server
        status, content = answer(
            server.register,
            server.quota,
            method=self.command,
            path=self.path,
            body=body,
            address=self.client_address[0],
        )
        if status == HTTPStatus.CREATED and isinstance(content, SignedTicket):
            ticket = content.ticket
            print(f"ticket {ticket_sha256(ticket)[:12]}...: {describe_ticket(ticket)}", flush=True)
        self._send(status, content)

    def _send(self, status: HTTPStatus, content: SignedTicket | IssuerKey | Refusal) -> None:
        body = msgspec.json.encode(content) + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, in JSON too."""
        self._send(*_refuse(HTTPStatus(code), f"{message or HTTPStatus(code).phrase}".strip().rstrip(".")))

    def handle_one_request(self) -> None:
        """One question; who goes away before the answer is let go."""
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of single questions; tickets are told where they are given out."""
