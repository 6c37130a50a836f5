"""A job's life as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from anyio import to_thread

from leverplus.store import JobStore
from leverplus.store.jobs import TERMINAL

POLL_S = 0.25


async def job_events(jobs: JobStore, job_id: str, *, poll_s: float = POLL_S) -> AsyncGenerator[dict[str, Any]]:
    """`progress` {status, progress} for every change that is seen, then `end` {status, result, error}.

    A client that comes late, or again, is first told how things stand.
    """
    told_status: str | None = None
    told_progress: dict[str, Any] | None = None
    while True:
        job = await to_thread.run_sync(jobs.get, job_id)
        has_ended = job.status in TERMINAL
        if job.progress != told_progress or (not has_ended and job.status != told_status):
            told_status, told_progress = job.status, job.progress
            yield _event("progress", {"job_id": job.id, "status": job.status, "progress": job.progress})
        if has_ended:
            yield _event("end", {"job_id": job.id, "status": job.status, "result": job.result, "error": job.error})
            return
        await asyncio.sleep(poll_s)


def _event(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"event": name, "data": orjson.dumps(value).decode()}
