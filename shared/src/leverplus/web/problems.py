"""RFC 9457 problem documents for every error an application answers with."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from leverplus.errors import LeverPlusError

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
        "errors": {"type": "array", "items": {"type": "object"}, "description": "Faults of single fields"},
        "context": {"type": "object", "description": "The values the detail speaks of"},
    },
}
PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {"description": "A problem", "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}},
    422: {"description": "Invalid input", "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}},
}


def problem(error: LeverPlusError) -> dict[str, Any]:
    """The problem document of an error; context values that JSON cannot hold are written as text."""
    context = orjson.loads(orjson.dumps(error.context, default=str, option=orjson.OPT_NON_STR_KEYS))
    return {
        "type": error.kind,
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        **({"context": context} if context else {}),
    }


def problem_response(document: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(document), status_code=document["status"], media_type=MEDIA_TYPE, headers=headers)


def install_problem_handlers(app: FastAPI) -> None:
    @app.exception_handler(LeverPlusError)
    async def _known(request: Request, error: LeverPlusError) -> Response:
        headers = {"Retry-After": str(error.context["retry_after_s"])} if "retry_after_s" in error.context else None
        if error.status >= 500:
            logger.warning("%s %s: %s", request.method, request.url.path, error.detail)
        return problem_response(problem(error), headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [{"field": ".".join(map(str, fault["loc"])), "reason": fault["msg"]} for fault in error.errors()]
        detail = "; ".join(f"{fault['field']}: {fault['reason']}" for fault in faults)
        document = {"type": "InvalidInput", "title": "Invalid input", "status": 422, "detail": detail, "errors": faults}
        return problem_response(document)

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        document = {
            "type": "about:blank",
            "title": str(error.detail),
            "status": error.status_code,
            "detail": f"{request.method} {request.url.path}: {error.detail}",
        }
        return problem_response(document, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def _unknown(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        document = {
            "type": "InternalError",
            "title": "Internal error",
            "status": 500,
            "detail": f"{type(error).__name__}; the service's log has the request id and the trace",
        }
        return problem_response(document)
