from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from leverplus.scoring import ScoreStats, fallback_warning
from vqa_scorer.app import create_app
from vqa_scorer.engines import EngineCounts
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.metrics import FallbackWatch, ScorerMetrics
from vqa_scorer.settings import ScorerSettings

Running = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


def answer(file: int = 0, fallback: int = 0, error: int = 0) -> ScoreStats:
    return ScoreStats.counted(file=file, fallback=fallback, error=error, cached=0)


def test_shares_and_the_warning_of_an_answer() -> None:
    stats = answer(file=8, fallback=1, error=1)
    assert stats.share == {"file": 0.8, "fallback": 0.1, "error": 0.1, "cached": 0.0}
    assert stats.warnings == []  # a tenth, not more
    more = ScoreStats.total([stats, answer(fallback=1)])
    assert (more.file, more.fallback, more.error) == (8, 2, 1)
    assert more.warnings == [fallback_warning(2, 11)]
    assert "2 of 11 candidates (18.2%)" in more.warnings[0]
    assert ScoreStats.total([]).share == {"file": None, "fallback": None, "error": None, "cached": None}
    assert ScoreStats.model_validate_json(more.model_dump_json()) == more


def test_the_fallback_is_watched_over_the_newest_thousand_and_told_once_a_crossing(caplog: pytest.LogCaptureFixture) -> None:
    watch = FallbackWatch()
    with caplog.at_level(logging.WARNING):
        watch.add(answer(file=50, fallback=49))
        assert (watch.share, watch.warning) == (None, None)  # 99 candidates say nothing yet
        watch.add(answer(file=1))
        assert watch.share == 0.49
        watch.add(answer(file=100))
        assert watch.share == 49 / 200
        assert watch.warning is not None
        assert len(caplog.records) == 1
        watch.add(answer(file=900))
        # 1,100 are held: without the oldest answer there would be 1,001, so it is left out, and the next one too.
        assert watch.share == 0.0
        assert watch.warning is None
        watch.add(answer(file=400, fallback=600))
        assert watch.share == 0.6
    assert len(caplog.records) == 2
    assert "600 of 1000 candidates (60.0%)" in caplog.records[1].getMessage()


def samples(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values …) -> value, of every sample."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_batches_caches_phases_and_the_engine_are_told(settings: ScorerSettings, running: Running) -> None:
    queries = [{"query_id": 0, "pointers": [[1], [2], [1]]}, {"query_id": 3, "pointers": [[1]]}]

    async def scenario() -> None:
        async with running(create_app(settings, EchoEngine())) as client:
            empty = (await client.get("/stats")).json()
            assert empty["engine"]["prompts"] == 0
            assert (empty["recent_fallback_share"], empty["warnings"]) == (None, [])
            for _ in range(2):
                answered = await client.post("/score", json={"dataset": "toy", "queries": queries})
                assert answered.status_code == 200, answered.text
            stats = (await client.get("/stats")).json()
            # "what is N? <answer>" and "what is 0?": 4 + 3 words a prompt.
            assert stats["engine"] | {"seconds": None} == {
                "prompts": 3,
                "tokens": 21,
                "prefix_hits": 0,
                "prefix_misses": 0,
                "images_encoded": 0,
                "image_hits": 0,
                "seconds": None,
            }
            for name in ("prepare_seconds", "commit_seconds", "answer_seconds"):
                assert stats["totals"][name] > 0
            found = samples((await client.get("/metrics")).text)
            assert found["vqa_scorer_batch_size_count",] == stats["totals"]["batches"]
            assert found["vqa_scorer_batch_size_sum",] == 3
            assert found["vqa_scorer_batch_size_bucket", "4.0"] == stats["totals"]["batches"]
            assert found["vqa_scorer_tokens_total",] == 21
            assert found["vqa_scorer_prompts_total",] == 3
            assert found["vqa_scorer_cache_hits_total", "scores"] == 4
            assert found["vqa_scorer_cache_misses_total", "scores"] == 4
            assert found["vqa_scorer_fallback_warning",] == 0
            assert ("vqa_scorer_recent_fallback_share",) not in found
            for phase in ("prepare", "commit", "answer", "read"):
                assert found["vqa_scorer_phase_seconds_total", phase] > 0

    asyncio.run(scenario())


def test_what_an_engine_counts_is_told_and_one_that_does_not_count_is_unknown() -> None:
    counts = EngineCounts(
        prompts=9,
        tokens=800,
        prefix_hits=5,
        prefix_misses=4,
        images_encoded=2,
        image_hits=7,
        seconds={"images": 0.5, "decode": 2.0},
    )
    told = {
        (sample.name, *sample.labels.values()): sample.value
        for family in ScorerMetrics(lambda: (0, 0, 8), lambda: counts).collect()
        for sample in family.samples
    }
    assert told["vqa_scorer_images_total",] == 2
    assert (told["vqa_scorer_cache_hits_total", "images"], told["vqa_scorer_cache_misses_total", "images"]) == (7, 2)
    assert told["vqa_scorer_cache_hits_total", "first_demonstrations"] == 5
    assert told["vqa_scorer_cache_misses_total", "first_demonstrations"] == 4
    assert told["vqa_scorer_phase_seconds_total", "decode"] == 2.0
    silent = [family.name for family in ScorerMetrics(lambda: (0, 0, 8)).collect()]
    assert "vqa_scorer_tokens" not in silent
    assert "vqa_scorer_batch_size" in silent


def test_past_a_tenth_of_fallback_the_service_says_so(settings: ScorerSettings, running: Running) -> None:
    """Query 3 has two annotated answers."""
    body = {"dataset": "toy", "queries": [{"query_id": 3, "pointers": [[]] * 15}, {"query_id": 0, "pointers": [[]] * 85}]}

    async def scenario() -> None:
        async with running(create_app(settings, EchoEngine())) as client:
            answered = (await client.post("/score", json=body)).json()
            assert answered["stats"]["share"]["fallback"] == 0.15
            stats = (await client.get("/stats")).json()
            assert stats["recent_fallback_share"] == 0.15
            assert "15 of 100 candidates (15.0%)" in stats["warnings"][0]
            found = samples((await client.get("/metrics")).text)
            assert (found["vqa_scorer_recent_fallback_share",], found["vqa_scorer_fallback_warning",]) == (0.15, 1.0)

    asyncio.run(scenario())
