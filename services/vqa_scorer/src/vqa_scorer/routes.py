"""HTTP of the scorer."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from leverplus.errors import Cancelled
from leverplus.scoring import ScoreRequest, ScoreResponse
from vqa_scorer.metrics import Totals
from vqa_scorer.service import ScoringService


class QueueStats(BaseModel):
    """Pointers that wait, pointers in the batch that runs, and how many may wait."""

    waiting: int
    in_progress: int
    capacity: int


class ServiceStats(BaseModel):
    """Since start. `share` is of all candidates answered; `pointers_per_s` is generated and weighed pointers by uptime,
    and `pointers_per_engine_s` by the time the engine worked. Null where nothing was counted yet."""

    uptime_s: float
    totals: Totals
    share: dict[str, float | None]
    queue: QueueStats
    mean_batch_size: float | None
    pointers_per_s: float | None
    pointers_per_engine_s: float | None
    generation: dict[str, Any] | None


def create_router(service: ScoringService) -> APIRouter:
    router = APIRouter(tags=["scores"])

    @router.post("/score")
    async def score(body: ScoreRequest, request: Request) -> ScoreResponse:
        """Scores ordered demonstrations: lets the VLM answer each query behind each pointer and applies the metric.

        429 with Retry-After while the queue cannot hold the request, 422 where it never can, 504 past the deadline; what was
        scored until then stays committed, so that the same request goes on from there.
        """
        work = asyncio.create_task(service.score(body))
        gone = asyncio.create_task(_client_gone(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Cancelled("the client went away before the request was answered")
            return work.result()
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.wait({work, gone})

    @router.get("/stats")
    async def stats() -> ServiceStats:
        """What was scored since the service started."""
        totals = service.metrics.totals
        uptime = time.time() - service.metrics.started_at
        candidates = totals.file + totals.fallback + totals.error
        counts = {"file": totals.file, "fallback": totals.fallback, "error": totals.error, "cached": totals.cached}
        worker = service.worker
        done = totals.generated + totals.weighed
        return ServiceStats(
            uptime_s=uptime,
            totals=totals,
            share={name: _ratio(count, candidates) for name, count in counts.items()},
            queue=QueueStats(waiting=worker.waiting, in_progress=worker.in_progress, capacity=worker.capacity),
            mean_batch_size=_ratio(done, totals.batches),
            pointers_per_s=_ratio(done, uptime) if done else None,
            pointers_per_engine_s=_ratio(done, totals.engine_seconds),
            generation=dict(service.generation) if service.generation is not None else None,
        )

    return router


async def _client_gone(request: Request) -> None:
    """Returns when the connection is closed. The body was read before, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
