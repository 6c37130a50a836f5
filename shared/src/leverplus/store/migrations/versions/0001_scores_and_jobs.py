"""Scores and jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "score_sets",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("dataset_digest", sa.String(64), nullable=False),
        sa.Column("generation_digest", sa.String(64), nullable=False),
        sa.UniqueConstraint("dataset_digest", "generation_digest", name="uq_score_sets_digests"),
    )
    op.create_table(
        "scores",
        sa.Column("set_id", sa.Integer, sa.ForeignKey("score_sets.id"), primary_key=True),
        sa.Column("query_id", sa.Integer, primary_key=True),
        sa.Column("pointer", sa.String(64), primary_key=True),
        sa.Column("raw_text", sa.Text, nullable=False),
        sa.Column("committed_at", sa.Float, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("config", sa.JSON, nullable=False),
        sa.Column("idempotency_key", sa.String(255), unique=True),
        sa.Column("progress", sa.JSON),
        sa.Column("result", sa.JSON),
        sa.Column("error", sa.JSON),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("started_at", sa.Float),
        sa.Column("finished_at", sa.Float),
        sa.Column("enqueued_at", sa.Float),
        sa.Column("heartbeat_at", sa.Float),
        sa.Column("lease_owner", sa.String(255)),
        sa.Column("lease_version", sa.Integer, nullable=False),
    )
    op.create_index("ix_jobs_status", "jobs", ["status", "created_at"])


def downgrade() -> None:
    op.drop_table("jobs")
    op.drop_table("scores")
    op.drop_table("score_sets")
