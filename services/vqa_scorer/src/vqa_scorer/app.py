"""The scorer's application: settings and an engine in, FastAPI out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, runtime_checkable

from fastapi import FastAPI

from leverplus.prompts import template
from leverplus.store import ScoreStore, open_store
from leverplus.web import create_service
from vqa_scorer.engines import Engine
from vqa_scorer.planning import OpenDatasets
from vqa_scorer.routes import create_router
from vqa_scorer.service import ScoringService
from vqa_scorer.settings import ScorerSettings

_CLOSING_BATCH_LIMIT_S = 5.0
_BODY_LIMIT_MIB = 12
"""250,000 pointers of four items with seven digits; a body is parsed while other clients wait."""


@runtime_checkable
class Closes(Protocol):
    """An engine whose `close`, called from another thread, ends what it is doing."""

    def close(self) -> None: ...


def create_app(
    settings: ScorerSettings, engine: Engine | None = None, *, load_failed: Callable[[str], None] | None = None
) -> FastAPI:
    """The application; the engine is the one for the VLM of `settings` unless another is given.

    Weights and database are opened in the background when the application starts: /health/ready is 503 until then, and
    says why if that failed; `load_failed` is then called with the reason, from the engine's thread.
    """
    engine = engine or _engine(settings)
    service = ScoringService(
        engine,
        OpenDatasets(settings.data_root),
        lambda: ScoreStore(open_store(settings.store_url)),
        batch_size=settings.batch_size,
        queue_size=settings.queue_size,
        deadline_s=settings.deadline_s,
        claim_expiry_s=settings.claim_expiry_s,
        load_failed=load_failed,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        service.worker.start()
        try:
            yield
        finally:
            if isinstance(engine, Closes):
                # A server that is away would be asked until the retries end.
                await asyncio.to_thread(service.worker.close, limit_s=_CLOSING_BATCH_LIMIT_S)
                await asyncio.to_thread(engine.close)
            await asyncio.to_thread(service.worker.close)

    # Otherwise open requests would hold up the end until the server drops them unanswered.
    app = create_service(
        "vqa_scorer",
        ready=service.ready,
        access=settings,
        lifespan=lifespan,
        body_limit_mib=_BODY_LIMIT_MIB,
        stopping=service.worker.hand_back,
    )
    app.state.registry.register(service.metrics)
    app.include_router(create_router(service))
    return app


def _engine(settings: ScorerSettings) -> Engine:
    """Only what the chosen engine needs is imported. InvalidConfig for settings that it cannot work with."""
    if settings.openai_url is not None:
        return _openai_engine(settings, settings.openai_url)
    assert settings.vlm is not None, "the settings name a directory or a server"
    from vqa_scorer.engines.decoding import GenerationArguments
    from vqa_scorer.engines.packed import Memory
    from vqa_scorer.engines.transformers import TransformersEngine

    return TransformersEngine(
        settings.vlm,
        lora=settings.lora,
        template=template(settings.prompt),
        arguments=GenerationArguments(settings.max_new_tokens, settings.num_beams, settings.length_penalty),
        device=settings.device,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        threads=settings.threads,
        memory=Memory(_bytes(settings.image_cache_mib), _bytes(settings.host_cache_mib), _bytes(settings.prefix_cache_mib)),
    )


def _bytes(mebibytes: int | None) -> int | None:
    return None if mebibytes is None else mebibytes * 2**20


def _openai_engine(settings: ScorerSettings, url: str) -> Engine:
    from vqa_scorer.engines.openai import OpenAIEngine

    key = settings.openai_api_key
    return OpenAIEngine(
        url,
        model=settings.openai_model or "",
        revision=settings.openai_revision or "",
        api_key=key.get_secret_value() if key is not None else None,
        template=template(settings.prompt),
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.num_beams,
        concurrency=settings.openai_concurrency,
    )
