"""Training jobs. Going back forgets them; their folders and the adapters that they made stay."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SORTED = sa.Text().with_variant(TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "training_jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant", _SORTED, nullable=False),
        sa.Column("job", _SORTED, nullable=False),
        sa.Column("adapter", sa.Text, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("data_folder", sa.Text, nullable=False),
        sa.Column("device", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("is_cancel_requested", sa.Boolean, nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("num_steps", sa.BigInteger, nullable=False),
        sa.Column("loss", sa.Float),
        sa.Column("eta_s", sa.Float),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("failure_reason", sa.Text, nullable=False),
        sa.Column("failure_message", sa.Text, nullable=False),
        sa.Column("is_resumable", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("request_content", sa.Text),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.Column("started_at_us", sa.BigInteger),
        sa.Column("ended_at_us", sa.BigInteger),
        sa.Column("updated_at_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("tenant", "job", name="uq_training_jobs_name"),
    )
    op.create_index("ix_training_jobs_owner", "training_jobs", ["owner", "state"])
    op.create_index("ix_training_jobs_request_id", "training_jobs", ["request_id"])


def downgrade() -> None:
    """Remove the table."""
    op.drop_table("training_jobs")
