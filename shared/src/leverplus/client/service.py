"""What the clients of all services do alike."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, closing
from types import TracebackType
from typing import Any, ClassVar, Self

import httpx

from leverplus.client.attempts import ONCE, PATIENCE, Attempts
from leverplus.client.problems import built_request, raise_problem, transport_errors
from leverplus.errors import InvalidConfig, LeverPlusError, NotFound
from leverplus.origin import passed_on
from leverplus.retrying import RetryPolicy
from leverplus.tracing import Span, span

CONNECT_LIMIT_S = 5.0
DIRECT = {"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None}
"""A machine's HTTP_PROXY must not stand between it and itself."""


def checked_url(service: str, base_url: str) -> str:
    """Without a trailing slash; InvalidConfig if that is no http URL."""
    stripped = base_url.rstrip("/")
    example = f"{base_url!r} is no URL of a service; write it like http://127.0.0.1:8001"
    try:
        address = httpx.URL(stripped)
    except httpx.InvalidURL as exc:
        raise InvalidConfig(field=service, reason=example) from exc
    if address.scheme not in ("http", "https") or not address.host:
        raise InvalidConfig(field=service, reason=example)
    return stripped


def key_headers(key: str | None) -> dict[str, str]:
    """InvalidConfig, which does not repeat it, for a key that no header can hold."""
    if key is None:
        return {}
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InvalidConfig(field="key", reason="it is no key as `leverplus keys new` prints them; is it cut or quoted?")
    return {"Authorization": f"Bearer {key}"}


def say_for_whom(request: httpx.Request) -> None:
    """A service that asks another passes on the ids of the request that it answers, and of the job that it does."""
    for name, value in passed_on().items():
        request.headers.setdefault(name, value)


class ServiceClient:
    """One service at `base_url`, InvalidConfig if that is no http URL. `key`: what it is asked with, where it has keys.

    What may be done twice (a GET, a POST with an Idempotency-Key, or to a path of `repeatable`) is tried again as `retry` says
    when it is turned away (429), fails (5xx) or gets no answer; anything else only where no connection was made. Then its error
    is raised, that of a connection as Unavailable or DeadlineExceeded.
    """

    service = "service"
    repeatable: ClassVar[frozenset[str]] = frozenset()
    """Paths to which a second POST changes nothing."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        retry: RetryPolicy = PATIENCE,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = checked_url(self.service, base_url)
        self._retry = retry
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_LIMIT_S)
        headers = key_headers(key)
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=headers,
            timeout=timeout,
            transport=transport,
            mounts=DIRECT,
            event_hooks={"request": [say_for_whom]},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def request(
        self, method: str, path: str, *, stream: bool = False, retry: RetryPolicy | None = None, **arguments: Any
    ) -> httpx.Response:
        """A request whose failure is a LeverPlusError. `stream`: the caller reads the answer's body, and closes it."""
        is_keyed = "Idempotency-Key" in httpx.Headers(arguments.get("headers"))
        attempts = Attempts(retry or self._retry, repeatable=method == "GET" or path in self.repeatable or is_keyed)
        while True:
            request = built_request(self._http, method, path, arguments)
            response: httpx.Response | None = None
            try:
                with self._transport_errors(f"{method} {path}"), self._span(method, path) as traced:
                    response = self._http.send(request, stream=stream)
                    traced.set(http__response__status_code=response.status_code)
                    if stream and response.status_code >= 400:
                        with closing(response):
                            response.read()
                raise_problem(response)
                return response
            except LeverPlusError as exc:
                wait_s = attempts.wait_s(exc, response)
            time.sleep(wait_s)

    def _span(self, method: str, path: str) -> Span:
        return span(f"{method} {self.service}", "client", url__path=path)

    def _transport_errors(self, asked: str) -> AbstractContextManager[None]:
        return transport_errors(self.service, self.base_url, asked, self._http.timeout.read)

    def name(self) -> str | None:
        """What the service calls itself, which takes no key; None where something else answers. Asked once."""
        try:
            return str(self.request("GET", "/health/live", retry=ONCE).json()["service"])
        except (NotFound, ValueError, KeyError, TypeError):
            return None

    def ready(self) -> None:
        """Returns when the service is ready, raises what it says otherwise. Asked once."""
        self.request("GET", "/health/ready", retry=ONCE)
