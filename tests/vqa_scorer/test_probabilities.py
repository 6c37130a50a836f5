"""P of annotated answers: against stock transformers, by hand over a toy model, and over HTTP from the store."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from leverplus.dataset.invented_words.families import QUESTIONS
from leverplus.dataset.invented_words.scenes import FRAMES, draw_scene, render
from leverplus.dataset.invented_words.words import COLOURS, LANGUAGE_NAMES, SHAPES, WORDS
from leverplus.prompts import SHORT_ANSWER, Shot
from vqa_scorer.app import create_app
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.decoding import Advance
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.engines.prefixes import EncodedPrompt
from vqa_scorer.engines.probabilities import answer_probabilities
from vqa_scorer.engines.processor import load_processor
from vqa_scorer.engines.qwen2_5_vl import encode
from vqa_scorer.engines.transformers import TransformersEngine
from vqa_scorer.settings import ScorerSettings

DEFAULT_VLM = Path(__file__).parents[2] / "assets" / "in-context-vlm"
Running = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def prompts(tmp_path: Path) -> list[ScoringPrompt]:
    shots: list[Shot] = []
    for number, (colour, size) in enumerate([("red", (64, 64)), ("green", (90, 60)), ("blue", (64, 64))]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size, colour).save(path)
        shots.append(Shot(path, f"{'which ' * number}colour?", colour))
    query = Shot(shots[0].image, "and this one?")
    return [ScoringPrompt(tuple(shots[3 - count :]), query) for count in (1, 0, 3)]


def loaded(folder: Path, **options: Any) -> TransformersEngine:
    engine = TransformersEngine(folder, device="cpu", dtype="float32", **options)
    engine.load()
    return engine


def stock_probability(folder: Path, prompt: ScoringPrompt, answer: str) -> float:
    """The likelier spelling in one plain forward of the stock model over prompt and answer."""
    processor = load_processor(folder)
    model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    messages = SHORT_ANSWER.messages(prompt.demonstrations, prompt.query)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    images = [Image.open(shot.image).convert("RGB") for shot in (*prompt.demonstrations, prompt.query)]
    found: list[float] = []
    for spelling in (answer, f" {answer}"):
        inputs = processor(text=[text + spelling], images=images, return_tensors="pt")
        count = len(processor.tokenizer(spelling)["input_ids"])
        with torch.inference_mode():
            log_probs = model(**inputs).logits[0, -count - 1 : -1].log_softmax(-1)
        cross_entropy = -log_probs.gather(1, inputs["input_ids"][0, -count:, None]).mean()
        found.append(math.exp(-cross_entropy.item()))
    return max(found)


@pytest.mark.parametrize("vlm", ["default", "random"])
def test_probabilities_are_those_of_a_stock_forward(vlm: str, random_vlm: Path, prompts: list[ScoringPrompt]) -> None:
    folder = DEFAULT_VLM if vlm == "default" else random_vlm
    answers = [["red", "blue", "a rather long answer"], ["red"], ["red bus", "no", "blue"]]
    ours = loaded(folder).answer_probabilities(prompts, answers)
    stock = [[stock_probability(folder, prompt, answer) for answer in own] for prompt, own in zip(prompts, answers, strict=True)]
    for one, other in zip(ours, stock, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)
    assert len({value for own in ours for value in own}) == 7


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_batch_gives_what_one_at_a_time_gives(random_vlm: Path, prompts: list[ScoringPrompt], batch_size: int) -> None:
    answers = [["red", "a", "blue green", "many words here"], [], ["red", "blue"]]
    together = loaded(random_vlm, batch_size=batch_size).answer_probabilities(prompts, answers)
    engine = loaded(random_vlm)
    for prompt, own, found in zip(prompts, answers, together, strict=True):
        alone = [engine.answer_probabilities([prompt], [[answer]])[0][0] for answer in own]
        assert found == pytest.approx(alone, rel=1e-5)


def test_the_demonstrated_answer_is_the_likelier_one(tmp_path: Path) -> None:
    """The VLM that reads invented words off its demonstrations finds the one that was shown likelier, and its reply likely."""
    colour, question = COLOURS[0], QUESTIONS["colour"].format(language=LANGUAGE_NAMES[0])
    paths = [tmp_path / "shown.png", tmp_path / "asked.png"]
    for seed, path in enumerate(paths):
        Image.fromarray(render(draw_scene(colour, SHAPES[seed], FRAMES[0], seed))).save(path)
    words = WORDS[:4]
    query = Shot(paths[1], question)
    asked = [ScoringPrompt((Shot(paths[0], question, word),), query) for word in words]
    found = loaded(DEFAULT_VLM).answer_probabilities(asked, [words] * 4)
    for number, own in enumerate(found):
        assert own[number] == max(own) > 0.25, own


class Chain:
    """A model whose next token depends on the last one alone: P(next | last) = table[last, next]. Records rows advanced."""

    def __init__(self, table: Tensor) -> None:
        self.logits = table.log() + 3.0
        self.advanced: list[int] = []

    def read(self, prompts: Sequence[EncodedPrompt], *, rows: int, steps: int) -> tuple[Tensor, Advance]:
        def advance(tokens: Tensor, rows: Tensor) -> Tensor:
            self.advanced.append(len(rows))
            return self.logits[tokens]

        return self.logits[torch.tensor([prompt.token_ids[-1] for prompt in prompts])], advance


def test_by_hand_on_a_chain() -> None:
    table = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.4, 0.4]])
    chain = Chain(table)
    asked = [encode([0], (), 9), encode([2, 1], (), 9)]
    # Two spellings an answer: the likelier counts.
    replies = [[[[1], [1, 2]], [[2, 0, 0], [2]]], [[[2], [0]]]]
    (first, second), (third,) = answer_probabilities(chain.read, asked, replies, batch_size=4)
    assert first == pytest.approx(max(0.25, math.sqrt(0.25 * 0.8)), rel=1e-6)
    assert second == pytest.approx(max((0.25 * 0.2 * 0.5) ** (1 / 3), 0.25), rel=1e-6)
    assert third == pytest.approx(0.8, rel=1e-6)
    assert chain.advanced == [2, 1], "what has ended takes no more place"


def test_what_has_no_probability_is_no_number() -> None:
    chain = Chain(torch.full((3, 3), float("nan")))
    with pytest.raises(ArithmeticError, match="no finite number"):
        answer_probabilities(chain.read, [encode([0], (), 9)], [[[[1]]]], batch_size=1)
    with pytest.raises(ValueError, match="no token"):
        answer_probabilities(chain.read, [encode([0], (), 9)], [[[[]]]], batch_size=1)


def body(*queries: tuple[int, list[list[int]]], **options: Any) -> dict[str, Any]:
    listed = [{"query_id": query_id, "pointers": pointers} for query_id, pointers in queries]
    return {"dataset": "toy", "queries": listed, "options": options}


def rows(answer: httpx.Response) -> list[list[tuple[float | None, float | None]]]:
    assert answer.status_code == 200, answer.text
    return [[(one["vqa_gt_prob"], one["info_score"]) for one in query["candidates"]] for query in answer.json()["results"]]


def test_over_http_on_request_only_and_from_the_store_after_a_restart(settings: ScorerSettings, running: Running) -> None:
    # Items 0 and 3 answer "red", ten and two annotators did; item 4 answers "no", and no annotator did; item 8 has no answer.
    queries = ((0, [[], [3], [1, 3], [3, 1]]), (3, [[0]]), (4, [[], [1]]), (8, [[1]]))
    pair = 2 / 4 - 2 / 3
    wanted = [
        [(1 / 2, None), (2 / 3, 2 / 3 - 1 / 2), (2 / 4, pair), (2 / 4, 2 / 4 - 1 / 3)],
        [(2 / 3 * 2 / 3, 2 / 3 - 1 / 2)],
        [(None, None), (None, 1 / 3 - 1 / 2)],
        [(None, None)],
    ]

    async def scenario() -> None:
        first, second = EchoEngine(), EchoEngine(failure=AssertionError("must not be asked"))
        async with running(create_app(settings, first)) as client:
            for options in ({}, {"gt_prob": False}):
                (found,) = rows(await client.post("/score", json=body(*queries[:1], **options)))
                assert found == [(None, None)] * 4
            assert first.weighed == []
            some = await client.post("/score", json=body((0, [[3], []]), info_score=True))
            assert rows(some)[0] == [(None, pytest.approx(2 / 3 - 1 / 2)), (None, None)]
            assert some.json()["stats"]["cached"] == 1
            for query in queries:
                await client.post("/score", json=body(query, gt_prob=True, info_score=True))
            asked = [prompt for batch in first.weighed for prompt in batch]
            # Query 0 behind (), (3), (1, 3), (1), (3, 1); query 3 behind (), (0); query 4 behind (), (1); each once.
            assert len(asked) == 9
            stats = (await client.get("/stats")).json()
            assert (stats["totals"]["weighed"], stats["totals"]["generated"]) == (9, 8)
            assert "vqa_scorer_weighed_total 9.0" in (await client.get("/metrics")).text
        async with running(create_app(settings, second)) as client:
            for query, own in zip(queries, wanted, strict=True):
                answer = await client.post("/score", json=body(query, gt_prob=True, info_score=True, flavour="lever_plus"))
                (found,) = rows(answer)
                for one, other in zip(found, own, strict=True):
                    assert one == tuple(None if value is None else pytest.approx(value) for value in other)
                assert answer.json()["stats"]["cached"] == len(own)

    asyncio.run(scenario())


def test_engines_without_probabilities_and_marks_in_answers_are_refused(settings: ScorerSettings, running: Running) -> None:
    async def scenario() -> None:
        engine = EchoEngine(has_probabilities=False)
        async with running(create_app(settings, engine)) as client:
            for option in ("gt_prob", "info_score"):
                refused = await client.post("/score", json=body((0, [[1]]), **{option: True}))
                assert (refused.status_code, refused.json()["type"]) == (422, "InvalidInput")
                assert f"options.{option} needs the probabilities" in refused.json()["detail"]
        assert engine.batches == engine.weighed == []
        marked = EchoEngine(reserved=frozenset({"red"}))
        async with running(create_app(settings, marked)) as client:
            assert (await client.post("/score", json=body((0, [[1]])))).status_code == 200
            refused = await client.post("/score", json=body((0, [[1]]), gt_prob=True))
            assert refused.status_code == 422
            assert "the answer of item 0 holds 'red'" in refused.json()["detail"]

    asyncio.run(scenario())


def test_a_queue_that_is_too_short_says_how_many_pointers_fit(settings: ScorerSettings, running: Running) -> None:
    request = body((0, [[1], [2], [3], [1, 2]]), info_score=True)

    async def scenario() -> None:
        async with running(create_app(settings, EchoEngine())) as client:
            refused = await client.post("/score", json=request)
            assert (refused.status_code, refused.json()["context"]["fits"]) == (422, 2), refused.text
            assert "at most 2 at a time" in refused.json()["detail"]

    asyncio.run(scenario())
