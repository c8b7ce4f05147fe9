"""The API of a board; /openapi.json describes it.

Requests that change something bear a token: ``Authorization: Bearer hpcai500_...``. Every refusal is
``{"error": "one sentence"}``. An archive is announced (POST), sent in one or more pieces (PATCH), each from the offset
that the last answer named, and finished (POST); HEAD tells the offset after a break.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Body, Depends, Header, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select, text
from sqlalchemy.orm import Session
from starlette.requests import ClientDisconnect

from hpcai500.leaderboard import lifecycle, uploads
from hpcai500.leaderboard.accounts import Account, TokenRefusedError, authenticate
from hpcai500.leaderboard.answers import Refused
from hpcai500.leaderboard.board import Board
from hpcai500.leaderboard.database import utc_text
from hpcai500.leaderboard.forms import (
    ChallengeAnswer,
    ChallengeForm,
    Failure,
    HealthAnswer,
    KeyAnswer,
    ReasonForm,
    Sha256,
    SubmissionAnswer,
    TicketForm,
    UploadAnswer,
    UploadForm,
    submission_answer,
)
from hpcai500.leaderboard.limits import address_of, too_often
from hpcai500.leaderboard.tables import SHOWN_STATES, Challenge, Submission, Token
from hpcai500.leaderboard.tickets import find_ticket, give_ticket
from hpcai500.register.ticket import TicketRequest

BEARER = HTTPBearer(auto_error=False, description="a token of your organisation")
WRITE_BYTES = 1 << 20
Address = Annotated[Sha256, Path(description="address of the submission: SHA-256 of its submission.json")]
UploadId = Annotated[str, Path(pattern="^[0-9a-f]{32}$")]
SENTENCES = {
    401: "no token, or one that is unknown, expired or revoked",
    403: "the token's scopes or organisation do not allow it",
    404: "there is none of that name",
    409: "its state does not allow it",
    413: "too long",
    422: "the request cannot be read, or its words are not possible",
    429: "asked too often",
    503: "the database cannot be reached",
    507: "the disk is full",
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The refusals of a path, for its description."""
    always = (413, 422, 429, 503)
    return {status: {"model": Failure, "description": SENTENCES[status]} for status in sorted({*always, *statuses})}


def router(board: Board) -> APIRouter:
    """All paths of the API."""
    api = APIRouter()
    asking = _accounts(board)
    _add_uploads(api, board, asking("upload"))
    _add_submissions(api, board, asking)
    _add_register(api, board, asking("ticket"))

    @api.get("/api/health", responses=failures(), tags=["board"])
    def health() -> HealthAnswer:
        """Whether the board and its database work."""
        with board.database.session() as session:
            session.execute(text("SELECT 1"))
        return HealthAnswer()

    return api


def _accounts(board: Board) -> Callable[[str | None], Callable[..., Account | None]]:
    """Gives the dependency that knows who asks, with a scope that is needed; None needs no token."""

    def asking(scope: str | None) -> Callable[..., Account | None]:
        def account(
            request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
        ) -> Account | None:
            if bearer is None and scope is None:
                return None
            found = authenticate_request(board, request, bearer.credentials if bearer else "")
            if scope is not None:
                check_scope(found, scope)
            return found

        return account

    return asking


def check_scope(account: Account, scope: str) -> None:
    """Refuse a token that is not for that.

    Raises:
        Refused: says what it is for.
    """
    if scope not in account.scopes:
        scopes = ", ".join(sorted(account.scopes)) or "nothing"
        raise Refused(403, f"the token is for {scopes}, and this needs {scope}; ask the operator for one")


def authenticate_request(board: Board, request: Request, token: str) -> Account:
    """The account of a token; who guesses at tokens, or asks too often with one, is refused.

    Raises:
        TokenRefusedError: the token is none, or one that is unknown, expired or revoked.
        Refused: too many questions.
    """
    address = address_of(request.scope)
    with board.database.session() as session:
        try:
            if not token:
                raise TokenRefusedError("this needs a token, as Authorization: Bearer TOKEN; ask the board's operator")
            account = authenticate(session, token)
        except TokenRefusedError:
            if wait_s := board.failure_rate.take(address):
                raise too_often(wait_s) from None
            raise
    if wait_s := board.token_rate.take(account.token_id):
        raise too_often(wait_s)
    return account


def _add_uploads(api: APIRouter, board: Board, asking: Callable[..., Account | None]) -> None:

    @api.post("/api/uploads", responses=failures(401, 403, 507), tags=["uploads"])
    def begin_upload(form: UploadForm, response: Response, account: Account = Depends(asking)) -> UploadAnswer:
        """Announce an archive; one that was announced before is gone on with."""
        with board.database.writing() as session:
            row, is_new = uploads.announce(
                session,
                board.storage,
                account,
                sha256=form.archive_sha256,
                size_bytes=form.size_bytes,
                system_name=form.system_name,
                publish=form.publish,
            )
            token = session.get(Token, account.token_id)
            if token is not None:
                token.last_used_at = utc_text()
        response.status_code = 201 if is_new else 200
        offset = uploads.offset_of(board.storage, row)
        return UploadAnswer(
            id=row.id, offset=offset, size_bytes=row.size_bytes, submission_sha256=row.submission_sha256
        )

    @api.head("/api/uploads/{upload_id}", responses=failures(401, 403, 404), tags=["uploads"])
    def tell_offset(upload_id: UploadId, account: Account = Depends(asking)) -> Response:
        """How much of an upload is there, in Upload-Offset."""
        with board.database.session() as session:
            row = uploads.find_upload(session, account, upload_id)
        offset = uploads.offset_of(board.storage, row)
        return Response(headers={"Upload-Offset": str(offset), "Upload-Length": str(row.size_bytes)})

    @api.patch(
        "/api/uploads/{upload_id}",
        status_code=204,
        response_class=Response,
        responses=failures(401, 403, 404, 409, 507),
        tags=["uploads"],
        openapi_extra={"requestBody": {"content": {"application/octet-stream": {}}, "required": True}},
    )
    async def send_piece(
        upload_id: UploadId,
        request: Request,
        upload_offset: Annotated[int, Header(ge=0, description="where this piece begins")],
        account: Account = Depends(asking),
    ) -> Response:
        """Send a piece of an archive. What came in before a break is kept; HEAD tells how much."""

        def find() -> int:
            with board.database.session() as session:
                row = uploads.find_upload(session, account, upload_id)
                uploads.offset_of(board.storage, row)
                return row.size_bytes

        size_bytes = await run_in_threadpool(find)
        with uploads.held(board.storage.upload_path(upload_id)) as descriptor:
            offset = await _receive(request, descriptor, upload_offset, size_bytes)
        return Response(status_code=204, headers={"Upload-Offset": str(offset)})

    @api.post("/api/uploads/{upload_id}/finish", responses=failures(401, 403, 404, 409, 507), tags=["uploads"])
    def finish_upload(
        upload_id: UploadId, request: Request, response: Response, account: Account = Depends(asking)
    ) -> SubmissionAnswer:
        """Hand a whole archive over; the board keeps it and verifies it soon. Doing it again is safe."""
        row, is_new = uploads.finish(board.database, board.storage, account, upload_id)
        board.wake()
        response.status_code = 201 if is_new else 200
        return submission_answer(row, _page_url(board, request, row))


async def _receive(request: Request, descriptor: int, offset: int, size_bytes: int) -> int:
    """Write a piece as it comes in; returns how much is there, on the disk."""
    there = os.fstat(descriptor).st_size
    if offset != there:
        raise Refused(409, f"the upload has {there:,} bytes, so go on from there", {"Upload-Offset": str(there)})
    buffer = bytearray()
    try:
        async for piece in request.stream():
            if there + len(buffer) + len(piece) > size_bytes:
                raise Refused(413, f"that is more than the {size_bytes:,} bytes that were announced")
            buffer += piece
            if len(buffer) >= WRITE_BYTES:
                there += len(buffer)
                await run_in_threadpool(uploads.write_all, descriptor, bytes(buffer))
                buffer.clear()
    except ClientDisconnect:
        pass  # nobody hears the answer; what came in is kept
    await run_in_threadpool(uploads.write_all, descriptor, bytes(buffer))
    await run_in_threadpool(os.fsync, descriptor)
    return os.fstat(descriptor).st_size


def _page_url(board: Board, request: Request, row: Submission) -> str:
    base = board.config.public_url or str(request.base_url).rstrip("/")
    return f"{base}/submissions/{row.sha256}"


def _find(session: Session, sha256: str, account: Account | None) -> Submission:
    """A submission that the asker may see.

    Raises:
        Refused: there is none.
    """
    row = session.get(Submission, sha256, with_for_update=session.in_transaction())
    is_own = row is not None and account is not None and row.organisation_slug == account.organisation
    if row is None or not (is_own or row.state in SHOWN_STATES):
        raise Refused(404, "there is no such submission, or it is not published")
    return row


def _find_own(session: Session, sha256: str, account: Account) -> Submission:
    row = _find(session, sha256, account)
    if row.organisation_slug != account.organisation:
        raise Refused(403, "it is another organisation's submission; you may challenge it")
    return row


def _add_submissions(
    api: APIRouter, board: Board, asking: Callable[[str | None], Callable[..., Account | None]]
) -> None:

    @api.get("/api/submissions", responses=failures(401, 403), tags=["submissions"])
    def own_submissions(request: Request, account: Account = Depends(asking("upload"))) -> list[SubmissionAnswer]:
        """The organisation's own submissions in all states, the newest 1000."""
        own = select(Submission).where(Submission.organisation_slug == account.organisation)
        with board.database.session() as session:
            rows = session.scalars(own.order_by(Submission.uploaded_at.desc(), Submission.sha256).limit(1000))
            return [submission_answer(row, _page_url(board, request, row)) for row in rows]

    @api.get("/api/submissions/{sha256}", responses=failures(401, 404), tags=["submissions"])
    def show_submission(
        sha256: Address, request: Request, account: Account | None = Depends(asking(None))
    ) -> SubmissionAnswer:
        """A submission: one's own in any state, and what is published."""
        with board.database.session() as session:
            row = _find(session, sha256, account)
            return submission_answer(row, _page_url(board, request, row))

    @api.post("/api/submissions/{sha256}/publish", responses=failures(401, 403, 404, 409), tags=["submissions"])
    def publish(sha256: Address, request: Request, account: Account = Depends(asking("upload"))) -> SubmissionAnswer:
        """Show a verified submission to everybody."""
        with board.database.writing() as session:
            row = _find_own(session, sha256, account)
            lifecycle.publish(session, row, actor=account.organisation)
        return submission_answer(row, _page_url(board, request, row))

    @api.post("/api/submissions/{sha256}/withdraw", responses=failures(401, 403, 404, 409), tags=["submissions"])
    def withdraw(
        sha256: Address, form: ReasonForm, request: Request, account: Account = Depends(asking("upload"))
    ) -> SubmissionAnswer:
        """Take a published submission's rank away for good; it stays visible."""
        with board.database.writing() as session:
            row = _find_own(session, sha256, account)
            lifecycle.withdraw(session, row, actor=account.organisation, reason=form.reason)
        return submission_answer(row, _page_url(board, request, row))

    @api.post(
        "/api/submissions/{sha256}/challenge",
        status_code=201,
        responses=failures(401, 403, 404, 409),
        tags=["submissions"],
    )
    def challenge(
        sha256: Address, form: ChallengeForm, account: Account = Depends(asking("challenge"))
    ) -> ChallengeAnswer:
        """Doubt a published submission, with evidence; the board's operator decides."""
        opened = file_challenge(board, account, sha256, claim=form.claim, evidence=form.evidence)
        return ChallengeAnswer(id=opened.id, submission_sha256=sha256)


def file_challenge(board: Board, account: Account, sha256: str, *, claim: str, evidence: str) -> Challenge:
    """Doubt a submission, by whichever way.

    Raises:
        Refused: there is no such submission that the asker may see.
        UsageError: lifecycle.challenge says why it cannot be challenged so.
    """
    with board.database.writing() as session:
        row = _find(session, sha256, account)
        return lifecycle.challenge(session, row, actor=account.organisation, claim=claim, evidence=evidence)


def _add_register(api: APIRouter, board: Board, asking: Callable[..., Account | None]) -> None:
    """The register's own protocol (hpcai500/register/server.py), where a ticket needs a token."""

    def as_json(record: object, status: int = 200) -> Response:
        return Response(msgspec.json.encode(record) + b"\n", status, media_type="application/json")

    @api.post("/api/tickets", status_code=201, responses=failures(401, 403), tags=["register"])
    @api.post("/tickets", status_code=201, responses=failures(401, 403), include_in_schema=False)
    def ask_ticket(form: Annotated[TicketForm, Body()], account: Account = Depends(asking)) -> Response:
        """Announce runs before they are made; answers with a signed ticket."""
        if wait_s := board.ticket_rate.take(account.organisation):
            raise too_often(wait_s)
        request = TicketRequest(**form.model_dump())
        with board.database.writing() as session:
            signed = give_ticket(
                session,
                request,
                organisation=account.organisation,
                key=board.key,
                name=board.config.name,
                edition=board.edition,
            )
        return as_json(signed, 201)

    @api.get("/tickets/{sha256}", responses=failures(404), tags=["register"])
    def show_ticket(sha256: Annotated[Sha256, Path()]) -> Response:
        """A ticket that this board gave out."""
        with board.database.session() as session:
            signed = find_ticket(session, sha256)
        if signed is None:
            raise Refused(404, "this register gave no such ticket")
        return as_json(signed)

    @api.get("/key", responses=failures(), tags=["register"])
    def show_key() -> KeyAnswer:
        """With which key the board signs tickets."""
        return KeyAnswer(issuer=board.config.name, issuer_key=board.public_key)
