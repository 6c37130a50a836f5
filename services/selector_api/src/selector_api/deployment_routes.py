"""What is served under each alias, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from selector_api.health import HealthChecks
from selector_api.library import Library

router = APIRouter(tags=["deployments"])


class ServedAlias(BaseModel):
    """An alias. Where `fault` is there, its deployment as it is now cannot be served, and `checkpoint` is the last that could."""

    alias: str
    checkpoint: str | None = Field(description="What is served; null where nothing is")
    dataset: str | None
    shots: list[int] | None = Field(description="Numbers of demonstrations that the checkpoint was trained for")
    fingerprint: dict[str, str] | None = Field(description="sha256 of the dataset and pool contracts that are served")
    fault: str | None
    health: dict[str, Any] | None = Field(description="Whether its choices depend on the query; null until it is measured")


class ServedAliases(BaseModel):
    deployments: list[ServedAlias]


@router.get("/deployments")
def deployments(request: Request) -> ServedAliases:
    """Every alias with what is served under it, loaded now if it was not yet; the trainer's GET /deployments says who promoted
    it and why."""
    library: Library = request.app.state.library
    health: HealthChecks = request.app.state.health
    found: list[ServedAlias] = []
    for alias in library.aliases():
        served, fault = library.follow(alias)
        info = None if served is None else served.info
        found.append(
            ServedAlias(
                alias=alias,
                checkpoint=None if info is None else info.checkpoint_id,
                dataset=None if info is None else info.dataset,
                shots=None if info is None else info.shots,
                fingerprint=None if served is None else served.digests,
                fault=None if fault is None else str(fault),
                health=None if info is None else health.of(info.checkpoint_id),
            )
        )
    return ServedAliases(deployments=found)
