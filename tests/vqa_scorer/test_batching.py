from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from threading import Event

import pytest

from leverplus.errors import GenerationFailed, InvalidInput, LeverPlusError, QueueFull, Unavailable
from vqa_scorer.batching import BatchWorker


class Recorder:
    """Upper-cases keys, but leaves out `elsewhere`; records batches; waits for `gate` in each; `failures` of a key are raised,
    `refused` given."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.taken = Event()
        self.gate = Event()
        self.failures: dict[str, Exception] = {}
        self.refused: dict[str, LeverPlusError] = {}
        self.foreseen: list[list[int]] = []
        self.elsewhere: set[str] = set()

    def __call__(self, batch: Mapping[str, int]) -> dict[str, str | LeverPlusError]:
        self.batches.append(list(batch))
        self.taken.set()
        assert self.gate.wait(10)
        for key in batch:
            if key in self.failures:
                raise self.failures[key]
        return {key: self.refused.get(key, key.upper()) for key in batch if key not in self.elsewhere}


@asynccontextmanager
async def started(
    recorder: Recorder, *, batch_size: int = 4, capacity: int = 4, load: Callable[[], None] = lambda: None
) -> AsyncGenerator[BatchWorker[str, int, str]]:
    worker: BatchWorker[str, int, str] = BatchWorker(
        recorder,
        load=load,
        batch_size=batch_size,
        capacity=capacity,
        order=lambda length: length,
        look_ahead=recorder.foreseen.append,
    )
    worker.start()
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    worker.require_ready()
                    break
                except Unavailable as exc:
                    if "being loaded" not in str(exc):
                        break
                    await asyncio.sleep(0.001)
            yield worker
    finally:
        recorder.gate.set()
        await asyncio.to_thread(worker.close)


async def occupy(worker: BatchWorker[str, int, str], recorder: Recorder) -> asyncio.Task[dict[str, str]]:
    """Puts the engine to work on the key `first` and returns when it has been taken."""
    ticket = worker.submit({"first": 0})
    assert await asyncio.to_thread(recorder.taken.wait, 10)
    return asyncio.ensure_future(ticket.values())


async def as_long_as_ready(worker: BatchWorker[str, int, str]) -> None:
    while True:
        worker.require_ready()
        await asyncio.sleep(0.001)


def test_requests_that_wait_share_a_batch_and_a_lone_one_is_not_held_up() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        async with started(recorder) as worker:
            first = await occupy(worker, recorder)
            one, two = worker.submit({"a": 0, "b": 0}), worker.submit({"c": 0})
            recorder.gate.set()
            assert await first == {"first": "FIRST"}
            assert await one.values() == {"a": "A", "b": "B"}
            assert await two.values() == {"c": "C"}
        assert recorder.batches == [["first"], ["a", "b", "c"]]

    asyncio.run(scenario())


def test_a_full_queue_refuses_the_whole_request() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        async with started(recorder, capacity=3) as worker:
            await occupy(worker, recorder)
            worker.submit({"a": 0, "b": 0})
            with pytest.raises(QueueFull) as caught:
                worker.submit({"c": 0, "d": 0})
            assert caught.value.context["retry_after_s"] >= 1
            assert (caught.value.context["size"], caught.value.context["limit"]) == (2, 3)
            assert worker.waiting == 2
            with pytest.raises(InvalidInput, match="the queue holds 3: send at most that many at a time"):
                worker.submit(dict.fromkeys("efgh", 0))
            worker.submit({"a": 0, "b": 0, "first": 0, "c": 0})  # only c needs a place
            assert worker.waiting == 3

    asyncio.run(scenario())


def test_identical_keys_on_their_way_are_worked_on_once() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        async with started(recorder) as worker:
            first = await occupy(worker, recorder)
            again, waiting, joined = worker.submit({"first": 0}), worker.submit({"a": 0}), worker.submit({"a": 0})
            worker.abandon(waiting)
            recorder.gate.set()
            assert await first == await again.values() == {"first": "FIRST"}
            assert await joined.values() == {"a": "A"}
        assert recorder.batches == [["first"], ["a"]]

    asyncio.run(scenario())


def test_a_failed_batch_answers_all_in_it_and_the_next_one_runs() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        recorder.failures["b"] = RuntimeError("out of memory")
        async with started(recorder) as worker:
            await occupy(worker, recorder)
            one, two = worker.submit({"a": 0}), worker.submit({"b": 0})
            recorder.gate.set()
            for ticket in (one, two):
                with pytest.raises(GenerationFailed, match="2 prompts: RuntimeError: out of memory"):
                    await ticket.values()
            assert await worker.submit({"a": 0}).values() == {"a": "A"}

    asyncio.run(scenario())


def test_a_key_that_fails_alone_answers_those_who_asked_for_it() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        recorder.refused["b"] = Unavailable(what="b", reason="gone", hint="try again")
        async with started(recorder) as worker:
            await occupy(worker, recorder)
            one, two, both = worker.submit({"a": 0}), worker.submit({"b": 0}), worker.submit({"a": 0, "b": 0})
            recorder.gate.set()
            assert await one.values() == {"a": "A"}
            for ticket in (two, both):
                with pytest.raises(Unavailable, match="b is away: gone"):
                    await ticket.values()
        assert recorder.batches == [["first"], ["a", "b"]]

    asyncio.run(scenario())


def test_an_abandoned_ticket_frees_its_places_and_is_not_worked_on() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        async with started(recorder, capacity=2) as worker:
            first = await occupy(worker, recorder)
            ticket = worker.submit({"a": 0, "b": 0})
            worker.abandon(ticket)
            assert worker.waiting == 0
            kept = worker.submit({"c": 0, "d": 0})
            recorder.gate.set()
            await first
            assert await kept.values() == {"c": "C", "d": "D"}
        assert recorder.batches == [["first"], ["c", "d"]]

    asyncio.run(scenario())


def test_a_batch_holds_the_oldest_and_its_neighbours() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        async with started(recorder, batch_size=3, capacity=8) as worker:
            await occupy(worker, recorder)
            ticket = worker.submit({"a2": 2, "b0": 0, "c2": 2, "d0": 0, "e1": 1})
            recorder.gate.set()
            assert len(await ticket.values()) == 5
        assert recorder.batches == [["first"], ["e1", "a2", "c2"], ["b0", "d0"]]
        assert recorder.foreseen == [[0, 0]]

    asyncio.run(scenario())


def test_what_is_made_elsewhere_is_asked_for_again_while_other_work_goes_on() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        recorder.elsewhere = {"b"}
        async with started(recorder, batch_size=2, capacity=6) as worker:
            first = await occupy(worker, recorder)
            both = asyncio.ensure_future(worker.submit({"a": 0, "b": 0}).values())
            others = worker.submit({"c": 0, "d": 0, "e": 0})
            recorder.gate.set()
            await first
            assert await others.values() == {"c": "C", "d": "D", "e": "E"}
            assert not both.done()
            assert (worker.waiting, worker.in_progress) in {(1, 0), (0, 1)}
            recorder.elsewhere = set()
            assert await both == {"a": "A", "b": "B"}
            assert (worker.waiting, worker.in_progress) == (0, 0)
        assert recorder.batches[:2] == [["first"], ["a", "b"]]
        # It does not take a place in the batches of the others.
        assert [batch for batch in recorder.batches[2:] if "b" not in batch] == [["c", "d"], ["e"]]
        assert all(batch == ["b"] for batch in recorder.batches[2:] if "b" in batch)

    asyncio.run(scenario())


def test_what_is_made_elsewhere_takes_a_place_until_nobody_waits_for_it() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        recorder.elsewhere = {"a", "b"}
        recorder.gate.set()
        async with started(recorder, capacity=2) as worker:
            ticket = worker.submit({"a": 0, "b": 0})
            async with asyncio.timeout(10):
                while not recorder.batches or worker.waiting < 2:
                    await asyncio.sleep(0.001)
            with pytest.raises(QueueFull):
                worker.submit({"c": 0})
            worker.abandon(ticket)
            async with asyncio.timeout(10):
                while worker.waiting or worker.in_progress:
                    await asyncio.sleep(0.001)
            recorder.elsewhere = set()
            assert await worker.submit({"c": 0, "a": 0}).values() == {"c": "C", "a": "A"}

    asyncio.run(scenario())


@pytest.mark.parametrize("in_a_batch", [False, True])
def test_stopping_answers_what_is_made_elsewhere(in_a_batch: bool) -> None:
    async def scenario() -> None:
        recorder = Recorder()
        recorder.elsewhere = {"first"}
        async with started(recorder) as worker:
            waiting = await occupy(worker, recorder)
            if not in_a_batch:
                recorder.gate.set()
                async with asyncio.timeout(10):
                    while not worker.waiting:
                        await asyncio.sleep(0.001)
            closing = asyncio.ensure_future(asyncio.to_thread(worker.close))
            if in_a_batch:
                with pytest.raises(Unavailable, match="stopping"):
                    await as_long_as_ready(worker)
                recorder.gate.set()
            with pytest.raises(Unavailable, match="stopping"):
                await waiting
            await closing
            assert (worker.waiting, worker.in_progress) == (0, 0)

    asyncio.run(scenario())


def test_stopping_answers_what_waits() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        async with started(recorder) as worker:
            first = await occupy(worker, recorder)
            waiting = worker.submit({"a": 0})
            closing = asyncio.ensure_future(asyncio.to_thread(worker.close))
            with pytest.raises(Unavailable, match="stopping"):
                await waiting.values()
            recorder.gate.set()
            await closing
            assert await first == {"first": "FIRST"}
            with pytest.raises(Unavailable, match="stopping"):
                worker.submit({"b": 0})

    asyncio.run(scenario())


def test_a_failed_load_refuses_with_the_reason() -> None:
    def load() -> None:
        raise ValueError("weights are\nbroken")

    async def scenario() -> None:
        async with started(Recorder(), load=load) as worker:
            with pytest.raises(Unavailable, match="ValueError: weights are broken"):
                worker.submit({"a": 0})

    asyncio.run(scenario())


def test_nothing_to_do_is_answered_at_once() -> None:
    async def scenario() -> None:
        async with started(Recorder()) as worker:
            assert await worker.submit({}).values() == {}

    asyncio.run(scenario())
