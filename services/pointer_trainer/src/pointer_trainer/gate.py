"""The gate before a promotion: finds the evaluation on val that speaks for a checkpoint, and lets it through or says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leverplus.checkpoints import CheckpointInfo
from leverplus.data_root import DataRoot
from leverplus.deployments import read_deployment
from leverplus.errors import Conflict, InvalidInput
from leverplus.evaluation.gate import Gate, run_gate
from leverplus.store import Job, JobStore
from pointer_trainer.jobs import EVALUATE
from pointer_trainer.per_query import PerQuery, read_per_query
from pointer_trainer.requests import BASELINES
from pointer_trainer.systems import ZERO_SHOT

SPLIT = "val"
_NEWEST = 1000
_TOLD = 3


class GateRefused(Conflict):
    """The checkpoint is not served. Raised with `gate`: what was found, None where there is nothing to judge by."""

    title = "Refused by the promotion gate"


def judge(root: DataRoot, jobs: JobStore, info: CheckpointInfo, *, alias: str, evaluation: str | None) -> dict[str, Any]:
    """The gate's result for a checkpoint that passes, as it is kept in the deployment; GateRefused for another.

    On val, at each number of shots that the checkpoint declares, its paired gain over every baseline, and over the checkpoint
    that `alias` serves now, must have a lower bound above 0 after Holm. `evaluation` names the job whose accuracies count;
    without it the newest on val with this checkpoint does. The checkpoint may not have been trained on these queries, every
    baseline must have been evaluated or be impossible, and the incumbent must be among the evaluated checkpoints.
    """
    name = info.checkpoint_id
    spoken = _evaluations(jobs, info)
    job = _chosen(spoken, name, info.dataset, evaluation)
    result = job.result or {}
    _require_fair(result, job, name)
    incumbent = _incumbent(root, alias, name)
    root.newest(root.run(job.id))
    rows = read_per_query(root.run(job.id), result["per_query_sha256"])
    compared = _compared(rows, result, info, incumbent, job)
    try:
        gate = run_gate(*compared, rows.image_ids)
    except InvalidInput as exc:
        raise GateRefused(f"evaluation {job.id} cannot speak for {name}: {exc}", gate=None) from exc
    found = {
        **gate.to_json(),
        "evaluation": job.id,
        "evaluations": len(spoken),
        "incumbent": incumbent,
        "unavailable": result["unavailable"],
        "trained_on": result["trained_on"][name],
    }
    if not gate.passed:
        raise GateRefused(_refusal(name, gate, job), gate=found)
    return found


def _evaluations(jobs: JobStore, info: CheckpointInfo) -> list[Job]:
    """Those on val that hold the checkpoint, newest first: more than one is more than one try."""
    found = jobs.list(kind=EVALUATE, status="succeeded", limit=_NEWEST)
    on_val = [job for job in found if (job.config["split"], job.config["dataset"]) == (SPLIT, info.dataset)]
    return [job for job in on_val if info.checkpoint_id in job.config["checkpoints"]]


def _chosen(spoken: Sequence[Job], name: str, dataset: str, evaluation: str | None) -> Job:
    found = next((job for job in spoken if evaluation in (None, job.id)), None)
    if found is None:
        asked = "no evaluation" if evaluation is None else f"job {evaluation} is no finished evaluation"
        raise GateRefused(
            f"{asked} of {name} on split {SPLIT!r} of {dataset}, which the gate judges by: run "
            f"`leverplus evaluate {dataset} --checkpoint {name}` first, or promote with an override and a reason",
            gate=None,
        )
    return found


def _require_fair(result: Mapping[str, Any], job: Job, name: str) -> None:
    """That the evaluation can speak for the checkpoint."""
    if "per_query_sha256" not in result:
        raise GateRefused(f"evaluation {job.id} kept no accuracies per query: evaluate again", gate=None)
    known = {one["system"] for one in result["unavailable"]}
    if left_out := [baseline for baseline in BASELINES if baseline not in result["baselines"] and baseline not in known]:
        raise GateRefused(f"evaluation {job.id} left out {', '.join(left_out)}: evaluate {name} with every baseline", gate=None)
    if ZERO_SHOT not in result["baselines"] and 0 not in job.config["shots"]:
        raise GateRefused(
            f"evaluation {job.id} has no {ZERO_SHOT}, its numbers of shots are {job.config['shots']}: evaluate {name} at 0 shots "
            "too",
            gate=None,
        )
    if (beam := job.config["beam"]) != 1:
        raise GateRefused(
            f"evaluation {job.id} chose with beam {beam}, a selection is made with 1 by default: evaluate {name} with beam 1",
            gate=None,
        )
    if count := result["trained_on"].get(name):
        raise GateRefused(
            f"{name} was trained on {count} of the queries of evaluation {job.id}: they say nothing of others", gate=None
        )


def _incumbent(root: DataRoot, alias: str, name: str) -> str | None:
    """The other checkpoint that the alias serves now."""
    if not root.deployment(alias).is_file():
        return None
    current = read_deployment(root, alias)
    return None if current.checkpoint_id == name else current.checkpoint_id


def _compared(
    rows: PerQuery, result: Mapping[str, Any], info: CheckpointInfo, incumbent: str | None, job: Job
) -> tuple[dict[int, Any], dict[str, Mapping[int, Any]]]:
    """The checkpoint's accuracies at the shots that it declares, and those of what it is compared with."""
    name = info.checkpoint_id
    declared = [count for count in info.shots if count > 0]
    own = rows.checkpoints[name]
    if not declared:
        raise GateRefused(f"{name} does not say for how many shots it was trained: nothing can be judged", gate=None)
    if missing := [count for count in declared if count not in own]:
        shots = ", ".join(map(str, missing))
        raise GateRefused(
            f"{name} is made for {declared} shots, evaluation {job.id} has none at {shots}: evaluate them too", gate=None
        )
    against = {baseline: rows.baselines[baseline] for baseline in result["baselines"]}
    if incumbent is not None:
        if incumbent not in rows.checkpoints:
            raise GateRefused(
                f"{incumbent} is served now and not in evaluation {job.id}: evaluate both, "
                f"`leverplus evaluate {info.dataset} --checkpoint {name} --checkpoint {incumbent}`",
                gate=None,
            )
        against[incumbent] = rows.checkpoints[incumbent]
    return {count: own[count] for count in declared}, against


def _refusal(name: str, gate: Gate, job: Job) -> str:
    told = "; ".join(gate.refusals[:_TOLD])
    if (more := len(gate.refusals) - _TOLD) > 0:
        told += f"; and {more} more of {len(gate.comparisons)} comparisons"
    return (
        f"{name} is not shown to be better on the {gate.queries} queries of evaluation {job.id}: {told}. Train a better one, "
        "evaluate on more queries, or promote with an override and a reason"
    )
