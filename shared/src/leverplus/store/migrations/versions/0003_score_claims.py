"""Which scorer is making a score."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "score_claims",
        sa.Column("set_id", sa.Integer, sa.ForeignKey("score_sets.id"), primary_key=True),
        sa.Column("query_id", sa.Integer, primary_key=True),
        sa.Column("pointer", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("score_claims")
