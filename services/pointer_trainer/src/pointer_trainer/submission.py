"""From an accepted request to a queued job."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import OperationalError

from leverplus.errors import Unavailable
from leverplus.files import remove_folder, write_json
from leverplus.origin import origin, working_for
from leverplus.store import Job
from leverplus.store.jobs import new_job_id
from pointer_trainer.children import child_id
from pointer_trainer.state import TrainerState

logger = logging.getLogger(__name__)


def submit(
    state: TrainerState,
    kind: str,
    config: Mapping[str, Any],
    idempotency_key: str | None,
    *,
    children: Mapping[int, tuple[str, Mapping[str, Any]]] | None = None,
) -> Job:
    """Run directory, then the job's row, then the message.

    `children`: kind and config of the jobs that belong to it, by number. Their rows are made with the job's own; a run directory
    comes with their first run, their messages from the reconciler.

    Unavailable, with nothing left behind, when the broker is away or the disk takes no more.

    A repeated key gives the job that it made first. A message that cannot be sent is left to the reconciler.
    """
    state.broker.require()
    job_id = new_job_id()
    run_folder = state.data_root.run(job_id)
    try:
        write_json(run_folder / "config.json", {"job_id": job_id, "kind": kind, "config": dict(config)})
        belonging = {child_id(job_id, number): child for number, child in (children or {}).items()}
        job = state.jobs.create(kind, config, job_id=job_id, idempotency_key=idempotency_key, children=belonging)
    except BaseException as exc:
        remove_folder(run_folder)
        if isinstance(exc, OSError):
            raise _disk(f"{exc.filename or run_folder}: {exc.strerror}") from exc
        if isinstance(exc, OperationalError):
            raise _disk(f"database: {exc.orig}") from exc
        raise
    if job.id != job_id:
        remove_folder(run_folder)
        return job
    with working_for(origin.get()._replace(job_id=job.id)):
        logger.info("%s is queued", kind)
        enqueue(state, job)
    return job


def _disk(reason: str) -> Unavailable:
    return Unavailable(what="disk", reason=reason, hint="free some space or see to its permissions; no job was made")


def enqueue(state: TrainerState, job: Job) -> None:
    """Sends the job's message now; a failure is logged, since the reconciler sends it soon."""
    try:
        state.broker.send(job.id)
    except Unavailable as exc:
        logger.warning("job %s is queued without a message: %s", job.id, exc)
        return
    state.jobs.mark_enqueued(job.id)
