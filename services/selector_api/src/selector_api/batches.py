"""Queries that wait at the same time are answered together, without ever waiting for more."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from leverplus.errors import LeverPlusError, QueueFull
from leverplus.selection import Selection
from selector_api.answers import Way, select
from selector_api.serving import Query, Served

_PLACES = 4_096
_RETRY_AFTER_S = 1
_ROUNDS = 8

Answer = Selection | LeverPlusError
_Future = asyncio.Future[Answer]
_Waiting = dict[tuple[Served, Way], list[tuple[Query, _Future]]]


class Batches:
    """Belongs to one event loop. No timer: what has arrived when the loop comes round is a batch, one query or sixty. While
    more arrives, the loop comes round once more, a few times at most.

    Small pools are searched in the loop, which is quicker than any hand-over; large ones in a thread of their own, so that other
    requests go on, and what arrives meanwhile is the thread's next batch.
    """

    def __init__(self) -> None:
        self._quick: _Waiting = {}
        self._slow: _Waiting = {}
        self._waiting = 0
        self._scheduled = False
        self._seen = 0
        self._rounds = 0
        self._busy = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="select")

    async def select(self, served: Served, way: Way, query: Query) -> Selection:
        """The answer; raises why there is none, and QueueFull where too many wait."""
        if self._waiting >= _PLACES:
            raise QueueFull(what="the selector's queue", size=self._waiting, limit=_PLACES, retry_after_s=_RETRY_AFTER_S)
        loop = asyncio.get_running_loop()
        future: _Future = loop.create_future()
        waiting = self._quick if served.quick else self._slow
        waiting.setdefault((served, way), []).append((query, future))
        self._waiting += 1
        if not self._scheduled:
            self._scheduled = True
            self._seen = self._rounds = 0
            loop.call_soon(self._look)
        answer = await future
        if isinstance(answer, LeverPlusError):
            raise answer
        return answer

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _look(self) -> None:
        if self._waiting > self._seen and self._rounds < _ROUNDS:
            self._seen = self._waiting
            self._rounds += 1
            asyncio.get_running_loop().call_soon(self._look)
            return
        self._scheduled = False
        self._answer()

    def _answer(self) -> None:
        quick, self._quick = self._quick, {}
        for group, asked in quick.items():
            self._tell(asked, _outcomes(group, asked))
        if self._slow and not self._busy:
            self._busy = True
            group = next(iter(self._slow))
            asked = self._slow.pop(group)
            work = asyncio.get_running_loop().run_in_executor(self._thread, _outcomes, group, asked)
            work.add_done_callback(lambda done: self._end(asked, done))

    def _end(self, asked: list[tuple[Query, _Future]], done: asyncio.Future[list[Answer] | BaseException]) -> None:
        self._busy = False
        self._tell(asked, done.exception() or done.result() if not done.cancelled() else asyncio.CancelledError())
        self._answer()

    def _tell(self, asked: list[tuple[Query, _Future]], outcomes: list[Answer] | BaseException) -> None:
        self._waiting -= len(asked)
        for index, (_, future) in enumerate(asked):
            if future.done():  # its client went away
                continue
            if isinstance(outcomes, BaseException):
                future.set_exception(outcomes)
            else:
                future.set_result(outcomes[index])


def _outcomes(group: tuple[Served, Way], asked: list[tuple[Query, _Future]]) -> list[Answer] | BaseException:
    """What went wrong with all of them is told to all of them: nobody else is there to hear it."""
    served, way = group
    try:
        return select(served, [query for query, _ in asked], way)
    except Exception as exc:  # noqa: BLE001
        return exc
