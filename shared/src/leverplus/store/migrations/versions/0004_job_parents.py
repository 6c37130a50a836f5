"""Jobs that belong to a job."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("parent", sa.String(64)))
    op.create_index("ix_jobs_parent", "jobs", ["parent"])


def downgrade() -> None:
    op.drop_index("ix_jobs_parent", "jobs")
    op.drop_column("jobs", "parent")
