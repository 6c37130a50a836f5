"""Messages may be lost and workers may die; jobs may not. This sends what is missing.

Every job that can be run is to have a message in the queue, and at most one: so a broker that comes back empty is noticed at
once, and a queue that nobody works on does not grow. A message that a busy worker holds back is not seen; its double is harmless.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from leverplus.data_root import DataRoot
from leverplus.errors import LeverPlusError
from leverplus.origin import Origin, working_for
from leverplus.store import JobStore
from pointer_trainer.broker import Broker
from pointer_trainer.housekeeping import HOUSEKEEPING_EVERY_S, keep_house

logger = logging.getLogger(__name__)


SENDING_LIMIT_S = 1.0
"""A queued job as young as this is just being sent by the request that made it."""


def reconcile(jobs: JobStore, broker: Broker) -> int:
    """Sends a message for every job that needs one; returns how many. Unavailable when the broker is away."""
    newest = time.time() - SENDING_LIMIT_S
    unsent = [job for job in jobs.to_enqueue() if job.status != "queued" or job.created_at < newest]
    waiting = broker.waiting() if unsent else frozenset[str]()
    missing = [job for job in unsent if job.id not in waiting]
    for job in missing:
        with working_for(Origin(job.request_id, job.id, job.traceparent)):
            broker.send(job.id)
            jobs.mark_enqueued(job.id)
            logger.info("sent a message for job %s (%s)", job.id, job.status)
    return len(missing)


async def reconcile_forever(
    jobs: JobStore, broker: Broker, root: DataRoot, *, every_s: float, retention_days: float | None = None
) -> None:
    """Reconciles until it is cancelled, and keeps house now and then; an outage of broker or database is logged and outlived."""
    is_away = False
    next_round = time.monotonic()
    while True:
        try:
            await to_thread.run_sync(reconcile, jobs, broker)
        except (LeverPlusError, SQLAlchemyError) as exc:
            if not is_away:
                logger.warning("jobs wait for their messages: %s", exc)
            is_away = True
        else:
            is_away = False
        if time.monotonic() >= next_round:
            next_round = time.monotonic() + HOUSEKEEPING_EVERY_S
            try:
                await to_thread.run_sync(partial(keep_house, root, jobs, retention_days=retention_days))
            except (LeverPlusError, SQLAlchemyError, OSError) as exc:
                logger.warning("what is no longer needed stays until the next round: %s", exc)
        await asyncio.sleep(every_s)
