"""The trainer's API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from leverplus.deployments import refresh_deployments
from leverplus.errors import Unavailable
from leverplus.store import JobStore, open_store
from leverplus.web import create_service
from pointer_trainer.broker import Broker
from pointer_trainer.metrics import TrainerGauges
from pointer_trainer.reconciler import reconcile_forever
from pointer_trainer.routes import checkpoints, data, disk, jobs
from pointer_trainer.settings import TrainerSettings
from pointer_trainer.state import TrainerState


def create_app(settings: TrainerSettings) -> FastAPI:
    """The application; its reconciler runs between start-up and shut-down.

    Raises Unavailable when the database cannot be opened, or the store that files are shared through cannot be reached.
    A broker that is away makes it unready, not dead.
    """
    engine = open_store(settings.store_url)
    state = TrainerState(settings, settings.data_root, JobStore(engine), Broker(settings.redis_url))
    refresh_deployments(state.data_root)
    reconciler: asyncio.Task[None] | None = None

    def ready() -> None:
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except SQLAlchemyError as exc:
            raise Unavailable(what="database", reason=str(exc), hint="check DATABASE_URL") from exc
        state.broker.require()
        if reconciler is None or reconciler.done():
            raise Unavailable(what="reconciler", reason="it has ended", hint="the service's log says why; restart it")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        nonlocal reconciler
        reconciler = asyncio.create_task(
            reconcile_forever(
                state.jobs,
                state.broker,
                state.data_root,
                every_s=settings.reconcile_every_s,
                retention_days=settings.retention_days,
            )
        )
        try:
            yield
        finally:
            reconciler.cancel()
            with suppress(asyncio.CancelledError):
                await reconciler
            state.broker.close()
            engine.dispose()

    app = create_service("pointer_trainer", ready=ready, access=settings, lifespan=lifespan, body_limit_exempt=("POST /rl-data",))
    app.state.registry.register(TrainerGauges(engine, state.broker, settings.data_root))
    app.state.trainer = state
    for router in (jobs.router, data.router, checkpoints.router, disk.router):
        app.include_router(router)
    return app
