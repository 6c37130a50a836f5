"""Probabilities of a query's answers."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "answer_probabilities",
        sa.Column("set_id", sa.Integer, sa.ForeignKey("score_sets.id"), primary_key=True),
        sa.Column("query_id", sa.Integer, primary_key=True),
        sa.Column("pointer", sa.String(64), primary_key=True),
        sa.Column("probabilities", sa.JSON, nullable=False),
        sa.Column("committed_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("answer_probabilities")
