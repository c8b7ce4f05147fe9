"""All tables of the first version, and triggers by which rows of the audit log are only ever added."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables, in an empty database."""
    _organisation()
    _token()
    _upload()
    _submission()
    _challenge()
    _ticket()
    _audit()
    if op.get_bind().dialect.name == "postgresql":
        _guard_audit_of_postgresql()
    else:
        _guard_audit_of_sqlite()


def _guard_audit_of_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION audit_is_kept() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'rows of audit are only ever added'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_kept()"
    )


def _guard_audit_of_sqlite() -> None:
    for action in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_is_kept_from_{action.lower()} BEFORE {action} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'rows of audit are only ever added'); END"
        )


def _organisation() -> None:
    op.create_table(
        "organisation",
        sa.Column("slug", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.String(length=20), nullable=False),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_organisation")),
        sa.UniqueConstraint("name", name=op.f("uq_organisation_name")),
    )


def _token() -> None:
    op.create_table(
        "token",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("organisation_slug", sa.String(length=64), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=200), nullable=False),
        sa.Column("scopes", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.String(length=20), nullable=False),
        sa.Column("expires_at", sa.String(length=20), nullable=False),
        sa.Column("revoked_at", sa.String(length=20), nullable=True),
        sa.Column("last_used_at", sa.String(length=20), nullable=True),
        sa.ForeignKeyConstraint(["organisation_slug"], ["organisation.slug"], name=op.f("fk_token_organisation_slug")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
    )
    op.create_index(op.f("ix_token_organisation_slug"), "token", ["organisation_slug"], unique=False)


def _upload() -> None:
    op.create_table(
        "upload",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("organisation_slug", sa.String(length=64), nullable=False),
        sa.Column("token_id", sa.String(length=16), nullable=False),
        sa.Column("archive_sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("system_name", sa.String(length=200), nullable=False),
        sa.Column("publish", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.String(length=20), nullable=False),
        sa.Column("submission_sha256", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["organisation_slug"], ["organisation.slug"], name=op.f("fk_upload_organisation_slug")),
        sa.ForeignKeyConstraint(["token_id"], ["token.id"], name=op.f("fk_upload_token_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload")),
    )
    op.create_index(op.f("ix_upload_organisation_slug"), "upload", ["organisation_slug"], unique=False)


def _submission() -> None:
    op.create_table(
        "submission",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("archive_sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("organisation_slug", sa.String(length=64), nullable=False),
        sa.Column("system_name", sa.String(length=200), nullable=False),
        sa.Column("system_slug", sa.String(length=100), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("publish", sa.Boolean(), nullable=False),
        sa.Column("uploaded_at", sa.String(length=20), nullable=False),
        sa.Column("verified_at", sa.String(length=20), nullable=True),
        sa.Column("published_at", sa.String(length=20), nullable=True),
        sa.Column("claimed_by", sa.String(length=64), nullable=True),
        sa.Column("claimed_until", sa.String(length=20), nullable=True),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("workload", sa.String(length=100), nullable=True),
        sa.Column("level", sa.String(length=100), nullable=True),
        sa.Column("size", sa.String(length=100), nullable=True),
        sa.Column("edition", sa.String(length=40), nullable=True),
        sa.Column("precision", sa.String(length=40), nullable=True),
        sa.Column("size_class", sa.String(length=20), nullable=True),
        sa.Column("rankable", sa.Boolean(), nullable=True),
        sa.Column("why_not", sa.Text(), nullable=True),
        sa.Column("registered", sa.Boolean(), nullable=True),
        sa.Column("registration", sa.Text(), nullable=True),
        sa.Column("ticket_sha256", sa.String(length=64), nullable=True),
        sa.Column("signed_by", sa.Text(), nullable=True),
        sa.Column("submitter", sa.Text(), nullable=True),
        sa.Column("created", sa.String(length=20), nullable=True),
        sa.Column("accelerator", sa.String(length=200), nullable=True),
        sa.Column("num_accelerators", sa.BigInteger(), nullable=True),
        sa.Column("num_devices", sa.BigInteger(), nullable=True),
        sa.Column("num_nodes", sa.BigInteger(), nullable=True),
        sa.Column("num_ranks", sa.BigInteger(), nullable=True),
        sa.Column("communicator", sa.String(length=40), nullable=True),
        sa.Column("num_runs", sa.BigInteger(), nullable=True),
        sa.Column("num_completed", sa.BigInteger(), nullable=True),
        sa.Column("vflops", sa.Double(), nullable=True),
        sa.Column("vflops_low", sa.Double(), nullable=True),
        sa.Column("vflops_high", sa.Double(), nullable=True),
        sa.Column("vflops_per_device", sa.Double(), nullable=True),
        sa.Column("vflops_per_w", sa.Double(), nullable=True),
        sa.Column("flops", sa.Double(), nullable=True),
        sa.Column("achieved_quality", sa.Double(), nullable=True),
        sa.Column("target_quality", sa.Double(), nullable=True),
        sa.Column("wall_s", sa.Double(), nullable=True),
        sa.Column("train_s", sa.Double(), nullable=True),
        sa.Column("energy_j", sa.Double(), nullable=True),
        sa.Column("energy_label", sa.String(length=20), nullable=True),
        sa.Column("facts", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["organisation_slug"], ["organisation.slug"], name=op.f("fk_submission_organisation_slug")
        ),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_submission")),
    )
    op.create_index(
        "ix_submission_board",
        "submission",
        [
            "workload",
            "size",
            "level",
            "edition",
            "vflops",
            "sha256",
            "state",
            "rankable",
            "vflops_low",
            "vflops_high",
            "num_devices",
            "vflops_per_device",
            "vflops_per_w",
            "achieved_quality",
            "wall_s",
            "energy_j",
            "energy_label",
            "published_at",
            "precision",
            "size_class",
            "accelerator",
            "num_nodes",
            "registered",
        ],
        unique=False,
    )
    op.create_index(op.f("ix_submission_organisation_slug"), "submission", ["organisation_slug"], unique=False)
    op.create_index(op.f("ix_submission_published_at"), "submission", ["published_at"], unique=False)
    op.create_index(op.f("ix_submission_state"), "submission", ["state"], unique=False)
    op.create_index(op.f("ix_submission_ticket_sha256"), "submission", ["ticket_sha256"], unique=False)


def _challenge() -> None:
    op.create_table(
        "challenge",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("submission_sha256", sa.String(length=64), nullable=False),
        sa.Column("organisation_slug", sa.String(length=64), nullable=False),
        sa.Column("claim", sa.Text(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.String(length=20), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("closed_at", sa.String(length=20), nullable=True),
        sa.ForeignKeyConstraint(
            ["organisation_slug"], ["organisation.slug"], name=op.f("fk_challenge_organisation_slug")
        ),
        sa.ForeignKeyConstraint(
            ["submission_sha256"], ["submission.sha256"], name=op.f("fk_challenge_submission_sha256")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_challenge")),
    )
    op.create_index(op.f("ix_challenge_submission_sha256"), "challenge", ["submission_sha256"], unique=False)


def _ticket() -> None:
    op.create_table(
        "ticket",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("organisation_slug", sa.String(length=64), nullable=False),
        sa.Column("issued_at", sa.String(length=20), nullable=False),
        sa.Column("signed", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["organisation_slug"], ["organisation.slug"], name=op.f("fk_ticket_organisation_slug")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_ticket")),
    )
    op.create_index(op.f("ix_ticket_organisation_slug"), "ticket", ["organisation_slug"], unique=False)


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", sa.String(length=20), nullable=False),
        sa.Column("actor", sa.String(length=100), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("subject", sa.String(length=100), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_at"), "audit", ["at"], unique=False)
    op.create_index(op.f("ix_audit_subject"), "audit", ["subject"], unique=False)
