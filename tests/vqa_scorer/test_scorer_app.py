from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from threading import Event
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from leverplus.dataset import Dataset
from leverplus.scoring import ScoreRequest
from leverplus.store import ScoreStore, open_store
from vqa_scorer.app import create_app
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

Running = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


def body(*queries: tuple[int, list[list[int]]], dataset: str = "toy", **options: Any) -> dict[str, Any]:
    listed = [{"query_id": query_id, "pointers": pointers} for query_id, pointers in queries]
    return {"dataset": dataset, "queries": listed, "options": options}


def asked(engine: EchoEngine) -> list[tuple[list[str], str]]:
    return [
        ([shot.question for shot in prompt.demonstrations], prompt.query.question) for batch in engine.batches for prompt in batch
    ]


def test_answers_in_the_order_of_the_request_with_every_mode(
    settings: ScorerSettings, running: Running, dataset: Dataset
) -> None:
    engine = EchoEngine(zero_shot="red\nQuestion: more")

    async def scenario() -> None:
        async with running(create_app(settings, engine)) as client:
            request = body((0, [[1, 3], [3, 1, 2, 5], []]), (3, [[2], [0, 4]]), (4, [[]]))
            answer = await client.post("/score", json=request)
            assert answer.status_code == 200, answer.text
            result = answer.json()
            rows = [
                [(c["pointer"], c["vqa_pred_answer"], c["vqa_correct"], c["vqa_acc_score"], c["vqa_eval_mode"]) for c in q]
                for q in (query["candidates"] for query in result["results"])
            ]
            assert rows == [
                # Item 3 answers "red", item 5 "yes"; query 0 wants ten times "red".
                [([1, 3], "red", 1, 1.0, "file"), ([3, 1, 2, 5], "yes", 0, 0.0, "file"), ([], "red", 1, 1.0, "file")],
                [([2], "blue", 0, 0.0, "fallback"), ([0, 4], "no", 0, 0.0, "fallback")],
                [([], "red", None, None, "error")],
            ]
            assert result["results"][0]["candidates"][2]["vqa_raw_generation"] == "red\nQuestion: more"
            share = {"file": 0.5, "fallback": 2 / 6, "error": 1 / 6, "cached": 0.0}
            [warning] = result["stats"].pop("warnings")
            assert result["stats"] == {"file": 3, "fallback": 2, "error": 1, "cached": 0, "share": share}
            assert warning.startswith("2 of 6 candidates (33.3%) were scored by the fallback")
            assert result["fingerprint"]["dataset"] == dataset.fingerprint()
            assert result["fingerprint"]["generation"] == engine.generation_fingerprint()
            assert result["fingerprint"]["metric"]["flavour"] == "official"
        assert (["what is 1?", "what is 3?"], "what is 0?") in asked(engine)

    asyncio.run(scenario())


def test_committed_scores_need_no_engine_also_for_another_flavour_and_after_a_restart(
    settings: ScorerSettings, running: Running
) -> None:
    request = body((0, [[1], [2, 1], [1]]), (1, [[0]]))

    async def scenario() -> None:
        first, second = EchoEngine(), EchoEngine(failure=AssertionError("must not be asked"))
        async with running(create_app(settings, first)) as client:
            one = (await client.post("/score", json=request)).json()
            two = (await client.post("/score", json=request)).json()
            assert one["results"] == two["results"]
            assert (one["stats"]["cached"], two["stats"]["cached"]) == (0, 4)
            assert len(asked(first)) == 3
            store = ScoreStore(open_store(settings.store_url))
            assert store.count() == 3
        async with running(create_app(settings, second)) as client:
            other = await client.post("/score", json={**request, "options": {"flavour": "lever_plus"}})
            assert other.status_code == 200, other.text
            assert other.json()["stats"]["cached"] == 4
            assert other.json()["fingerprint"]["metric"]["flavour"] == "lever_plus"

    asyncio.run(scenario())


def test_a_mark_of_the_models_own_in_a_text_is_refused_before_the_engine_is_asked(
    settings: ScorerSettings, running: Running
) -> None:
    """`is 2` stands in the question of item 2, `red` in the answers of items 0 and 3."""
    engine = EchoEngine(reserved=frozenset({"is 2", "red"}))

    async def scenario() -> None:
        async with running(create_app(settings, engine)) as client:
            for request, named in [
                (body((1, [[]]), (2, [[]])), "question of item 2 holds 'is 2'"),
                (body((1, [[5], [2]])), "question of item 2 holds 'is 2'"),
                (body((1, [[5, 3]])), "answer of item 3 holds 'red'"),
            ]:
                answer = await client.post("/score", json=request)
                assert (answer.status_code, answer.json()["type"]) == (422, "InvalidInput")
                assert named in answer.json()["detail"]
            assert engine.batches == []
            # Of a query only the question is shown.
            assert (await client.post("/score", json=body((0, [[1]])))).status_code == 200

    asyncio.run(scenario())


def test_racing_requests_share_batches_and_identical_pointers(settings: ScorerSettings, running: Running) -> None:
    gate = Event()
    engine = EchoEngine(gate=gate)

    async def scenario() -> None:
        async with running(create_app(settings, engine)) as client:
            first = asyncio.ensure_future(client.post("/score", json=body((0, [[]]))))
            assert await asyncio.to_thread(engine.started.wait, 10)
            requests = [body((0, [[], [1]])), body((0, [[1], [2]])), body((0, [[3]]))]
            others = [asyncio.ensure_future(client.post("/score", json=request)) for request in requests]
            async with asyncio.timeout(10):
                while (await client.get("/stats")).json()["queue"]["waiting"] < 3:
                    await asyncio.sleep(0.01)
            gate.set()
            for answer in await asyncio.gather(first, *others):
                assert answer.status_code == 200, answer.text
        assert [len(batch) for batch in engine.batches] == [1, 3]

    asyncio.run(scenario())


def test_a_full_queue_is_429_with_retry_after(settings: ScorerSettings, running: Running) -> None:
    gate = Event()
    engine = EchoEngine(gate=gate)

    async def scenario() -> None:
        async with running(create_app(settings.model_copy(update={"queue_size": 2}), engine)) as client:
            first = asyncio.ensure_future(client.post("/score", json=body((0, [[]]))))
            assert await asyncio.to_thread(engine.started.wait, 10)
            never = await client.post("/score", json=body((0, [[1], [2], [3]])))
            assert (never.status_code, never.json()["type"]) == (422, "InvalidInput")
            assert never.json()["context"] == {"pending": 3, "fits": 2}
            assert "Retry-After" not in never.headers
            second = asyncio.ensure_future(client.post("/score", json=body((0, [[1]]))))
            while (await client.get("/stats")).json()["queue"]["waiting"] < 1:
                await asyncio.sleep(0.01)
            refused = await client.post("/score", json=body((0, [[2], [3]])))
            assert (refused.status_code, refused.json()["type"]) == (429, "QueueFull")
            assert int(refused.headers["Retry-After"]) >= 1
            gate.set()
            assert (await first).status_code == 200
            assert (await second).status_code == 200
            assert (await client.get("/stats")).json()["totals"]["refused"] == 1
        assert len(asked(engine)) == 2

    asyncio.run(scenario())


def test_a_failed_batch_answers_every_request_and_stores_nothing(settings: ScorerSettings, running: Running) -> None:
    engine = EchoEngine(failure=RuntimeError("out of memory"))

    async def scenario() -> None:
        async with running(create_app(settings, engine)) as client:
            answers = await asyncio.gather(*(client.post("/score", json=body((0, [[item]]))) for item in (1, 2, 3)))
            for answer in answers:
                assert (answer.status_code, answer.json()["type"]) == (500, "GenerationFailed")
                assert "out of memory" in answer.json()["detail"]
            engine.failure = None
            assert (await client.post("/score", json=body((0, [[1]])))).json()["stats"]["cached"] == 0

    asyncio.run(scenario())


def test_past_the_deadline_is_504_and_leaves_the_queue(settings: ScorerSettings, running: Running) -> None:
    gate = Event()
    engine = EchoEngine(gate=gate)

    async def scenario() -> None:
        async with running(create_app(settings.model_copy(update={"deadline_s": 0.5}), engine)) as client:
            answers = await asyncio.gather(*(client.post("/score", json=body((0, [[item]]))) for item in (1, 2)))
            assert [answer.status_code for answer in answers] == [504, 504]
            assert (await client.get("/stats")).json()["queue"]["waiting"] == 0
            gate.set()

    asyncio.run(scenario())


def test_a_client_that_went_away_frees_its_places(settings: ScorerSettings, running: Running) -> None:
    gate = Event()
    engine = EchoEngine(gate=gate)
    app = create_app(settings, engine)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/score",
        "raw_path": b"/score",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def scenario() -> None:
        async with running(app) as client:
            first = asyncio.ensure_future(client.post("/score", json=body((0, [[]]))))
            assert await asyncio.to_thread(engine.started.wait, 10)
            gone: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            gone.put_nowait({"type": "http.request", "body": orjson.dumps(body((0, [[1], [2]]))), "more_body": False})
            sent: list[dict[str, Any]] = []

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)

            call = asyncio.ensure_future(app(scope, gone.get, send))  # pyright: ignore[reportArgumentType]
            async with asyncio.timeout(10):
                while (await client.get("/stats")).json()["queue"]["waiting"] < 2:
                    await asyncio.sleep(0.01)
            gone.put_nowait({"type": "http.disconnect"})
            await call
            assert sent[0]["status"] == 499
            stats = (await client.get("/stats")).json()
            assert (stats["queue"]["waiting"], stats["totals"]["client_gone"]) == (0, 1)
            gate.set()
            await first
        assert len(asked(engine)) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_body", "status", "kind", "named"),
    [
        (body((0, [[1]]), dataset="absent"), 404, "NotFound", "datasets holds "),
        (body((0, [[1]]), dataset="../toy"), 422, "InvalidConfig", "../toy"),
        (body((99, [[1]])), 404, "NotFound", "99"),
        (body((0, [[99]])), 422, "InvalidPointer", "99"),
        (body((0, [[0]])), 422, "InvalidPointer", "own demonstration"),
        (body((0, [[1, 1]])), 422, "InvalidPointer", "twice"),
        (body((0, [[1, 2, 3, 4, 5]])), 422, "InvalidInput", "pointers"),
        (body((0, [[8]])), 422, "InvalidInput", "item 8 has no answer"),
        (body((0, [[1], [6]])), 404, "NotFound", "'6'"),
        (body((0, [[1], [7]])), 422, "InvalidInput", "7.png"),
        (body((6, [[]])), 404, "NotFound", "'6'"),
        (body((3, [[]]), strict=True), 422, "InvalidInput", "query 3 has 2 answers"),
        (body((0, [[]]), flavour="loose"), 422, "InvalidInput", "flavour"),
        (body((0, [[]]), colour="red"), 422, "InvalidInput", "colour"),
        ({"dataset": "toy"}, 422, "InvalidInput", "queries"),
    ],
)
def test_faults_are_problems_that_name_the_thing_and_nothing_is_asked(
    settings: ScorerSettings, running: Running, request_body: dict[str, Any], status: int, kind: str, named: str
) -> None:
    engine = EchoEngine()

    async def scenario() -> None:
        async with running(create_app(settings, engine)) as client:
            answer = await client.post("/score", json=request_body)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
            assert answer.json()["type"] == kind
            assert named in answer.json()["detail"]
        assert engine.batches == []

    asyncio.run(scenario())


def test_ready_only_once_loaded_and_a_failed_load_says_why(settings: ScorerSettings) -> None:
    reasons: list[str] = []
    engine = EchoEngine(load_failure=ValueError("half a file"))
    app = create_app(settings, engine, load_failed=reasons.append)

    async def scenario() -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://scorer") as client:
            before = await client.get("/health/ready")
            assert (before.status_code, before.json()["type"]) == (503, "Unavailable")
            assert "being loaded" in before.json()["detail"]
            assert before.headers["Retry-After"] == "2"
            assert (await client.post("/score", json=body((0, [[]])))).status_code == 503
            async with app.router.lifespan_context(app):
                limit = time.monotonic() + 10
                while not reasons and time.monotonic() < limit:
                    await asyncio.sleep(0.01)
                after = await client.get("/health/ready")
                assert after.status_code == 503
                assert "ValueError: half a file" in after.json()["detail"]
                assert (await client.get("/health/live")).status_code == 200
        assert reasons == ["ValueError: half a file"]

    asyncio.run(scenario())


def test_stats_and_metrics_count_since_start(settings: ScorerSettings, running: Running) -> None:
    async def scenario() -> None:
        async with running(create_app(settings, EchoEngine())) as client:
            empty = (await client.get("/stats")).json()
            assert empty["share"] == {"file": None, "fallback": None, "error": None, "cached": None}
            assert (empty["pointers_per_s"], empty["mean_batch_size"]) == (None, None)
            request = body((0, [[1], [2]]), (3, [[1]]), (4, [[]]))
            for _ in range(2):
                await client.post("/score", json=request)
            stats = (await client.get("/stats")).json()
            totals = {name: stats["totals"][name] for name in ("requests", "file", "fallback", "error", "cached", "generated")}
            assert totals == {"requests": 2, "file": 4, "fallback": 2, "error": 2, "cached": 4, "generated": 4}
            assert stats["share"] == {"file": 0.5, "fallback": 0.25, "error": 0.25, "cached": 0.5}
            assert stats["queue"] == {"waiting": 0, "in_progress": 0, "capacity": 8}
            assert stats["pointers_per_s"] > 0
            metrics = (await client.get("/metrics")).text
            assert 'vqa_scorer_candidates_total{mode="file"} 4.0' in metrics
            assert "vqa_scorer_generated_total 4.0" in metrics
            assert "vqa_scorer_queue_capacity 8.0" in metrics

    asyncio.run(scenario())


def test_a_request_of_too_many_pointers_is_refused_before_it_is_planned() -> None:
    queries = [{"query_id": number, "pointers": [[]] * 10_000} for number in range(26)]
    with pytest.raises(ValidationError, match="260000 pointers in one request, at most 250000"):
        ScoreRequest.model_validate({"dataset": "toy", "queries": queries})
