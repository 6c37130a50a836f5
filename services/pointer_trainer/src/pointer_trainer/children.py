"""Jobs that belong to a job: a sweep's trainings, a generation's shards. Whoever runs the job has all of them run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sqlalchemy.exc import SQLAlchemyError

from leverplus.store import Job, LeaseLost
from leverplus.store.jobs import TERMINAL
from pointer_trainer.context import Children, JobContext

POLL_S = 0.5
LARGEST_FAMILY = 10_000
"""Of one job, of whichever kind."""


def child_id(parent: str, number: int) -> str:
    """Id of a job's child; numbers count from 1."""
    return f"{parent}-{number:03}"


def run_children(
    context: JobContext, children: Children, tell: Callable[[Sequence[Job]], None], *, until_failure: bool = False
) -> Sequence[Job]:
    """Returns the children when every one has ended. Those that wait are run here; those that run elsewhere are waited for, and
    taken over when their worker is gone.

    `tell` is given all of them now and then, to report progress. `until_failure`: one that failed or was cancelled ends the
    others, since nothing comes of them without it.
    """
    told_s = 0.0

    def look() -> Sequence[Job]:
        nonlocal told_s
        told_s = time.monotonic()
        jobs = children.list()
        tell(jobs)
        return jobs

    def watch() -> None:
        """While a child is run here; at most twice a second."""
        if time.monotonic() - told_s < POLL_S:
            return
        try:
            jobs = look()
        except LeaseLost:
            # The child has a lease of its own and goes on; this run ends after it.
            context.logger.warning("the job has another worker, or has ended")
            return
        if until_failure and _has_failed(jobs):
            children.cancel()

    while True:
        # Ends an outage of the database that outlasts the lease, too.
        context.check()
        try:
            jobs = look()
            open_jobs = [job for job in jobs if job.status not in TERMINAL]
            if not open_jobs:
                return jobs
            if until_failure and _has_failed(jobs):
                children.cancel()
            else:
                # A claim on one that runs succeeds only where its heartbeat has stopped: it has waited the longest.
                running_first = sorted(open_jobs, key=lambda job: job.status == "queued")
                if any(children.run(job.id, watch) for job in running_first):
                    continue
        except SQLAlchemyError as exc:
            context.logger.warning("the children cannot be looked at: %s", exc)
        time.sleep(POLL_S)


def _has_failed(jobs: Sequence[Job]) -> bool:
    return any(job.status in ("failed", "cancelled") for job in jobs)
