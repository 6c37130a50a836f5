"""Runs one job under its lease: heartbeat, cancellation, progress, and the end that the job comes to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.exc import SQLAlchemyError

from leverplus.data_root import DataRoot
from leverplus.errors import Cancelled, LeverPlusError
from leverplus.files import write_json
from leverplus.origin import Origin, working_for
from leverplus.store import Job, JobStore, Lease, LeaseLost
from leverplus.store.jobs import HEARTBEAT_LIMIT_S
from leverplus.tracing import span
from leverplus.web.problems import problem
from pointer_trainer.children import LARGEST_FAMILY
from pointer_trainer.context import JobContext, JobFunction
from pointer_trainer.jobs import JOB_FUNCTIONS
from pointer_trainer.settings import WorkerSettings
from pointer_trainer.sharing import share_products, share_run, take_up

logger = logging.getLogger(__name__)

BEAT_EVERY_S = 3.0
CANCEL_POLL_S = 0.5
CANCEL_GRACE_S = 0.5
"""How long the work may take to notice that it is cancelled before the job ends without it."""
PROGRESS_EVERY_S = 0.25
STORE_PATIENCE_S = 120.0
"""How long a job waits for shared files."""

Outcome = Literal["succeeded", "failed", "cancelled", "lost", "not claimed"]


def run_job(
    job_id: str,
    *,
    jobs: JobStore,
    settings: WorkerSettings,
    owner: str,
    functions: Mapping[str, JobFunction] = JOB_FUNCTIONS,
    beat_every_s: float = BEAT_EVERY_S,
    cancel_poll_s: float = CANCEL_POLL_S,
    cancel_grace_s: float = CANCEL_GRACE_S,
    watch: Callable[[], None] | None = None,
) -> Outcome:
    """Claims the job and does it. "not claimed": another worker has it, or it has ended. "lost": another has it now.

    `watch` is called whenever progress was written.

    A cancelled job ends `cancel_grace_s` after that is seen even if its work does not notice: what the work then still does is
    refused like that of a worker without the lease. Every error of the job ends it as failed; one that is no LeverPlusError
    leaves its trace in the run directory's log.
    """
    lease = jobs.claim(job_id, owner)
    if lease is None:
        return "not claimed"
    job = jobs.get(job_id)
    pulse = _Pulse(jobs, lease, beat_every_s, cancel_poll_s, cancel_grace_s)
    root = settings.data_root.patient(STORE_PATIENCE_S)
    run_folder = root.run(job_id)
    if not (run_folder / "config.json").exists():
        config = {"job_id": job_id, "kind": job.kind, "config": job.config}
        write_json(run_folder / "config.json", config, fence=pulse.require_lease)
    asked = Origin(job.request_id, job_id, job.traceparent)
    named = {"job__kind": job.kind, "job__run": lease.version, "job__parent": job.parent}
    with (
        working_for(asked),
        span(f"job {job.kind}", "consumer", **named) as traced,
        _job_log(job_id, run_folder, root if lease.version > 1 else None) as log,
        pulse.beating(),
    ):
        log.info("%s: run %d by %s", job.kind, lease.version, owner)
        context = JobContext(
            job_id=job_id,
            config=job.config,
            data_root=root,
            run_folder=run_folder,
            scorer_urls=settings.scorer_urls,
            scorer_key=settings.scorer_key,
            threads=settings.threads,
            progress=_ProgressWriter(jobs, lease, watch).write,
            should_stop=pulse.should_stop,
            logger=log,
            run=lease.version,
            fence=pulse.require_lease,
            mlflow_uri=settings.mlflow_tracking_uri,
            parent=None if job.parent is None else jobs.get(job.parent),
            children=_Children(job_id, jobs, settings, owner, functions),
        )
        try:
            outcome = _finish(job, context, pulse, jobs, lease, functions)
            traced.set(job__outcome=outcome)
            return outcome
        except LeaseLost:
            # It may have ended the job a moment ago, and not come to say so.
            pulse.end()
            if pulse.has_ended_job:
                log.info("cancelled; what the work went on with was refused")
                return "cancelled"
            log.warning("the lease is lost: another worker has the job, or it has ended")
            return "lost"


def _finish(
    job: Job, context: JobContext, pulse: _Pulse, jobs: JobStore, lease: Lease, functions: Mapping[str, JobFunction]
) -> Outcome:
    log = context.logger
    try:
        if job.kind not in functions:
            raise LeverPlusError(f"jobs of kind {job.kind!r} cannot be run by this worker; it is older than the API")
        result = functions[job.kind](context)
        share_products(context)
    except LeaseLost:
        raise
    except Cancelled as exc:
        if pulse.is_lost:
            raise LeaseLost(job_id=lease.job_id, version=lease.version) from exc
        log.info("cancelled")
        jobs.finish(lease, "cancelled")
        return "cancelled"
    except LeverPlusError as exc:
        log.error("%s: %s", exc.kind, exc)
        _share_what_failed(context)
        jobs.finish(lease, "failed", error=problem(exc))
        return "failed"
    except Exception as exc:
        log.exception("the job failed")
        detail = f"{type(exc).__name__}: {exc}; {context.run_folder / 'log.txt'} has the trace"
        share_run(context)
        jobs.finish(
            lease, "failed", error={"type": type(exc).__name__, "title": "Internal error", "status": 500, "detail": detail}
        )
        return "failed"
    jobs.finish(lease, "succeeded", result=result)
    log.info("succeeded")
    return "succeeded"


def _share_what_failed(context: JobContext) -> None:
    """What a job that failed has left, the best epoch before a divergence say; that it cannot be shared is told in the log."""
    try:
        share_products(context)
    except LeaseLost:
        raise
    except LeverPlusError as exc:
        context.logger.warning("what it made is not shared: %s", exc)


@dataclass(frozen=True)
class _Children:
    """See context.Children. A child has a lease, a pulse and an end of its own, whatever becomes of its parent."""

    parent: str
    jobs: JobStore
    settings: WorkerSettings
    owner: str
    functions: Mapping[str, JobFunction]

    def list(self) -> list[Job]:
        # Of ids that differ in their numbers the longer ones have the larger.
        return sorted(self.jobs.list(parent=self.parent, limit=LARGEST_FAMILY), key=lambda job: (len(job.id), job.id))

    def cancel(self) -> None:
        self.jobs.cancel_children(self.parent)

    def run(self, job_id: str, watch: Callable[[], None]) -> bool:
        outcome = run_job(job_id, jobs=self.jobs, settings=self.settings, owner=self.owner, functions=self.functions, watch=watch)
        return outcome != "not claimed"


class _Pulse:
    """A thread that keeps the lease alive and notices that the job is to be cancelled or has gone to another worker."""

    def __init__(self, jobs: JobStore, lease: Lease, beat_every_s: float, cancel_poll_s: float, cancel_grace_s: float) -> None:
        self._jobs = jobs
        self._lease = lease
        self._beat_every_s = beat_every_s
        self._cancel_poll_s = cancel_poll_s
        self._cancel_grace_s = cancel_grace_s
        self._lost = threading.Event()
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.has_ended_job = False
        """The job was cancelled, and ended from here because its work did not notice in time."""

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    def require_lease(self) -> None:
        """LeaseLost unless the database says, now, that the lease holds; its outages are waited out as long as a lease lasts."""
        end = time.monotonic() + HEARTBEAT_LIMIT_S
        while True:
            try:
                self._jobs.beat(self._lease)
                return
            except SQLAlchemyError as exc:
                if time.monotonic() > end:
                    raise LeaseLost(job_id=self._lease.job_id, version=self._lease.version) from exc
                logger.warning("job %s: cannot tell whether the lease holds: %s", self._lease.job_id, exc)
                time.sleep(self._cancel_poll_s)

    def should_stop(self) -> bool:
        return self._lost.is_set() or self._cancelled.is_set()

    @contextmanager
    def beating(self) -> Generator[None]:
        # In a copy of the context, so that its log lines name the job too.
        name = f"pulse of {self._lease.job_id}"
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name=name, daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self.end()

    def end(self) -> None:
        """Returns when the thread has ended; once more is no error."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        last_beat = time.monotonic()
        cancelled_at: float | None = None
        while not self._ended.wait(self._cancel_poll_s):
            try:
                if cancelled_at is not None and time.monotonic() - cancelled_at >= self._cancel_grace_s:
                    self._jobs.finish(self._lease, "cancelled")
                    self.has_ended_job = True
                    return
                if time.monotonic() - last_beat >= self._beat_every_s:
                    is_cancelled = self._jobs.beat(self._lease).cancel_requested
                    last_beat = time.monotonic()
                else:
                    is_cancelled = self._jobs.get(self._lease.job_id).cancel_requested
            except LeverPlusError:
                self._lost.set()
                return
            except SQLAlchemyError as exc:
                logger.warning("job %s: no heartbeat: %s", self._lease.job_id, exc)
                if time.monotonic() - last_beat > HEARTBEAT_LIMIT_S:
                    self._lost.set()
                    return
                continue
            if is_cancelled and cancelled_at is None:
                cancelled_at = time.monotonic()
                self._cancelled.set()


class _ProgressWriter:
    """Writes progress to the job's row, at most a few times a second: each phase's first and last step, and some between."""

    def __init__(self, jobs: JobStore, lease: Lease, watch: Callable[[], None] | None) -> None:
        self._jobs = jobs
        self._lease = lease
        self._watch = watch
        self._phase: str | None = None
        self._phase_start_s = 0.0
        self._phase_start_step = 0
        self._written_s = 0.0

    def write(self, phase: str, step: int, total: int, extra: Mapping[str, Any]) -> None:
        now = time.monotonic()
        is_new = phase != self._phase
        if is_new:
            self._phase, self._phase_start_s, self._phase_start_step = phase, now, step
        elif step < total and now - self._written_s < PROGRESS_EVERY_S:
            return
        self._written_s = now
        done = step - self._phase_start_step
        eta_s = None if done <= 0 else round((total - step) * (now - self._phase_start_s) / done, 1)
        try:
            self._jobs.progress(self._lease, phase, step, total, eta_s, extra)
            if self._watch is not None:
                self._watch()
        except SQLAlchemyError as exc:
            # Progress is told again soon; no work is given up for it.
            logger.warning("job %s: progress is not written: %s", self._lease.job_id, exc)


@contextmanager
def _job_log(job_id: str, run_folder: Path, root: DataRoot | None) -> Generator[logging.Logger]:
    """A logger that also writes to log.txt in the run directory, going on with what an earlier run left if `root` is given."""
    if root is not None:
        take_up(root, run_folder)
    log = logging.getLogger(f"pointer_trainer.job.{job_id}")
    handler = logging.FileHandler(run_folder / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield log
    finally:
        log.removeHandler(handler)
        handler.close()
