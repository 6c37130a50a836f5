"""The selector's application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CollectorRegistry, Counter
from starlette.middleware import Middleware

from leverplus.data_root import DataRoot
from leverplus.deployments import DEFAULT_ALIAS
from leverplus.web import Shortcut, create_service
from selector_api.batches import Batches
from selector_api.deployment_routes import FaultGauge
from selector_api.deployment_routes import router as deployments_router
from selector_api.encoding import Encoding
from selector_api.following import Follower
from selector_api.health import HealthChecks, HealthGauges
from selector_api.known_answers import KnownAnswers
from selector_api.library import Library, nothing_served
from selector_api.message_routes import router as messages_router
from selector_api.routes import router, select_one
from selector_api.settings import SelectorSettings

_BODY_LIMIT_MIB = 96
"""A thousand embeddings of 4,096 numbers, 22 characters each; or a thousand photographs of 70 KB."""


def create_app(settings: SelectorSettings, *, encoding: Encoding | None = None) -> FastAPI:
    """The application. It starts without a deployment too, and is ready once the default alias can be served."""
    health = HealthChecks()
    library = Library(settings.data_root, health)

    def ready() -> str | None:
        served, fault = library.follow(DEFAULT_ALIAS)
        if served is None:
            assert fault is not None
            raise nothing_served(DEFAULT_ALIAS, fault)
        return None if fault is None else f"deployment {DEFAULT_ALIAS!r} goes on with {served.info.checkpoint_id}: {fault}"

    batches = Batches()
    encoding = encoding or Encoding()

    shared = DataRoot.at(settings.data, settings.shared).shared
    follower = None if shared is None else Follower(settings.data_root, shared)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        if follower is not None:
            follower.start()
        # Loads what the first request would have to wait for; what is wrong with it is told by /health/ready.
        await run_in_threadpool(library.follow, DEFAULT_ALIAS)
        yield
        if follower is not None:
            follower.close()
        batches.close()
        encoding.close()
        health.close()

    registry = CollectorRegistry()
    selections = Counter("leverplus_selections", "Queries answered", ["policy"], registry=registry)
    registry.register(HealthGauges(library.served, health))
    registry.register(FaultGauge(library))
    known = KnownAnswers(library)
    app = create_service(
        "selector_api",
        ready=ready,
        access=settings,
        lifespan=lifespan,
        body_limit_mib=_BODY_LIMIT_MIB,
        repeatable=("exclude",),
        registry=registry,
        innermost=[Middleware(Shortcut, path="/select", endpoint=select_one)],
    )
    app.state.library = library
    app.state.batches = batches
    app.state.encoding = encoding
    app.state.health = health
    app.state.known = known
    app.state.selections = selections
    for routes in (router, messages_router, deployments_router):
        app.include_router(routes)
    return app
