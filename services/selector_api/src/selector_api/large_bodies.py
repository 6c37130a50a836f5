"""Large request bodies are read beside the event loop, a query at a time, so that other requests go on meanwhile.

A thread alone would not do: whatever parses JSON holds the interpreter until it is through, most of a second for a thousand
embeddings. So the body is cut into its queries, which only has to find where they end, and each is parsed by itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import orjson
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic import ValidationError

from leverplus.selection import MAX_QUERIES
from selector_api.schemas import Choosing, MessagesRequest, QueryReference, SelectRequest

_LARGE_BYTES = 256 * 1024

_others: list[tuple[str, type, Any]] = [(name, msgspec.Raw, msgspec.Raw(b"")) for name in Choosing.model_fields]
_Cut = msgspec.defstruct("Cut", [("queries", list[msgspec.Raw]), *_others], forbid_unknown_fields=True)


def read_large(body: bytes, model: type[SelectRequest | MessagesRequest]) -> Any:
    """The request, or where it is not valid what json.loads makes of it: FastAPI then says what is wrong, as with any other.

    Raises JSONDecodeError.
    """
    try:
        cut: Any = msgspec.json.decode(body, type=_Cut)
        if len(cut.queries) > MAX_QUERIES:
            return json.loads(body)
        raw = {name: bytes(getattr(cut, name)) for name in Choosing.model_fields}
        given: dict[str, Any] = {name: orjson.loads(part) for name, part in raw.items() if part}
        queries: list[QueryReference] = []
        for part in cut.queries:
            queries.append(QueryReference.model_validate_json(bytes(part)))
            time.sleep(0)  # hands the interpreter over
        return model.model_validate({**given, "queries": queries})
    except (msgspec.MsgspecError, orjson.JSONDecodeError, ValidationError, RecursionError):
        return json.loads(body)


class LargeBodyRoute(APIRoute):
    """A route whose body is a SelectRequest or MessagesRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        field = self.body_field
        if field is None:
            return handler
        model: Any = field.field_info.annotation

        class LargeBodyRequest(Request):
            async def json(self) -> Any:
                body = await self.body()
                return await run_in_threadpool(read_large, body, model) if len(body) > _LARGE_BYTES else json.loads(body)

        async def handle(request: Request) -> Response:
            return await handler(LargeBodyRequest(request.scope, request.receive))

        return handle
