"""The tables of the registry, as the newest migration leaves them. Moments are microseconds since 1970, UTC: the one
form in which all databases agree.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import TEXT

metadata = MetaData()

# Names and digests sort by code point in every database: PostgreSQL's own order depends on its locale.
_SORTED = Text().with_variant(TEXT(collation="C"), "postgresql")

registry_meta = Table(
    "registry_meta",
    metadata,
    Column(
        "id", Integer, primary_key=True, autoincrement=False
    ),  # there is one row, 1; every writer locks it
    Column("revision", BigInteger, nullable=False),  # of the newest event
    Column("pruned_revision", BigInteger, nullable=False),  # events up to this one are gone
    Column("pruned_at_us", BigInteger, nullable=False),  # when old rows were last looked for
)

adapters = Table(
    "adapters",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", _SORTED, nullable=False),
    Column("adapter", _SORTED, nullable=False),
    Column("revision", BigInteger, nullable=False),  # of its last change
    Column("is_pinned", Boolean, nullable=False),
    Column("traffic", JSON, nullable=False),  # [[target, weight], …]
    Column("shadow_target", Text, nullable=False),  # empty: no shadow
    Column("shadow_percent", Integer, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    UniqueConstraint("tenant", "adapter", name="uq_adapters_name"),
)
Index(
    "ix_adapters_pinned",
    adapters.c.tenant,
    adapters.c.adapter,
    sqlite_where=text("is_pinned"),
    postgresql_where=text("is_pinned"),
)

versions = Table(
    "versions",
    metadata,
    Column("adapter_id", Integer, ForeignKey("adapters.id"), primary_key=True),
    Column("digest", _SORTED, primary_key=True),
    Column("number", Integer, nullable=False),  # grows with every version of the adapter
    Column("state", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("num_elements", BigInteger, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("target_modules", JSON, nullable=False),
    Column("served_module_count", Integer, nullable=False),
    Column("base_fingerprint", Text, nullable=False),
    Column("template_hash", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("signer", Text, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
)
Index("ix_versions_digest", versions.c.digest)

aliases = Table(
    "aliases",
    metadata,
    Column("adapter_id", Integer, ForeignKey("adapters.id"), primary_key=True),
    Column("alias", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("history", JSON, nullable=False),  # digests that it pointed at before, the last one last
)

labels = Table(
    "labels",
    metadata,
    Column("adapter_id", Integer, ForeignKey("adapters.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("adapter", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("alias", Text, nullable=False),  # those that moved, with spaces between them
    Column("at_us", BigInteger, nullable=False),
)

request_ids = Table(
    "request_ids",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("content", Text, nullable=False),  # hash of the request it came with
    Column("answer", Text),  # the adapter as it was answered; null: that it was deleted
    Column("at_us", BigInteger, nullable=False),
)
Index("ix_request_ids_at_us", request_ids.c.at_us)

training_jobs = Table(
    "training_jobs",
    metadata,
    Column("id", Integer, primary_key=True),  # grows with every job
    Column("tenant", _SORTED, nullable=False),
    Column("job", _SORTED, nullable=False),
    Column("adapter", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("owner", Text, nullable=False),  # the server whose disk has the job's folder
    Column("recipe", Text, nullable=False),
    Column("data_folder", Text, nullable=False),  # empty: its files lie in the job's folder
    Column("device", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("is_cancel_requested", Boolean, nullable=False),
    Column("stage", Text, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("num_steps", BigInteger, nullable=False),
    Column("loss", Float),
    Column("eta_s", Float),
    Column("digest", Text, nullable=False),
    Column("verdict", String(16), nullable=False),  # empty: the gate has not been asked
    Column("failure_reason", Text, nullable=False),  # empty: it has not failed
    Column("failure_message", Text, nullable=False),
    Column("is_resumable", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),  # grows with every change but progress
    Column("request_id", Text),
    Column("request_content", Text),  # hash of the request that made it
    Column("created_at_us", BigInteger, nullable=False),
    Column("started_at_us", BigInteger),
    Column("ended_at_us", BigInteger),
    Column("updated_at_us", BigInteger, nullable=False),
    UniqueConstraint("tenant", "job", name="uq_training_jobs_name"),
)
Index("ix_training_jobs_owner", training_jobs.c.owner, training_jobs.c.state)
Index("ix_training_jobs_request_id", training_jobs.c.request_id)
