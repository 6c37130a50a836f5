"""The frame of a service: probes, metrics, request ids, problem+json."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from socket import socket
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, Response
from fastapi.routing import APIRoute
from fastapi.telemetry import TelemetryConfig
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.datastructures import QueryParams
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leverplus import __version__
from leverplus.errors import InvalidInput, LeverPlusError, shorten
from leverplus.keys import KeyFile
from leverplus.origin import REQUEST_ID, asked_by, origin
from leverplus.tracing import NO_SPAN, Span, is_tracing, span
from leverplus.web.access import Access, AccessSettings, describe_access
from leverplus.web.body_limit import BodyLimit
from leverplus.web.connection import Connection
from leverplus.web.freed_memory import give_back
from leverplus.web.problems import PROBLEM_RESPONSES, install_problem_handlers, internal_error, problem, problem_response

requests_log = logging.getLogger("leverplus.requests")

_REQUEST_ID = REQUEST_ID.lower().encode()
_UNTRACED = ("/health/live", "/health/ready", "/metrics")
"""Asked for every few seconds, and the same each time."""
_NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own, whatever its environment says: spans of ours go on through worker and scorer."""
_COUNTERS_KEPT = 1_000
_DAWDLING_S = 2.0
"""How long a client whose connection is full has to take something once the server stops."""
_IDLE_S = 30
"""Longer than clients keep an idle connection (httpx: 5 s): who closes it must not be the one that a request is on its way to."""
_GIVE_BACK_TICKS = 600
"""A minute: uvicorn ticks ten times a second."""
_NOT_STARTED = 3
"""Exit code where the server could not be started: uvicorn's own."""


def create_service(
    title: str,
    *,
    ready: Callable[[], str | None],
    access: AccessSettings | None = None,
    lifespan: Any = None,
    body_limit_mib: int = 32,
    body_limit_exempt: Collection[str] = (),
    repeatable: Collection[str] = (),
    registry: CollectorRegistry | None = None,
    innermost: Collection[Middleware] = (),
    stopping: Callable[[], None] | None = None,
) -> FastAPI:
    """An application with /health/live, /health/ready and /metrics; routes are the caller's to add.

    `ready` returns when the service can do its work, with a warning for the operator if there is one, and raises a
    LeverPlusError that says why when it cannot. `access`: whose keys are asked for; InvalidConfig where they cannot be read.
    Metrics registered on `app.state.registry` appear under /metrics. A body above `body_limit_mib` is answered with 413, but for
    the routes ("METHOD /path") in `body_limit_exempt`. A query parameter that is given twice is refused, but for those in
    `repeatable`, which are lists. `stopping` is called when `serve` is told to stop, before open requests are waited for:
    whoever answers slowly can end what it does then.
    """
    app = FastAPI(
        title=title,
        version=__version__,
        lifespan=lifespan,
        responses=PROBLEM_RESPONSES,
        generate_unique_id_function=_operation_id,
        telemetry=_NO_TELEMETRY,
    )
    access = access or AccessSettings.model_validate({})
    app.state.registry = registry or CollectorRegistry()
    app.state.registry.register(_Readiness(ready))
    app.state.stopping = stopping
    install_problem_handlers(app)
    for middleware in innermost:
        app.add_middleware(middleware.cls, *middleware.args, **middleware.kwargs)
    app.add_middleware(_SingleParameters, repeatable=repeatable)
    app.add_middleware(BodyLimit, limit=body_limit_mib * 1024 * 1024, exempt=body_limit_exempt)
    app.add_middleware(Access, keys=KeyFile(access.keys) if access.keys is not None else None, rate=access.key_rate)
    describe_access(app)
    app.add_middleware(_Observed, registry=app.state.registry, logged=access.access_log)

    @app.get("/health/live", tags=["health"])
    async def live() -> dict[str, str]:
        """The process runs, and which service it is."""
        return {"status": "live", "service": title}

    @app.get("/health/ready", tags=["health"])
    def ready_probe() -> dict[str, str]:
        """The service can do its work; 503 with the reason otherwise."""
        warning = ready()
        return {"status": "ready"} if warning is None else {"status": "ready", "warning": warning}

    @app.get("/metrics", tags=["health"], response_class=Response)
    def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(app.state.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def serve(app: FastAPI, *, host: str, port: int, idle_s: int = _IDLE_S) -> None:
    """Runs the application until SIGTERM or SIGINT; open requests get 10 s to end.

    A connection is closed on which nothing was asked for `idle_s`: nothing at all, nothing more, or not even whole headers.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=idle_s,
        http=Connection,
        ws="none",
    )
    server = _Server(config, app)
    with suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(_NOT_STARTED)


class _Server(uvicorn.Server):
    """Tells the application that it is to stop before it waits for open requests (lifespan events come after them), and does not
    wait for clients that take nothing of their answers. Gives freed memory back once a minute."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def on_tick(self, counter: int) -> bool:
        if counter % _GIVE_BACK_TICKS == 0:
            give_back()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        if self._app.state.stopping is not None:
            self._app.state.stopping()
        asyncio.get_running_loop().call_later(_DAWDLING_S, self._leave_dawdlers)
        await super().shutdown(sockets)

    def _leave_dawdlers(self) -> None:
        connections: list[Any] = list(self.server_state.connections)
        for connection in connections:
            if connection.flow is not None and connection.flow.write_paused:
                connection.transport.abort()


def _operation_id(route: APIRoute) -> str:
    return route.name


class _Readiness(Collector):
    """What /health/ready says, as a metric: 1 or 0."""

    def __init__(self, ready: Callable[[], str | None]) -> None:
        self._ready = ready

    def collect(self) -> Iterable[GaugeMetricFamily]:
        try:
            self._ready()
        except LeverPlusError:
            is_ready = 0
        else:
            is_ready = 1
        yield GaugeMetricFamily("leverplus_ready", "1 while the service can do its work", value=is_ready)


class _SingleParameters:
    """Refuses a query parameter that is given twice, but for the `repeatable` ones."""

    def __init__(self, app: ASGIApp, repeatable: Collection[str]) -> None:
        self._app = app
        self._repeatable = frozenset(repeatable)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and b"&" in scope["query_string"]:
            given = QueryParams(scope["query_string"])
            names = [name for name, _ in given.multi_items() if name not in self._repeatable]
            if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                values = ", ".join(repr(shorten(value)) for value in given.getlist(repeated[0])[:4])
                reason = f"query parameter {shorten(repeated[0])!r} is given more than once ({values}); give it once"
                await problem_response(problem(InvalidInput(reason)))(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Observed:
    """Gives every request an id (the client's X-Request-ID, or a new one), counts and times it by route, and answers what nobody
    else has: an error that was not foreseen.

    `logged` is the share of requests that leave a line in the log.
    """

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, logged: float) -> None:
        self._app = app
        self._logged = logged
        labels = ["method", "route", "status"]
        self._counters: dict[tuple[str | int, ...], Counter] = {}
        self._requests = Counter("leverplus_http_requests", "HTTP requests", labels, registry=registry)
        self._seconds = Histogram("leverplus_http_request_seconds", "Seconds to the response's end", registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = asked_by(scope["headers"])
        named = (_REQUEST_ID, (asked.request_id or "").encode())
        token = origin.set(asked)
        status: int | None = None
        traced = span(scope["method"], "server") if is_tracing() and scope["path"] not in _UNTRACED else NO_SPAN

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], named]
                status = message["status"]
                self._count(scope["method"], _route(scope), message["status"])
                if traced is not NO_SPAN:
                    _describe(traced, scope, message["status"])
            await send(message)

        started = time.perf_counter()
        try:
            with traced:
                try:
                    await self._app(scope, receive, observed_send)
                except Exception as exc:
                    response = internal_error(scope, exc)
                    if status is not None:
                        raise  # too late for another answer: the server closes the connection
                    await response(scope, receive, observed_send)
        finally:
            seconds = time.perf_counter() - started
            self._seconds.observe(seconds)
            if self._logged and random.random() < self._logged:
                _write_down(scope, status, seconds)
            origin.reset(token)

    def _count(self, *labels: str | int) -> None:
        counter = self._counters.get(labels)
        if counter is None:
            counter = self._requests.labels(*labels)
            # Methods are the client's to invent.
            if len(self._counters) < _COUNTERS_KEPT:
                self._counters[labels] = counter
        counter.inc()


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return route.path if isinstance(route, APIRoute) else "none"


def _describe(traced: Span, scope: Scope, status: int) -> None:
    route = _route(scope)
    traced.rename(f"{scope['method']} {route}")
    traced.set(http__request__method=scope["method"], http__route=route, http__response__status_code=status)


def _write_down(scope: Scope, status: int | None, seconds: float) -> None:
    fields = {"method": scope["method"], "route": _route(scope), "status": status, "duration_ms": round(seconds * 1e3, 3)}
    requests_log.info("%s %s: %s", scope["method"], shorten(quote(scope["path"])), status, extra={"fields": fields})
