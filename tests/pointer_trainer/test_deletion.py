"""Deleting checkpoints and runs: what goes, what is needed and stays, and what goes by itself; on real files and a database."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.data_root import DataRoot
from leverplus.deployments import deletions_locked_out, ever_promoted, promote, read_deployment
from leverplus.errors import Conflict, NotFound
from leverplus.files import empty_trash, folder_bytes, set_aside, write_json
from leverplus.fingerprint import Fingerprint
from leverplus.selector.config import SelectorConfig, tensor_shapes
from leverplus.store import JobStore
from pointer_trainer.app import create_app
from pointer_trainer.deletion import delete_checkpoint, delete_run
from pointer_trainer.housekeeping import keep_house, remove_orphans
from pointer_trainer.settings import TrainerSettings

SELECTOR = SelectorConfig(d_model=8, hidden_dim=4)


def make(
    root: DataRoot, name: str, *, accuracy: float | None = None, days: float = 0.0, dataset: str = "toy", rl_data: bool = True
) -> str:
    """A checkpoint that is so many days old."""
    created = datetime.now(UTC) - timedelta(days=days)
    info = CheckpointInfo(
        checkpoint_id=name,
        format=FORMAT,
        selector=SELECTOR.to_json(),
        dataset=dataset,
        pool_policy={},
        shots=[1],
        fingerprint=Fingerprint(),
        training={},
        rl_data=[{"id": "rl-1", "sha256": "0" * 64}] if rl_data else [],
        metrics={"held_out_expected_accuracy": accuracy},
        code_version="0",
        created_at=created.isoformat(timespec="milliseconds"),
    )
    tensors = {key: np.zeros(shape, dtype=np.float32) for key, shape in tensor_shapes(SELECTOR).items()}
    save_checkpoint(root.checkpoint(name), tensors, info)
    return name


def run_of(root: DataRoot, jobs: JobStore, *, status: Any) -> str:
    """A job that has this status, and its run directory with a training state in it."""
    job = jobs.create("train", {})
    if status != "queued":
        lease = jobs.claim(job.id, "worker")
        assert lease is not None
        if status != "running":
            jobs.finish(lease, status)
    write_json(root.run(job.id) / "config.json", {})
    (root.run(job.id) / "state-1.safetensors").write_bytes(b"state")
    return job.id


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_a_checkpoint_goes_whole(api: TestClient, data: DataRoot) -> None:
    make(data, "ckpt-a")
    size = folder_bytes(data.checkpoint("ckpt-a"))
    would = api.delete("/checkpoints/ckpt-a", params={"dry_run": True})
    assert (would.status_code, would.json()) == (200, {"name": "ckpt-a", "bytes": size})
    assert names(data.path / "checkpoints") == ["ckpt-a"]
    assert api.delete("/checkpoints/ckpt-a").json() == {"name": "ckpt-a", "bytes": size}
    assert names(data.path / "checkpoints") == []
    assert api.delete("/checkpoints/ckpt-a").status_code == 404
    assert api.delete("/checkpoints/..%2Fruns").status_code in (404, 422)


def test_what_an_alias_serves_or_would_roll_back_to_stays(api: TestClient, data: DataRoot) -> None:
    for name in ("ckpt-a", "ckpt-b", "ckpt-c"):
        make(data, name)
        api.post(f"/checkpoints/{name}/promote", json={"alias": "staging", "by": "me", "reason": "r", "override": True})
    serving, before = api.delete("/checkpoints/ckpt-c"), api.delete("/checkpoints/ckpt-b", params={"dry_run": True})
    assert (serving.status_code, before.status_code) == (409, 409)
    assert "alias 'staging' serves it; promote another first" in serving.json()["detail"]
    assert "alias 'staging' would roll back to it" in before.json()["detail"]
    assert api.delete("/checkpoints/ckpt-a").status_code == 200
    assert names(data.path / "checkpoints") == ["ckpt-b", "ckpt-c"]


def test_nothing_goes_while_a_deployment_cannot_be_read(api: TestClient, data: DataRoot) -> None:
    make(data, "ckpt-a")
    data.deployment("production").parent.mkdir()
    data.deployment("production").write_text("{")
    answer = api.delete("/checkpoints/ckpt-a")
    assert (answer.status_code, "not a deployment" in answer.json()["detail"]) == (422, True)
    assert names(data.path / "checkpoints") == ["ckpt-a"]


def test_what_an_unfinished_job_names_or_makes_stays(api: TestClient, data: DataRoot, jobs: JobStore) -> None:
    for name in ("ckpt-a", "ckpt-1f", "ckpt-1f-grpo", "ckpt-1fe"):
        make(data, name)
    evaluating = jobs.create("evaluate", {"checkpoints": ["ckpt-0", "ckpt-a"]})
    training = jobs.create("train", {"config": {}}, job_id="job-1f")
    told = api.delete("/checkpoints/ckpt-a")
    assert told.status_code == 409
    assert f"job {evaluating.id} (evaluate) is queued; cancel it, or wait" in told.json()["detail"]
    assert [api.delete(f"/checkpoints/{name}").status_code for name in ("ckpt-1f", "ckpt-1f-grpo", "ckpt-1fe")] == [409, 409, 200]
    for job in (evaluating, training):
        api.delete(f"/jobs/{job.id}")
    assert [api.delete(f"/checkpoints/{name}").status_code for name in ("ckpt-a", "ckpt-1f", "ckpt-1f-grpo")] == [200] * 3


def test_promotion_and_deletion_never_both_succeed(data: DataRoot, jobs: JobStore) -> None:
    def outcome(action: Any) -> str:
        try:
            action()
        except (Conflict, NotFound) as exc:
            return exc.kind
        return "done"

    with ThreadPoolExecutor(2) as pool:
        for number in range(20):
            name = make(data, f"ckpt-{number}")
            promoting = pool.submit(outcome, lambda name=name: promote(data, "production", name, by="me", reason="r"))
            deleting = pool.submit(outcome, lambda name=name: delete_checkpoint(data, jobs, name))
            found = (promoting.result(20), deleting.result(20))
            assert found in (("done", "Conflict"), ("NotFound", "done"))
            assert data.checkpoint(name).is_dir() == (found[0] == "done")


def test_a_job_that_rests_on_a_checkpoint_is_made_before_or_after_its_deletion(api: TestClient, data: DataRoot) -> None:
    """While a deletion looks, POST /evaluate waits; then it finds that the checkpoint is gone, and makes no job."""
    make(data, "ckpt-a")
    body = {"dataset": "toy", "checkpoints": ["ckpt-a"], "pool": {"k": 6}}
    answers: list[Any] = []
    with deletions_locked_out(data):
        asking = threading.Thread(target=lambda: answers.append(api.post("/evaluate", json=body)))
        asking.start()
        time.sleep(0.3)
        set_aside(data.checkpoint("ckpt-a"))
    asking.join(20)
    assert answers[0].status_code == 404, answers[0].text
    assert api.get("/jobs").json() == {"jobs": []}


def test_pruning_keeps_the_best_of_each_dataset_and_what_is_young(api: TestClient, data: DataRoot, jobs: JobStore) -> None:
    make(data, "best", accuracy=0.9, days=9)
    make(data, "second", accuracy=0.8, days=9)
    make(data, "third", accuracy=0.7, days=9)
    make(data, "served", accuracy=0.6, days=9)
    make(data, "young", accuracy=0.5, days=1)
    make(data, "other", accuracy=0.1, days=9, dataset="other")
    make(data, "unranked", days=9)
    data.checkpoint("broken").mkdir()
    promote(data, "production", "served", by="me", reason="r")
    body = {"keep_best": 1, "older_than_days": 5}
    would = api.post("/checkpoints/prune", json={**body, "dry_run": True}).json()
    assert {one["name"] for one in would["deleted"]} == {"second", "third"}
    assert would["bytes"] == sum(folder_bytes(data.checkpoint(name)) for name in ("second", "third"))
    reasons = {one["name"]: one["reason"] for one in would["kept"]}
    assert set(reasons) == {"served", "unranked", "broken"}
    assert "serves it" in reasons["served"]
    assert "held_out_expected_accuracy is unknown" in reasons["unranked"]
    assert len(names(data.path / "checkpoints")) == 8
    done = api.post("/checkpoints/prune", json=body).json()
    assert {**done, "dry_run": True} == would
    assert names(data.path / "checkpoints") == ["best", "broken", "other", "served", "unranked", "young"]


def test_pruning_without_a_condition_is_refused(api: TestClient) -> None:
    for body in ({}, {"keep_best": 0}, {"older_than_days": -1}, {"older_than_days": 1e6}, {"keep": 1}):
        assert api.post("/checkpoints/prune", json=body).status_code == 422


def test_age_alone_takes_what_cannot_be_ranked_too(api: TestClient, data: DataRoot) -> None:
    make(data, "old", days=9)
    make(data, "young", days=1)
    for slip in ({"older_than_days": False}, {"older_than_days": "0"}, {"older_than_days": 0, "dry_run": 0}, {"keep_best": True}):
        assert api.post("/checkpoints/prune", json=slip).status_code == 422, slip
    done = api.post("/checkpoints/prune", json={"older_than_days": 5}).json()
    assert ([one["name"] for one in done["deleted"]], done["kept"]) == (["old"], [])


@pytest.mark.parametrize("status", ["queued", "running"])
def test_the_run_of_an_unfinished_job_stays(api: TestClient, data: DataRoot, jobs: JobStore, status: str) -> None:
    job_id = run_of(data, jobs, status=status)
    answer = api.delete(f"/jobs/{job_id}/run")
    assert (answer.status_code, f"job {job_id} is {status}" in answer.json()["detail"]) == (409, True)
    assert data.run(job_id).is_dir()


def test_the_run_of_an_ended_job_goes_and_its_row_stays(api: TestClient, data: DataRoot, jobs: JobStore) -> None:
    job_id = run_of(data, jobs, status="failed")
    size = folder_bytes(data.run(job_id))
    assert api.delete(f"/jobs/{job_id}/run", params={"dry_run": True}).json() == {"name": job_id, "bytes": size}
    assert api.delete(f"/jobs/{job_id}/run").json() == {"name": job_id, "bytes": size}
    assert names(data.path / "runs") == []
    assert jobs.get(job_id).status == "failed"
    again = api.delete(f"/jobs/{job_id}/run")
    assert (again.status_code, "was deleted, or it never ran" in again.json()["detail"]) == (404, True)
    assert api.delete("/jobs/job-9/run").status_code == 404


def test_a_sweep_and_its_children_hold_each_others_runs(data: DataRoot, jobs: JobStore) -> None:
    sweep = jobs.create("sweep", {}, job_id="job-5", children={"job-5-001": ("train", {}), "job-5-002": ("train", {})})
    for job_id in ("job-5", "job-5-001"):
        write_json(data.run(job_id) / "config.json", {})
    lease = jobs.claim("job-5-001", "worker")
    assert lease is not None
    jobs.finish(lease, "succeeded")
    with pytest.raises(Conflict, match="job job-5 is queued"):
        delete_run(data, jobs, "job-5-001")
    jobs.request_cancel(sweep.id)
    assert delete_run(data, jobs, "job-5-001").name == "job-5-001"
    assert delete_run(data, jobs, "job-5").name == "job-5"


def test_what_was_set_aside_by_a_process_that_was_killed_is_removed_later(data: DataRoot, jobs: JobStore) -> None:
    make(data, "ckpt-a")
    aside = set_aside(data.checkpoint("ckpt-a"))
    assert aside.is_dir()
    with pytest.raises(NotFound):
        delete_checkpoint(data, jobs, "ckpt-a")
    keep_house(data, jobs, retention_days=None)
    assert names(data.path / "checkpoints") == []


def test_trash_may_be_emptied_by_several(tmp_path: Path) -> None:
    for number in range(20):
        folder = tmp_path / f"ckpt-{number}"
        folder.mkdir()
        (folder / "file").write_bytes(b"x")
        set_aside(folder)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(empty_trash, tmp_path) for _ in range(4)]:
            done.result(20)
    empty_trash(tmp_path)
    assert names(tmp_path) == []


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder, (then, then))


def test_orphans_go_once_they_are_old_and_nothing_else_does(data: DataRoot, jobs: JobStore) -> None:
    job_id = run_of(data, jobs, status="queued")
    (data.run(job_id) / "state-1.safetensors").unlink()
    for name in ("job-old", "job-young", "job-ran"):
        write_json(data.run(name) / "config.json", {})
    (data.run("job-ran") / "log.txt").write_text("of another database")
    for name in (job_id, "job-old", "job-ran"):
        age(data.run(name), 7200)
    assert [folder.name for folder in remove_orphans(data, jobs)] == ["job-old"]
    keep_house(data, jobs, retention_days=None)
    assert names(data.path / "runs") == sorted([job_id, "job-ran", "job-young"])


def test_what_a_killed_writer_left_unfinished_goes_after_an_hour(
    data: DataRoot, jobs: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A worker in a container of its own: its pid is somebody else's here.
    unfinished = data.run("job-ran") / f".state-1.safetensors.{os.getpid()}.01234567.tmp"
    write_json(data.run("job-ran") / "metrics.jsonl", {})
    unfinished.write_bytes(b"half")
    keep_house(data, jobs, retention_days=None)
    assert unfinished.exists()
    later = time.time() + 3601
    monkeypatch.setattr("leverplus.files.time.time", lambda: later)
    keep_house(data, jobs, retention_days=None)
    assert names(data.run("job-ran")) == ["metrics.jsonl"]


def test_nothing_else_goes_by_itself_without_a_retention(data: DataRoot, jobs: JobStore) -> None:
    make(data, "ckpt-a", days=1000)
    job_id = run_of(data, jobs, status="failed")
    age_job(jobs, job_id, days=1000)
    keep_house(data, jobs, retention_days=None)
    assert data.checkpoint("ckpt-a").is_dir()
    assert (data.run(job_id) / "state-1.safetensors").exists()


def age_job(jobs: JobStore, job_id: str, *, days: float) -> None:
    from sqlalchemy import update

    from leverplus.store.schema import jobs as rows

    with jobs._engine.begin() as connection:  # pyright: ignore[reportPrivateUsage]
        connection.execute(update(rows).where(rows.c.id == job_id).values(finished_at=time.time() - days * 86400))


def test_with_a_retention_old_states_and_checkpoints_that_were_never_promoted_go(
    settings: TrainerSettings, data: DataRoot, jobs: JobStore
) -> None:
    for name in ("ckpt-first", "ckpt-second", "ckpt-third", "ckpt-plain"):
        make(data, name, days=31)
    make(data, "ckpt-imported", days=31, rl_data=False)
    make(data, "ckpt-young", days=29)
    for name in ("ckpt-first", "ckpt-second", "ckpt-third"):
        promote(data, "production", name, by="me", reason="r")
    assert read_deployment(data, "production").checkpoint_id == "ckpt-third"
    assert ever_promoted(data) == {"ckpt-first", "ckpt-second", "ckpt-third"}
    failed, young, running = (run_of(data, jobs, status=status) for status in ("failed", "failed", "running"))
    age_job(jobs, failed, days=31)
    with TestClient(create_app(settings.model_copy(update={"retention_days": 30.0}))):
        end = time.monotonic() + 20
        while len(names(data.path / "checkpoints")) > 5 and time.monotonic() < end:
            time.sleep(0.02)
    assert names(data.path / "checkpoints") == ["ckpt-first", "ckpt-imported", "ckpt-second", "ckpt-third", "ckpt-young"]
    states = [job_id for job_id in (failed, young, running) if (data.run(job_id) / "state-1.safetensors").exists()]
    assert states == [young, running]
    assert (data.run(failed) / "config.json").exists()


def test_a_round_that_fails_is_told_and_tried_again(
    settings: TrainerSettings, data: DataRoot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pointer_trainer.reconciler.HOUSEKEEPING_EVERY_S", 0.05)
    data.deployment("production").parent.mkdir(exist_ok=True)
    data.deployment("production").write_text("{")
    make(data, "ckpt-a", days=31)
    with TestClient(create_app(settings.model_copy(update={"retention_days": 30.0}))) as api:
        end = time.monotonic() + 20
        while "stays until the next round" not in caplog.text and time.monotonic() < end:
            time.sleep(0.02)
        assert api.get("/health/ready").status_code == 200
        assert data.checkpoint("ckpt-a").is_dir()
        data.deployment("production").unlink()
        while data.checkpoint("ckpt-a").exists() and time.monotonic() < end:
            time.sleep(0.02)
    assert not data.checkpoint("ckpt-a").exists()


def test_a_line_of_the_history_that_was_cut_short_costs_no_other(data: DataRoot) -> None:
    make(data, "ckpt-a")
    make(data, "ckpt-b")
    promote(data, "production", "ckpt-a", by="me", reason="r")
    path = data.path / "deployments" / "history.ndjson"
    path.write_bytes(path.read_bytes() + b'\n{"alias":"production","checkpoint_id":"ckpt-x","reason":"}')
    promote(data, "production", "ckpt-b", by="me", reason="r")
    assert ever_promoted(data) == {"ckpt-a", "ckpt-b"}


def test_the_disk_by_kind_and_what_a_retention_would_free(settings: TrainerSettings, data: DataRoot, jobs: JobStore) -> None:
    make(data, "ckpt-old", days=31)
    make(data, "ckpt-young", days=1)
    old = run_of(data, jobs, status="failed")
    run_of(data, jobs, status="failed")
    age_job(jobs, old, days=31)
    state = (data.run(old) / "state-1.safetensors").stat().st_size
    checkpoint = sum(path.stat().st_size for path in data.checkpoint("ckpt-old").rglob("*"))
    with TestClient(create_app(settings)) as client:
        by_kind = {row["kind"]: row for row in client.get("/disk", params={"retention_days": 30}).json()["kinds"]}
        assert (by_kind["training states"]["files"], by_kind["training states"]["retention_bytes"]) == (2, state)
        assert by_kind["checkpoints"]["retention_bytes"] == checkpoint
        assert by_kind["checkpoints"]["bytes"] > checkpoint
        assert by_kind["datasets"]["retention_bytes"] == 0
        unset = client.get("/disk").json()
        assert (unset["retention_days"], unset["kinds"][0]["retention_bytes"]) == (None, None)
        assert 0 < unset["free_bytes"] < unset["total_bytes"]
        assert client.get("/disk", params={"retention_days": -1}).status_code == 422
    assert data.checkpoint("ckpt-old").is_dir()
    assert (data.run(old) / "state-1.safetensors").exists()
