"""Promotion through the gate: what it judges by, what it refuses, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from leverplus.client import TrainerClient
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.deployments import promote, read_deployment
from leverplus.errors import Conflict, LeverPlusError
from leverplus.files import remove_folder
from leverplus.ids import ItemId
from leverplus.store import JobStore
from pointer_trainer.gate import GateRefused, judge
from pointer_trainer.measuring import Measured
from pointer_trainer.per_query import write_per_query
from pointer_trainer.requests import BASELINES, EvaluateRequest
from pointer_trainer.systems import Contender

ROWS = 12


def evaluated(
    data: DataRoot,
    jobs: JobStore,
    worth: dict[str, float],
    *,
    of_baselines: float = 0.25,
    split: str = "val",
    shots: tuple[int, ...] = (0, 1),
    beam: int = 1,
    **result: Any,
) -> str:
    """A finished evaluation of these checkpoints: each right for that share of 12 queries of 12 images."""
    dataset = Dataset.open(data.dataset("toy"))
    measured = Measured(query_ids=[ItemId(number) for number in range(ROWS)])
    contenders = [(Contender(name, None, 0 if name == "zero-shot" else 1), of_baselines) for name in BASELINES]
    contenders += [(Contender("v3", name, 1), share) for name, share in worth.items()]
    for contender, share in contenders:
        measured.accuracies[contender] = [[float(row < share * ROWS)] for row in range(ROWS)]
        measured.pointers[contender] = [((ItemId(0),),)] * ROWS
    request = EvaluateRequest(dataset="toy", split=split, checkpoints=list(worth), shots=list(shots), beam=beam)
    job = jobs.create("evaluate", request.model_dump(mode="json"))
    lease = jobs.claim(job.id, "test")
    assert lease is not None
    kept = {
        "baselines": list(BASELINES),
        "unavailable": [],
        "trained_on": dict.fromkeys(worth, 0),
        "per_query_sha256": write_per_query(data.run(job.id), measured, dataset, fence=lambda: None),
    }
    jobs.finish(lease, "succeeded", result={**kept, **result})
    return job.id


def test_a_checkpoint_that_beats_every_baseline_is_served(
    api: TestClient, data: DataRoot, jobs: JobStore, save_selector: Any
) -> None:
    save_selector("ckpt-1", shots=[1])
    job_id = evaluated(data, jobs, {"ckpt-1": 1.0})
    answer = api.post("/checkpoints/ckpt-1/promote", json={"by": "me"})
    assert answer.status_code == 200, answer.text
    gate = answer.json()["gate"]
    assert (gate["passed"], gate["evaluation"], gate["evaluations"], gate["incumbent"]) == (True, job_id, 1, None)
    assert [one["baseline"] for one in gate["comparisons"]] == list(BASELINES)
    assert all(one["low"] > 0 and one["difference"] == 0.75 for one in gate["comparisons"])
    assert read_deployment(data, "production").gate == gate


def test_what_is_refused_says_why_and_is_served_by_an_override_alone(
    api: TestClient, data: DataRoot, jobs: JobStore, save_selector: Any
) -> None:
    save_selector("ckpt-1", shots=[1])
    client = TrainerClient("http://testserver")
    client._http = api  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(Conflict, match="no evaluation of ckpt-1 on split 'val' of toy"):
        client.promote("ckpt-1", alias="production", by="me")
    evaluated(data, jobs, {"ckpt-1": 0.25})
    with pytest.raises(Conflict, match=r"at 1 shot its gain over random is \+0\.0 points") as refused:
        client.promote("ckpt-1", alias="production", by="me", reason="I like it")
    assert refused.value.context["gate"]["passed"] is False
    assert api.get("/deployments").json() == {"deployments": []}
    served = client.promote("ckpt-1", alias="production", by="me", reason="I like it", override=True)
    assert (served["gate"], served["by"], served["reason"]) == (None, "me", "I like it")


def test_the_incumbent_is_to_be_beaten_too(data: DataRoot, jobs: JobStore, save_selector: Any) -> None:
    old, new = save_selector("ckpt-old", shots=[1]), save_selector("ckpt-new", shots=[1])
    evaluated(data, jobs, {"ckpt-new": 1.0})
    promote(data, "production", old.checkpoint_id, by="me", reason="first")
    with pytest.raises(GateRefused, match="ckpt-old is served now and not in evaluation"):
        judge(data, jobs, new, alias="production", evaluation=None)
    # Another alias serves nothing yet.
    assert judge(data, jobs, new, alias="staging", evaluation=None)["incumbent"] is None
    evaluated(data, jobs, {"ckpt-new": 1.0, "ckpt-old": 1.0})
    with pytest.raises(GateRefused, match=r"its gain over ckpt-old is \+0\.0 points"):
        judge(data, jobs, new, alias="production", evaluation=None)
    evaluated(data, jobs, {"ckpt-new": 1.0, "ckpt-old": 0.25})
    gate = judge(data, jobs, new, alias="production", evaluation=None)
    assert (gate["incumbent"], gate["evaluations"]) == ("ckpt-old", 3)
    promote(data, "production", "ckpt-new", by="me", reason="", gate=gate)
    assert read_deployment(data, "production").checkpoint_id == "ckpt-new"
    with pytest.raises(Conflict, match="the gate compared ckpt-old with None, but ckpt-new is served by now"):
        promote(data, "production", "ckpt-old", by="me", reason="", gate={**gate, "incumbent": None})


def test_a_damaged_deployment_holds_up_its_own_alias_until_an_override(
    api: TestClient, data: DataRoot, jobs: JobStore, save_selector: Any
) -> None:
    save_selector("ckpt-1", shots=[1])
    evaluated(data, jobs, {"ckpt-1": 1.0})
    data.deployment("production").parent.mkdir()
    data.deployment("production").write_text('{"alias": "production"}')
    refused = [
        api.post("/checkpoints/ckpt-1/promote", json={"by": "me"}),
        api.post("/deployments/production/rollback", json={"by": "me"}),
    ]
    for answer in refused:
        assert answer.status_code == 422
        assert "not a deployment: checkpoint_id is missing; promote a checkpoint with an override" in answer.json()["detail"]
    # What another alias serves is known.
    assert api.post("/checkpoints/ckpt-1/promote", json={"by": "me", "alias": "staging"}).status_code == 200
    served = api.post("/checkpoints/ckpt-1/promote", json={"by": "me", "override": True, "reason": "it was damaged"})
    assert (served.status_code, served.json()["predecessor"]) == (200, None)
    assert read_deployment(data, "production").reason == "it was damaged"
    assert data.path.joinpath("deployments", "production.json.broken").read_text() == '{"alias": "production"}'


def test_a_named_evaluation_counts_and_otherwise_the_newest(data: DataRoot, jobs: JobStore, save_selector: Any) -> None:
    info = save_selector("ckpt-1", shots=[1])
    first = evaluated(data, jobs, {"ckpt-1": 1.0})
    evaluated(data, jobs, {"ckpt-1": 0.25})
    with pytest.raises(GateRefused, match="is not shown to be better"):
        judge(data, jobs, info, alias="production", evaluation=None)
    assert judge(data, jobs, info, alias="production", evaluation=first)["evaluations"] == 2
    with pytest.raises(GateRefused, match="job job-9 is no finished evaluation of ckpt-1"):
        judge(data, jobs, info, alias="production", evaluation="job-9")


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"baselines": ["zero-shot", "random"]}, "left out best-fixed, similar-image, similar-text, similar-joint"),
        ({"trained_on": {"ckpt-1": 3}}, "was trained on 3 of the queries"),
        ({"per_query_sha256": "0" * 64}, "evaluate again"),
    ],
)
def test_an_evaluation_that_cannot_speak_for_it(
    data: DataRoot, jobs: JobStore, result: dict[str, Any], words: str, save_selector: Any
) -> None:
    info = save_selector("ckpt-1", shots=[1])
    evaluated(data, jobs, {"ckpt-1": 1.0}, **result)
    with pytest.raises(LeverPlusError, match=words):
        judge(data, jobs, info, alias="production", evaluation=None)


def test_what_could_not_be_evaluated_is_kept_in_the_gate(data: DataRoot, jobs: JobStore, save_selector: Any) -> None:
    info = save_selector("ckpt-1", shots=[1])
    missing = [{"system": "best-fixed", "shots": None, "reason": "none"}]
    evaluated(data, jobs, {"ckpt-1": 1.0}, baselines=["zero-shot", *BASELINES[3:], "random"], unavailable=missing)
    gate = judge(data, jobs, info, alias="production", evaluation=None)
    assert gate["unavailable"] == missing
    assert "best-fixed" not in {one["baseline"] for one in gate["comparisons"]}


def test_a_baseline_that_the_evaluation_did_not_ask_for_is_not_one_that_cannot_be_had(
    data: DataRoot, jobs: JobStore, save_selector: Any
) -> None:
    info = save_selector("ckpt-1", shots=[1])
    missing = [{"system": "zero-shot", "shots": None, "reason": "0 is not among the numbers of shots"}]
    job_id = evaluated(data, jobs, {"ckpt-1": 1.0}, shots=(1,), baselines=[*BASELINES[1:]], unavailable=missing)
    with pytest.raises(GateRefused, match=f"evaluation {job_id} has no zero-shot, .* evaluate ckpt-1 at 0 shots too"):
        judge(data, jobs, info, alias="production", evaluation=None)


def test_an_evaluation_by_a_beam_does_not_speak_for_what_is_served_without_one(
    data: DataRoot, jobs: JobStore, save_selector: Any
) -> None:
    info = save_selector("ckpt-1", shots=[1])
    job_id = evaluated(data, jobs, {"ckpt-1": 1.0}, beam=4)
    with pytest.raises(GateRefused, match=f"evaluation {job_id} chose with beam 4, a selection is made with 1 by default"):
        judge(data, jobs, info, alias="production", evaluation=None)


def test_other_splits_shots_and_deleted_runs(data: DataRoot, jobs: JobStore, save_selector: Any) -> None:
    info = save_selector("ckpt-1", shots=[1])
    evaluated(data, jobs, {"ckpt-1": 1.0}, split="train")
    with pytest.raises(GateRefused, match="no evaluation of ckpt-1 on split 'val'"):
        judge(data, jobs, info, alias="production", evaluation=None)
    job_id = evaluated(data, jobs, {"ckpt-1": 1.0})
    with pytest.raises(GateRefused, match=r"made for \[1, 2\] shots, evaluation job-\w+ has none at 2"):
        judge(data, jobs, replace(info, shots=[1, 2]), alias="production", evaluation=None)
    with pytest.raises(GateRefused, match="does not say for how many shots"):
        judge(data, jobs, replace(info, shots=[]), alias="production", evaluation=None)
    remove_folder(data.run(job_id))
    with pytest.raises(LeverPlusError, match="run directory was deleted: evaluate again"):
        judge(data, jobs, info, alias="production", evaluation=None)


def test_accuracies_per_query_come_back_as_they_were(data: DataRoot) -> None:
    measured = Measured(query_ids=[ItemId(3), ItemId(5)])
    random = Contender("random", None, 1)
    measured.accuracies[random] = [[0.0, 1.0], [0.3, 0.3]]
    measured.pointers[random] = [((ItemId(0),), (ItemId(1),)), ((ItemId(1),), (ItemId(2),))]
    assert np.allclose(measured.means(random), [0.5, 0.3])
    measured.take(7, {random: ()}, {})
    assert measured.left_out == [7]
