"""The database: committed scores and jobs, on SQLite (WAL) or PostgreSQL, migrated by Alembic."""

from leverplus.store.engine import open_store
from leverplus.store.jobs import Job, JobState, JobStore, Lease, LeaseLost
from leverplus.store.scores import ScoreKey, ScoreStore

__all__ = ["Job", "JobState", "JobStore", "Lease", "LeaseLost", "ScoreKey", "ScoreStore", "open_store"]
