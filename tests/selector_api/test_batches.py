"""Queries that wait together: one call for all of them, an answer or an error for each, and no end to none."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

from leverplus.errors import InvalidInput, LeverPlusError, QueueFull
from selector_api import batches as module
from selector_api.answers import Way
from selector_api.batches import Batches
from selector_api.serving import Query, Served

WAY = Way("v3", 2, 1)


class Stub:
    """Stands where a Served is handed through."""

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick


def stub(*, quick: bool) -> Served:
    return cast(Served, Stub(quick=quick))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int | None]]:
    """The ids of each call. Odd ids are refused, id 100 breaks the whole call."""
    made: list[list[int | None]] = []

    def select(_: Served, queries: list[Query], way: Way) -> list[dict[str, Any] | LeverPlusError]:
        made.append([query.item_id for query in queries])
        if any(query.item_id == 100 for query in queries):
            raise RuntimeError("broken")
        return [
            InvalidInput(f"{query.item_id} is odd") if (query.item_id or 0) % 2 else {"id": query.item_id, "way": way}
            for query in queries
        ]

    monkeypatch.setattr(module, "select", select)
    return made


@pytest.mark.parametrize("quick", [True, False])
def test_one_call_for_all_that_wait_and_an_outcome_for_each(calls: list[list[int | None]], quick: bool) -> None:
    async def scenario() -> list[Any]:
        batches, served, other = Batches(), stub(quick=quick), stub(quick=quick)
        asked = [batches.select(served, WAY, Query(number)) for number in range(5)]
        found = await asyncio.gather(*asked, batches.select(other, WAY, Query(8)), return_exceptions=True)
        batches.close()
        return found

    found = asyncio.run(scenario())
    assert calls == [[0, 1, 2, 3, 4], [8]]
    assert [found[number]["id"] for number in (0, 2, 4)] == [0, 2, 4]
    assert all(isinstance(found[number], InvalidInput) for number in (1, 3))


@pytest.mark.parametrize("quick", [True, False])
def test_what_breaks_a_call_is_told_to_all_of_it_and_the_next_goes_on(calls: list[list[int | None]], quick: bool) -> None:
    async def scenario() -> None:
        batches, served = Batches(), stub(quick=quick)
        found = await asyncio.gather(*(batches.select(served, WAY, Query(number)) for number in (0, 100)), return_exceptions=True)
        assert [type(error) for error in found] == [RuntimeError, RuntimeError]
        assert (await batches.select(served, WAY, Query(6)))["id"] == 6
        batches.close()

    asyncio.run(scenario())
    assert calls == [[0, 100], [6]]


def test_a_large_pool_keeps_large_ones_waiting_and_small_ones_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_end, begun, calls = threading.Event(), threading.Event(), list[list[int | None]]()

    def select(served: Served, queries: list[Query], _: Way) -> list[dict[str, Any]]:
        if not served.quick:
            begun.set()
            assert may_end.wait(30)
            calls.append([query.item_id for query in queries])
        return [{"id": query.item_id} for query in queries]

    monkeypatch.setattr(module, "select", select)

    async def scenario() -> None:
        batches, large, small = Batches(), stub(quick=False), stub(quick=True)
        first = asyncio.create_task(batches.select(large, WAY, Query(1)))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        later = [asyncio.create_task(batches.select(large, WAY, Query(number))) for number in (2, 3)]
        gone = asyncio.create_task(batches.select(large, WAY, Query(4)))
        assert (await batches.select(small, WAY, Query(9)))["id"] == 9
        gone.cancel()
        may_end.set()
        assert [answer["id"] for answer in await asyncio.gather(first, *later)] == [1, 2, 3]
        batches.close()

    asyncio.run(scenario())
    assert calls == [[1], [2, 3, 4]]


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch, calls: list[list[int | None]]) -> None:
    monkeypatch.setattr(module, "_PLACES", 2)

    async def scenario() -> None:
        batches, served = Batches(), stub(quick=True)
        found = await asyncio.gather(
            *(batches.select(served, WAY, Query(number)) for number in (0, 2, 4)), return_exceptions=True
        )
        assert isinstance(found[2], QueueFull)
        assert (await batches.select(served, WAY, Query(4)))["id"] == 4
        batches.close()

    asyncio.run(scenario())
    assert calls == [[0, 2], [4]]
