"""Tables. A change here needs a migration under migrations/versions; a test compares the two."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

metadata = MetaData()

score_sets = Table(
    "score_sets",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("dataset_digest", String(64), nullable=False),
    Column("generation_digest", String(64), nullable=False),
    UniqueConstraint("dataset_digest", "generation_digest", name="uq_score_sets_digests"),
)
"""One row a pair of dataset and generation contract: scores refer to it by number, which keeps their rows short."""

scores = Table(
    "scores",
    metadata,
    Column("set_id", Integer, ForeignKey("score_sets.id"), primary_key=True),
    Column("query_id", Integer, primary_key=True),
    Column("pointer", String(64), primary_key=True),
    Column("raw_text", Text, nullable=False),
    Column("committed_at", Float, nullable=False),
)
"""What the VLM wrote. `pointer` is the ids joined by commas, empty for zero-shot. Times are seconds since 1970."""

answer_probabilities = Table(
    "answer_probabilities",
    metadata,
    Column("set_id", Integer, ForeignKey("score_sets.id"), primary_key=True),
    Column("query_id", Integer, primary_key=True),
    Column("pointer", String(64), primary_key=True),
    Column("probabilities", JSON, nullable=False),
    Column("committed_at", Float, nullable=False),
)
"""How likely the VLM is to reply with each of the query's answers, all in one row: {answer: P}."""

score_claims = Table(
    "score_claims",
    metadata,
    Column("set_id", Integer, ForeignKey("score_sets.id"), primary_key=True),
    Column("query_id", Integer, primary_key=True),
    Column("pointer", String(64), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("owner", String(255), nullable=False),
    Column("expires_at", Float, nullable=False),
)
"""Which scorer is making a score that is not committed yet; `kind` is text or probabilities."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("status", String(16), nullable=False),
    Column("config", JSON, nullable=False),
    Column("idempotency_key", String(255), unique=True),
    Column("progress", JSON),
    Column("result", JSON),
    Column("error", JSON),
    Column("cancel_requested", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("enqueued_at", Float),
    Column("heartbeat_at", Float),
    Column("lease_owner", String(255)),
    Column("lease_version", Integer, nullable=False),
    Column("parent", String(64)),
    Column("request_id", String(128)),
    Column("traceparent", String(64)),
    Index("ix_jobs_status", "status", "created_at"),
    Index("ix_jobs_parent", "parent"),
)
"""`parent` is the id of the job that this one belongs to. `request_id` and `traceparent` are of the request that made it."""
