"""How many jobs there are and how long they take, for whoever watches the service."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, Float, func, select

from leverplus.store.schema import jobs


@dataclass(frozen=True)
class JobCounts:
    """`of`: (kind, status) -> jobs. Ages in seconds, 0 where there is no such job: the queued one that waits longest, of those
    that belong to no other; the running one that began first; the running one whose last heartbeat is oldest."""

    of: dict[tuple[str, str], int]
    longest_queued_s: float
    longest_running_s: float
    longest_silent_s: float


def count_jobs(engine: Engine) -> JobCounts:
    """All jobs of the database, in two statements."""
    now = time.time()

    def oldest(column: ColumnElement[float], *whose: ColumnElement[bool]) -> ColumnElement[float]:
        return func.min(column, type_=Float).filter(*whose)

    is_running = jobs.c.status == "running"
    ages = select(
        oldest(jobs.c.created_at, jobs.c.status == "queued", jobs.c.parent.is_(None)),
        oldest(jobs.c.started_at, is_running),
        oldest(jobs.c.heartbeat_at, is_running),
    ).where(jobs.c.status.in_(("queued", "running")))
    counts = select(jobs.c.kind, jobs.c.status, func.count()).group_by(jobs.c.kind, jobs.c.status)
    with engine.connect() as connection:
        of = {(kind, status): count for kind, status, count in connection.execute(counts)}
        queued, running, silent = (0.0 if at is None else max(0.0, now - at) for at in connection.execute(ages).one())
    return JobCounts(of, queued, running, silent)
