"""Clients of the selector, blocking and asynchronous: what may pass is tried again, and answers are typed.

A problem that the service answers is raised as the LeverPlusError that it names.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from typing_extensions import Unpack

from leverplus.client.attempts import PATIENCE, Attempts
from leverplus.client.problems import built_request, raise_problem, transport_errors
from leverplus.client.service import CONNECT_LIMIT_S, DIRECT, ServiceClient, checked_url, key_headers, say_for_whom
from leverplus.errors import LeverPlusError
from leverplus.retrying import RetryPolicy
from leverplus.selection import MAX_PROMPTS, MAX_QUERIES, AskedQuery, Choosing, Prompt, Selection

T = TypeVar("T")


def unseen_query(image: Path | bytes | None, question: str) -> AskedQuery:
    """A query outside the dataset; `image`: its file, or the file's bytes."""
    if image is None:
        return {"question": question}
    content = image if isinstance(image, bytes) else image.read_bytes()
    return {"image": base64.b64encode(content).decode(), "question": question}


class SelectorClient(ServiceClient):
    """Choices, and the prompts that they make."""

    service = "selector_api"
    repeatable = frozenset({"/select", "/messages"})

    def select(self, query_id: int | None = None, *, question_id: str | None = None, **choosing: Unpack[Choosing]) -> Selection:
        """Demonstrations for a query of the dataset; only one of the two ids is required."""
        return self._ask("GET", "/select", params=_parameters(query_id, question_id, choosing))

    def select_many(self, queries: Sequence[AskedQuery], **choosing: Unpack[Choosing]) -> list[Selection]:
        """Demonstrations for any number of queries, in their order; 1,000 at a time are asked for."""
        answers: list[dict[str, Any]] = []
        for start, body in _bodies(queries, MAX_QUERIES, choosing):
            with _counted_from(start):
                answers.append(self._ask("POST", "/select", json=body))
        return _joined(answers)

    def messages(self, query_id: int | None = None, *, question_id: str | None = None, **choosing: Unpack[Choosing]) -> Prompt:
        """The choice for a query of the dataset as chat messages, in the prompt that was scored."""
        return self._ask("GET", "/messages", params=_parameters(query_id, question_id, choosing))

    def messages_many(self, queries: Sequence[AskedQuery], **choosing: Unpack[Choosing]) -> list[Prompt]:
        """Chat messages for any number of queries, in their order; 100 at a time are asked for."""
        answers: list[dict[str, Any]] = []
        for start, body in _bodies(queries, MAX_PROMPTS, choosing):
            with _counted_from(start):
                answers.append(self._ask("POST", "/messages", json=body))
        return _joined(answers)

    def deployments(self) -> list[dict[str, Any]]:
        """What is served under each alias."""
        return self._ask("GET", "/deployments")["deployments"]

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        return self.request(method, path, **arguments).json()


class AsyncSelectorClient:
    """As SelectorClient, in an event loop. Any number of requests may be under way; `connections` bounds those on the wire."""

    service = SelectorClient.service

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        retry: RetryPolicy = PATIENCE,
        connections: int = 16,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url = checked_url(self.service, base_url)
        self._retry = retry
        self._places = asyncio.Semaphore(connections)
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers=key_headers(key),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_LIMIT_S),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            transport=transport,
            mounts=DIRECT,
            event_hooks={"request": [_say_for_whom]},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def select(
        self, query_id: int | None = None, *, question_id: str | None = None, **choosing: Unpack[Choosing]
    ) -> Selection:
        return await self._ask("GET", "/select", params=_parameters(query_id, question_id, choosing))

    async def select_many(self, queries: Sequence[AskedQuery], **choosing: Unpack[Choosing]) -> list[Selection]:
        answers: list[dict[str, Any]] = []
        for start, body in _bodies(queries, MAX_QUERIES, choosing):
            with _counted_from(start):
                answers.append(await self._ask("POST", "/select", json=body))
        return _joined(answers)

    async def messages(
        self, query_id: int | None = None, *, question_id: str | None = None, **choosing: Unpack[Choosing]
    ) -> Prompt:
        return await self._ask("GET", "/messages", params=_parameters(query_id, question_id, choosing))

    async def messages_many(self, queries: Sequence[AskedQuery], **choosing: Unpack[Choosing]) -> list[Prompt]:
        answers: list[dict[str, Any]] = []
        for start, body in _bodies(queries, MAX_PROMPTS, choosing):
            with _counted_from(start):
                answers.append(await self._ask("POST", "/messages", json=body))
        return _joined(answers)

    async def deployments(self) -> list[dict[str, Any]]:
        return (await self._ask("GET", "/deployments"))["deployments"]

    async def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        # All that is asked of a selector may be asked twice.
        attempts = Attempts(self._retry, repeatable=True)
        while True:
            request = built_request(self._http, method, path, arguments)
            response: httpx.Response | None = None
            try:
                with transport_errors(self.service, self.base_url, f"{method} {path}", self._http.timeout.read):
                    async with self._places:
                        response = await self._http.send(request)
                raise_problem(response)
                return response.json()
            except LeverPlusError as exc:
                wait_s = attempts.wait_s(exc, response)
            await asyncio.sleep(wait_s)


def _parameters(query_id: int | None, question_id: str | None, choosing: Choosing) -> dict[str, Any]:
    given: dict[str, Any] = {"query_id": query_id, "question_id": question_id, **choosing}
    if choosing.get("exclude"):
        given["exclude"] = ",".join(map(str, choosing.get("exclude", ())))
    return {name: value for name, value in given.items() if value is not None and value != []}


def _bodies(queries: Sequence[AskedQuery], size: int, choosing: Choosing) -> list[tuple[int, dict[str, Any]]]:
    """Requests of at most `size` queries, and the number of the first of each."""
    return [(start, {**choosing, "queries": list(queries[start : start + size])}) for start in range(0, len(queries), size)]


@contextmanager
def _counted_from(start: int) -> Generator[None]:
    """Errors inside name a query by its number among all that were given, not among those of one request."""
    try:
        yield
    except LeverPlusError as exc:
        exc.detail = re.sub(r"\bqueries\.(\d+)", lambda found: f"queries.{int(found[1]) + start}", exc.detail, count=1)
        raise


def _joined(answers: Sequence[Mapping[str, list[T]]]) -> list[T]:
    return [result for answer in answers for result in answer["results"]]


async def _say_for_whom(request: httpx.Request) -> None:
    say_for_whom(request)
