"""Hosts with data folders of their own, one PostgreSQL and one S3: generate on one, train on another, serve on a third."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fastapi.testclient import TestClient

from leverplus import rl_data
from leverplus.data_root import DataRoot
from leverplus.deployments import promote
from leverplus.errors import Unavailable
from leverplus.files import file_sha256
from leverplus.store import JobStore, open_store
from pointer_trainer.app import create_app
from pointer_trainer.jobs.train import train_selector
from pointer_trainer.openings import list_openings, read_openings, record_opening
from pointer_trainer.runner import run_job
from pointer_trainer.settings import TrainerSettings, WorkerSettings
from selector_api.app import create_app as create_selector
from selector_api.following import Follower
from selector_api.settings import SelectorSettings

TRAIN = {"rce_epochs": 2, "hidden_dim": 8, "num_layers": 1, "num_heads": 1}


@dataclass
class Cluster:
    """An API whose host has the data, and hosts that begin empty."""

    folder: Path
    url: str
    database: str
    redis: str
    scorer: str
    jobs: JobStore
    api: TestClient

    def host(self, name: str) -> WorkerSettings:
        return WorkerSettings(
            data=self.folder / name, shared=self.url, database_url=self.database, redis_url=self.redis, scorer_url=self.scorer
        )

    def do(self, job_id: str, host: str, **arguments: Any) -> str:
        return run_job(job_id, jobs=self.jobs, settings=self.host(host), owner=host, **arguments)

    def post(self, path: str, body: dict[str, Any], expected: int = 202) -> dict[str, Any]:
        answer = self.api.post(path, json=body)
        assert answer.status_code == expected, answer.text
        return answer.json()

    def result(self, job_id: str) -> dict[str, Any]:
        job = self.jobs.get(job_id)
        assert job.result is not None, job.error
        return dict(job.result)


@pytest.fixture
def cluster(data: DataRoot, tmp_path: Path, s3_url: str, postgresql_url: str, valkey_url: str, scorer: Any) -> Generator[Cluster]:
    host = DataRoot.at(data.path, s3_url)
    host.publish(host.dataset("toy"))
    host.publish(host.embeddings("toy"))
    settings = TrainerSettings(
        data=data.path, shared=s3_url, database_url=postgresql_url, redis_url=valkey_url, scorer_url=scorer.url
    )
    engine = open_store(postgresql_url)
    with TestClient(create_app(settings)) as api:
        yield Cluster(tmp_path, s3_url, postgresql_url, valkey_url, scorer.url, JobStore(engine), api)
    engine.dispose()


def generated(cluster: Cluster) -> str:
    body = {"dataset": "toy", "pool": {"k": 6}, "shard_queries": 5}
    job_id = cluster.post("/rl-data/generate", body)["job_id"]
    assert cluster.do(f"{job_id}-001", "b") == "succeeded"
    assert cluster.do(f"{job_id}-003", "c") == "succeeded"
    assert cluster.do(job_id, "b") == "succeeded"
    return job_id


def test_generate_train_and_serve_on_three_hosts(cluster: Cluster, data: DataRoot) -> None:
    job_id = generated(cluster)
    rl_data_id = cluster.result(job_id)["rl_data_id"]
    on_c = cluster.host("c").data_root
    assert [record.query_id for record in rl_data.read(on_c.rl_data(rl_data_id)).records] == list(range(12))
    assert on_c.shared is not None
    assert on_c.shared.names(on_c.shards(job_id)) == [], "shards go when they are put together"
    listed = cluster.api.get("/rl-data").json()["rl_data"]
    assert [one["rl_data_id"] for one in listed] == [rl_data_id]

    job_id = cluster.post("/train", {"rl_data": [rl_data_id], "config": TRAIN})["job_id"]
    assert cluster.do(job_id, "d") == "succeeded"
    checkpoint = cluster.result(job_id)["checkpoint_id"]
    assert [one["checkpoint_id"] for one in cluster.api.get("/checkpoints").json()["checkpoints"]] == [checkpoint]

    promotion = {"by": "me", "reason": "a try", "override": True}
    cluster.post(f"/checkpoints/{checkpoint}/promote", promotion, expected=200)
    settings = SelectorSettings(data=cluster.folder / "selector", shared=cluster.url)
    with TestClient(create_selector(settings)) as selector:
        end = time.monotonic() + 60
        while selector.get("/health/ready").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        answer = selector.get("/select?query_id=13&shots=2").json()
        assert answer["checkpoint"] == checkpoint
        assert selector.get(answer["icds"][0]["image_url"]).status_code == 200, "images come with the dataset"

    # The API on another host, whose folder is empty, goes on where the first stood.
    moved = TrainerSettings(
        data=cluster.folder / "moved", shared=cluster.url, database_url=cluster.database, redis_url=cluster.redis
    )
    with TestClient(create_app(moved)) as api:
        deployed = api.get("/deployments").json()["deployments"]
        assert [(one["alias"], one["checkpoint_id"]) for one in deployed] == [("production", checkpoint)]
        assert api.delete(f"/checkpoints/{checkpoint}").status_code == 409, "it is served"


def test_what_one_host_promotes_another_serves_and_what_is_broken_it_does_not(cluster: Cluster, data: DataRoot) -> None:
    rl_data_id = cluster.result(generated(cluster))["rl_data_id"]
    checkpoints: list[str] = []
    for host in ("b", "c"):
        job_id = cluster.post("/train", {"rl_data": [rl_data_id], "config": {**TRAIN, "seed": len(checkpoints)}})["job_id"]
        assert cluster.do(job_id, host) == "succeeded"
        checkpoints.append(cluster.result(job_id)["checkpoint_id"])
    root = DataRoot(cluster.folder / "selector")
    shared = DataRoot.at(root.path, cluster.url).shared
    assert shared is not None
    follower = Follower(root, shared)
    promotion = {"by": "me", "reason": "a try", "override": True}

    def served() -> str:
        follower.look()
        path = root.deployment("production")
        return path.read_text() if path.is_file() else ""

    assert served() == ""
    cluster.post(f"/checkpoints/{checkpoints[0]}/promote", promotion, expected=200)
    assert checkpoints[0] in served()
    store = fsspec.filesystem("s3")
    sha256 = file_sha256(cluster.host("c").data_root.checkpoint(checkpoints[1]) / "model.safetensors")
    [model] = [name for name in store.find(f"{cluster.url}/checkpoints/{checkpoints[1]}/objects") if sha256 in name]
    whole = store.cat_file(model)
    store.pipe_file(model, whole[:-1] + b"x")
    promote(cluster.host("c").data_root, "production", checkpoints[1], by="me", reason="better")
    assert checkpoints[0] in served()
    assert f'"checkpoint_id": "{checkpoints[1]}"' not in served(), "the one that is whole goes on being served"
    store.pipe_file(model, whole)
    assert f'"checkpoint_id": "{checkpoints[1]}"' in served()


def test_a_training_goes_on_at_another_host(cluster: Cluster) -> None:
    rl_data_id = cluster.result(generated(cluster))["rl_data_id"]
    body = {"rl_data": [rl_data_id], "config": {**TRAIN, "rce_epochs": 4}}
    undisturbed, cut_off = (cluster.post("/train", body)["job_id"] for _ in range(2))
    assert cluster.do(undisturbed, "b") == "succeeded"

    def killed(context: Any) -> Any:
        original, metrics = context.progress, context.run_folder / "metrics.jsonl"

        def progress(phase: str, step: int, total: int, extra: Any) -> None:
            original(phase, step, total, extra)
            if metrics.is_file() and len(metrics.read_text().splitlines()) == 3:
                raise Unavailable(what="host b", reason="its plug was pulled", hint="")

        return train_selector(replace(context, progress=progress))

    assert cluster.do(cut_off, "b", functions={"train": killed}) == "failed"
    cluster.jobs.resume(cut_off)
    assert cluster.do(cut_off, "c") == "succeeded"
    log = (cluster.host("c").data_root.run(cut_off) / "log.txt").read_text()
    assert "goes on after epoch 2 of phase rce" in log
    metrics = [cluster.result(job_id)["metrics"] for job_id in (undisturbed, cut_off)]
    assert metrics[0]["held_out_rce"] == metrics[1]["held_out_rce"]


def test_openings_of_all_hosts_are_kept(tmp_path: Path, s3_url: str) -> None:
    hosts = [DataRoot.at(tmp_path / name, s3_url) for name in "abc"]

    def record(root: DataRoot, number: int) -> None:
        job = f"job-{root.path.name}{number}"
        asked = {"by": "me", "split": "test", "queries": 3, "checkpoints": [], "dataset_sha256": "0"}
        record_opening(root, "toy", job_id=job, **asked)  # pyright: ignore[reportArgumentType]

    threads = [threading.Thread(target=record, args=(root, number)) for root in hosts for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fresh = DataRoot.at(tmp_path / "d", s3_url)
    found = sorted(opening.job_id for opening in read_openings(fresh, "toy"))
    assert found == sorted(f"job-{host}{number}" for host in "abc" for number in range(3))
    assert list(list_openings(DataRoot.at(tmp_path / "e", s3_url))) == ["toy"]


def test_hosts_that_share_files_share_a_database(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set DATABASE_URL to a PostgreSQL"):
        WorkerSettings(data=tmp_path, shared="s3://bucket/x", redis_url="redis://x")


def test_shared_embeddings_are_not_made_again(cluster: Cluster, data: DataRoot) -> None:
    before = (data.embeddings("toy") / "embeddings.safetensors").read_bytes()
    job_id = cluster.post("/embeddings", {"dataset": "toy", "overwrite": True})["job_id"]
    assert cluster.do(job_id, "b") == "failed"
    error = cluster.jobs.get(job_id).error
    assert error is not None
    assert "what is shared is never changed" in error["detail"]
    assert (data.embeddings("toy") / "embeddings.safetensors").read_bytes() == before
