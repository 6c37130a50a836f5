from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import orjson

from leverplus.errors import InvalidConfig
from leverplus.files import write_json
from leverplus.store import JobStore
from leverplus.store.jobs import Job
from pointer_trainer.context import JobContext, JobFunction
from pointer_trainer.runner import Outcome, run_job
from pointer_trainer.settings import WorkerSettings


def do(job: Job, function: JobFunction, jobs: JobStore, settings: WorkerSettings, **timing: float) -> Outcome:
    return run_job(job.id, jobs=jobs, settings=settings, owner="worker", functions={"toy": function}, **timing)


def test_success_records_progress_result_and_config(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {"n": 3})

    def work(context: JobContext) -> Mapping[str, Any]:
        assert context.config == {"n": 3}
        for step in range(3):
            context.step("count", step + 1, 3, file=step)
        return {"answer": 42}

    assert do(job, work, jobs, worker_settings) == "succeeded"
    ended = jobs.get(job.id)
    assert (ended.status, ended.result, ended.error) == ("succeeded", {"answer": 42}, None)
    assert ended.progress is not None
    assert {key: ended.progress[key] for key in ("phase", "step", "total", "file", "eta_s")} == {
        "phase": "count",
        "step": 3,
        "total": 3,
        "file": 2,
        "eta_s": 0.0,
    }
    written = orjson.loads((worker_settings.data_root.run(job.id) / "config.json").read_bytes())
    assert written == {"job_id": job.id, "kind": "toy", "config": {"n": 3}}


def test_a_known_error_is_recorded_as_its_problem(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {})

    def work(_: JobContext) -> Mapping[str, Any]:
        raise InvalidConfig(field="shots", reason="9 is too many")

    assert do(job, work, jobs, worker_settings) == "failed"
    assert jobs.get(job.id).error == {
        "type": "InvalidConfig",
        "title": "Invalid configuration",
        "status": 422,
        "detail": "shots: 9 is too many",
        "context": {"field": "shots", "reason": "9 is too many"},
    }


def test_an_unknown_error_is_recorded_with_its_trace_in_the_log(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {})

    def work(_: JobContext) -> Mapping[str, Any]:
        return {"x": 1 // 0}

    assert do(job, work, jobs, worker_settings) == "failed"
    error = jobs.get(job.id).error
    assert error is not None
    assert error["type"] == "ZeroDivisionError"
    assert "division" in error["detail"]
    log = (worker_settings.data_root.run(job.id) / "log.txt").read_text()
    assert "Traceback" in log
    assert "1 // 0" in log


def test_a_running_job_is_cancelled_within_two_seconds(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {})
    has_started = threading.Event()

    def work(context: JobContext) -> Mapping[str, Any]:
        has_started.set()
        while True:
            context.step("wait", 0, 1)
            time.sleep(0.01)

    outcome: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcome.append(do(job, work, jobs, worker_settings)))
    thread.start()
    assert has_started.wait(10)
    jobs.request_cancel(job.id)
    thread.join(timeout=2)
    assert outcome == ["cancelled"]
    assert jobs.get(job.id).status == "cancelled"


def test_a_live_lease_keeps_a_second_delivery_out(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {})
    inner: list[Outcome] = []

    def work(_: JobContext) -> Mapping[str, Any]:
        inner.append(do(job, lambda _: {"second": True}, jobs, worker_settings))
        return {"first": True}

    assert do(job, work, jobs, worker_settings) == "succeeded"
    assert inner == ["not claimed"]
    assert jobs.get(job.id).result == {"first": True}
    assert do(job, lambda _: {"third": True}, jobs, worker_settings) == "not claimed"


def end_the_lease(jobs: JobStore, job_id: str) -> None:
    """What a second worker does after the first one's heartbeat stopped: a newer lease, whose job then ends."""
    from sqlalchemy import update

    from leverplus.store.schema import jobs as table

    engine = jobs._engine  # pyright: ignore[reportPrivateUsage]
    with engine.begin() as connection:
        connection.execute(update(table).where(table.c.id == job_id).values(heartbeat_at=0.0))
    lease = jobs.claim(job_id, "another worker")
    assert lease is not None
    jobs.finish(lease, "succeeded", result={"by": "another worker"})


def test_a_worker_without_its_lease_writes_nothing_more(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {})

    def returns(_: JobContext) -> Mapping[str, Any]:
        end_the_lease(jobs, job.id)
        return {"by": "the first"}

    assert do(job, returns, jobs, worker_settings) == "lost"
    assert jobs.get(job.id).result == {"by": "another worker"}


def test_losing_the_lease_stops_the_work(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {})

    def work(context: JobContext) -> Mapping[str, Any]:
        end_the_lease(jobs, job.id)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            context.check()
            time.sleep(0.01)
        return {"by": "the first"}

    assert do(job, work, jobs, worker_settings, beat_every_s=0.1, cancel_poll_s=0.05) == "lost"
    assert jobs.get(job.id).result == {"by": "another worker"}


def test_a_kind_that_the_worker_does_not_know_fails(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("new kind", {})
    assert do(job, lambda _: {}, jobs, worker_settings) == "failed"
    error = jobs.get(job.id).error
    assert error is not None
    assert "'new kind'" in error["detail"]


def test_heartbeats_keep_a_long_job(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {})
    beats: list[float] = []

    def work(_: JobContext) -> Mapping[str, Any]:
        from sqlalchemy import select

        from leverplus.store.schema import jobs as table

        engine = jobs._engine  # pyright: ignore[reportPrivateUsage]
        end = time.monotonic() + 10
        while len(set(beats)) < 3 and time.monotonic() < end:
            with engine.connect() as connection:
                beats.append(connection.execute(select(table.c.heartbeat_at).where(table.c.id == job.id)).scalar_one())
            time.sleep(0.02)
        return {}

    assert do(job, work, jobs, worker_settings, beat_every_s=0.05, cancel_poll_s=0.02) == "succeeded"
    assert len(set(beats)) >= 3


def test_work_that_does_not_notice_is_cancelled_over_its_head(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {})
    is_cancelled = threading.Event()
    outcome: list[Outcome] = []

    def work(context: JobContext) -> Mapping[str, Any]:
        jobs.request_cancel(job.id)
        end = time.monotonic() + 30
        while jobs.get(job.id).status == "running" and time.monotonic() < end:
            time.sleep(0.01)
        if jobs.get(job.id).status == "cancelled":
            is_cancelled.set()
        context.fence()
        return {"written": True}

    outcome.append(do(job, work, jobs, worker_settings, cancel_poll_s=0.02, cancel_grace_s=0.05))
    assert is_cancelled.is_set()
    assert outcome == ["cancelled"]
    assert jobs.get(job.id).result is None


def test_the_fence_stands_when_another_worker_has_the_job(jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {})

    def work(context: JobContext) -> Mapping[str, Any]:
        assert context.run == 1
        context.fence()
        end_the_lease(jobs, job.id)
        write_json(context.run_folder / "report.json", {}, fence=context.fence)
        return {}

    assert do(job, work, jobs, worker_settings) == "lost"
    assert sorted(path.name for path in worker_settings.data_root.run(job.id).iterdir()) == ["config.json", "log.txt"]
