"""Several scorers on one database: each score is made once, by whoever claims it, and nobody waits for one that is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from threading import Event
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import delete, event, func, select

from leverplus.dataset import Dataset
from leverplus.errors import GenerationFailed, LeverPlusError
from leverplus.fingerprint import digest
from leverplus.ids import ItemId
from leverplus.store import ClaimStore, ScoreStore, open_store
from leverplus.store.schema import score_claims
from vqa_scorer.app import create_app
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

Running = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def settings(settings: ScorerSettings, database_url: str) -> ScorerSettings:
    return settings.model_copy(update={"database_url": database_url})


def body(query_id: int, *pointers: list[int], **options: Any) -> dict[str, Any]:
    return {"dataset": "toy", "queries": [{"query_id": query_id, "pointers": pointers}], "options": options}


def asked(*engines: EchoEngine) -> list[str]:
    """Pointers of query 0, by the numbers of their items."""
    prompts = [prompt for engine in engines for batch in engine.batches for prompt in batch]
    return sorted("".join(shot.question[8] for shot in prompt.demonstrations) for prompt in prompts)


@asynccontextmanager
async def two(running: Running, settings: ScorerSettings, *engines: EchoEngine) -> AsyncGenerator[list[httpx.AsyncClient]]:
    async with running(create_app(settings, engines[0])) as a, running(create_app(settings, engines[1])) as b:
        yield [a, b]


def claims(settings: ScorerSettings) -> int:
    engine = open_store(settings.store_url)
    try:
        with engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(score_claims)).scalar_one()
    finally:
        engine.dispose()


def test_the_same_request_to_two_scorers_is_worked_on_once(settings: ScorerSettings, running: Running) -> None:
    engines = [EchoEngine(delay_s=0.02), EchoEngine(delay_s=0.02)]
    pointers = [[first, second] for first in range(1, 6) for second in range(1, 4) if first != second][:8]

    async def scenario() -> None:
        async with two(running, settings, *engines) as clients:
            request = body(0, *pointers)
            answers = await asyncio.gather(*(client.post("/score", json=request) for client in clients))
            assert [answer.status_code for answer in answers] == [200, 200], answers[0].text + answers[1].text
            assert answers[0].json()["results"] == answers[1].json()["results"]
            assert asked(*engines) == sorted(f"{first}{second}" for first, second in pointers)
            totals = [(await client.get("/stats")).json()["totals"] for client in clients]
            assert sum(total["generated"] for total in totals) == 8
            assert [total["failed_batches"] for total in totals] == [0, 0]
            # What another scorer made meanwhile was not there when the request came.
            assert [total["cached"] for total in totals] == [0, 0]
            again = (await clients[1].post("/score", json=request)).json()
            assert (again["stats"]["cached"], again["results"]) == (8, answers[0].json()["results"])
        assert await asyncio.to_thread(claims, settings) == 0

    asyncio.run(scenario())


def test_texts_and_probabilities_are_claimed_apart(settings: ScorerSettings, running: Running) -> None:
    engines = [EchoEngine(delay_s=0.02), EchoEngine(delay_s=0.02)]

    async def scenario() -> None:
        async with two(running, settings, *engines) as clients:
            request = body(0, [1], [2], gt_prob=True)
            answers = await asyncio.gather(*(client.post("/score", json=request) for client in clients))
            assert answers[0].json()["results"] == answers[1].json()["results"]
        assert asked(*engines) == ["1", "2"]
        assert sum(len(batch) for engine in engines for batch in engine.weighed) == 2

    asyncio.run(scenario())


def test_other_work_goes_on_while_another_scorer_makes_a_score(settings: ScorerSettings, running: Running) -> None:
    gate = Event()
    slow, quick = EchoEngine(gate=gate), EchoEngine()

    async def scenario() -> None:
        async with two(running, settings, slow, quick) as (a, b):
            first = asyncio.ensure_future(a.post("/score", json=body(0, [1])))
            assert await asyncio.to_thread(slow.started.wait, 10)
            second = asyncio.ensure_future(b.post("/score", json=body(0, [1], [2])))
            assert (await b.post("/score", json=body(0, [3]))).status_code == 200
            assert not second.done()
            gate.set()
            for answer in await asyncio.gather(first, second):
                assert answer.status_code == 200, answer.text
        assert (asked(slow), asked(quick)) == (["1"], ["2", "3"])

    asyncio.run(scenario())


def test_a_long_batch_keeps_its_claims_and_a_scorer_that_is_gone_does_not(
    settings: ScorerSettings, running: Running, dataset: Dataset
) -> None:
    """Scorer A works on pointer 1 for four times as long as its claim lasts; `gone` claimed pointer 2 and was killed."""
    settings = settings.model_copy(update={"claim_expiry_s": 0.5})
    gate = Event()
    slow, quick = EchoEngine(gate=gate), EchoEngine()
    store = open_store(settings.store_url)
    gone = ClaimStore(store, "gone")
    sets = (digest(dataset.fingerprint()), digest(quick.generation_fingerprint()))
    gone.claim(*sets, "text", [(ItemId(0), (ItemId(2),))], expiry_s=0.5)

    async def scenario() -> None:
        async with two(running, settings, slow, quick) as (a, b):
            first = asyncio.ensure_future(a.post("/score", json=body(0, [1])))
            assert await asyncio.to_thread(slow.started.wait, 10)
            end = time.monotonic() + 2.0
            second = asyncio.ensure_future(b.post("/score", json=body(0, [1])))
            assert (await b.post("/score", json=body(0, [2]))).status_code == 200
            await asyncio.sleep(end - time.monotonic())
            assert not second.done()
            gate.set()
            for answer in await asyncio.gather(first, second):
                assert answer.status_code == 200, answer.text
        assert (asked(slow), asked(quick)) == (["1"], ["2"])

    asyncio.run(scenario())
    store.dispose()


class Picky(EchoEngine):
    """Has no answer behind item 2 that stands last."""

    def generate(self, prompts: Sequence[ScoringPrompt]) -> list[str | LeverPlusError]:  # type: ignore[override]
        texts = super().generate(prompts)
        return [
            GenerationFailed(prompts=1, reason="not this one") if prompt.demonstrations[-1].question[8] == "2" else text
            for prompt, text in zip(prompts, texts, strict=True)
        ]


def test_a_prompt_that_fails_alone_is_left_to_others_at_once(settings: ScorerSettings, running: Running) -> None:
    async def scenario() -> None:
        async with two(running, settings, Picky(), EchoEngine()) as (picky, other):
            assert (await picky.post("/score", json=body(0, [1], [2]))).status_code == 500
            assert await asyncio.to_thread(claims, settings) == 0
            answer = (await other.post("/score", json=body(0, [1], [2]))).json()
            assert answer["stats"]["cached"] == 1

    asyncio.run(scenario())


def test_a_batch_that_fails_releases_its_claims(settings: ScorerSettings, running: Running) -> None:
    engines = [EchoEngine(failure=RuntimeError("out of memory")), EchoEngine()]

    async def scenario() -> None:
        async with two(running, settings, *engines) as (a, b):
            assert (await a.post("/score", json=body(0, [1]))).status_code == 500
            assert await asyncio.to_thread(claims, settings) == 0
            # Far below the 15 s after which the claim would have expired.
            async with asyncio.timeout(5):
                assert (await b.post("/score", json=body(0, [1]))).status_code == 200

    asyncio.run(scenario())


def test_an_engine_that_hangs_keeps_its_keys_for_the_deadline_only(settings: ScorerSettings, running: Running) -> None:
    gate = Event()
    hanging, quick = EchoEngine(gate=gate), EchoEngine()
    short = settings.model_copy(update={"claim_expiry_s": 0.5, "deadline_s": 0.5})

    async def scenario() -> None:
        async with running(create_app(short, hanging)) as a, running(create_app(settings, quick)) as b:
            first = asyncio.ensure_future(a.post("/score", json=body(0, [1])))
            assert await asyncio.to_thread(hanging.started.wait, 10)
            assert (await b.post("/score", json=body(0, [1]))).status_code == 200
            assert (await first).status_code == 504
            gate.set()
        assert (asked(hanging), asked(quick)) == (["1"], ["1"])
        store = open_store(settings.store_url)
        assert ScoreStore(store).count() == 1
        store.dispose()

    asyncio.run(scenario())


def test_a_database_that_goes_away_is_unavailable_and_the_scorer_recovers(
    settings: ScorerSettings, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables of claims cannot be written for a while, as when a disk is full or a server restarts."""
    engine = EchoEngine()
    stores = []

    def opened(url: str):
        stores.append(open_store(url))
        return stores[-1]

    monkeypatch.setattr("vqa_scorer.app.open_store", opened)

    async def scenario() -> None:
        async with running(create_app(settings, engine)) as client:

            def refuse(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
                if "score_claims" in statement:
                    raise stores[0].dialect.dbapi.OperationalError("the disk is full")

            event.listen(stores[0], "before_cursor_execute", refuse)
            answer = await client.post("/score", json=body(0, [1]))
            assert (answer.status_code, answer.json()["type"]) == (503, "Unavailable")
            assert "the disk is full" in answer.json()["detail"]
            assert engine.batches == []
            event.remove(stores[0], "before_cursor_execute", refuse)
            assert (await client.post("/score", json=body(0, [1]))).status_code == 200

    asyncio.run(scenario())


def test_a_claim_that_was_lost_costs_a_generation_and_no_score(settings: ScorerSettings, running: Running) -> None:
    """As when another machine's clock runs far ahead."""
    gate = Event()
    slow, quick = EchoEngine(gate=gate, zero_shot="first"), EchoEngine(zero_shot="first")

    async def scenario() -> None:
        async with two(running, settings, slow, quick) as (a, b):
            first = asyncio.ensure_future(a.post("/score", json=body(0, [])))
            assert await asyncio.to_thread(slow.started.wait, 10)
            store = open_store(settings.store_url)
            with store.begin() as connection:
                connection.execute(delete(score_claims))
            assert (await b.post("/score", json=body(0, []))).status_code == 200
            slow.zero_shot = "second"
            gate.set()
            late = (await first).json()["results"][0]["candidates"][0]["vqa_raw_generation"]
            assert late == "first"
            assert ScoreStore(store).count() == 1
            store.dispose()

    asyncio.run(scenario())
