"""The tables of the leaderboard: who may submit, what was submitted, what became of it, and who did what.

Written for SQLite and PostgreSQL alike. Times are UTC, kept as text "2026-11-27T13:20:00Z", which both databases sort
alike. A submission's key is the SHA-256 of the bytes of its submission.json, which lists the digests of all of its
other files: so the same submission has the same address whoever packs it. Nothing is deleted: states change, and
``audit`` tells when, by whom and why.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

# Names of constraints, so that migrations can speak of them on both databases.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
# A submission's states, in the order in which it may pass them; hpcai500/leaderboard/lifecycle.py says who moves it.
DRAFT = "draft"  # uploaded whole; the server has not verified it yet
REJECTED = "rejected"  # the server found it invalid or unreadable; seen by its organisation alone
VERIFIED = "verified"  # valid; not shown to others until its organisation publishes it
PUBLISHED = "published"
CHALLENGED = "challenged"  # published, and somebody doubts it with evidence; it keeps its rank, with a mark
WITHDRAWN = "withdrawn"  # was published; stays visible, struck through and without a rank
STATES = (DRAFT, REJECTED, VERIFIED, PUBLISHED, CHALLENGED, WITHDRAWN)
SHOWN_STATES = (PUBLISHED, CHALLENGED, WITHDRAWN)
RANKED_STATES = (PUBLISHED, CHALLENGED)
SCOPES = ("upload", "challenge", "ticket")


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {int: BigInteger(), dict[str, Any]: JSON}


class Organisation(Base):
    """Who may submit; made by the board's operator. ``slug`` stands in addresses."""

    __tablename__ = "organisation"
    slug: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[str] = mapped_column(String(20))
    tokens: Mapped[list[Token]] = relationship(back_populates="organisation")


class Token(Base):
    """A secret with which an organisation's people prove who they are; only its SHA-256 is kept.

    A token reads ``hpcai500_ID_SECRET``. ``scopes`` are words of SCOPES, separated by spaces.
    """

    __tablename__ = "token"
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    organisation_slug: Mapped[str] = mapped_column(ForeignKey("organisation.slug"), index=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    label: Mapped[str] = mapped_column(String(200))
    scopes: Mapped[str] = mapped_column(String(100))
    created_at: Mapped[str] = mapped_column(String(20))
    expires_at: Mapped[str] = mapped_column(String(20))
    revoked_at: Mapped[str | None] = mapped_column(String(20))
    last_used_at: Mapped[str | None] = mapped_column(String(20))
    organisation: Mapped[Organisation] = relationship(back_populates="tokens")


class Upload(Base):
    """An archive on its way: how much of it is there is the length of its file, which is what counts after a crash."""

    __tablename__ = "upload"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    organisation_slug: Mapped[str] = mapped_column(ForeignKey("organisation.slug"), index=True)
    token_id: Mapped[str] = mapped_column(ForeignKey("token.id"))
    archive_sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int]
    system_name: Mapped[str] = mapped_column(String(200))
    publish: Mapped[bool]
    created_at: Mapped[str] = mapped_column(String(20))
    submission_sha256: Mapped[str | None] = mapped_column(String(64))


class Submission(Base):
    """A submission that came in whole. Columns from ``workload`` on are what the server itself found (entries.py)."""

    __tablename__ = "submission"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    archive_sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int]
    organisation_slug: Mapped[str] = mapped_column(ForeignKey("organisation.slug"), index=True)
    system_name: Mapped[str] = mapped_column(String(200))
    system_slug: Mapped[str] = mapped_column(String(100))
    state: Mapped[str] = mapped_column(String(12), index=True)
    publish: Mapped[bool]  # as soon as it is verified
    uploaded_at: Mapped[str] = mapped_column(String(20))
    verified_at: Mapped[str | None] = mapped_column(String(20))
    published_at: Mapped[str | None] = mapped_column(String(20), index=True)
    # Which server verifies it, and until when it may be believed to be alive
    claimed_by: Mapped[str | None] = mapped_column(String(64))
    claimed_until: Mapped[str | None] = mapped_column(String(20))
    attempts: Mapped[int] = mapped_column(default=0)
    problem: Mapped[str | None] = mapped_column(Text)  # of a rejected one, in a sentence

    workload: Mapped[str | None] = mapped_column(String(100))
    level: Mapped[str | None] = mapped_column(String(100))
    size: Mapped[str | None] = mapped_column(String(100))
    edition: Mapped[str | None] = mapped_column(String(40))
    precision: Mapped[str | None] = mapped_column(String(40))
    size_class: Mapped[str | None] = mapped_column(String(20))  # of the machine, by its devices: entries.SIZE_CLASSES
    rankable: Mapped[bool | None]
    why_not: Mapped[str | None] = mapped_column(Text)
    registered: Mapped[bool | None]  # with a ticket of this board or of a register that it trusts
    registration: Mapped[str | None] = mapped_column(Text)
    ticket_sha256: Mapped[str | None] = mapped_column(String(64), index=True)  # whose runs these are said to be
    signed_by: Mapped[str | None] = mapped_column(Text)
    submitter: Mapped[str | None] = mapped_column(Text)
    created: Mapped[str | None] = mapped_column(String(20))
    accelerator: Mapped[str | None] = mapped_column(String(200))  # the processor where there is none
    num_accelerators: Mapped[int | None]
    num_devices: Mapped[int | None]  # accelerators, or sockets where there are none
    num_nodes: Mapped[int | None]
    num_ranks: Mapped[int | None]
    communicator: Mapped[str | None] = mapped_column(String(40))
    num_runs: Mapped[int | None]
    num_completed: Mapped[int | None]
    vflops: Mapped[float | None]
    vflops_low: Mapped[float | None]
    vflops_high: Mapped[float | None]
    vflops_per_device: Mapped[float | None]
    vflops_per_w: Mapped[float | None]
    flops: Mapped[float | None]
    achieved_quality: Mapped[float | None]
    target_quality: Mapped[float | None]
    wall_s: Mapped[float | None]
    train_s: Mapped[float | None]
    energy_j: Mapped[float | None]  # median over runs, of what tells it of all nodes
    energy_label: Mapped[str | None] = mapped_column(String(20))  # "measured" or "informative"
    facts: Mapped[dict[str, Any] | None]  # what pages show beside: software, deviations, notes

    organisation: Mapped[Organisation] = relationship()
    challenges: Mapped[list[Challenge]] = relationship(back_populates="submission", order_by="Challenge.opened_at")


# All columns by which boards are ordered, filtered, counted and ranked: their queries read it in place of the table,
# whose rows are ten times as wide for their facts. The first ones are the order of a board.
Index(
    "ix_submission_board",
    Submission.workload,
    Submission.size,
    Submission.level,
    Submission.edition,
    Submission.vflops,
    Submission.sha256,
    Submission.state,
    Submission.rankable,
    Submission.vflops_low,
    Submission.vflops_high,
    Submission.num_devices,
    Submission.vflops_per_device,
    Submission.vflops_per_w,
    Submission.achieved_quality,
    Submission.wall_s,
    Submission.energy_j,
    Submission.energy_label,
    Submission.published_at,
    Submission.precision,
    Submission.size_class,
    Submission.accelerator,
    Submission.num_nodes,
    Submission.registered,
)


class Challenge(Base):
    """Somebody with an account doubts a published submission; the board's operator decides."""

    __tablename__ = "challenge"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    submission_sha256: Mapped[str] = mapped_column(ForeignKey("submission.sha256"), index=True)
    organisation_slug: Mapped[str] = mapped_column(ForeignKey("organisation.slug"))
    claim: Mapped[str] = mapped_column(Text)
    evidence: Mapped[str] = mapped_column(Text)
    opened_at: Mapped[str] = mapped_column(String(20))
    state: Mapped[str] = mapped_column(String(12), default="open")  # open, upheld, dismissed
    decision: Mapped[str | None] = mapped_column(Text)
    closed_at: Mapped[str | None] = mapped_column(String(20))
    submission: Mapped[Submission] = relationship(back_populates="challenges")
    organisation: Mapped[Organisation] = relationship()


class Ticket(Base):
    """A ticket of the run register that this board gave out (hpcai500/register/ticket.py)."""

    __tablename__ = "ticket"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    organisation_slug: Mapped[str] = mapped_column(ForeignKey("organisation.slug"), index=True)
    issued_at: Mapped[str] = mapped_column(String(20))
    signed: Mapped[dict[str, Any]]


class Audit(Base):
    """Who did what, and when; rows are only ever added, which triggers of both databases see to."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[str] = mapped_column(String(20), index=True)
    actor: Mapped[str] = mapped_column(String(100))  # an organisation's slug, "operator" or "server"
    action: Mapped[str] = mapped_column(String(40))
    subject: Mapped[str] = mapped_column(String(100), index=True)
    detail: Mapped[str] = mapped_column(Text)
