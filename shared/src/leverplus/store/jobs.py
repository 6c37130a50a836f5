"""Jobs: rows that outlive every process, and leases that let one worker at a time write to a job.

A lease is taken by compare-and-set on `lease_version`; the new version is the fencing token. Every write of a run names
it, so a worker that was thought dead and comes back finds that its writes are refused (LeaseLost).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Engine, RowMapping, Update, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from leverplus.errors import Conflict, NotFound
from leverplus.fingerprint import canonical_json
from leverplus.origin import origin
from leverplus.store.schema import jobs

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})

HEARTBEAT_LIMIT_S = 15.0
"""A running job whose heartbeat is older than this has lost its worker."""
CHILDREN_WITH_MESSAGES = 16
"""So many queued children of a job have a message at a time: a job of hundreds leaves room for those that come after it."""
MESSAGE_LIMIT_S = 5.0
"""How long a message that was sent may be on its way; one that then is not waiting in the queue is sent again."""


class LeaseLost(Conflict):
    title = "Lease lost"
    template = "job {job_id}: lease {version} is no longer valid: another worker has the job, or it has ended"


@dataclass(frozen=True)
class Job:
    """A job as it stands. Times are seconds since 1970; `progress` is {phase, step, total, eta_s, …} or None.

    `parent`: the job that this one belongs to; None for one that was asked for by itself. `request_id` and `traceparent`: of the
    request that made it, where there was one.
    """

    id: str
    kind: str
    status: JobStatus
    config: dict[str, Any]
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    cancel_requested: bool
    created_at: float
    started_at: float | None
    finished_at: float | None
    lease_version: int
    parent: str | None
    request_id: str | None
    traceparent: str | None


@dataclass(frozen=True)
class Lease:
    job_id: str
    owner: str
    version: int


@dataclass(frozen=True)
class JobState:
    """What a heartbeat tells its worker."""

    cancel_requested: bool


class JobStore:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(
        self,
        kind: str,
        config: Mapping[str, Any],
        *,
        job_id: str | None = None,
        idempotency_key: str | None = None,
        children: Mapping[str, tuple[str, Mapping[str, Any]]] | None = None,
    ) -> Job:
        """A new queued job; the earlier one for a repeated key with the same kind and config; Conflict for another config.

        `children`: kind and config, by id, of queued jobs that belong to it; all are made or none. Each bears the request that is
        being answered now.
        """
        new_id = job_id or new_job_id()
        now, asked = time.time(), origin.get()

        def queued(job_id: str, kind: str, config: Mapping[str, Any], **values: Any) -> dict[str, Any]:
            fixed = {"status": "queued", "cancel_requested": False, "created_at": now, "lease_version": 0}
            return {
                "id": job_id,
                "kind": kind,
                "config": dict(config),
                "idempotency_key": None,
                "parent": None,
                "request_id": asked.request_id,
                "traceparent": asked.traceparent,
                **fixed,
                **values,
            }

        rows = [queued(new_id, kind, config, idempotency_key=idempotency_key)]
        rows += [queued(child_id, *child, parent=new_id) for child_id, child in (children or {}).items()]
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(jobs), rows)
        except IntegrityError:
            earlier = self.find_by_key(idempotency_key) if idempotency_key else None
            if earlier is None:
                raise
            if earlier.kind != kind or canonical_json(earlier.config) != canonical_json(dict(config)):
                detail = f"Idempotency-Key {idempotency_key!r} was used for job {earlier.id} with other contents; use a new key"
                raise Conflict(detail) from None
            return earlier
        return self.get(new_id)

    def find_by_key(self, idempotency_key: str) -> Job | None:
        with self._engine.connect() as connection:
            row = connection.execute(select(jobs).where(jobs.c.idempotency_key == idempotency_key)).mappings().one_or_none()
        return None if row is None else _job(row)

    def get(self, job_id: str) -> Job:
        with self._engine.connect() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()
        if row is None:
            raise NotFound(what="job", name=job_id, hint="GET /jobs lists them")
        return _job(row)

    def list(
        self,
        *,
        kind: str | None = None,
        without_kind: str | None = None,
        status: str | None = None,
        parent: str | None = None,
        limit: int = 100,
    ) -> list[Job]:
        """Newest first; a job stands before those that belong to it."""
        statement = select(jobs).order_by(jobs.c.created_at.desc(), jobs.c.id).limit(limit)
        if kind is not None:
            statement = statement.where(jobs.c.kind == kind)
        if without_kind is not None:
            statement = statement.where(jobs.c.kind != without_kind)
        if status is not None:
            statement = statement.where(jobs.c.status == status)
        if parent is not None:
            statement = statement.where(jobs.c.parent == parent)
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(statement).mappings()]

    def unfinished(self) -> list[Job]:
        """Every job that is queued or running."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(jobs).where(jobs.c.status.not_in(TERMINAL)).order_by(jobs.c.created_at, jobs.c.id))
            return [_job(row) for row in rows.mappings()]

    def claim(self, job_id: str, owner: str) -> Lease | None:
        """The lease on a queued job or on a running one whose worker is gone; None where it is not to be had."""
        now = time.time()
        with self._engine.begin() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one_or_none()
            if row is None:
                return None
            version = row["lease_version"] + 1
            taken = connection.execute(
                update(jobs)
                .where(
                    jobs.c.id == job_id,
                    jobs.c.lease_version == row["lease_version"],
                    or_(
                        jobs.c.status == "queued",
                        and_(jobs.c.status == "running", jobs.c.heartbeat_at < now - HEARTBEAT_LIMIT_S),
                    ),
                )
                .values(
                    status="running",
                    lease_owner=owner,
                    lease_version=version,
                    heartbeat_at=now,
                    started_at=row["started_at"] or now,
                )
            )
        return Lease(job_id, owner, version) if taken.rowcount == 1 else None

    def beat(self, lease: Lease) -> JobState:
        """Keeps the lease alive and tells whether the job is to be cancelled; LeaseLost when it is another's."""
        self._write(lease, heartbeat_at=time.time())
        return JobState(cancel_requested=self.get(lease.job_id).cancel_requested)

    def progress(
        self,
        lease: Lease,
        phase: str,
        step: int,
        total: int,
        eta_s: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self._write(lease, progress={"phase": phase, "step": step, "total": total, "eta_s": eta_s, **(extra or {})})

    def finish(
        self,
        lease: Lease,
        status: Literal["succeeded", "failed", "cancelled"],
        *,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """Ends the job; `error` is a problem ({type, title, status, detail}) for a failed one."""
        self._write(
            lease,
            status=status,
            result=None if result is None else dict(result),
            error=None if error is None else dict(error),
            finished_at=time.time(),
        )

    def request_cancel(self, job_id: str) -> Job:
        """A queued job, and one whose worker is gone, is cancelled at once, a running one by its worker; an ended one stays.

        With it those that belong to it.
        """
        self._cancel(or_(jobs.c.id == job_id, jobs.c.parent == job_id))
        return self.get(job_id)

    def cancel_children(self, job_id: str) -> None:
        """The same for those that belong to a job, without the job."""
        self._cancel(jobs.c.parent == job_id)

    def _cancel(self, whose: ColumnElement[bool]) -> None:
        orphaned = and_(jobs.c.status == "running", jobs.c.heartbeat_at < time.time() - HEARTBEAT_LIMIT_S)
        with self._engine.begin() as connection:
            connection.execute(
                update(jobs)
                .where(whose, or_(jobs.c.status == "queued", orphaned))
                .values(status="cancelled", cancel_requested=True, finished_at=time.time())
            )
            connection.execute(update(jobs).where(whose, jobs.c.status == "running").values(cancel_requested=True))

    def resume(self, job_id: str) -> Job:
        """Queues a failed or cancelled job again, and with it those of its own that failed, were cancelled, or are about to be:
        their worker then has lost its lease.

        Conflict for one that is not ended, or that succeeded.
        """
        ended = jobs.c.status.in_(("failed", "cancelled"))

        def again(whose: ColumnElement[bool]) -> Update:
            values = {"status": "queued", "cancel_requested": False, "error": None, "finished_at": None, "enqueued_at": None}
            return update(jobs).where(whose).values(values)

        with self._engine.begin() as connection:
            is_changed = connection.execute(again(and_(jobs.c.id == job_id, ended))).rowcount > 0
            if is_changed:
                # Left alone it would end as cancelled a moment later, and the resumed job would come to its end without it.
                ending = and_(jobs.c.status == "running", jobs.c.cancel_requested)
                connection.execute(again(and_(jobs.c.parent == job_id, or_(ended, ending))))
        job = self.get(job_id)
        if not is_changed:
            raise Conflict(f"job {job_id} is {job.status}; only a failed or cancelled job can be resumed")
        return job

    def mark_enqueued(self, job_id: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(enqueued_at=time.time()))

    def to_enqueue(self) -> list[Job]:
        """Jobs that need a message unless one waits: queued or running without a heartbeat, and sent none of late.

        Of a job's queued children the first CHILDREN_WITH_MESSAGES.
        """
        now = time.time()
        no_recent_message = or_(jobs.c.enqueued_at.is_(None), jobs.c.enqueued_at < now - MESSAGE_LIMIT_S)
        orphaned = and_(
            jobs.c.status == "running",
            jobs.c.heartbeat_at < now - HEARTBEAT_LIMIT_S,
        )
        in_line = func.row_number().over(partition_by=jobs.c.parent, order_by=(func.length(jobs.c.id), jobs.c.id))
        waiting = (
            select(jobs.c.id, in_line.label("place")).where(jobs.c.status == "queued", jobs.c.parent.is_not(None)).subquery()
        )
        in_turn = and_(jobs.c.status == "queued", or_(jobs.c.parent.is_(None), waiting.c.place <= CHILDREN_WITH_MESSAGES))
        statement = select(jobs).outerjoin(waiting, waiting.c.id == jobs.c.id).where(no_recent_message, or_(in_turn, orphaned))
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(statement.order_by(jobs.c.created_at, jobs.c.id)).mappings()]

    def _write(self, lease: Lease, **values: Any) -> None:
        with self._engine.begin() as connection:
            written = connection.execute(
                update(jobs)
                .where(jobs.c.id == lease.job_id, jobs.c.lease_version == lease.version, jobs.c.status == "running")
                .values(**values)
            )
        if written.rowcount != 1:
            raise LeaseLost(job_id=lease.job_id, version=lease.version)


def new_job_id() -> str:
    return f"job-{secrets.token_hex(6)}"


def _job(row: RowMapping) -> Job:
    return Job(**{name: row[name] for name in Job.__dataclass_fields__})
