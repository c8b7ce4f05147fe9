"""What a submitter does at a board: uploads, asks for tickets, publishes, withdraws and challenges."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from hpcai500.errors import RecordError, UsageError
from hpcai500.formats import SUBMISSION_NAME, SignedTicket, Submission, read_record, write_json
from hpcai500.leaderboard.archive import pack
from hpcai500.leaderboard.client import BoardClient, BoardError, find_token
from hpcai500.register.asking import make_request
from hpcai500.register.client import check_answer
from hpcai500.register.ticket import MAX_NAME, TicketRequest, describe_ticket
from hpcai500.verdict import errors_of, printable
from hpcai500.verify import verify_submission

ADDRESS = re.compile(r"(?:.*/submissions/)?([0-9a-f]{64})/?\Z")


def client_of(args: argparse.Namespace) -> BoardClient:
    """The board that the words name.

    Raises:
        UsageError: the address is none, or there is no token for it.
    """
    client = BoardClient(args.to, "")
    return BoardClient(client.url, find_token(client.url))


def upload(args: argparse.Namespace) -> int:
    """Verify, pack and send a submission; returns 1 if the board finds it invalid.

    Raises:
        UsageError: it is not valid, or the words are not possible.
        RecordError: it cannot be read or packed.
        BoardError: the board refuses, or cannot be reached.
    """
    path = args.submission / SUBMISSION_NAME if args.submission.is_dir() else args.submission
    client = client_of(args)
    check_valid(path)
    system = args.system or describe_system(path)
    with tempfile.TemporaryDirectory(prefix="hpcai500-upload-") as folder:
        archive = Path(folder) / "archive.tar.gz"
        show = Progress()
        archive_sha256, _ = pack(path, archive, lambda done, total: show("packing", done, total))
        form = {"archive_sha256": archive_sha256, "size_bytes": archive.stat().st_size, "system_name": system}
        form |= {"publish": not args.draft}
        answer = client.send(archive, form, lambda done, total: show("sending", done, total))
        show.end()
    say(f"the board has it whole: {archive_sha256}")
    if not args.no_wait:
        answer = client.wait_until_verified(answer["sha256"])
    return _tell(answer)


def check_valid(path: Path) -> None:
    """Verify a submission before anybody is asked to.

    Raises:
        UsageError: it is not valid.
        RecordError: it cannot be read.
    """
    verdict = verify_submission(path)
    if not verdict.valid:
        first = errors_of(verdict.findings)[0]
        raise UsageError(
            f"{str(path)!r} is not valid ({printable(str(first))}), so no board takes it; `hpcai500 verify` says more"
        )


def describe_system(path: Path) -> str:
    """A name for the machine, from what the submission says it is, as "2 x NVIDIA A100"."""
    nodes = read_record(path, Submission).system.nodes
    names = Counter(one.name for node in nodes for one in node.accelerators)
    names = names or Counter(node.processor for node in nodes for _ in range(node.num_sockets))
    return printable(" + ".join(f"{number} x {name}" for name, number in names.items()))[:MAX_NAME]


def _tell(answer: Any) -> int:
    state, problem = str(answer["state"]), answer.get("problem")
    words = {
        "draft": "it waits to be verified",
        "rejected": f"the board finds it invalid: {problem}",
        "verified": "it is verified; publish it with `hpcai500 leaderboard publish`",
        "published": "it is verified and published",
        "challenged": "it is published, and somebody challenges it",
        "withdrawn": "it was withdrawn",
    }
    say(f"{state}: {words.get(state, '')}")
    if answer.get("why_not") and state in ("verified", "published"):
        say(f"not ranked: {answer['why_not']}")
    if answer.get("registration") and state in ("verified", "published"):
        say(f"runs: {answer['registration']}")
    say(str(answer["url"]))
    return 1 if state == "rejected" else 0


def say(line: str) -> None:
    """Print a line, in which may stand what strangers wrote."""
    sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()


class Progress:
    """One line on a terminal, and nothing where nobody looks."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._last_s = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how much is done."""
        if self._is_shown and (done == total or time.monotonic() - self._last_s > 0.2):
            self._last_s = time.monotonic()
            share = 100 * done / total if total else 100
            sys.stderr.write(f"\r{what} {share:5.1f} % of {total / 2**20:,.1f} MiB\x1b[K")
            sys.stderr.flush()

    def end(self) -> None:
        """Clear the line."""
        if self._is_shown:
            sys.stderr.write("\r\x1b[K")


def move(args: argparse.Namespace) -> int:
    """Publish, withdraw or challenge a submission.

    Raises:
        UsageError: the address is none.
        BoardError: the board refuses, or cannot be reached.
    """
    found = ADDRESS.match(args.address)
    if found is None:
        raise UsageError(f"{args.address!r} is no submission; give the address of its page, or its 64 digits")
    forms = {"publish": (), "withdraw": ("reason",), "challenge": ("claim", "evidence")}
    form = {name: getattr(args, name) for name in forms[args.verb]}
    client = client_of(args)
    answer = client.ask("POST", f"/api/submissions/{found[1]}/{args.verb}", form or None).content
    if args.verb == "challenge":
        say(f"challenge {answer['id']} is filed; the board's operator decides")
        return 0
    return _tell(answer)


def show(args: argparse.Namespace) -> int:
    """List the organisation's own submissions.

    Raises:
        BoardError: the board refuses, or cannot be reached.
    """
    for row in client_of(args).ask("GET", "/api/submissions").content:
        what = " ".join(str(row[name] or "-") for name in ("workload", "size", "level"))
        say(f"{row['state']:10} {row['uploaded_at']} {what} {row['url']}")
        if row["state"] == "rejected":
            say(f"           {row['problem']}")
    return 0


def ticket(args: argparse.Namespace) -> int:
    """Get a ticket of the board and write it.

    Raises:
        UsageError: the words are not possible, or the board answers what cannot be right.
        RecordError: the output exists or cannot be written.
        BoardError: the board refuses, or cannot be reached.
    """
    request = make_request(args)
    if args.output.exists():
        raise RecordError(f"{str(args.output)!r} exists and is never overwritten; name another --output")
    client = client_of(args)
    answer = client.ask("POST", "/api/tickets", msgspec.to_builtins(request))
    signed = _read_ticket(client, request, answer.content)
    write_json(args.output, signed)
    say(f"{args.output}: {describe_ticket(signed.ticket)}")
    say(f"next: hpcai500 submit --ticket {args.output}")
    return 0


def _read_ticket(client: BoardClient, request: TicketRequest, content: Any) -> SignedTicket:
    try:
        signed = msgspec.convert(content, SignedTicket)
    except msgspec.ValidationError as error:
        raise BoardError(f"the leaderboard {client.url!r} answers with what is no ticket ({error})") from None
    check_answer(client.url, request, signed, now_ns=time.time_ns())
    return signed
