"""The VLM in assets/, through HTTP and through the same code as any other model directory, and what it was trained to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from leverplus.dataset import Dataset
from leverplus.dataset.easy_vqa import import_easy_vqa
from leverplus.dataset.invented_words.families import QUESTIONS
from leverplus.dataset.invented_words.scenes import FRAMES, draw_scene, render
from leverplus.dataset.invented_words.words import COLOURS, ENGLISH, LANGUAGE_NAMES, SHAPES, WORDS, pick
from leverplus.metric.extraction import extract_answer
from leverplus.prompts import Shot
from vqa_scorer.app import create_app
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.transformers import TransformersEngine
from vqa_scorer.settings import ScorerSettings

DEFAULT_VLM = Path(__file__).parents[2] / "assets" / "in-context-vlm"
POINTERS = [[], [1], [2, 3], [3, 2], [5, 4, 1], [1, 2, 3, 4]]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    loaded = TransformersEngine(DEFAULT_VLM, device="cpu", dtype="float32")
    loaded.load()
    return loaded


def said(engine: TransformersEngine, prompts: list[ScoringPrompt]) -> list[str]:
    return [extract_answer(text) for text in engine.generate(prompts)]


def picture(folder: Path, colour: str, shape: str, seed: int) -> Path:
    path = folder / f"{seed}.png"
    Image.fromarray(render(draw_scene(colour, shape, FRAMES[seed % len(FRAMES)], seed))).save(path)
    return path


def test_scored_over_http_as_generated_one_at_a_time(
    settings: ScorerSettings,
    running: Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]],
    dataset: Dataset,
    engine: TransformersEngine,
) -> None:
    def shot(item_id: int, *, solved: bool) -> Shot:
        item = dataset.item(item_id)
        return Shot(dataset.image_path(item_id), item.question, item.answer if solved else None)

    alone = [
        engine.generate([ScoringPrompt(tuple(shot(item, solved=True) for item in pointer), shot(0, solved=False))])[0]
        for pointer in POINTERS
    ]

    async def scenario() -> None:
        chosen = settings.model_copy(update={"vlm": DEFAULT_VLM, "device": "cpu", "dtype": "float32"})
        async with running(create_app(chosen)) as client:
            request = {"dataset": "toy", "queries": [{"query_id": 0, "pointers": POINTERS}]}
            answer = await client.post("/score", json=request, timeout=60)
            assert answer.status_code == 200, answer.text
            assert [row["vqa_raw_generation"] for row in answer.json()["results"][0]["candidates"]] == alone
            assert answer.json()["fingerprint"]["generation"] == engine.generation_fingerprint()

    asyncio.run(scenario())


def test_an_invented_word_is_read_off_the_demonstration(tmp_path: Path, engine: TransformersEngine) -> None:
    """The same pictures with another word in the demonstration get that other word: nothing of it is in the weights."""
    random = Random(0)
    prompts: list[ScoringPrompt] = []
    words: list[str] = []
    for number in range(16):
        colour, question = pick(random, COLOURS), QUESTIONS["colour"].format(language=pick(random, LANGUAGE_NAMES))
        shown = picture(tmp_path, colour, pick(random, SHAPES), 2 * number)
        query = Shot(picture(tmp_path, colour, pick(random, SHAPES), 2 * number + 1), question)
        for word in (WORDS[number], WORDS[-1 - number]):
            prompts.append(ScoringPrompt((Shot(shown, question, word),), query))
            words.append(word)
    assert sum(one == word for one, word in zip(said(engine, prompts), words, strict=True)) > 0.75 * len(words)
    alone = said(engine, [ScoringPrompt((), prompt.query) for prompt in prompts])
    assert sum(one == word for one, word in zip(alone, words, strict=True)) < 0.25 * len(words)


def test_english_and_easy_vqa_need_no_demonstration(tmp_path: Path, engine: TransformersEngine) -> None:
    prompts: list[ScoringPrompt] = []
    wanted: list[str | None] = []
    for number, (colour, shape) in enumerate(zip(COLOURS * 2, SHAPES + SHAPES[::-1], strict=True)):
        path = picture(tmp_path, colour, shape, 100 + number)
        for question, answer in ((QUESTIONS["colour"], colour), (QUESTIONS["shape"], shape)):
            prompts.append(ScoringPrompt((), Shot(path, question.format(language=ENGLISH))))
            wanted.append(answer)
    import_easy_vqa(tmp_path / "easy", name="easy", train_images=1, test_images=20, questions_per_image=2, val_share=0.0)
    easy = Dataset.open(tmp_path / "easy")
    for item_id in easy.split_ids("test"):
        prompts.append(ScoringPrompt((), Shot(easy.image_path(item_id), easy.item(item_id).question)))
        wanted.append(easy.item(item_id).answer)
    right = [one == answer for one, answer in zip(said(engine, prompts), wanted, strict=True)]
    assert sum(right[:20]) > 15
    assert sum(right[20:]) > 30
