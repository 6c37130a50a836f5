"""Generations whose shards are jobs of their own: one worker alone, failures, and going on by hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from leverplus import rl_data
from leverplus.data_root import DataRoot
from leverplus.store import Job, JobStore
from leverplus.store.schema import jobs as job_rows
from pointer_trainer.jobs import generate as generate_job
from pointer_trainer.runner import Outcome, run_job
from pointer_trainer.scored_queries import Scorer, Traffic
from pointer_trainer.settings import WorkerSettings

BODY = {"dataset": "toy", "pool": {"k": 6}, "shard_queries": 5}
"""Twelve queries: three shards."""


def begin(api: TestClient, **fields: Any) -> str:
    answer = api.post("/rl-data/generate", json={**BODY, **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


def do(job_id: str, jobs: JobStore, settings: WorkerSettings, scorer_url: str) -> Outcome:
    with_scorer = settings.model_copy(update={"scorer_url": scorer_url})
    return run_job(job_id, jobs=jobs, settings=with_scorer, owner="worker")


def shards_of(jobs: JobStore, job_id: str) -> list[Job]:
    return sorted(jobs.list(parent=job_id), key=lambda job: job.id)


def test_a_generation_has_a_job_a_shard_made_with_it(api: TestClient, jobs: JobStore) -> None:
    job_id = begin(api)
    listed = api.get("/jobs").json()["jobs"]
    assert [job["id"] for job in listed] == [job_id], "hundreds of shards would hide every other job"
    listed = api.get("/jobs", params={"parent": job_id}).json()["jobs"]
    assert sorted((job["id"], job["kind"], job["config"]["shard"]) for job in listed) == [
        (f"{job_id}-00{number}", "generate-shard", number) for number in (1, 2, 3)
    ]
    assert len(api.get("/jobs", params={"kind": "generate-shard"}).json()["jobs"]) == 3
    for alone in ({"shard_queries": 12}, {"dry_run": True}):
        assert shards_of(jobs, begin(api, **alone)) == []


def test_more_shards_than_a_job_may_have_are_refused(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointer_trainer.shards.LARGEST_FAMILY", 4)
    answer = api.post("/rl-data/generate", json={**BODY, "shard_queries": 2})
    assert answer.status_code == 422
    assert "2 makes 6 shards of 12 queries, at most 4; ask for 3 or more" in answer.json()["detail"]
    assert api.get("/jobs").json() == {"jobs": []}


def test_one_worker_alone_does_all_shards(
    api: TestClient, jobs: JobStore, worker_settings: WorkerSettings, scorer: Any, data: DataRoot
) -> None:
    job_id = begin(api)
    assert do(job_id, jobs, worker_settings, scorer.url) == "succeeded"
    job = jobs.get(job_id)
    assert job.result is not None
    assert job.result["shards"] == 3
    assert [record.query_id for record in rl_data.read(data.rl_data(job.result["rl_data_id"])).records] == list(range(12))
    shards = shards_of(jobs, job_id)
    assert [shard.status for shard in shards] == ["succeeded"] * 3
    assert [shard.result and shard.result["queries"] for shard in shards] == [5, 5, 2]
    assert sum(shard.result["scores"]["scored"] for shard in shards if shard.result) == job.result["scores"]["scored"]
    assert not (data.run(job_id) / "shards").exists()


def test_a_shard_that_is_written_but_not_told_of_is_not_made_anew(
    api: TestClient, jobs: JobStore, worker_settings: WorkerSettings, scorer: Any
) -> None:
    job_id = begin(api)
    assert do(f"{job_id}-002", jobs, worker_settings, scorer.url) == "succeeded"
    told = jobs.get(f"{job_id}-002").result
    # As if its worker had died between the two.
    with jobs._engine.begin() as connection:  # pyright: ignore[reportPrivateUsage]
        untold = {"status": "queued", "result": None}
        connection.execute(update(job_rows).where(job_rows.c.id == f"{job_id}-002").values(untold))
    asked = len(scorer.engine.batches)
    assert do(f"{job_id}-002", jobs, worker_settings, scorer.url) == "succeeded"
    assert jobs.get(f"{job_id}-002").result == told
    assert len(scorer.engine.batches) == asked


def test_scorers_that_stay_away_fail_the_generation_which_goes_on_by_hand(
    api: TestClient,
    jobs: JobStore,
    worker_settings: WorkerSettings,
    scorer: Any,
    data: DataRoot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasty = Traffic(first_wait_s=0.01, longest_wait_s=0.01, patience_s=0.03)
    monkeypatch.setattr(generate_job, "Scorer", partial(Scorer, traffic=hasty))
    job_id = begin(api)
    assert do(f"{job_id}-001", jobs, worker_settings, scorer.url) == "succeeded"
    file = data.run(job_id) / "shards" / "00001.ndjson"
    made = file.stat().st_mtime_ns

    assert do(job_id, jobs, worker_settings, "http://127.0.0.1:9") == "failed"
    error = jobs.get(job_id).error
    assert error is not None
    assert error["type"] == "ShardFailed"
    assert error["detail"].startswith(f"shard 2 of 3 ({job_id}-002): vqa_scorer is away: ConnectError at http://127.0.0.1:9")
    assert f"POST /jobs/{job_id}/resume" in error["detail"]
    # The third was not tried: it would have waited as long, for nothing.
    assert [shard.status for shard in shards_of(jobs, job_id)] == ["succeeded", "failed", "cancelled"]
    assert file.stat().st_mtime_ns == made

    assert api.post(f"/jobs/{job_id}/resume").status_code == 202
    assert [shard.status for shard in shards_of(jobs, job_id)] == ["succeeded", "queued", "queued"]
    assert do(job_id, jobs, worker_settings, scorer.url) == "succeeded"
    assert [shard.lease_version for shard in shards_of(jobs, job_id)] == [1, 2, 1]


def test_a_shard_whose_file_was_deleted_is_made_again(
    api: TestClient, jobs: JobStore, worker_settings: WorkerSettings, scorer: Any, data: DataRoot
) -> None:
    job_id = begin(api)
    for number in (1, 2, 3):
        assert do(f"{job_id}-00{number}", jobs, worker_settings, scorer.url) == "succeeded"
    (data.run(job_id) / "shards" / "00002.ndjson").unlink()
    assert do(job_id, jobs, worker_settings, scorer.url) == "succeeded"
    result = jobs.get(job_id).result
    assert result is not None
    assert [record.query_id for record in rl_data.read(data.rl_data(result["rl_data_id"])).records] == list(range(12))


def test_a_cancelled_generation_cancels_its_shards(api: TestClient, jobs: JobStore) -> None:
    job_id = begin(api)
    assert api.delete(f"/jobs/{job_id}").json()["status"] == "cancelled"
    assert {shard.status for shard in shards_of(jobs, job_id)} == {"cancelled"}
