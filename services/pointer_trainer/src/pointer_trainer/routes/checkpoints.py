"""Checkpoints, and which of them is deployed."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from leverplus.checkpoints import list_checkpoints, load_checkpoint
from leverplus.deployments import Deployment, list_deployments, promote, rollback
from leverplus.selector_health import checkpoint_health, health_warnings
from pointer_trainer.deletion import Deleted, Kept, delete_checkpoint, prune_checkpoints
from pointer_trainer.gate import judge
from pointer_trainer.openings import Opening, list_openings
from pointer_trainer.requests import PromoteRequest, PruneRequest, RollbackRequest
from pointer_trainer.routes.broken import Broken, BrokenList
from pointer_trainer.state import State

logger = logging.getLogger("pointer_trainer")

router = APIRouter(tags=["checkpoints"])

DryRun = Annotated[bool, Query(description="say what would go, delete nothing")]


class CheckpointList(BaseModel):
    """`test_openings`: dataset -> the final evaluations that opened its test split, oldest first."""

    checkpoints: list[dict[str, Any]]
    broken: BrokenList = []
    test_openings: dict[str, list[Opening]] = {}


class DeploymentList(BaseModel):
    deployments: list[Deployment]


class Pruned(BaseModel):
    """`deleted`: what went, or with `dry_run` would go; `bytes`: all of it together."""

    deleted: list[Deleted]
    kept: list[Kept]
    bytes: int
    dry_run: bool


@router.get("/checkpoints")
def get_checkpoints(state: State) -> CheckpointList:
    """Every checkpoint as it describes itself: configuration, pool policy, fingerprints, training data, metrics."""
    state.data_root.bring_all("checkpoints")
    found, broken = list_checkpoints(state.data_root)
    return CheckpointList(
        checkpoints=[info.to_json() for info in found],
        broken=[Broken(name=name, reason=str(error)) for name, error in broken.items()],
        test_openings=list_openings(state.data_root),
    )


@router.post("/checkpoints/{checkpoint_id}/promote")
def promote_checkpoint(checkpoint_id: str, body: PromoteRequest, state: State) -> Deployment:
    """Makes an alias serve the checkpoint, once it has been read whole and has passed the gate; who and why are recorded.

    The gate: on val, at each number of shots that the checkpoint declares, the lower bound of its paired gain over every
    baseline, and over what the alias serves now, is above 0 after Holm. It judges by an evaluation that has been made; 409 says
    what is missing or did not pass. With `override` it is not asked, and `gate` of the deployment is null.

    `health` says whether its choices depend on the query, over a sample of queries, with a warning where they hardly do; it stops
    no promotion.
    """
    root = state.data_root
    tensors, info = load_checkpoint(root.checkpoint(checkpoint_id))
    gate = None if body.override else judge(root, state.jobs, info, alias=body.alias, evaluation=body.evaluation)
    health = checkpoint_health(root, tensors, info)
    for warning in health_warnings(health):
        logger.warning("checkpoint %s: %s", checkpoint_id, warning)
    return promote(root, body.alias, checkpoint_id, by=body.by, reason=body.reason, gate=gate, health=health)


@router.delete("/checkpoints/{checkpoint_id}")
def delete_one_checkpoint(checkpoint_id: str, state: State, dry_run: DryRun = False) -> Deleted:
    """Deletes a checkpoint. 409 names what needs it: an alias that serves it or would roll back to it, or an unfinished job."""
    return delete_checkpoint(state.data_root, state.jobs, checkpoint_id, dry_run=dry_run)


@router.post("/checkpoints/prune")
def prune(body: PruneRequest, state: State) -> Pruned:
    """Deletes every checkpoint that meets all conditions and that nothing needs; `kept` says why others stay."""
    before = None if body.older_than_days is None else datetime.now(UTC) - timedelta(days=body.older_than_days)
    deleted, kept = prune_checkpoints(
        state.data_root, state.jobs, keep_best=body.keep_best, created_before=before, dry_run=body.dry_run
    )
    return Pruned(deleted=deleted, kept=kept, bytes=sum(one.bytes for one in deleted), dry_run=body.dry_run)


@router.get("/deployments")
def get_deployments(state: State) -> DeploymentList:
    """What each alias serves, since when, by whom and why, with its predecessor."""
    return DeploymentList(deployments=list_deployments(state.data_root))


@router.post("/deployments/{alias}/rollback")
def roll_back_deployment(alias: str, body: RollbackRequest, state: State) -> Deployment:
    """Swaps the deployment with its predecessor."""
    return rollback(state.data_root, alias, body.by)
