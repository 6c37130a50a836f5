"""What the trainer's API tells who watches it: jobs, workers, messages, disk."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from redis import Redis
from sqlalchemy import update

from leverplus.store import JobStore, count_jobs, open_store
from leverplus.store.schema import jobs as jobs_table
from pointer_trainer.pulse import PULSE_LIMIT_S, WORKERS, Pulse, count_workers
from pointer_trainer.settings import TrainerSettings


@pytest.fixture
def redis(valkey_url: str) -> Redis:
    client = Redis.from_url(valkey_url)
    client.delete(WORKERS)
    return client


def metric(text: str, name: str) -> float:
    (found,) = re.findall(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found)


def test_jobs_are_counted_by_kind_and_state_with_the_oldest_of_each(database_url: str):
    engine = open_store(database_url)
    store = JobStore(engine)
    assert count_jobs(engine).of == {}
    waits, runs, child_of = (store.create("train", {}) for _ in range(3))
    store.create("sweep", {}, children={"child": ("train", {})})
    lease = store.claim(runs.id, "me")
    other = store.claim(child_of.id, "me")
    assert lease is not None
    assert other is not None
    store.finish(other, "failed", error={"title": "no"})
    now = time.time()
    with engine.begin() as connection:
        connection.execute(update(jobs_table).where(jobs_table.c.id == waits.id).values(created_at=now - 100))
        connection.execute(update(jobs_table).where(jobs_table.c.id == "child").values(created_at=now - 9_000))
        connection.execute(
            update(jobs_table).where(jobs_table.c.id == runs.id).values(started_at=now - 50, heartbeat_at=now - 20)
        )
    counts = count_jobs(engine)
    assert counts.of == {("train", "queued"): 2, ("train", "running"): 1, ("train", "failed"): 1, ("sweep", "queued"): 1}
    assert counts.longest_queued_s == pytest.approx(100, abs=10), "a child waits for its turn, which is no delay"
    assert counts.longest_running_s == pytest.approx(50, abs=10)
    assert counts.longest_silent_s == pytest.approx(20, abs=10)
    engine.dispose()


def test_a_worker_that_beats_is_counted_and_one_that_stopped_is_not(valkey_url: str, redis: Redis, tmp_path: Path):
    file = tmp_path / "pulse"
    Pulse(valkey_url, "one", file).beat()
    Pulse(valkey_url, "two", None).beat()
    assert count_workers(redis) == 2
    assert file.exists()
    redis.zincrby(WORKERS, -PULSE_LIMIT_S - 1, "two")
    assert count_workers(redis) == 1
    redis.zincrby(WORKERS, -4_000, "two")
    Pulse(valkey_url, "one", file).beat()
    assert redis.zcard(WORKERS) == 1, "one that is long gone is forgotten"


def test_a_worker_that_the_broker_does_not_hear_has_no_pulse(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    pulse = Pulse("redis://127.0.0.1:9/0", "one", tmp_path / "pulse", timeout_s=0.2)
    pulse.beat()
    pulse.beat()
    assert not (tmp_path / "pulse").exists()
    assert [record.message.split(":")[0] for record in caplog.records] == ["the broker does not hear this worker"]


def test_the_api_shows_jobs_workers_and_disk(api: TestClient, jobs: JobStore, valkey_url: str, redis: Redis):
    Pulse(valkey_url, "one", None).beat()
    job = jobs.create("train", {})
    jobs.request_cancel(job.id)
    text = api.get("/metrics").text
    assert metric(text, 'leverplus_jobs{kind="train",status="cancelled"}') == 1
    assert metric(text, "leverplus_workers") == 1
    assert metric(text, "leverplus_ready") == 1
    assert metric(text, "leverplus_job_silent_seconds") == 0
    assert 0 < metric(text, "leverplus_disk_free_bytes") < metric(text, "leverplus_disk_bytes")


def test_without_a_broker_workers_are_unknown_and_not_none(settings: TrainerSettings):
    from pointer_trainer.app import create_app

    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"})
    with TestClient(create_app(away)) as client:
        text = client.get("/metrics").text
    assert metric(text, "leverplus_ready") == 0
    assert "leverplus_workers" not in text
    assert "leverplus_job_queued_seconds" in text
