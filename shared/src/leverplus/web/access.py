"""Who may ask for what: a role for every route, keys that have one, and where a service without keys may listen."""

from __future__ import annotations

import ipaddress
import logging
import math
import re
import socket
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from fastapi import FastAPI
from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leverplus.errors import LeverPlusError, NotAllowed, NotAuthenticated, TooManyRequests, shorten
from leverplus.keys import Key, KeyFile, Role
from leverplus.web.observation import ObservationSettings
from leverplus.web.problems import MEDIA_TYPE, PROBLEM_SCHEMA, problem, problem_response

audit = logging.getLogger("leverplus.audit")

OPEN = frozenset({("GET", "/health/live"), ("GET", "/health/ready")})
"""For whoever asks: an orchestrator has no key, and what is told is no secret."""

NEEDED: dict[tuple[str, str], Role] = {
    ("GET", "/metrics"): "read",
    ("GET", "/openapi.json"): "read",
    ("GET", "/docs"): "read",
    ("GET", "/redoc"): "read",
    # vqa_scorer
    ("POST", "/score"): "write",
    ("POST", "/score/plan"): "read",
    ("GET", "/stats"): "read",
    # pointer_trainer
    ("POST", "/rl-data"): "write",
    ("POST", "/rl-data/generate"): "write",
    ("POST", "/embeddings"): "write",
    ("POST", "/train"): "write",
    ("POST", "/sweep"): "write",
    ("POST", "/evaluate"): "write",
    ("POST", "/headroom"): "write",
    ("POST", "/estimate"): "write",
    ("GET", "/jobs"): "read",
    ("GET", "/jobs/{job_id}"): "read",
    ("GET", "/jobs/{job_id}/events"): "read",
    ("DELETE", "/jobs/{job_id}"): "write",
    ("DELETE", "/jobs/{job_id}/run"): "admin",
    ("POST", "/jobs/{job_id}/resume"): "write",
    ("GET", "/datasets"): "read",
    ("GET", "/disk"): "read",
    ("GET", "/rl-data"): "read",
    ("GET", "/checkpoints"): "read",
    ("DELETE", "/checkpoints/{checkpoint_id}"): "admin",
    ("POST", "/checkpoints/prune"): "admin",
    ("POST", "/checkpoints/{checkpoint_id}/promote"): "admin",
    ("GET", "/deployments"): "read",
    ("POST", "/deployments/{alias}/rollback"): "admin",
    # selector_api
    ("GET", "/select"): "read",
    ("POST", "/select"): "read",
    ("GET", "/messages"): "read",
    ("POST", "/messages"): "read",
    ("GET", "/items/{dataset}/{item_id}/image"): "read",
}
"""The role that each route needs, of all services. What is not listed here is refused."""

_TEMPLATES: list[tuple[str, re.Pattern[str], Role]] = [
    (method, re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), role)
    for (method, path), role in NEEDED.items()
    if "{" in path
]
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")
_SCHEME = "key"


class AccessSettings(ObservationSettings):
    """Where a service listens, and for whom."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    host: str = Field("127.0.0.1", validation_alias="LEVERPLUS_HOST")
    keys: Path | None = Field(None, validation_alias="LEVERPLUS_KEYS", description="file of API keys; unset: none is asked for")
    key_rate: float = Field(
        1000.0,
        gt=0,
        allow_inf_nan=False,
        validation_alias="LEVERPLUS_KEY_RATE",
        description="requests a second of a key whose line says nothing of it",
    )
    allow_anonymous: bool = Field(False, validation_alias="LEVERPLUS_ALLOW_ANONYMOUS")

    @model_validator(mode="after")
    def _not_open_to_all(self) -> Self:
        if self.keys is None and not self.allow_anonymous and not is_loopback(self.host):
            raise PydanticCustomError(
                "open_to_all",
                "without keys a service listens on this machine's loopback only, and LEVERPLUS_HOST is {host}: name a file of "
                "keys with LEVERPLUS_KEYS (`leverplus keys new NAME --role admin` makes one), or, where nobody else can "
                "reach the port, set LEVERPLUS_ALLOW_ANONYMOUS=true",
                {"host": repr(self.host)},
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there; a name counts if all of its addresses are such."""
    try:
        addresses = [host] if _is_address(host) else [str(found[4][0]) for found in socket.getaddrinfo(host, None)]
    except (OSError, UnicodeError):
        return False
    parsed = [ipaddress.ip_address(address) for address in addresses if host]
    mapped = [address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address for address in parsed]
    return bool(mapped) and all(address.is_loopback for address in mapped)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Access:
    """Lets a request through if its key has the role that its route needs, and writes a line for each that changes something.

    Without `keys` everything is let through; a GET then costs nothing.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyFile | None, rate: float) -> None:
        self._app = app
        self._keys = keys
        self._rate = rate
        self._allowances: dict[str, _Allowance] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (self._keys is None and scope.get("method") == "GET"):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        needed = None if (scope["method"], scope["path"]) in OPEN else needed_role(scope["method"], scope["path"])
        key: Key | None = None
        if self._keys is not None and (scope["method"], scope["path"]) not in OPEN:
            try:
                key = self._admit(scope, self._keys, needed)
            except LeverPlusError as refusal:
                await _refuse(refusal, needed, scope, receive, send)
                return
        if needed in (None, "read"):
            await self._app(scope, receive, send)
        else:
            await self._audited(key, scope, receive, send)

    def _admit(self, scope: Scope, keys: KeyFile, needed: Role | None) -> Key:
        """NotAuthenticated, TooManyRequests or NotAllowed."""
        given = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if given is None:
            raise NotAuthenticated(reason="this service asks for a key")
        scheme, _, presented = given.partition(b" ")
        key = keys.find(presented.strip()) if scheme.lower() == b"bearer" else None
        if key is None:
            raise NotAuthenticated(reason="what Authorization holds is no key of this service, or has expired")
        self._allowance(key).take(key.name)
        asked = f"{scope['method']} {shorten(quote(scope['path']))}"
        if needed is None and _is_route(scope):
            raise NotAllowed(f"{asked} is listed for no role", key=key.name)
        if needed is not None and not key.may(needed):
            raise NotAllowed(key=key.name, role=key.role, asked=asked, needed=needed)
        return key

    def _allowance(self, key: Key) -> _Allowance:
        rate = self._rate if key.rate is None else key.rate
        found = self._allowances.get(key.name)
        if found is None or found.rate != rate:
            found = self._allowances[key.name] = _Allowance(rate)
        return found

    async def _audited(self, key: Key | None, scope: Scope, receive: Receive, send: Send) -> None:
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            _write_down(key.name if key is not None else None, scope, status)


class _Allowance:
    """A second's worth of requests at most, refilled at `rate` a second. Belongs to a key in one process."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._most = max(rate, 1.0)
        self._left = self._most
        self._seen = time.monotonic()

    def take(self, name: str) -> None:
        """TooManyRequests where nothing is left."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._seen) * self.rate)
        self._seen = now
        if self._left < 1.0:
            raise TooManyRequests(key=name, rate=self.rate, retry_after_s=math.ceil((1.0 - self._left) / self.rate))
        self._left -= 1.0


def needed_role(method: str, path: str) -> Role | None:
    """None for what is not listed. HEAD is GET without the body."""
    method = "GET" if method == "HEAD" else method
    role = NEEDED.get((method, path))
    if role is not None:
        return role
    return next((role for listed, pattern, role in _TEMPLATES if listed == method and pattern.fullmatch(path)), None)


def _is_route(scope: Scope) -> bool:
    """Whether the application would answer by a route of its own, and not by 404 or 405."""
    app: FastAPI = scope["app"]
    return any(route.matches(scope)[0] is Match.FULL for route in app.router.routes)


async def _refuse(refusal: LeverPlusError, needed: Role | None, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {} if scope["method"] in _WITHOUT_BODY else {"Connection": "close"}  # what is left of a body is not read
    if isinstance(refusal, NotAuthenticated):
        fault = ', error="invalid_token"' if any(name == b"authorization" for name, _ in scope["headers"]) else ""
        headers["WWW-Authenticate"] = f'Bearer realm="leverplus"{fault}'
    elif isinstance(refusal, NotAllowed):
        headers["WWW-Authenticate"] = 'Bearer realm="leverplus", error="insufficient_scope"'
    if "retry_after_s" in refusal.context:
        headers["Retry-After"] = str(refusal.context["retry_after_s"])
    if needed in ("write", "admin"):
        _write_down(refusal.context.get("key"), scope, refusal.status)
    await problem_response(problem(refusal), headers)(scope, receive, send)


def _write_down(key: str | None, scope: Scope, status: int) -> None:
    client = scope.get("client")
    # The path is escaped as it came: a line break in it would begin a line of the client's own.
    path = shorten(quote(scope["path"]))
    audit.info("%s %s %s: %d, from %s", key or "anonymous", scope["method"], path, status, client[0] if client else "unknown")


def describe_access(app: FastAPI) -> None:
    """Has the OpenAPI document say which operations take a key, the role it needs, and what a refusal looks like."""
    describe = app.openapi
    refusals = {
        "401": "No key, or an unknown one",
        "403": "The key's role does not do",
        "429": "Too many requests, or a full queue",
    }

    def described() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = describe()
        components: dict[str, Any] = document.setdefault("components", {})
        components["securitySchemes"] = {
            _SCHEME: {
                "type": "http",
                "scheme": "bearer",
                "description": "A key of the service's key file. A service without one asks for none",
            }
        }
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if (method.upper(), path) in OPEN:
                    operation["security"] = []
                    continue
                operation["security"] = [{_SCHEME: []}]
                operation["x-role"] = NEEDED.get((method.upper(), path))
                for status, description in refusals.items():
                    content = {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA}}
                    operation["responses"].setdefault(status, {"description": description, "content": content})
        return document

    app.openapi = described
