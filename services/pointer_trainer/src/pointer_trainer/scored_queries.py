"""Pointers out to the scorer and scores back: several requests in flight, results in order, outages waited out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Literal

from leverplus.errors import InvalidInput, LeverPlusError
from leverplus.fingerprint import Fingerprint
from leverplus.ids import Pointer
from leverplus.metric import PostprocessingName
from leverplus.scoring import (
    ScoredCandidate,
    ScoredQuery,
    ScoreOptions,
    ScoreQuery,
    ScoreRequest,
    ScoreResponse,
    ScoreStats,
    fallback_warning,
)
from pointer_trainer.replicas import PASSING, Replicas

STOP_POLL_S = 0.2


@dataclass(frozen=True)
class Traffic:
    """How requests are cut and how long the scorer may be away. Times in seconds."""

    pointers_a_request: int = 64
    in_flight: int = 4
    """Of one scorer, where nothing else is said."""
    first_wait_s: float = 0.5
    longest_wait_s: float = 10.0
    patience_s: float = 120.0
    """Waiting that one request may add up to before its error is raised."""


@dataclass(frozen=True)
class AskedQuery:
    query_id: int
    pointers: tuple[Pointer, ...]


@dataclass(frozen=True)
class ScoredBatch:
    """The answer to one request. `queries`: each query with its candidates in the order they were asked for."""

    queries: tuple[tuple[AskedQuery, tuple[ScoredCandidate, ...]], ...]
    stats: ScoreStats
    fingerprint: Fingerprint


@dataclass
class ModeCounts:
    """Scores so far by how they were obtained, and those of them that were in the store already."""

    file: int = 0
    fallback: int = 0
    error: int = 0
    cached: int = 0

    def add(self, stats: ScoreStats) -> None:
        self.add_json({name: getattr(stats, name) for name in ("file", "fallback", "error", "cached")})

    def add_json(self, counts: Mapping[str, Any]) -> None:
        """Adds the counts that `to_json` of others gave; those that are not there are 0."""
        self.file += counts.get("file", 0)
        self.fallback += counts.get("fallback", 0)
        self.error += counts.get("error", 0)
        self.cached += counts.get("cached", 0)

    @property
    def warnings(self) -> list[str]:
        """What makes these scores worth less than they look."""
        warning = fallback_warning(self.fallback, self.file + self.fallback + self.error)
        return [] if warning is None else [warning]

    def to_json(self) -> dict[str, int | float | None]:
        """Counts, and shares of all scores (None before the first)."""
        total = self.file + self.fallback + self.error
        counts: dict[str, int | float | None] = {"scored": total, "cached": self.cached}
        for name in ("file", "fallback", "error"):
            counts[name] = getattr(self, name)
            counts[f"{name}_share"] = getattr(self, name) / total if total else None
        return counts


class Scorer:
    """Scores a stream of queries. Every answer must carry the fingerprint of the first: FingerprintMismatch otherwise."""

    def __init__(
        self,
        replicas: Replicas,
        dataset: str,
        *,
        flavour: Literal["official", "lever_plus"],
        postprocessing: PostprocessingName = "short-answer",
        gt_prob: bool = False,
        info_score: bool = False,
        check: Callable[[], None],
        traffic: Traffic | None = None,
        fingerprint: Fingerprint | None = None,
    ) -> None:
        """`check` raises when the work is to end; it is called several times a second while answers are awaited.

        `fingerprint`: what answers must carry, where others were given before.
        """
        self._replicas = replicas
        self._dataset = dataset
        self._options = ScoreOptions(flavour=flavour, postprocessing=postprocessing, gt_prob=gt_prob, info_score=info_score)
        self._check = check
        self._traffic = traffic or Traffic(in_flight=Traffic.in_flight * len(replicas))
        self._largest = self._traffic.pointers_a_request
        self._ended = threading.Event()
        self.fingerprint = fingerprint

    def score(self, queries: Iterable[AskedQuery]) -> Generator[ScoredBatch]:
        """The queries' scores, in their order, with at most `in_flight` requests under way.

        Raises what the scorer answers; Unavailable, QueueFull and DeadlineExceeded only after they lasted `patience_s`.
        """
        batches = _batches(queries, self._traffic.pointers_a_request)
        waiting: deque[tuple[list[AskedQuery], Future[ScoreResponse]]] = deque()
        threads = ThreadPoolExecutor(self._traffic.in_flight, thread_name_prefix="score")
        try:
            while True:
                while len(waiting) < self._traffic.in_flight and (batch := next(batches, None)) is not None:
                    waiting.append((batch, threads.submit(copy_context().run, self._ask, batch)))
                if not waiting:
                    return
                batch, future = waiting.popleft()
                while not wait([future], timeout=STOP_POLL_S).done:
                    self._check()
                yield self._checked(batch, future.result())
        finally:
            # A request under way is not waited for: a cancelled job ends now, its answer is dropped.
            self._ended.set()
            threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, batch: Sequence[AskedQuery]) -> ScoreResponse:
        """The batch's scores; in several requests where it is more than one may hold."""
        answers: list[ScoreResponse] = []
        waiting = deque(_cut(batch, self._largest))
        while waiting:
            piece = waiting.popleft()
            try:
                answers.append(self._ask_once(piece))
            except InvalidInput as exc:
                fits = exc.context.get("fits")
                if not isinstance(fits, int) or not 0 < fits < _size(piece):
                    raise
                # The scorer's queue is shorter than was assumed.
                self._largest = min(self._largest, fits)
                waiting.extendleft(reversed(_cut(piece, fits)))
        return _joined(answers)

    def _ask_once(self, batch: Sequence[AskedQuery]) -> ScoreResponse:
        queries = [ScoreQuery(query_id=query.query_id, pointers=[list(pointer) for pointer in query.pointers]) for query in batch]
        request = ScoreRequest(dataset=self._dataset, queries=queries, options=self._options)
        waited_s = 0.0
        pause_s = self._traffic.first_wait_s
        while True:
            try:
                return self._replicas.score(request)
            except PASSING as exc:
                if self._ended.is_set() or waited_s >= self._traffic.patience_s:
                    raise
                this_pause_s = min(max(pause_s, _retry_after_s(exc)), self._traffic.longest_wait_s)
                self._ended.wait(this_pause_s)
                waited_s += this_pause_s
                pause_s *= 2

    def _checked(self, batch: Sequence[AskedQuery], response: ScoreResponse) -> ScoredBatch:
        fingerprint = Fingerprint.from_json(response.fingerprint)
        if self.fingerprint is None:
            self.fingerprint = fingerprint
        self.fingerprint.require_same(fingerprint, subject="the scorer's newest answer")
        if [result.query_id for result in response.results] != [query.query_id for query in batch]:
            raise LeverPlusError("the scorer answered other queries than it was asked; update it to this version")
        queries: list[tuple[AskedQuery, tuple[ScoredCandidate, ...]]] = []
        for query, result in zip(batch, response.results, strict=True):
            if [tuple(candidate.pointer) for candidate in result.candidates] != list(query.pointers):
                raise LeverPlusError(
                    f"the scorer answered other pointers of query {query.query_id} than it was asked; update it to this version"
                )
            queries.append((query, tuple(result.candidates)))
        return ScoredBatch(tuple(queries), response.stats, fingerprint)


def _batches(queries: Iterable[AskedQuery], limit: int) -> Iterator[list[AskedQuery]]:
    """Whole queries, cut where the next one would pass `limit` pointers."""
    batch: list[AskedQuery] = []
    size = 0
    for query in queries:
        if batch and size + len(query.pointers) > limit:
            yield batch
            batch, size = [], 0
        batch.append(query)
        size += len(query.pointers)
    if batch:
        yield batch


def _size(batch: Sequence[AskedQuery]) -> int:
    return sum(len(query.pointers) for query in batch)


def _cut(batch: Sequence[AskedQuery], limit: int) -> list[list[AskedQuery]]:
    """The batch in pieces of at most `limit` pointers; a query with more than that is cut."""
    parts = (
        AskedQuery(query.query_id, query.pointers[start : start + limit])
        for query in batch
        for start in range(0, max(1, len(query.pointers)), limit)
    )
    return list(_batches(parts, limit))


def _joined(answers: Sequence[ScoreResponse]) -> ScoreResponse:
    """One answer of the pieces', with the candidates of a query that was cut side by side again."""
    first = answers[0]
    if len(answers) == 1:
        return first
    contract = Fingerprint.from_json(first.fingerprint)
    results: list[ScoredQuery] = []
    for answer in answers:
        contract.require_same(Fingerprint.from_json(answer.fingerprint), subject="the scorer's newest answer")
        for result in answer.results:
            if results and results[-1].query_id == result.query_id:
                results[-1].candidates.extend(result.candidates)
            else:
                results.append(result)
    return ScoreResponse(fingerprint=first.fingerprint, results=results, stats=ScoreStats.total(each.stats for each in answers))


def _retry_after_s(error: LeverPlusError) -> float:
    """What the scorer asked for by Retry-After, 0 where it said nothing that can be read."""
    try:
        return float(error.context.get("retry_after_s", 0.0))
    except (TypeError, ValueError):
        return 0.0
