"""HTTP of the scorer."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from leverplus.errors import Cancelled
from leverplus.scoring import (
    NDJSON,
    ScorePlanResponse,
    ScoreRequest,
    ScoreResponse,
    StreamEnd,
    StreamProblem,
    StreamStart,
)
from vqa_scorer.engines import EnginePhase
from vqa_scorer.metrics import ScorerMetrics, Totals
from vqa_scorer.service import ScoringService
from vqa_scorer.streaming import ScoreStream

logger = logging.getLogger(__name__)

T = TypeVar("T")


def _streamed() -> dict[str, Any]:
    """The 200 answer of POST /score beside its JSON form; lines refer to schemas that the latter brings into the document."""
    start, end, problem = (line.model_json_schema() for line in (StreamStart, StreamEnd, StreamProblem))
    end["properties"]["stats"] = {"$ref": "#/components/schemas/ScoreStats"}
    del end["$defs"]
    lines = [start, {"$ref": "#/components/schemas/ScoredQuery"}, end, problem]
    return {
        "description": "All scores in one document, or, with `Accept: application/x-ndjson`, streamed: the fingerprint, then a "
        "line a query in the order of the request, each as soon as it and those before it are scored and committed; the last "
        "line holds the stats, or the problem that ended the stream. A stream without such a last line was broken off.",
        "content": {NDJSON: {"schema": {"description": "One line", "oneOf": lines}}},
    }


class QueueStats(BaseModel):
    """Pointers that wait, pointers in the batch that runs, and how many may wait."""

    waiting: int
    in_progress: int
    capacity: int


class EngineStats(BaseModel):
    """What the engine did; see `vqa_scorer.engines.EngineCounts`."""

    prompts: int
    tokens: int
    prefix_hits: int
    prefix_misses: int
    images_encoded: int
    image_hits: int
    seconds: dict[EnginePhase, float]


class ServiceStats(BaseModel):
    """Since start. `share` is of all candidates answered; `pointers_per_s` is generated and weighed pointers by uptime,
    and `pointers_per_engine_s` by the time the engine worked. `recent_fallback_share` is of the newest 1,000 candidates, null
    below 100, and `warnings` has an entry while it is above a tenth. `engine` is null where the engine does not count. Null where
    nothing was counted yet."""

    uptime_s: float
    totals: Totals
    share: dict[str, float | None]
    queue: QueueStats
    mean_batch_size: float | None
    pointers_per_s: float | None
    pointers_per_engine_s: float | None
    generation: dict[str, Any] | None
    engine: EngineStats | None
    recent_fallback_share: float | None
    warnings: list[str]


def create_router(service: ScoringService) -> APIRouter:
    router = APIRouter(tags=["scores"])

    @router.post("/score", response_model=ScoreResponse, responses={200: _streamed()})
    async def score(body: ScoreRequest, request: Request) -> ScoreResponse | StreamedScores:
        """Scores ordered demonstrations: lets the VLM answer each query behind each pointer and applies the metric.

        429 with Retry-After while the queue cannot hold the request, 422 where it never can, 504 past the deadline; what was
        scored until then stays committed, so that the same request goes on from there.

        With `Accept: application/x-ndjson` the answer is streamed and may be larger than the queue: a few batches of it wait
        there at a time. 429 where the first finds no place; after that the deadline holds for every step forward, and errors
        are the last line.
        """
        if not _wants_lines(request.headers.getlist("accept")):
            return await _while_there(request, service.score(body))
        return StreamedScores(await _while_there(request, service.open_stream(body)), service.deadline_s)

    @router.post("/score/plan")
    async def plan(body: ScoreRequest) -> ScorePlanResponse:
        """Says what `POST /score` would take, without a VLM call: pointers, how many are committed, images, seconds.

        Checks the request as `POST /score` does, but for its images, which are not read.
        """
        return await service.plan(body)

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
            pointers_per_engine_s=service.metrics.pointers_per_engine_s,
            generation=dict(service.generation) if service.generation is not None else None,
            engine=_engine_stats(service.metrics),
            recent_fallback_share=service.metrics.recent_fallback_share,
            warnings=service.metrics.warnings,
        )

    return router


class StreamedScores(StreamingResponse):
    """A stream's lines; closes it however the answer ends, and ends it where the client takes nothing for `limit_s`."""

    def __init__(self, stream: ScoreStream, limit_s: float) -> None:
        self._stream = stream
        self._limit_s = limit_s
        self._lines = stream.lines()
        super().__init__(self._lines, media_type=NDJSON)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._limit_s):
                await send(message)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            logger.warning("a stream was ended: its client took nothing for %s s", self._limit_s)
        finally:
            await self._lines.aclose()
            self._stream.close()


def _wants_lines(accept: list[str]) -> bool:
    """Whether Accept headers name NDJSON, in any case and not with the weight 0 that refuses it (RFC 9110, section 12.5.1)."""
    for entry in ",".join(accept).lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        if kind == NDJSON:
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


async def _while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` comes to; Cancelled, and an end to it, where the client goes away first."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_client_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Cancelled("the client went away before the request was answered")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait({task, gone})


async def _client_gone(request: Request) -> None:
    """Returns when the connection is closed. The body was read before, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _engine_stats(metrics: ScorerMetrics) -> EngineStats | None:
    return None if metrics.engine is None else EngineStats(**asdict(metrics.engine))
