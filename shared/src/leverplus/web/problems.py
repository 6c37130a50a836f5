"""RFC 9457 problem documents for every error an application answers with."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast
from urllib.parse import quote

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from leverplus.errors import LeverPlusError, shorten
from leverplus.origin import origin

logger = logging.getLogger("leverplus.web")

MEDIA_TYPE = "application/problem+json"
PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "Name of the error class"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong, with the values, and the way out"},
        "errors": {"type": "array", "items": {"type": "object"}, "description": "Faults of single fields, the first 20"},
        "errors_left_out": {"type": "integer", "description": "Further faults, absent if there are none"},
        "context": {"type": "object", "description": "The values the detail speaks of"},
    },
}
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {"description": "A problem", "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}},
    422: {"description": "Invalid input", "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}},
}


_FAULTS = 20
_LONGEST_DETAIL = 4_000
_LONGEST_TEXT = 1_000
_LONGEST_LIST = 100
_DEEPEST = 16


def problem(error: LeverPlusError) -> dict[str, Any]:
    """The problem document of an error; context values that JSON cannot hold are written as text, long ones shortened."""
    context = _plain(error.context)
    return {
        "type": error.kind,
        "title": error.title,
        "status": error.status,
        "detail": shorten(_text(error.detail), _LONGEST_DETAIL),
        **({"context": context} if context else {}),
    }


def problem_response(document: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """An answer for any document: what JSON cannot hold is written as text."""
    content = orjson.dumps({**_plain(document), "detail": shorten(_text(document["detail"]), _LONGEST_DETAIL)})
    return Response(content, status_code=document["status"], media_type=MEDIA_TYPE, headers=headers)


def _plain(value: Any, depth: int = 0) -> Any:
    """`value` in what JSON can hold, of bounded size."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else _number(value)
    if isinstance(value, str):
        return shorten(_text(value), _LONGEST_TEXT)
    if depth < _DEEPEST and isinstance(value, Mapping):
        items = list(cast("Mapping[Any, Any]", value).items())
        plain = {shorten(_text(str(key))): _plain(item, depth + 1) for key, item in items[:_LONGEST_LIST]}
        return plain if len(items) <= _LONGEST_LIST else {**plain, "…": f"{len(items) - _LONGEST_LIST} more"}
    if depth < _DEEPEST and isinstance(value, list | tuple | set | frozenset):
        members = list(cast("Iterable[Any]", value))
        listed = [_plain(member, depth + 1) for member in members[:_LONGEST_LIST]]
        return listed if len(members) <= _LONGEST_LIST else [*listed, f"… {len(members) - _LONGEST_LIST} more"]
    return shorten(_text(str(value)), _LONGEST_TEXT)


def _text(text: str) -> str:
    """Without lone surrogates, which UTF-8 has no bytes for."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _number(value: int) -> str:
    # Python refuses to write out integers of more than 4,300 digits.
    return str(value) if value.bit_length() < 1_000 else f"an integer of {value.bit_length()} bits"


def _fault(fault: Mapping[str, Any], content_type: str) -> dict[str, str]:
    """One of pydantic's faults as a field and a reason, neither of which repeats what was sent in full."""
    place, kind, reason = tuple(fault["loc"]), fault["type"], str(fault["msg"])
    if kind == "json_invalid" and len(place) == 2:
        error = str(fault.get("ctx", {}).get("error", reason))
        place, reason = place[:1], f"the body is not JSON: {error} at character {place[1]}"
    elif place == ("body",) and isinstance(fault.get("input"), bytes):
        reason = f"application/json is expected, and the Content-Type is {content_type!r}; send JSON and say so"
    return {"field": ".".join(shorten(_text(str(part))) for part in place), "reason": shorten(_text(plain_reason(reason)), 500)}


def _methods(request: Request) -> list[str]:
    """The methods that the OpenAPI document has for what was asked for, by its very path if there is such a one."""
    path: str = request.scope["path"]
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    templates = (each for each in paths if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(each)), path))
    found = path if path in paths else next(templates, None)
    return sorted(method.upper() for method in paths[found]) if found is not None else []


def plain_reason(message: str) -> str:
    """A message of pydantic's without what it puts in front of our own."""
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")


def install_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(LeverPlusError)
    async def _known(request: Request, error: LeverPlusError) -> Response:
        headers = {"Retry-After": str(error.context["retry_after_s"])} if "retry_after_s" in error.context else None
        if error.status >= 500:
            logger.warning("%s %s: %s", request.method, request.url.path, error.detail)
        return problem_response(problem(error), headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        content_type = shorten(request.headers.get("content-type", "absent"))
        faults = [_fault(fault, content_type) for fault in found[:_FAULTS]]
        detail = "; ".join(f"{fault['field']}: {fault['reason']}" for fault in faults)
        if len(found) > _FAULTS:
            detail = f"{len(found)} faults, the first {_FAULTS} of them: {detail}"
        document: dict[str, Any] = {
            "type": "InvalidInput",
            "title": "Invalid input",
            "status": 422,
            "detail": detail,
            "errors": faults,
        }
        if len(found) > _FAULTS:
            document["errors_left_out"] = len(found) - _FAULTS
        return problem_response(document)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 400 and isinstance(error.__cause__, ValueError | RecursionError):
            # What FastAPI says of a body that is no UTF-8, too deep, or holds a number too long to be read.
            detail = f"body: the body cannot be read as JSON: {type(error.__cause__).__name__}: {error.__cause__}"
            return problem_response({"type": "InvalidInput", "title": "Invalid input", "status": 422, "detail": detail})
        document = {
            "type": "about:blank",
            "title": str(error.detail),
            "status": error.status_code,
            "detail": f"{request.method} {request.url.path}: {error.detail}",
        }
        headers = dict(error.headers or {})
        if error.status_code == 405:
            # The router names the methods of the first route that has the path, though others may have it too.
            headers["Allow"] = ", ".join(_methods(request)) or headers.get("Allow", "")
        return problem_response(document, headers)


def internal_error(scope: Scope, error: Exception) -> Response:
    """The answer to a request that failed for a reason of our own; its trace goes to the log."""
    logger.error("%s %s failed", scope["method"], shorten(quote(scope["path"])), exc_info=error)
    document = {
        "type": "InternalError",
        "title": "Internal error",
        "status": 500,
        "detail": f"{type(error).__name__}; the service's log has the trace, under request id {origin.get().request_id}",
    }
    return problem_response(document)
