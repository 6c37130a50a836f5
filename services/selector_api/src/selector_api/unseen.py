"""Queries that are sent as an image and a question, on their way to a vector."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from fastapi.concurrency import run_in_threadpool

from leverplus.embeddings.unseen import UnseenQuery
from leverplus.errors import InvalidInput
from selector_api.encoding import Encoding
from selector_api.schemas import QueryReference
from selector_api.serving import Query, Served

LARGEST_IMAGE_BYTES = 10 * 2**20


async def encode_unseen(encoding: Encoding, served: Served, asked: Sequence[QueryReference]) -> dict[int, Query]:
    """Those of `asked` that are sent by image and question, by their number. Nothing is encoded before all of them are read.

    InvalidInput naming the query for what is no base64, no image, or too large; what `Encoding.vectors` raises.
    """
    if all(query.image is None and query.question is None for query in asked):
        return {}
    unseen = await run_in_threadpool(_read, asked)
    vectors = await encoding.vectors(list(unseen.values()), served.embeddings.manifest)
    return {
        number: Query(None, vector, query.image, query.question)
        for (number, query), vector in zip(unseen.items(), vectors, strict=True)
    }


def _read(asked: Sequence[QueryReference]) -> dict[int, UnseenQuery]:
    found: dict[int, UnseenQuery] = {}
    for number, query in enumerate(asked):
        name = f"queries.{number}"
        if query.question is not None:
            found[number] = UnseenQuery(_image_bytes(name, query.image), query.question, name)
        elif query.image is not None:
            raise InvalidInput(f"{name}: an image without a question; send both")
    return found


def _image_bytes(name: str, encoded: str | None) -> bytes | None:
    if encoded is None:
        return None
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise InvalidInput(f"{name}: image is no base64: {exc}") from exc
    if len(content) > LARGEST_IMAGE_BYTES:
        raise InvalidInput(f"{name}: image has {len(content)} bytes, at most {LARGEST_IMAGE_BYTES} are read; shrink it")
    return content
