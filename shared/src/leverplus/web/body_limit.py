"""A bound on request bodies, kept before anything parses them."""

from __future__ import annotations

from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leverplus.web.problems import problem_response

_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


class BodyLimit:
    """Answers 413 to a body of more than `limit` bytes, announced or not; at most `limit` bytes are held.

    `exempt`: "METHOD /path" of the routes that read their body as a stream under a limit of their own.
    """

    def __init__(self, app: ASGIApp, *, limit: int, exempt: Collection[str] = ()) -> None:
        self._app = app
        self._limit = limit
        self._exempt = frozenset(exempt)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _WITH_BODY or f"{scope['method']} {scope['path']}" in self._exempt:
            await self._app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not announced.isdigit() or int(announced[:20]) <= self._limit:
            messages = await self._read(receive)
            if messages is not None:
                await self._app(scope, _replay(messages, receive), send)
                return
        document = {
            "type": "RequestTooLarge",
            "title": "Request is too large",
            "status": 413,
            "detail": f"the body has more than {self._limit} bytes; send fewer at a time",
            "context": {"limit_bytes": self._limit},
        }
        # What is left of the body is not read, so the connection cannot carry another request.
        await problem_response(document, {"Connection": "close"})(scope, receive, send)

    async def _read(self, receive: Receive) -> list[Message] | None:
        """The messages of the whole body, or None once they pass the limit."""
        messages: list[Message] = []
        size = 0
        while True:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._limit:
                return None
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Gives the messages out again, then what arrives after them (the client's going away)."""
    waiting = iter(messages)

    async def replayed() -> Message:
        message = next(waiting, None)
        return await receive() if message is None else message

    return replayed
