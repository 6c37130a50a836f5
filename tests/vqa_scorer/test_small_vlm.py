"""The VLM in assets/, through HTTP and through the same code as any other model directory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import httpx
from fastapi import FastAPI

from leverplus.dataset import Dataset
from leverplus.prompts import Shot
from vqa_scorer.app import create_app
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.transformers import TransformersEngine
from vqa_scorer.settings import ScorerSettings

SMALL_VLM = Path(__file__).parents[2] / "assets" / "small-vlm"
POINTERS = [[], [1], [2, 3], [3, 2], [5, 4, 1], [1, 2, 3, 4]]


def test_scored_over_http_as_generated_one_at_a_time(
    settings: ScorerSettings,
    running: Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]],
    dataset: Dataset,
) -> None:
    engine = TransformersEngine(SMALL_VLM, device="cpu", dtype="float32")
    engine.load()

    def shot(item_id: int, *, solved: bool) -> Shot:
        item = dataset.item(item_id)
        return Shot(dataset.image_path(item_id), item.question, item.answer if solved else None)

    alone = [
        engine.generate([ScoringPrompt(tuple(shot(item, solved=True) for item in pointer), shot(0, solved=False))])[0]
        for pointer in POINTERS
    ]

    async def scenario() -> None:
        chosen = settings.model_copy(update={"vlm": SMALL_VLM, "device": "cpu", "dtype": "float32"})
        async with running(create_app(chosen)) as client:
            request = {"dataset": "toy", "queries": [{"query_id": 0, "pointers": POINTERS}]}
            answer = await client.post("/score", json=request, timeout=60)
            assert answer.status_code == 200, answer.text
            assert [row["vqa_raw_generation"] for row in answer.json()["results"][0]["candidates"]] == alone
            assert answer.json()["fingerprint"]["generation"] == engine.generation_fingerprint()

    asyncio.run(scenario())
