"""The selector's application."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from prometheus_client import CollectorRegistry, Counter
from starlette.middleware import Middleware

from leverplus.deployments import DEFAULT_ALIAS
from leverplus.errors import Unavailable
from leverplus.web import Shortcut, create_service
from selector_api.batches import Batches
from selector_api.known_answers import KnownAnswers
from selector_api.library import Library
from selector_api.routes import router, select_one
from selector_api.settings import SelectorSettings

_BODY_LIMIT_MIB = 96
"""A thousand embeddings of 4,096 numbers, 22 characters each."""


def create_app(settings: SelectorSettings) -> FastAPI:
    """The application. It starts without a deployment too, and is ready once the default alias can be served."""
    library = Library(settings.data_root)

    def ready() -> str | None:
        served, fault = library.follow(DEFAULT_ALIAS)
        if served is None:
            assert fault is not None
            raise Unavailable(what=f"deployment {DEFAULT_ALIAS!r}", reason=str(fault), hint="nothing is served under it")
        if fault is not None:
            return f"deployment {DEFAULT_ALIAS!r} cannot be served, {served.info.checkpoint_id} goes on instead: {fault}"
        return None

    batches = Batches()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        # Loads what the first request would have to wait for; what is wrong with it is told by /health/ready.
        await run_in_threadpool(library.follow, DEFAULT_ALIAS)
        yield
        batches.close()

    registry = CollectorRegistry()
    selections = Counter("leverplus_selections", "Queries answered", ["policy"], registry=registry)
    known = KnownAnswers(library)
    app = create_service(
        "selector_api",
        ready=ready,
        lifespan=lifespan,
        body_limit_mib=_BODY_LIMIT_MIB,
        repeatable=("exclude",),
        registry=registry,
        innermost=[Middleware(Shortcut, path="/select", endpoint=select_one)],
    )
    app.state.library = library
    app.state.batches = batches
    app.state.known = known
    app.state.selections = selections
    app.include_router(router)
    return app
