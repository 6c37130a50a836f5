"""The scorer: POST /score, at once or as a stream."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import httpx

from leverplus.client.problems import named_error
from leverplus.client.service import ServiceClient
from leverplus.errors import Unavailable
from leverplus.scoring import (
    NDJSON,
    ScoredQuery,
    ScorePlanResponse,
    ScoreRequest,
    ScoreResponse,
    ScoreStats,
    StreamEnd,
    StreamProblem,
    StreamStart,
)


class ScorerClient(ServiceClient):
    """What is scored is kept: a request that is sent again costs no answer of the VLM twice."""

    service = "vqa_scorer"
    repeatable = frozenset({"/score", "/score/plan"})

    def score(self, request: ScoreRequest) -> ScoreResponse:
        response = self.request("POST", "/score", json=request.model_dump())
        return ScoreResponse.model_validate_json(response.content)

    def score_plan(self, request: ScoreRequest) -> ScorePlanResponse:
        """What `score` would take, without a VLM call."""
        response = self.request("POST", "/score/plan", json=request.model_dump())
        return ScorePlanResponse.model_validate_json(response.content)

    def score_stream(self, request: ScoreRequest) -> ScoreStream:
        """The scores as they become ready, also of a request that is larger than the scorer's queue. Raises as `score` does."""
        response = self.request("POST", "/score", stream=True, json=request.model_dump(), headers={"Accept": NDJSON})
        return ScoreStream(response, self._transport_errors)

    def stats(self) -> dict[str, Any]:
        return self.request("GET", "/stats").json()


class ScoreStream:
    """Iterates over the scored queries in the order of the request; `fingerprint` is there from the start, `stats` at the end.

    A problem that ends the stream is raised as the error that it names; a stream that breaks off as Unavailable. Whoever does not
    read to the end closes it, as a `with` block does: the scorer then stops working on it.
    """

    def __init__(self, response: httpx.Response, transport_errors: Callable[[str], AbstractContextManager[None]]) -> None:
        self.stats: ScoreStats | None = None
        self._response = response
        self._transport_errors = transport_errors
        self._lines = response.iter_lines()
        self.fingerprint = StreamStart.model_validate_json(self._read()).fingerprint

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ScoredQuery:
        if self.stats is not None:
            raise StopIteration
        line = self._read()
        if line.startswith('{"query_id"'):
            return ScoredQuery.model_validate_json(line)
        self.close()
        if line.startswith('{"stats"'):
            self.stats = StreamEnd.model_validate_json(line).stats
            raise StopIteration
        raise named_error(StreamProblem.model_validate_json(line).problem)

    def close(self) -> None:
        self._response.close()

    def _read(self) -> str:
        with self._transport_errors("POST /score"):
            line = next(self._lines, None)
        if line is None:
            self.close()
            raise Unavailable(what="vqa_scorer", reason="its stream broke off", hint="ask again: what it scored is kept")
        return line
