"""A route that is called without being looked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send


class Shortcut:
    """Calls `endpoint` for GET requests of the very `path`, past the router and all that FastAPI prepares for a handler.

    The endpoint takes the request and makes its own response; what it raises goes to the application's exception handlers. It
    is a route of the application as well, for the documentation and for the name under which its requests are counted.
    """

    def __init__(self, app: ASGIApp, path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        self._app = app
        self._path = path
        self._endpoint = endpoint
        self._route = APIRoute(path, endpoint, response_class=Response)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive)
        try:
            response = await self._endpoint(request)
        except Exception as exc:
            handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = scope["app"].exception_handlers
            handler = next((handlers[kind] for kind in type(exc).__mro__[:-2] if kind in handlers), None)
            if handler is None:
                raise
            response = await handler(request, exc)
        await response(scope, receive, send)
