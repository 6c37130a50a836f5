"""Requests to an OpenAI-compatible server: bounded in number and in time, and tried again where that may help."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx

from leverplus.errors import InvalidConfig, Unavailable, shorten
from leverplus.retrying import RetryPolicy, retry_after_s

logger = logging.getLogger(__name__)

_TOO_MANY_REQUESTS = 429
_CONNECT_LIMIT_S = 10.0
LARGEST_ANSWER_BYTES = 4 * 2**20
"""Of a body: many times a list of models or a short answer, and little in memory for every request under way."""


class BadAnswer(Exception):
    """The server answered, and asking again would not help. `status` is None where it is no matter of the status."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class _Passing(Exception):
    """An attempt failed in a way that may pass."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class OpenAIServer:
    """At most `concurrency` requests at a time to `url` (http://host:port/v1; a URL without a path gets /v1).

    The key is sent as a bearer token and shown nowhere. Belongs to the event loop of its first request. InvalidConfig for a
    URL or a key that cannot be used.
    """

    def __init__(self, url: str, *, api_key: str | None, concurrency: int, retry: RetryPolicy) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise InvalidConfig(field="LEVERPLUS_OPENAI_API_KEY", reason="holds a space, a line's end or a sign outside ASCII")
        self.url = _checked_url(url)
        self._api_key = api_key
        self._concurrency = concurrency
        self._retry = retry
        self._client: httpx.AsyncClient | None = None

    async def json(self, method: str, path: str, payload: Any = None) -> Any:
        """The JSON of a 200 answer. Unavailable when the policy gives up, BadAnswer for what it doesn't try again."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        end = begun + self._retry.total_s
        attempt = 0
        while True:
            attempt += 1
            try:
                async with asyncio.timeout_at(min(end, loop.time() + self._retry.attempt_s)):
                    return await self._attempt(method, path, payload)
            except TimeoutError:
                failure = _Passing("no answer in time")
            except _Passing as exc:
                failure = exc
            wait = self._retry.wait_s(attempt, failure.retry_after_s)
            if self._retry.gives_up(attempt, loop.time() - begun, wait):
                tried = f"attempt {attempt} of at most {self._retry.attempts} in {self._retry.total_s:g} s: {failure}"
                hint = "what it did not answer was not stored; try again"
                raise Unavailable(what=f"the VLM server at {self.url}", reason=tried, hint=hint)
            logger.info("%s %s%s: %s; again in %.1f s", method, self.url, path, failure, wait)
            await asyncio.sleep(wait)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def without_key(self, text: str) -> str:
        """A server may repeat the key in what it answers."""
        return text.replace(self._api_key, "***") if self._api_key else text

    async def _attempt(self, method: str, path: str, payload: Any) -> Any:
        asked = f"{method} {self.url}{path}"
        try:
            async with self._http().stream(method, self.url + path, json=payload) as response:
                body = await _beginning(response)
        except httpx.TransportError as exc:
            raise _Passing(self.without_key(f"{type(exc).__name__} {exc}".strip())) from None
        except httpx.HTTPError as exc:
            raise BadAnswer(self.without_key(f"{type(exc).__name__} {exc}")) from None
        status, shown = response.status_code, shorten(self.without_key(body.decode(errors="replace")))
        said = f"HTTP {status} {shown}".strip()
        if status == _TOO_MANY_REQUESTS or status >= 500:
            wait_s = retry_after_s(response.headers.get("Retry-After"))
            raise _Passing(f"{said}, Retry-After {wait_s:g} s" if wait_s else said, wait_s)
        if status != 200:
            raise BadAnswer(f"{asked} was answered with {said}", status)
        if encoding := response.headers.get("Content-Encoding"):
            reason = f"{asked} was answered encoded as {encoding!r}, though identity was asked for"
            raise BadAnswer(shorten(self.without_key(reason)))
        if len(body) > LARGEST_ANSWER_BYTES:
            raise BadAnswer(f"{asked} was answered with more than the {LARGEST_ANSWER_BYTES} bytes that an answer may have")
        try:
            return json.loads(body)
        except ValueError:
            raise BadAnswer(f"{asked} was answered with no JSON: {shown}") from None
        except RecursionError:
            raise BadAnswer(f"{asked} was answered with JSON that is nested too deep: {shown}") from None

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            key = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
            self._client = httpx.AsyncClient(
                # A few encoded bytes may stand for any number of others, so that their count would bound nothing.
                headers={"Accept-Encoding": "identity", **key},
                limits=httpx.Limits(max_connections=self._concurrency, max_keepalive_connections=self._concurrency),
                # asyncio bounds an attempt as a whole
                timeout=httpx.Timeout(None, connect=_CONNECT_LIMIT_S),
                # A machine's HTTP_PROXY must not stand between it and itself.
                mounts={"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None},
            )
        return self._client


async def _beginning(response: httpx.Response) -> bytes:
    """The body as it was sent; of one longer than LARGEST_ANSWER_BYTES a beginning that is longer, too."""
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > LARGEST_ANSWER_BYTES:
            break
    return bytes(body)


def _checked_url(url: str) -> str:
    """Without a trailing slash, and with /v1 where there is no path."""
    field, example = "LEVERPLUS_OPENAI_URL", "write it like http://127.0.0.1:8000/v1"
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise InvalidConfig(field=field, reason=f"is no URL: {exc}; {example}") from None
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise InvalidConfig(field=field, reason="may hold no user, query or fragment; a key goes in LEVERPLUS_OPENAI_API_KEY")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidConfig(field=field, reason=f"{url!r} is no URL of a server; {example}")
    return str(parsed.copy_with(path=parsed.path.rstrip("/") or "/v1"))
