"""Checkpoints, and which of them is deployed."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from leverplus.checkpoints import list_checkpoints, load_checkpoint
from leverplus.deployments import Deployment, list_deployments, promote, rollback
from leverplus.selector_health import checkpoint_health, health_warnings
from pointer_trainer.requests import PromoteRequest, RollbackRequest
from pointer_trainer.routes.broken import Broken, BrokenList
from pointer_trainer.state import State

logger = logging.getLogger("pointer_trainer")

router = APIRouter(tags=["checkpoints"])


class CheckpointList(BaseModel):
    checkpoints: list[dict[str, Any]]
    broken: BrokenList = []


class DeploymentList(BaseModel):
    deployments: list[Deployment]


@router.get("/checkpoints")
def get_checkpoints(state: State) -> CheckpointList:
    """Every checkpoint as it describes itself: configuration, pool policy, fingerprints, training data, metrics."""
    found, broken = list_checkpoints(state.data_root)
    return CheckpointList(
        checkpoints=[info.to_json() for info in found],
        broken=[Broken(name=name, reason=str(error)) for name, error in broken.items()],
    )


@router.post("/checkpoints/{checkpoint_id}/promote")
def promote_checkpoint(checkpoint_id: str, body: PromoteRequest, state: State) -> Deployment:
    """Makes an alias serve the checkpoint, once it has been read whole; who and why are recorded.

    `health` says whether its choices depend on the query, over a sample of queries, with a warning where they hardly do; it stops
    no promotion.
    """
    root = state.data_root
    tensors, info = load_checkpoint(root.checkpoint(checkpoint_id))
    health = checkpoint_health(root, tensors, info)
    for warning in health_warnings(health):
        logger.warning("checkpoint %s: %s", checkpoint_id, warning)
    return promote(root, body.alias, checkpoint_id, by=body.by, reason=body.reason, health=health)


@router.get("/deployments")
def get_deployments(state: State) -> DeploymentList:
    """What each alias serves, since when, by whom and why, with its predecessor."""
    return DeploymentList(deployments=list_deployments(state.data_root))


@router.post("/deployments/{alias}/rollback")
def roll_back_deployment(alias: str, body: RollbackRequest, state: State) -> Deployment:
    """Swaps the deployment with its predecessor."""
    return rollback(state.data_root, alias, body.by)
