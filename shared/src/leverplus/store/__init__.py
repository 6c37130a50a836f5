"""The database: committed scores, claims on them and jobs, on SQLite (WAL) or PostgreSQL, migrated by Alembic."""

from leverplus.store.claims import ClaimStore
from leverplus.store.engine import open_store
from leverplus.store.job_counts import JobCounts, count_jobs
from leverplus.store.jobs import Job, JobState, JobStore, Lease, LeaseLost
from leverplus.store.score_rows import ScoreKey, ScoreKind
from leverplus.store.scores import ScoreStore

__all__ = [
    "ClaimStore",
    "Job",
    "JobCounts",
    "JobState",
    "JobStore",
    "Lease",
    "LeaseLost",
    "ScoreKey",
    "ScoreKind",
    "ScoreStore",
    "count_jobs",
    "open_store",
]
