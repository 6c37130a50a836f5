"""What goes wrong with a request, as the LeverPlusError that it is."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import httpx

from leverplus import errors

_KINDS: dict[str, type[errors.LeverPlusError]] = {
    kind.__name__: kind
    for kind in (
        errors.InvalidInput,
        errors.GenerationFailed,
        errors.InvalidDataset,
        errors.InvalidRlData,
        errors.InvalidPointer,
        errors.InvalidEmbeddings,
        errors.InvalidCheckpoint,
        errors.InvalidIndex,
        errors.InvalidConfig,
        errors.IdOutsidePool,
        errors.NotAuthenticated,
        errors.NotAllowed,
        errors.NotFound,
        errors.Conflict,
        errors.QueueFull,
        errors.TooManyRequests,
        errors.NotInstalled,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.Cancelled,
    )
}
"""Errors that a service may name in a problem's `type`; FingerprintMismatch arrives as its parent, Conflict."""


def raise_problem(response: httpx.Response) -> None:
    """Raises what an answer of 400 or above says; returns for any other."""
    if response.status_code < 400:
        return
    try:
        document: dict[str, Any] = response.json()
    except ValueError:
        document = {"detail": response.text[:500] or response.reason_phrase}
    by_status: dict[int, type[errors.LeverPlusError]] = {
        401: errors.NotAuthenticated,
        403: errors.NotAllowed,
        404: errors.NotFound,
        409: errors.Conflict,
        422: errors.InvalidInput,
        429: errors.QueueFull,
    }
    by_status |= {503: errors.Unavailable, 504: errors.DeadlineExceeded}
    kind = _KINDS.get(str(document.get("type"))) or by_status.get(response.status_code, errors.LeverPlusError)
    context = _context(document)
    if "Retry-After" in response.headers:
        context["retry_after_s"] = response.headers["Retry-After"]
    asked, said = f"{response.request.method} {response.request.url.path}: ", str(document.get("detail"))
    detail = said if said.startswith(asked) else asked + said
    if response.status_code == 404 and str(document.get("type")) not in _KINDS:
        detail += f"; {response.request.url.host}:{response.request.url.port} has no such route: is another service there?"
    raise kind(detail, **context)


def named_error(document: Mapping[str, Any]) -> errors.LeverPlusError:
    """The error that a problem document inside an answer names."""
    kind = _KINDS.get(str(document.get("type")), errors.LeverPlusError)
    return kind(str(document.get("detail")), **_context(document))


def _context(document: Mapping[str, Any]) -> dict[str, Any]:
    context: dict[str, Any] = document.get("context") or {}
    return {name: value for name, value in context.items() if name != "detail"}


@contextmanager
def transport_errors(service: str, base_url: str, asked: str, limit_s: float | None) -> Generator[None]:
    """httpx's errors of the connection as LeverPlusErrors."""
    try:
        yield
    except httpx.TimeoutException as exc:
        raise errors.DeadlineExceeded(what=f"{service} {asked}", limit_s=limit_s) from exc
    except httpx.TransportError as exc:
        reason = f"{type(exc).__name__} at {base_url}"
        raise errors.Unavailable(what=service, reason=reason, hint="is it running? `make up` starts all services") from exc


def built_request(http: httpx.Client | httpx.AsyncClient, method: str, path: str, arguments: Mapping[str, Any]) -> httpx.Request:
    """InvalidInput naming the place in the body that JSON has no form for, InvalidEmbeddings where it is in a query's vector."""
    try:
        return http.build_request(method, path, **arguments)
    except (TypeError, ValueError) as exc:
        reason = _no_json(arguments.get("json"), "") or str(exc)
        is_vector = re.match(r"queries\.\d+\.embedding\b", reason) is not None
        raise (errors.InvalidEmbeddings if is_vector else errors.InvalidInput)(f"{method} {path}: {reason}") from exc


def _no_json(value: Any, name: str) -> str | None:
    """Where in a body something stands that JSON has no form for, such as TOML's dates and nan; None without such."""
    if isinstance(value, Mapping | list | tuple):
        members = cast("Mapping[str, Any] | Sequence[Any]", value)
        named = members.items() if isinstance(members, Mapping) else enumerate(members)
        found = (_no_json(member, f"{name}.{place}".removeprefix(".")) for place, member in named)
        return next(filter(None, found), None)
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        shown = errors.shorten(repr(value))
        return f"{name} is {shown}, which JSON cannot hold; write a finite number, text, a list or a table"
    return None
