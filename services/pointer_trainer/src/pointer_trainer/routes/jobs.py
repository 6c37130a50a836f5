"""Starting, watching, cancelling and resuming jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel
from sse_starlette import EventSourceResponse

from leverplus.checkpoints import read_info
from leverplus.dataset import Dataset
from leverplus.deployments import deletions_locked_out
from leverplus.embeddings import EmbeddingManifest, read_manifest
from leverplus.errors import InvalidConfig, NotFound
from leverplus.store import Job
from pointer_trainer.deletion import Deleted, delete_run
from pointer_trainer.events import job_events
from pointer_trainer.grid import read_grid
from pointer_trainer.jobs import EMBED, ESTIMATE, EVALUATE, GENERATE, GENERATE_SHARD, HEADROOM, SWEEP, TRAIN
from pointer_trainer.pool_check import check_contract, check_pools, evaluation_policy
from pointer_trainer.query_sample import sample_queries
from pointer_trainer.requests import (
    EmbeddingsRequest,
    EstimateRequest,
    EvaluateRequest,
    GenerateRequest,
    HeadroomRequest,
    SweepConfig,
    SweepRequest,
    TrainRequest,
)
from pointer_trainer.reward_needs import unmet_needs
from pointer_trainer.rl_files import open_heads
from pointer_trainer.shards import shard_count
from pointer_trainer.state import State, TrainerState
from pointer_trainer.submission import enqueue, submit
from pointer_trainer.train_config import read_train_config

router = APIRouter(tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", min_length=1, max_length=255, description="the same key and body: the same job"),
]


DryRun = Annotated[bool, Query(description="say what would go, delete nothing")]


class Accepted(BaseModel):
    job_id: str


class JobList(BaseModel):
    jobs: list[Job]


def _accept(
    state: TrainerState,
    response: Response,
    kind: str,
    body: BaseModel,
    key: str | None,
    *,
    checkpoints: Sequence[str] = (),
    children: Mapping[int, tuple[str, Mapping[str, Any]]] | None = None,
) -> Accepted:
    """`checkpoints`: those that the job rests on; from now on they stay until it has ended."""
    with deletions_locked_out(state.data_root) if checkpoints else nullcontext():
        for checkpoint in checkpoints:
            read_info(state.data_root.checkpoint(checkpoint))
        job = submit(state, kind, body.model_dump(mode="json"), key, children=children)
    response.headers["Location"] = f"/jobs/{job.id}"
    return Accepted(job_id=job.id)


def _require_embeddings(state: TrainerState, dataset: str, *splits: str) -> EmbeddingManifest:
    """That there are some, of these splits; the job reads and checks them, which may take long."""
    folder = state.data_root.embeddings(dataset)
    if not folder.is_dir():
        raise NotFound(what="embeddings", name=dataset, hint="make them first: POST /embeddings or `leverplus embed`")
    manifest = read_manifest(folder)
    for split in splits:
        manifest.require_split(split)
    return manifest


def _require_rl_data(state: TrainerState, *rl_data: str) -> None:
    """That the files are there and of one contract, with embeddings of their dataset."""
    fingerprint = open_heads(state.data_root, rl_data)
    if fingerprint.dataset is not None:
        _require_embeddings(state, fingerprint.dataset["name"])


@router.post("/embeddings", status_code=202)
def start_embeddings(body: EmbeddingsRequest, response: Response, state: State, key: IdempotencyKey = None) -> Accepted:
    """Embeds every item of a dataset."""
    Dataset.open(state.data_root.dataset(body.dataset), verify=False)
    return _accept(state, response, EMBED, body, key)


@router.post("/rl-data/generate", status_code=202)
def start_generation(body: GenerateRequest, response: Response, state: State, key: IdempotencyKey = None) -> Accepted:
    """Makes candidate pointers, has them scored, and keeps them as RL data."""
    dataset = Dataset.open(state.data_root.dataset(body.dataset), verify=False)
    query_ids = sample_queries(dataset, body.split, body.queries, body.seed)
    policy = body.pool.policy()
    dataset.split_ids(policy.candidate_split)
    manifest = _require_embeddings(state, body.dataset, body.split, policy.candidate_split)
    named = [] if body.checkpoint is None else [body.checkpoint]
    infos = [read_info(state.data_root.checkpoint(checkpoint)) for checkpoint in named]
    check_contract(dataset, manifest, policy, infos)
    check_pools(dataset, policy, query_ids, body.shots)
    shards = 0 if body.dry_run else shard_count(len(query_ids), body.shard_queries)
    children = {number: (GENERATE_SHARD, {"shard": number}) for number in range(1, shards + 1)} if shards > 1 else None
    return _accept(state, response, GENERATE, body, key, checkpoints=named, children=children)


@router.post("/train", status_code=202)
def start_training(body: TrainRequest, response: Response, state: State, key: IdempotencyKey = None) -> Accepted:
    """Trains a selector on RL data; the result names the checkpoint."""
    config = read_train_config(body.config)
    _require_rl_data(state, *body.rl_data)
    checked = TrainRequest(rl_data=body.rl_data, config=config.model_dump(mode="json"))
    return _accept(state, response, TRAIN, checked, key)


@router.post("/sweep", status_code=202)
def start_sweep(body: SweepRequest, response: Response, state: State, key: IdempotencyKey = None) -> Accepted:
    """Trains a selector for every combination of the axes' values, each as a train job whose `parent` is the sweep.

    The result is a table, the best first, by held-out accuracy, which is in one unit whatever reward was trained on.
    """
    points = read_grid(body.base.config, body.axes)
    _require_rl_data(state, *body.base.rl_data)
    unmet = unmet_needs(state.data_root, body.base.rl_data, (point.config.reward for point in points))
    skipped = {point.number: unmet[point.config.reward] for point in points if point.config.reward in unmet}
    if skipped and (len(skipped) == len(points) or not body.skip_untrainable):
        first = next(point for point in points if point.number in skipped)
        raise InvalidConfig(
            field="axes",
            reason=f"{len(skipped)} of {len(points)} children cannot be trained on these RL data, e.g. {first.label}: "
            f"{skipped[first.number]}; score what is missing, take them away, or skip the untrainable where others are left",
        )
    children = {
        point.number: (TRAIN, {"rl_data": body.base.rl_data, "config": point.config.model_dump(mode="json")})
        for point in points
        if point.number not in skipped
    }
    checked = SweepConfig(base=body.base, axes=body.axes, skip_untrainable=body.skip_untrainable, skipped=skipped)
    return _accept(state, response, SWEEP, checked, key, children=children)


@router.post("/evaluate", status_code=202)
def start_evaluation(body: EvaluateRequest, response: Response, state: State, key: IdempotencyKey = None) -> Accepted:
    """Compares systems on the queries of a split, with intervals, paired differences and what the sample could have shown.

    A test split needs `final`, which is recorded; how often it was opened stands in every result (`test_openings`). The
    result's `trained_on` counts for each checkpoint the queries that are in its RL data (null: unknown), and `beyond_training`
    lists the rows with more shots than it was trained for.
    """
    dataset = Dataset.open(state.data_root.dataset(body.dataset), verify=False)
    query_ids = sample_queries(dataset, body.split, body.queries, body.seed)
    manifest = _require_embeddings(state, body.dataset, body.split)
    infos = [read_info(state.data_root.checkpoint(checkpoint)) for checkpoint in body.checkpoints]
    policy = evaluation_policy(body, infos)
    check_contract(dataset, manifest, policy, infos)
    check_pools(dataset, policy, query_ids, body.shots)
    return _accept(state, response, EVALUATE, body, key, checkpoints=body.checkpoints)


@router.post("/headroom", status_code=202)
def start_headroom(body: HeadroomRequest, response: Response, state: State, key: IdempotencyKey = None) -> Accepted:
    """What choosing could gain on the queries of scored RL data: baselines, oracle, and what of that is more than luck.

    Also how many queries show a gain. The baselines' pointers that were never scored are.
    """
    _require_rl_data(state, body.rl_data)
    return _accept(state, response, HEADROOM, body, key)


@router.post("/estimate", status_code=202)
def start_estimate(body: EstimateRequest, response: Response, state: State, key: IdempotencyKey = None) -> Accepted:
    """What a checkpoint would score, from logging draws and their propensities: direct, SNIPS, doubly robust. No VLM call."""
    _require_rl_data(state, body.rl_data)
    return _accept(state, response, ESTIMATE, body, key, checkpoints=[body.checkpoint])


@router.get("/jobs", response_model=JobList)
def list_jobs(
    state: State,
    kind: str | None = None,
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] | None = None,
    parent: Annotated[str | None, Query(description="only the children of this job")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Newest first; a sweep stands before its children. The shards of a generation are listed by its id, or by their kind."""
    hidden = GENERATE_SHARD if kind is None and parent is None else None
    jobs = JobList(jobs=state.jobs.list(kind=kind, without_kind=hidden, status=status, parent=parent, limit=limit))
    # Written here: FastAPI would keep the jobs of every open request until a second thread is free to check them.
    return Response(jobs.model_dump_json(), media_type="application/json")


@router.get("/jobs/{job_id}")
def get_job(job_id: str, state: State) -> Job:
    """A job as it stands: status, progress, result or error."""
    return state.jobs.get(job_id)


@router.get("/jobs/{job_id}/events", response_class=EventSourceResponse)
def stream_job_events(job_id: str, state: State) -> Any:
    """Server-sent events: `progress` whenever the job changed, then `end` with its result or error."""
    state.jobs.get(job_id)
    return EventSourceResponse(job_events(state.jobs, job_id), ping=5)


@router.delete("/jobs/{job_id}")
def cancel_job(job_id: str, state: State) -> Job:
    """A queued job ends at once, a running one within 2 s; an ended one stays as it is. With a job its children."""
    return state.jobs.request_cancel(job_id)


@router.delete("/jobs/{job_id}/run")
def delete_job_run(job_id: str, state: State, dry_run: DryRun = False) -> Deleted:
    """Deletes the run directory of a job that has ended: its log, metrics, curves, reports and training state. Its row stays.

    409 where the job, its sweep or a child of it has not ended. Checkpoints and RL data are no part of it.
    """
    return delete_run(state.data_root, state.jobs, job_id, dry_run=dry_run)


@router.post("/jobs/{job_id}/resume", status_code=202)
def resume_job(job_id: str, response: Response, state: State, key: IdempotencyKey = None) -> Accepted:
    """Queues a failed or cancelled job again: training goes on after its last epoch, committed scores are not made anew.

    A job's failed and cancelled children are queued again with it; shards that are done are not made again.
    With an Idempotency-Key a job that is already queued or running counts as resumed.
    """
    state.broker.require()
    job = state.jobs.get(job_id)
    if key is None or job.status not in ("queued", "running"):
        with deletions_locked_out(state.data_root):
            job = state.jobs.resume(job_id)
        enqueue(state, job)
    response.headers["Location"] = f"/jobs/{job.id}"
    return Accepted(job_id=job.id)
