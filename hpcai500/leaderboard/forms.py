"""What the API takes and answers, as OpenAPI describes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hpcai500.leaderboard.archive import MAX_ARCHIVE_BYTES
from hpcai500.leaderboard.lifecycle import MAX_TEXT
from hpcai500.leaderboard.tables import STATES, Submission
from hpcai500.register.ticket import MAX_NAME, MAX_RUNS

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", min_length=64, max_length=64)]
Words = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
State = Literal[*STATES]  # type: ignore[valid-type]


class Form(BaseModel):
    """What is taken has no other fields, and is of the very types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class UploadForm(Form):
    """An archive that will be sent."""

    archive_sha256: Sha256
    size_bytes: Annotated[int, Field(ge=1, le=MAX_ARCHIVE_BYTES)]
    system_name: Annotated[str, Field(min_length=1, max_length=MAX_NAME, description="of the machine, for its page")]
    publish: Annotated[bool, Field(description="show it as soon as it is verified")] = True


class ReasonForm(Form):
    """Why a submission is withdrawn."""

    reason: Words


class ChallengeForm(Form):
    """Why a submission is doubted."""

    claim: Words
    evidence: Words


class TicketForm(Form):
    """Runs that will be made."""

    workload: Annotated[str, Field(min_length=1, max_length=100)]
    level: Annotated[str, Field(min_length=1, max_length=100)]
    size: Annotated[str, Field(min_length=1, max_length=100)]
    num_runs: Annotated[int, Field(ge=1, le=MAX_RUNS)]
    submitter: Name


class Failure(BaseModel):
    """Why a request was not done, in a sentence."""

    error: str


class UploadAnswer(BaseModel):
    """How far an upload is."""

    id: str
    offset: Annotated[int, Field(description="bytes that are there; go on from here")]
    size_bytes: int
    submission_sha256: Annotated[str | None, Field(description="set once the upload is finished")]


class SubmissionAnswer(BaseModel):
    """A submission, as far as the asker may see it."""

    sha256: str
    state: State
    organisation: str
    system_name: str
    uploaded_at: str
    url: Annotated[str, Field(description="of its page")]
    problem: Annotated[str | None, Field(description="why it is not valid")]
    workload: str | None
    level: str | None
    size: str | None
    edition: str | None
    precision: str | None
    rankable: bool | None
    why_not: str | None
    registration: str | None
    vflops: float | None
    vflops_low: float | None
    vflops_high: float | None


class ChallengeAnswer(BaseModel):
    """A challenge that was filed."""

    id: str
    submission_sha256: str


class KeyAnswer(BaseModel):
    """With which key the board signs tickets."""

    issuer: str
    issuer_key: str


class HealthAnswer(BaseModel):
    """That the board and its database work."""

    status: Literal["good"] = "good"


FIELDS = tuple(name for name in SubmissionAnswer.model_fields if name not in ("organisation", "url"))


def submission_answer(row: Submission, url: str) -> SubmissionAnswer:
    """A submission as it is answered."""
    fields: dict[str, Any] = {name: getattr(row, name) for name in FIELDS}
    return SubmissionAnswer(**fields, organisation=row.organisation_slug, url=url)
