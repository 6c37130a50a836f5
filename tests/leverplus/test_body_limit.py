"""Bodies that arrive slowly, or many at once."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from leverplus.web import body_limit
from leverplus.web.body_limit import BodyLimit

Message = dict[str, Any]


class Client:
    """One request whose body is sent piece by piece."""

    def __init__(self, limited: BodyLimit) -> None:
        self.pieces: asyncio.Queue[Message] = asyncio.Queue()
        self.answered: list[Message] = []
        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        self.task = asyncio.create_task(limited(scope, self.pieces.get, self._take))

    async def _take(self, message: Any) -> None:
        self.answered.append(message)

    async def send(self, count: int, *, more: bool = True) -> None:
        await self.pieces.put({"type": "http.request", "body": b"x" * count, "more_body": more})
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def status(self) -> int | None:
        return self.answered[0]["status"] if self.answered else None


async def answer(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})


def test_bodies_that_are_held_together_are_bounded_and_let_go() -> None:
    async def run() -> None:
        limited = BodyLimit(answer, limit=10)
        holding = [Client(limited) for _ in range(4)]
        for client in holding:
            await client.send(10)
        refused = Client(limited)
        await refused.send(1)
        await refused.task
        assert refused.status == 503
        assert (b"retry-after", b"2") in refused.answered[0]["headers"]
        assert json.loads(refused.answered[1]["body"])["type"] == "Unavailable"
        await holding[0].send(0, more=False)
        await holding[0].task
        assert holding[0].status == 200
        later = Client(limited)
        await later.send(10, more=False)
        await later.task
        assert later.status == 200
        for client in holding[1:]:
            client.task.cancel()
            await asyncio.gather(client.task, return_exceptions=True)
        again = [Client(limited) for _ in range(4)]
        for client in again:
            await client.send(10)
        assert [client.status for client in again] == [None] * 4
        for client in again:
            client.task.cancel()

    asyncio.run(run())


def test_a_client_that_falls_silent_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_limit, "_SILENT_S", 0.01)

    async def run() -> None:
        client = Client(BodyLimit(answer, limit=10))
        await client.send(3)
        await client.task
        assert client.status == 408
        assert "after 3 bytes" in json.loads(client.answered[1]["body"])["detail"]
        assert (b"connection", b"close") in client.answered[0]["headers"]

    asyncio.run(run())
