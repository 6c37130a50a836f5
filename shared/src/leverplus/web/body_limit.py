"""A bound on request bodies, kept before anything parses them."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leverplus.errors import shorten
from leverplus.web.problems import problem_response

_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


_TOGETHER = 4
"""How many of the largest bodies are held at once, in one process, by requests that are read or answered."""
_SILENT_S = 30.0
_RETRY_AFTER_S = 2

Problem = dict[str, Any]


class BodyLimit:
    """Answers 413 to a body of more than `limit` bytes, announced or not; at most `limit` bytes are held of one, and _TOGETHER
    times as many of all (503). A client that is silent for _SILENT_S in the middle of its body is answered 408. A body that is
    compressed is not read (415): nobody here would know how large it is.

    `exempt`: "METHOD /path" of the routes that read their body as a stream under a limit of their own.
    """

    def __init__(self, app: ASGIApp, *, limit: int, exempt: Collection[str] = ()) -> None:
        self._app = app
        self._limit = limit
        self._exempt = frozenset(exempt)
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY:
            await self._app(scope, receive, send)
            return
        encoding = _header(scope, b"content-encoding", b"identity")
        is_plain = encoding.strip().lower() == b"identity"
        if is_plain and f"{scope['method']} {scope['path']}" in self._exempt:
            await self._app(scope, receive, send)
            return
        announced = _header(scope, b"content-length", b"0")
        messages: list[Message] = []
        try:
            if not is_plain:
                problem: Problem | None = _encoded(encoding)
            elif announced.isdigit() and int(announced[:20]) > self._limit:
                problem = self._too_large()
            else:
                problem = await self._read(receive, messages)
            if problem is None:
                await self._app(scope, _replay(messages, receive), send)
                return
        finally:
            self._held -= _size(messages)
        # What is left of the body is not read, so the connection cannot carry another request.
        headers = {"Connection": "close"}
        if problem["status"] == 503:
            headers["Retry-After"] = str(_RETRY_AFTER_S)
        if problem["status"] == 415:
            headers["Accept-Encoding"] = "identity"
        await problem_response(problem, headers)(scope, receive, send)

    async def _read(self, receive: Receive, messages: list[Message]) -> Problem | None:
        """Fills `messages` with those of the whole body; why it was not read to its end, where it was not."""
        size = 0
        while True:
            try:
                async with asyncio.timeout(_SILENT_S):
                    message = await receive()
            except TimeoutError:
                detail = f"nothing more of the body came for {_SILENT_S:g} s after {size} bytes; send it again"
                return {"type": "RequestTimeout", "title": "Request timeout", "status": 408, "detail": detail, "context": {}}
            messages.append(message)
            part = _size([message])
            size += part
            self._held += part
            if size > self._limit:
                return self._too_large()
            if self._held > _TOGETHER * self._limit:
                detail = f"bodies of more than {_TOGETHER * self._limit} bytes are held already; send this one again later"
                context = {"limit_bytes": _TOGETHER * self._limit, "retry_after_s": _RETRY_AFTER_S}
                return {"type": "Unavailable", "title": "Unavailable", "status": 503, "detail": detail, "context": context}
            if message["type"] != "http.request" or not message.get("more_body", False):
                return None

    def _too_large(self) -> Problem:
        return {
            "type": "RequestTooLarge",
            "title": "Request is too large",
            "status": 413,
            "detail": f"the body has more than {self._limit} bytes; send fewer at a time",
            "context": {"limit_bytes": self._limit},
        }


def _encoded(encoding: bytes) -> Problem:
    named = shorten(encoding.decode("latin-1"))
    detail = f"Content-Encoding is {named!r}, and compressed bodies are not read; send the body as it is, without that header"
    return {"type": "UnsupportedMediaType", "title": "Unsupported media type", "status": 415, "detail": detail, "context": {}}


def _header(scope: Scope, name: bytes, absent: bytes) -> bytes:
    return next((value for each, value in scope["headers"] if each == name), absent)


def _size(messages: Sequence[Message]) -> int:
    return sum(len(message.get("body", b"")) for message in messages)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Gives the messages out again, then what arrives after them (the client's going away)."""
    waiting = iter(messages)

    async def replayed() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return replayed
