"""What is served under each alias, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field
from typing_extensions import override

from selector_api.health import HealthChecks
from selector_api.library import Library

router = APIRouter(tags=["deployments"])


class ServedAlias(BaseModel):
    """An alias. Where `fault` is there, its deployment as it is now cannot be served, and `checkpoint` is the last that could; or
    it is served from memory, and its files are damaged."""

    alias: str
    checkpoint: str | None = Field(description="What is served; null where nothing is")
    dataset: str | None
    shots: list[int] | None = Field(description="Numbers of demonstrations that the checkpoint was trained for")
    fingerprint: dict[str, str] | None = Field(description="sha256 of the dataset and pool contracts that are served")
    fault: str | None
    health: dict[str, Any] | None = Field(description="Whether its choices depend on the query; null until it is measured")


class ServedAliases(BaseModel):
    deployments: list[ServedAlias]


class FaultGauge(Collector):
    """/metrics: leverplus_deployment_fault{alias}, for each alias that is in memory."""

    def __init__(self, library: Library) -> None:
        self._library = library

    @override
    def collect(self) -> Iterable[GaugeMetricFamily]:
        described = "1 while a restart would not serve what is served: the deployment, or what was loaded, is damaged"
        gauge = GaugeMetricFamily("leverplus_deployment_fault", described, labels=["alias"])
        for alias in self._library.served():
            served, fault = self._library.follow(alias)
            if served is not None:
                gauge.add_metric([alias], float(fault is not None))
        yield gauge


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
