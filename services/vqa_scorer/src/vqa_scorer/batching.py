"""One thread that owns the engine, and the bounded queue in front of it.

The thread takes whatever waits, at most a batch, without a timer: a lone request is not held up, and under load batches
fill by themselves. A key that is asked for while it waits or is being worked on joins that work. Every accepted ticket is
answered: with what its keys came to, with the error of one of them or of a batch, or with Unavailable when the service stops.
What a batch did not get, because somebody else is at it, is laid aside and asked for again, while other work goes on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

from leverplus.errors import GenerationFailed, InvalidInput, LeverPlusError, QueueFull, Unavailable
from leverplus.origin import joined, origin, working_for

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
P = TypeVar("P")
V = TypeVar("V")
State = Literal["loading", "ready", "failed", "closed"]

_WINDOW_BATCHES = 8
"""How many batches' worth of the oldest work is looked through for prompts that share work."""
_LONGEST_RETRY_AFTER_S = 60
_POSTPONED_S = 0.2
"""How long work that a batch did not get is laid aside."""
_RESTART_S = 2


class Ticket(Generic[K, V]):
    """What one request waits for. Made by `BatchWorker.submit`; belongs to the event loop that was running there."""

    def __init__(self, keys: set[K]) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[dict[K, V]] = self._loop.create_future()
        self._values: dict[K, V] = {}
        self.keys = frozenset(keys)
        self.origin = origin.get()
        if not keys:
            self._future.set_result({})

    async def values(self) -> dict[K, V]:
        """What each key came to, once all are there; raises the first error of a key or of its batch."""
        return await self._future

    def deliver(self, outcome: Mapping[K, V] | Exception) -> None:
        """Called from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._receive, outcome)

    def cancel(self) -> None:
        self._future.cancel()

    def _receive(self, outcome: Mapping[K, V] | Exception) -> None:
        if self._future.done():
            return
        if isinstance(outcome, Exception):
            self._future.set_exception(outcome)
            return
        self._values.update(outcome)
        if len(self._values) == len(self.keys):
            self._future.set_result(self._values)


@dataclass(eq=False)
class _Work(Generic[K, P, V]):
    key: K
    prompt: P
    tickets: list[Ticket[K, V]] = field(default_factory=list["Ticket[K, V]"])
    taken: bool = False
    due: float = 0.0
    """When postponed work is asked for again, on time.monotonic()."""


class BatchWorker(Generic[K, P, V]):
    """Runs `load`, then `process` on batches, in one thread.

    `process` gets key -> prompt (at most `batch_size`, which `load` may change) and returns key -> value, or the error that
    concerns this key alone; for a key that it leaves out it is asked again a little later. Or it raises, and the whole batch has
    failed. `capacity` is the number of keys that may wait. `order` sorts prompts so that those which share work are neighbours:
    batches are chosen by it, and the oldest prompt is always among them. `look_ahead` is told, before a batch is worked on, what
    will probably be in the next. `load_failed` is called with the reason when `load` raised.
    """

    def __init__(
        self,
        process: Callable[[Mapping[K, P]], Mapping[K, V | LeverPlusError]],
        *,
        load: Callable[[], None],
        batch_size: int,
        capacity: int,
        order: Callable[[P], Any],
        look_ahead: Callable[[list[P]], None] | None = None,
        load_failed: Callable[[str], None] | None = None,
    ) -> None:
        self._look_ahead = look_ahead
        self._process = process
        self._load = load
        self.batch_size = batch_size
        self._capacity = capacity
        self._order = order
        self._load_failed = load_failed
        self._state: State = "loading"
        self._reason = ""
        self._changed = threading.Condition()
        self._known: dict[K, _Work[K, P, V]] = {}
        self._waiting: OrderedDict[K, _Work[K, P, V]] = OrderedDict()
        self._postponed: OrderedDict[K, _Work[K, P, V]] = OrderedDict()
        self._seconds_per_key = 0.0
        self._next: list[_Work[K, P, V]] = []
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def waiting(self) -> int:
        """Keys that no batch has taken yet, or that it did not get."""
        return len(self._waiting) + len(self._postponed)

    @property
    def in_progress(self) -> int:
        with self._changed:
            return len(self._known) - self.waiting

    @property
    def capacity(self) -> int:
        return self._capacity

    def start(self) -> None:
        self._thread.start()

    def require_ready(self) -> None:
        """Unavailable with the reason while `load` runs, after it failed, and after `close`."""
        if self._state == "loading":
            hint = "try again in a few seconds"
            raise Unavailable(what="the VLM", reason="its weights are being loaded", hint=hint, retry_after_s=_RESTART_S)
        if self._state == "failed":
            raise Unavailable(what="the VLM", reason=self._reason, hint="mend its settings and start again")
        if self._state == "closed":
            raise _stopping()

    def submit(self, prompts: Mapping[K, P], *, places_a_pointer: int = 1, keep_free: int = 0) -> Ticket[K, V]:
        """Enqueues all of `prompts` or, with QueueFull, none; InvalidInput, saying how many fit, where all will never do.

        Keys that are on their way already take no place. `places_a_pointer` is how many keys the caller may need for one of its
        pointers: what fits is told in pointers. `keep_free` places are left to others.
        """
        limit = self._capacity - keep_free
        with self._changed:
            self.require_ready()
            new = [key for key in prompts if key not in self._known]
            if new and self.waiting + len(new) > limit:
                raise self._full(len(new), places_a_pointer, limit)
            ticket: Ticket[K, V] = Ticket(set(prompts))
            for key in new:
                self._known[key] = self._waiting[key] = _Work(key, prompts[key])
            for key in prompts:
                self._known[key].tickets.append(ticket)
            self._changed.notify()
        return ticket

    def abandon(self, ticket: Ticket[K, V]) -> None:
        """Drops a ticket; what only it waited for leaves the queue, unless a batch has taken it. Harmless when answered."""
        ticket.cancel()
        with self._changed:
            for key in ticket.keys:
                work = self._known.get(key)
                if work is None or ticket not in work.tickets:
                    continue
                work.tickets.remove(ticket)
                if not work.tickets and not work.taken:
                    del self._known[key]
                    self._forget(key)

    def hand_back(self) -> None:
        """Answers what waits with Unavailable, takes nothing more, and lets the batch that runs end; does not wait for it."""
        with self._changed:
            if self._state != "failed":
                self._state = "closed"
            dropped = [*self._postponed.values(), *self._waiting.values()]
            for work in dropped:
                del self._known[work.key]
                self._forget(work.key)
            self._changed.notify_all()
        self._answer(dropped, _stopping())

    def close(self, *, limit_s: float = 30.0) -> None:
        """`hand_back`, then waits for the batch that runs, for at most `limit_s`."""
        self.hand_back()
        if self._thread.is_alive():
            self._thread.join(limit_s)

    def _run(self) -> None:
        try:
            self._load()
        except LeverPlusError as exc:
            self._fail(_one_line(exc))
            return
        except Exception as exc:
            logger.exception("loading the VLM failed")
            self._fail(_one_line(exc))
            return
        with self._changed:
            if self._state == "loading":
                self._state = "ready"
        while batch := self._take():
            if self._look_ahead is not None and self._next:
                self._look_ahead([work.prompt for work in self._next])
            with working_for(joined(ticket.origin for work in batch for ticket in tuple(work.tickets))):
                self._work_on(batch)

    def _fail(self, reason: str) -> None:
        with self._changed:
            self._state, self._reason = "failed", reason
        if self._load_failed is not None:
            self._load_failed(reason)

    def _take(self) -> list[_Work[K, P, V]]:
        """The next batch; empty when closed."""
        with self._changed:
            while self._state == "ready":
                if batch := self._due() or self._alike():
                    for work in batch:
                        self._forget(work.key)
                        work.taken = True
                    return batch
                self._changed.wait(_POSTPONED_S if self._postponed else None)
            return []

    def _due(self) -> list[_Work[K, P, V]]:
        """Postponed work whose time has come; a batch of its own, for it may not be had this time either."""
        now = time.monotonic()
        return [work for work in islice(self._postponed.values(), self.batch_size) if work.due <= now]

    def _alike(self) -> list[_Work[K, P, V]]:
        """The oldest of what waits, and its neighbours."""
        window = list(islice(self._waiting.values(), self.batch_size * _WINDOW_BATCHES))
        self._next = []
        if len(window) <= self.batch_size:
            return window
        oldest = window[0]
        window.sort(key=lambda work: self._order(work.prompt))
        start = min(window.index(oldest), len(window) - self.batch_size)
        stop = start + self.batch_size
        self._next = (window[stop:] + window[:start])[: self.batch_size]
        return window[start:stop]

    def _forget(self, key: K) -> None:
        self._waiting.pop(key, None)
        self._postponed.pop(key, None)

    def _work_on(self, batch: list[_Work[K, P, V]]) -> None:
        started = time.perf_counter()
        try:
            outcome = self._process({work.key: work.prompt for work in batch})
        except LeverPlusError as exc:
            logger.warning("a batch of %d failed: %s", len(batch), exc)
            outcome = exc
        except Exception as exc:
            logger.exception("a batch of %d failed", len(batch))
            outcome = GenerationFailed(prompts=len(batch), reason=_one_line(exc))
            outcome.__cause__ = exc
        done = batch if isinstance(outcome, Exception) else [work for work in batch if work.key in outcome]
        if done:
            self._seconds_per_key = (time.perf_counter() - started) / len(done)
        with self._changed:
            for work in done:
                del self._known[work.key]
            dropped = self._postpone([work for work in batch if work.key in self._known])
        self._answer(done, outcome)
        self._answer(dropped, _stopping())

    def _postpone(self, batch: list[_Work[K, P, V]]) -> list[_Work[K, P, V]]:
        """Lays work aside for a while. Returns what is not asked for again: nobody waits for it, or the worker is closed."""
        dropped: list[_Work[K, P, V]] = []
        for work in batch:
            if work.tickets and self._state == "ready":
                work.taken, work.due = False, time.monotonic() + _POSTPONED_S
                self._postponed[work.key] = work
            else:
                del self._known[work.key]
                dropped.append(work)
        return dropped

    def _answer(self, batch: list[_Work[K, P, V]], outcome: Mapping[K, V | LeverPlusError] | Exception) -> None:
        keys: dict[Ticket[K, V], list[K]] = {}
        for work in batch:
            for ticket in work.tickets:
                keys.setdefault(ticket, []).append(work.key)
        for ticket, own in keys.items():
            ticket.deliver(outcome if isinstance(outcome, Exception) else _all_or_error(outcome, own))

    def _full(self, new: int, places_a_pointer: int, limit: int) -> QueueFull | InvalidInput:
        if new > self._capacity:
            # No waiting makes it fit.
            fits = max(self._capacity // places_a_pointer, 1)
            places = "" if places_a_pointer == 1 else f", and with these options a pointer may take {places_a_pointer} places"
            detail = (
                f"the request has {new} pointers to score, the queue holds {self._capacity}{places}: "
                f"send at most {'that many' if fits == self._capacity else fits} at a time, or accept application/x-ndjson to "
                "have any number streamed"
            )
            return InvalidInput(detail, pending=new, fits=fits)
        wait = min(max(math.ceil(self.waiting * self._seconds_per_key), 1), _LONGEST_RETRY_AFTER_S)
        what = "the scoring queue"
        return QueueFull(pending=new, what=what, size=self.waiting, limit=limit, retry_after_s=wait)


def _all_or_error(outcome: Mapping[K, V | LeverPlusError], keys: Sequence[K]) -> dict[K, V] | LeverPlusError:
    found: dict[K, V] = {}
    for key in keys:
        value = outcome[key]
        if isinstance(value, LeverPlusError):
            return value
        found[key] = value
    return found


def _stopping() -> Unavailable:
    return Unavailable(what="the scorer", reason="it is stopping", hint="try again when it is back", retry_after_s=_RESTART_S)


def _one_line(exc: Exception) -> str:
    text = " ".join(str(exc).split())
    return text if isinstance(exc, LeverPlusError) else f"{type(exc).__name__}: {text}"
