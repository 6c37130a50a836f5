"""A request of any size answered as it goes: a few slices of it are on their way at a time.

So a stream's places in the queue and its results in memory are bounded, whatever the request's size: nothing more of it is
read from the store or enqueued until its client has taken what is ready. Other clients wait for a few of its batches at most.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from leverplus.errors import DeadlineExceeded, LeverPlusError, QueueFull
from leverplus.scoring import ScoredCandidate, ScoreStats, StreamEnd, StreamProblem, StreamStart
from leverplus.web.problems import problem
from vqa_scorer.answering import make_fingerprint, make_results
from vqa_scorer.batching import BatchWorker, Ticket
from vqa_scorer.metrics import ScorerMetrics
from vqa_scorer.planning import ScorePlan, Slice
from vqa_scorer.work import Outcome, Task, WorkKey

logger = logging.getLogger(__name__)

SLICES = 8
"""Of a stream that are on their way at a time; a slice is about a batch, so that batches of alike prompts can be chosen."""
_POLL_S = 0.05


@dataclass(frozen=True)
class Prepared:
    """A plan with what of it is committed, and the tasks for the rest."""

    plan: ScorePlan
    committed: dict[WorkKey, Outcome]
    tasks: dict[WorkKey, Task]


class ScoreStream:
    """The lines of one streamed answer; `start` first, `close` in any case.

    `prepare` is called in threads. `batch_size` is the worker's; a quarter of its queue is left to requests that do not stream.
    `deadline_s` holds for every step forward: placing a slice, having the oldest answered.
    """

    def __init__(
        self,
        plan: ScorePlan,
        *,
        prepare: Callable[[ScorePlan], Prepared],
        worker: BatchWorker[WorkKey, Task, Outcome],
        metrics: ScorerMetrics,
        generation: Mapping[str, Any],
        batch_size: int,
        deadline_s: float,
    ) -> None:
        self._plan = plan
        self._prepare = prepare
        self._worker = worker
        self._metrics = metrics
        self._generation = generation
        self._deadline_s = deadline_s
        self._keep_free = worker.capacity // 4
        places = min(batch_size, worker.capacity - self._keep_free)
        self._slices = plan.slices(max(places // plan.places_a_pointer, 1))
        self._ready: tuple[Slice, Prepared] | None = None
        self._placed: deque[tuple[Slice, Prepared, Ticket[WorkKey, Outcome]]] = deque()
        self._begun: list[ScoredCandidate] = []
        self._stats = ScoreStats.total([])
        self._failure: LeverPlusError | None = None
        self._ended = False

    async def start(self) -> None:
        """Places the first slice: QueueFull where it finds no room, and what `prepare` and `BatchWorker.submit` raise."""
        await self._make_ready()
        self._place()

    async def lines(self) -> AsyncGenerator[bytes]:
        """Fingerprint, queries in the order of the request, and the statistics, or the problem that ended it, as NDJSON."""
        yield _line(StreamStart(fingerprint=make_fingerprint(self._plan, self._generation)))
        try:
            lines: bytes | None = b""
            while lines is not None:
                if lines:
                    yield lines
                async with asyncio.timeout(self._deadline_s):
                    lines = await self._advance()
            self._metrics.add(requests=1)
            last: BaseModel = StreamEnd(stats=self._stats)
        except TimeoutError:
            self._metrics.add(deadline_exceeded=1)
            error = DeadlineExceeded(what="the next part of the stream", limit_s=self._deadline_s)
            last = StreamProblem(problem=problem(error))
        except LeverPlusError as error:
            last = StreamProblem(problem=problem(error))
        except Exception as error:
            logger.exception("a stream failed")
            last = StreamProblem(problem=problem(LeverPlusError(f"{type(error).__name__}; the service's log has the trace")))
        self._ended = True
        self.close()
        yield _line(last)

    def close(self) -> None:
        """Gives the places back that are still held. May be called again."""
        for _, _, ticket in self._placed:
            self._worker.abandon(ticket)
        self._placed.clear()
        self._ready = None
        if not self._ended:
            self._ended = True
            self._metrics.add(client_gone=1)

    async def _advance(self) -> bytes | None:
        """Fills up the slices on their way and waits for the oldest: its lines, none while its query goes on. None at the end."""
        while self._failure is None and len(self._placed) < SLICES:
            try:
                if not await self._make_ready():
                    break
                self._place()
            except QueueFull:
                if self._placed:
                    break
                # All places are others': this stream is not told when one becomes free.
                await asyncio.sleep(_POLL_S)
            except LeverPlusError as error:
                # What was placed before is answered first.
                self._failure = error
        if not self._placed:
            if self._failure is not None:
                raise self._failure
            return None
        part, prepared, ticket = self._placed[0]
        outcomes = {**prepared.committed, **await ticket.values()}
        self._placed.popleft()
        return await asyncio.to_thread(self._answer, part, outcomes, prepared)

    async def _make_ready(self) -> bool:
        """Prepares the next slice unless one waits to be placed; false at the end."""
        if self._ready is None and (part := next(self._slices, None)) is not None:
            self._ready = (part, await asyncio.to_thread(self._prepare, part.plan))
        return self._ready is not None

    def _place(self) -> None:
        assert self._ready is not None, "a slice was prepared"
        part, prepared = self._ready
        ticket = self._worker.submit(prepared.tasks, places_a_pointer=part.plan.places_a_pointer, keep_free=self._keep_free)
        self._ready = None
        self._placed.append((part, prepared, ticket))

    def _answer(self, part: Slice, outcomes: Mapping[WorkKey, Outcome], prepared: Prepared) -> bytes:
        with self._metrics.phase("answer"):
            results, stats = make_results(part.plan, outcomes, prepared.committed.keys())
            self._metrics.answered(stats, requests=0)
            self._stats = ScoreStats.total([self._stats, stats])
            if part.goes_on:
                self._begun += results[0].candidates
                return b""
            results[0].candidates[:0] = self._begun
            self._begun = []
            return b"".join(map(_line, results))


def _line(value: BaseModel) -> bytes:
    return value.model_dump_json().encode() + b"\n"
