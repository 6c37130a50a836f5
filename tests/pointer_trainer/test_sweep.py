"""Sweeps: what a sweep's job does with its children, and what it reports of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError
from trainer_processes import RL_DATA, write_training_data

from leverplus.data_root import DataRoot
from leverplus.store import Job, JobStore
from pointer_trainer.context import JobContext, JobFunction
from pointer_trainer.grid import read_grid
from pointer_trainer.jobs import JOB_FUNCTIONS
from pointer_trainer.runner import Outcome, run_job
from pointer_trainer.settings import WorkerSettings
from pointer_trainer.sweep_report import report

BASE: dict[str, Any] = {"rce_epochs": 1, "hidden_dim": 8, "batch_size": 32}
HYBRID_TOO = {"reward.mode": ["separated", "hybrid"], "seed": [0, 1]}


@pytest.fixture
def data(tmp_path: Path) -> DataRoot:
    """Dataset `numbers` with RL data `rl-numbers`, which has no InfoScore."""
    root = DataRoot(tmp_path / "data")
    write_training_data(root)
    return root


def ask(api: TestClient, axes: Mapping[str, Any], config: Mapping[str, Any] = BASE, **more: Any) -> Any:
    body = {"base": {"rl_data": [RL_DATA], "config": dict(config)}, "axes": dict(axes), **more}
    return api.post("/sweep", json=body)


def begin(api: TestClient, axes: Mapping[str, Any], config: Mapping[str, Any] = BASE, **more: Any) -> str:
    answer = ask(api, axes, config, **more)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


def do(job_id: str, jobs: JobStore, settings: WorkerSettings, train: JobFunction | None = None) -> Outcome:
    functions = JOB_FUNCTIONS if train is None else {**JOB_FUNCTIONS, "train": train}
    return run_job(job_id, jobs=jobs, settings=settings, owner="worker", functions=functions)


def trained(context: JobContext) -> dict[str, Any]:
    """What a train job gives, at once: accuracy 0.1 · seed, reward 1 − accuracy."""
    accuracy = context.config["config"]["seed"] / 10
    metrics = {"held_out_expected_accuracy": accuracy, "held_out_expected_reward": 1 - accuracy, "held_out_rce": 2.0, "epoch": 3}
    metrics |= {"held_out_uniform_accuracy": 0.25, "file_share": 1.0, "fallback_share": 0.0}
    return {"checkpoint_id": f"ckpt-{context.suffix}", "metrics": metrics}


def test_children_are_train_jobs_of_their_own(api: TestClient, jobs: JobStore, data: DataRoot) -> None:
    sweep_id = begin(api, {"seed": [0, 1]})
    listed = api.get("/jobs").json()["jobs"]
    assert [(job["id"], job["kind"], job["parent"]) for job in listed] == [
        (sweep_id, "sweep", None),
        (f"{sweep_id}-001", "train", sweep_id),
        (f"{sweep_id}-002", "train", sweep_id),
    ]
    assert [job["id"] for job in api.get("/jobs", params={"parent": sweep_id}).json()["jobs"]] == [
        job["id"] for job in listed[1:]
    ]
    single = api.post("/train", json={"rl_data": [RL_DATA], "config": {**BASE, "seed": 1}}).json()["job_id"]
    assert jobs.get(f"{sweep_id}-002").config == jobs.get(single).config
    assert orjson.loads((data.run(sweep_id) / "config.json").read_bytes())["config"]["axes"] == {"seed": [0, 1]}


def test_a_repeated_key_makes_no_second_grid(api: TestClient, jobs: JobStore) -> None:
    body = {"base": {"rl_data": [RL_DATA], "config": BASE}, "axes": {"seed": [0, 1]}}
    first, second = (api.post("/sweep", json=body, headers={"Idempotency-Key": "grid"}) for _ in range(2))
    assert first.json() == second.json()
    assert len(jobs.list()) == 3
    other = api.post("/sweep", json={**body, "axes": {"seed": [0]}}, headers={"Idempotency-Key": "grid"})
    assert other.status_code == 409
    assert len(jobs.list()) == 3


@pytest.mark.parametrize(
    ("axes", "more", "words"),
    [
        ({"seed": [0, 0]}, {}, "child 1 (seed=0) and child 2 (seed=0) are one config"),
        ({"sed": [0]}, {}, "sed"),
        ({"seed": 0}, {}, "axes.seed"),
        ({}, {}, "axes"),
        ({"seed": [0]}, {"axis": {}}, "axis"),
        (HYBRID_TOO, {}, "reward.alpha"),
    ],
)
def test_a_sweep_that_cannot_run_leaves_nothing(
    api: TestClient, data: DataRoot, axes: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    answer = ask(api, axes, **more)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert words in answer.json()["detail"]
    assert api.get("/jobs").json() == {"jobs": []}
    assert not (data.path / "runs").exists()


def test_what_the_data_cannot_give_is_refused_by_name_or_skipped(
    api: TestClient, jobs: JobStore, worker_settings: WorkerSettings
) -> None:
    config = {**BASE, "reward": {"alpha": 0.5}}
    refused = ask(api, HYBRID_TOO, config)
    assert refused.status_code == 422
    told = "2 of 4 children cannot be trained on these RL data, e.g. child 3 (reward.mode=hybrid, seed=0): query 0, 1 shots: "
    assert told in refused.json()["detail"]
    assert jobs.list() == []
    assert ask(api, {"reward.mode": ["hybrid"]}, config, skip_untrainable=True).status_code == 422

    sweep_id = begin(api, HYBRID_TOO, config, skip_untrainable=True)
    assert [job.id for job in jobs.list(parent=sweep_id)] == [f"{sweep_id}-001", f"{sweep_id}-002"]
    assert do(sweep_id, jobs, worker_settings, trained) == "succeeded"
    result = jobs.get(sweep_id).result
    assert result is not None
    assert [(row["number"], row["state"]) for row in result["rows"]] == [
        (2, "succeeded"),
        (1, "succeeded"),
        (3, "skipped"),
        (4, "skipped"),
    ]
    assert "has info_score" in result["rows"][2]["reason"]


def test_one_worker_trains_all_children(api: TestClient, jobs: JobStore, worker_settings: WorkerSettings, data: DataRoot) -> None:
    sweep_id = begin(api, {"reward.mode": ["hard_plus_soft", "soft_only"], "seed": [0, 1]})
    assert do(sweep_id, jobs, worker_settings) == "succeeded"
    sweep = jobs.get(sweep_id)
    assert sweep.result is not None
    assert sweep.progress is not None
    assert (sweep.progress["phase"], sweep.progress["step"], sweep.progress["total"]) == ("train", 4, 4)
    rows = sweep.result["rows"]
    assert [row["held_out_expected_accuracy"] for row in rows] == sorted(
        (row["held_out_expected_accuracy"] for row in rows), reverse=True
    )
    for row in rows:
        child = jobs.get(row["job_id"])
        assert (child.status, child.lease_version) == ("succeeded", 1)
        assert child.result is not None
        assert child.result["checkpoint_id"] == row["checkpoint_id"]
        assert data.checkpoint(row["checkpoint_id"]).is_dir()
        # Answers here are right or wrong: h = s, so that h + s is twice the accuracy.
        scale = 2 if row["values"]["reward.mode"] == "hard_plus_soft" else 1
        assert row["held_out_expected_reward"] == pytest.approx(scale * row["held_out_expected_accuracy"], abs=1e-6)
    folder = data.run(sweep_id)
    assert orjson.loads((folder / "sweep.json").read_bytes()) == sweep.result
    assert (folder / "sweep.md").read_text() == sweep.result["markdown"]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_child_that_fails_stands_in_the_table_and_stops_no_other(
    api: TestClient, jobs: JobStore, worker_settings: WorkerSettings
) -> None:
    def second_fails(context: JobContext) -> Mapping[str, Any]:
        if context.config["config"]["seed"] == 1:
            raise ValueError("the second fails")
        return trained(context)

    sweep_id = begin(api, {"seed": [0, 1, 2]})
    assert do(sweep_id, jobs, worker_settings, second_fails) == "succeeded"
    result = jobs.get(sweep_id).result
    assert result is not None
    assert [row["state"] for row in result["rows"]] == ["succeeded", "succeeded", "failed"]
    assert result["rows"][2]["reason"].startswith("ValueError: the second fails")
    assert "the second fails" in result["markdown"]
    assert do(f"{sweep_id}-001", jobs, worker_settings, trained) == "not claimed"


def test_a_sweep_fails_where_every_child_did_and_goes_on_by_hand(
    api: TestClient, jobs: JobStore, worker_settings: WorkerSettings, data: DataRoot
) -> None:
    def fails(_: JobContext) -> Mapping[str, Any]:
        raise ValueError("no luck")

    sweep_id = begin(api, {"seed": [0, 1]})
    assert do(sweep_id, jobs, worker_settings, fails) == "failed"
    error = jobs.get(sweep_id).error
    assert error is not None
    assert f"no child succeeded (2 failed), e.g. {sweep_id}-001: ValueError: no luck" in error["detail"]
    assert "no luck" in (data.run(sweep_id) / "sweep.md").read_text()
    assert api.post(f"/jobs/{sweep_id}/resume").status_code == 202
    assert {job.status for job in jobs.list(parent=sweep_id)} == {"queued"}
    assert do(sweep_id, jobs, worker_settings, trained) == "succeeded"


def test_a_later_run_repeats_no_child_that_ended(api: TestClient, jobs: JobStore, worker_settings: WorkerSettings) -> None:
    sweep_id = begin(api, {"seed": [0, 1]})
    assert do(f"{sweep_id}-001", jobs, worker_settings, trained) == "succeeded"
    ran: list[str] = []

    def counted(context: JobContext) -> Mapping[str, Any]:
        ran.append(context.job_id)
        return trained(context)

    assert do(sweep_id, jobs, worker_settings, counted) == "succeeded"
    assert ran == [f"{sweep_id}-002"]


def test_a_child_that_runs_elsewhere_is_waited_for(api: TestClient, jobs: JobStore, worker_settings: WorkerSettings) -> None:
    sweep_id = begin(api, {"seed": [0, 1]})
    may_end = threading.Event()
    has_begun = threading.Event()

    def elsewhere(context: JobContext) -> Mapping[str, Any]:
        has_begun.set()
        assert may_end.wait(60)
        return trained(context)

    other = threading.Thread(target=do, args=(f"{sweep_id}-001", jobs, worker_settings, elsewhere))
    other.start()
    assert has_begun.wait(10)
    outcome: list[Outcome] = []
    sweeping = threading.Thread(target=lambda: outcome.append(do(sweep_id, jobs, worker_settings, trained)))
    sweeping.start()
    until(lambda: jobs.get(f"{sweep_id}-002").status == "succeeded")
    until(lambda: (jobs.get(sweep_id).progress or {}).get("running") == 1)
    assert jobs.get(sweep_id).status == "running"
    may_end.set()
    sweeping.join(20)
    other.join(20)
    assert outcome == ["succeeded"]
    assert [job.lease_version for job in jobs.list(parent=sweep_id)] == [1, 1]


def test_cancelling_a_sweep_cancels_what_is_left_of_it(api: TestClient, jobs: JobStore, worker_settings: WorkerSettings) -> None:
    def second_never_ends(context: JobContext) -> Mapping[str, Any]:
        while context.config["config"]["seed"] == 1:
            context.step("train", 0, 1)
            time.sleep(0.01)
        return trained(context)

    sweep_id = begin(api, {"seed": [0, 1, 2]})
    outcome: list[Outcome] = []
    sweeping = threading.Thread(target=lambda: outcome.append(do(sweep_id, jobs, worker_settings, second_never_ends)))
    sweeping.start()
    until(lambda: jobs.get(f"{sweep_id}-002").status == "running")
    assert api.delete(f"/jobs/{sweep_id}").status_code == 200
    sweeping.join(20)
    assert outcome == ["cancelled"]
    assert jobs.get(sweep_id).status == "cancelled"
    assert [job.status for job in sorted(jobs.list(parent=sweep_id), key=lambda job: job.id)] == [
        "succeeded",
        "cancelled",
        "cancelled",
    ]
    assert api.post(f"/jobs/{sweep_id}/resume").status_code == 202
    assert do(sweep_id, jobs, worker_settings, trained) == "succeeded"
    assert jobs.get(f"{sweep_id}-001").lease_version == 1


def test_an_outage_of_the_database_is_outlived(
    api: TestClient, jobs: JobStore, worker_settings: WorkerSettings, data: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep_id = begin(api, {"seed": [0, 1]})
    answers = JobStore.list
    outages = iter([True, True, False, True])

    def sometimes(store: JobStore, **asked: Any) -> list[Job]:
        if next(outages, False):
            raise OperationalError("SELECT", {}, Exception("the connection is gone"))
        return answers(store, **asked)

    monkeypatch.setattr(JobStore, "list", sometimes)
    assert do(sweep_id, jobs, worker_settings, trained) == "succeeded"
    assert next(outages, None) is None
    assert "the connection is gone" in (data.run(sweep_id) / "log.txt").read_text()


def until(condition: Any, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)


def child(number: int, status: Any = "succeeded", **metrics: Any) -> Job:
    result = {"checkpoint_id": f"ckpt-{number}", "metrics": {**SHARES, **metrics}} if status == "succeeded" else None
    error = {"detail": "a | b"} if status == "failed" else None
    return Job(f"job-{number}", "train", status, {}, None, result, error, False, 0.0, 0.0, 0.0, 1, "job", None, None)


SHARES = {"file_share": 0.75, "fallback_share": 0.25, "epoch": 2, "held_out_rce": 1.0, "held_out_uniform_accuracy": 0.5}


def test_rows_are_sorted_by_what_they_have_in_common() -> None:
    """The best reward, 1.8, is of a mode that counts right answers twice; its accuracy is not the best."""
    points = read_grid({}, {"reward.mode": ["soft_only", "separated"], "seed": [0, 1]})
    children = [
        (points[0], child(1, held_out_expected_accuracy=0.9, held_out_expected_reward=0.9)),
        (points[1], child(2, held_out_expected_accuracy=None, held_out_expected_reward=None)),
        (points[2], child(3, held_out_expected_accuracy=0.6, held_out_expected_reward=1.8)),
        (points[3], child(4, "failed")),
    ]
    found = report(children, {})
    assert [row["number"] for row in found["rows"]] == [1, 3, 2, 4]
    assert (found["sorted_by"], found["checkpoint_id"]) == ("held_out_expected_accuracy", "ckpt-1")
    measured = "held-out accuracy | held-out reward | held-out RCE"
    assert found["markdown"].splitlines()[:6] == [
        f"| child | reward.mode | seed | {measured} | epoch | checkpoint | state | reason |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| 1 | soft_only | 0 | 0.9000 | 0.9000 | 1.0000 | 2 | ckpt-1 | succeeded |  |",
        "| 3 | separated | 0 | 0.6000 | 1.8000 | 1.0000 | 2 | ckpt-3 | succeeded |  |",
        "| 2 | soft_only | 1 |  |  | 1.0000 | 2 | ckpt-2 | succeeded |  |",
        "| 4 | separated | 1 |  |  |  |  |  | failed | a \\| b |",
    ]
    notes = "\n".join(found["notes"])
    assert "do not compare rows of different rewards" in notes
    assert "One of those candidates at random: 0.5000." in notes
    assert "75.0% by the metric over ten answers, 25.0% by fallback" in notes


def test_without_any_accuracy_rewards_are_what_is_left() -> None:
    points = read_grid({}, {"seed": [0, 1], "train_ratio": [0.5]})
    children = [
        (point, child(point.number, held_out_expected_accuracy=None, held_out_expected_reward=point.number)) for point in points
    ]
    found = report(children, {})
    assert ([row["number"] for row in found["rows"]], found["sorted_by"]) == ([2, 1], "held_out_expected_reward")
    assert "here it is not known" in "\n".join(found["notes"])
    assert "Rows that differ in train_ratio were judged on different queries." in found["notes"]


def test_a_row_of_a_job_that_is_gone_says_so() -> None:
    [point] = read_grid({}, {"seed": [0]})
    assert report([(point, None)], {})["rows"][0]["state"] == "deleted"
