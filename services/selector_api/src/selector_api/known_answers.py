"""Answers of GET /select that were given before, given again before anything is routed or parsed."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from fastapi import Request
from prometheus_client import Counter
from starlette.types import ASGIApp, Receive, Scope, Send

from selector_api.library import Library
from selector_api.serving import Served

PATH = "/select"

_ANSWERS = 8_192
_LONGEST_BYTES = 8_192
"""Of question and answer together. Both bounds: 64 MiB at the very most, some 8 as answers are."""


class _Known(NamedTuple):
    """`alias` is None where a checkpoint was asked for by its id."""

    served: Served
    alias: str | None
    policy: str
    route: object
    body: bytes
    headers: list[tuple[bytes, bytes]]


class KnownAnswers:
    """By the query string as it was sent: it says all that an answer depends on, but for what its alias stands for now."""

    def __init__(self, library: Library, selections: Counter) -> None:
        self._library = library
        self._selections = selections
        self._answers: OrderedDict[bytes, _Known] = OrderedDict()
        self.hits = 0

    def keep(self, request: Request, served: Served, alias: str | None, policy: str, body: bytes) -> None:
        asked: bytes = request.scope["query_string"]
        if len(body) + len(asked) > _LONGEST_BYTES:
            return
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        self._answers[asked] = _Known(served, alias, policy, request.scope.get("route"), body, headers)
        if len(self._answers) > _ANSWERS:
            self._answers.popitem(last=False)

    def find(self, asked: bytes) -> _Known | None:
        """The answer, if what was served then would be now."""
        known = self._answers.get(asked)
        if known is None:
            return None
        served, library = known.served, self._library
        now = library.checkpoint(served.info.checkpoint_id) if known.alias is None else library.current(known.alias)
        if now is not served:
            return None
        self._answers.move_to_end(asked)
        self.hits += 1
        self._selections.labels(known.policy).inc()
        return known


class KnownAnswersFirst:
    """The middleware: what is not known goes on to the routes."""

    def __init__(self, app: ASGIApp, answers: KnownAnswers) -> None:
        self._app = app
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "GET":
            known = self._answers.find(scope["query_string"])
            if known is not None:
                scope["route"] = known.route
                await send({"type": "http.response.start", "status": 200, "headers": known.headers})
                await send({"type": "http.response.body", "body": known.body})
                return
        await self._app(scope, receive, send)
