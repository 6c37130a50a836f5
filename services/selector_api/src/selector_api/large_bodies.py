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
from starlette.exceptions import HTTPException

from leverplus.errors import InvalidInput
from leverplus.selection import MAX_QUERIES
from selector_api.schemas import (
    MAX_CHOOSING_BYTES,
    MAX_QUERY_BYTES,
    Choosing,
    MessagesRequest,
    QueryReference,
    SelectRequest,
)

_LARGE_BYTES = 256 * 1024

_others: list[tuple[str, type, Any]] = [(name, msgspec.Raw, msgspec.Raw(b"")) for name in Choosing.model_fields]
_Cut = msgspec.defstruct("Cut", [("queries", list[msgspec.Raw]), *_others], forbid_unknown_fields=True)


def read_large(body: bytes, model: type[SelectRequest | MessagesRequest]) -> Any:
    """The request, or where it is not valid what json.loads makes of it: FastAPI then says what is wrong, as with any other.

    Raises JSONDecodeError, and InvalidInput where a part is larger than any that is valid: reading it would hold others up.
    """
    try:
        cut: Any = msgspec.json.decode(body, type=_Cut)
        if len(cut.queries) > MAX_QUERIES:
            return json.loads(body)
        raw = {name: bytes(getattr(cut, name)) for name in Choosing.model_fields}
        for name, part in raw.items():
            _require_at_most(f"body.{name}", part, MAX_CHOOSING_BYTES)
        given: dict[str, Any] = {name: orjson.loads(part) for name, part in raw.items() if part}
        queries: list[QueryReference] = []
        for number, part in enumerate(cut.queries):
            one = bytes(part)
            _require_at_most(f"body.queries.{number}", one, MAX_QUERY_BYTES)
            queries.append(QueryReference.model_validate_json(one))
            time.sleep(0)  # hands the interpreter over
        return model.model_validate({**given, "queries": queries})
    except (msgspec.MsgspecError, orjson.JSONDecodeError, ValidationError, RecursionError):
        return json.loads(body)


def _require_at_most(what: str, part: bytes, limit: int) -> None:
    if len(part) > limit:
        raise InvalidInput(f"{what}: {len(part):,} bytes of JSON, at most {limit:,} are read; send fewer values")


class LargeBodyRoute(APIRoute):
    """A route whose body is a SelectRequest or MessagesRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        field = self.body_field
        if field is None:
            return handler
        model: Any = field.field_info.annotation

        class LargeBodyRequest(Request):
            refusal: InvalidInput | None = None

            async def json(self) -> Any:
                body = await self.body()
                try:
                    return await run_in_threadpool(read_large, body, model) if len(body) > _LARGE_BYTES else json.loads(body)
                except InvalidInput as exc:
                    self.refusal = exc
                    raise

        async def handle(request: Request) -> Response:
            large = LargeBodyRequest(request.scope, request.receive)
            try:
                return await handler(large)
            except HTTPException as exc:
                # What reading a body raises FastAPI turns into a 400 without a reason.
                raise large.refusal or exc from exc

        return handle
