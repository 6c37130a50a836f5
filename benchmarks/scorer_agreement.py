"""How many answers of the engine differ from those of transformers' `generate`, in half and in single precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stock_generate import stock_texts
from transformers import AutoModelForImageTextToText

from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import generate
from leverplus.prompts import SHORT_ANSWER, Shot
from vqa_scorer.engines import ScoringPrompt, all_texts
from vqa_scorer.engines.decoding import GenerationArguments
from vqa_scorer.engines.processor import load_processor
from vqa_scorer.engines.transformers import TransformersEngine

_STOCK_BATCH = 16
_WORDS_PROMPTS = 800


def agreement(random_model: Any, processor: Any, prompts: Sequence[ScoringPrompt], vlm: Path, folder: Path) -> dict[str, Any]:
    """Shares of prompts whose texts differ, for the random weights (greedy) and for the small VLM at `vlm` (greedy and 3 beams).

    Leaves `random_model` in float32.
    """
    dtype = random_model.dtype
    found = {"random weights, greedy": _compared(random_model, processor, prompts, 1, forced=True)}
    small, own = load_processor(vlm), _words_prompts(folder)
    trained: Any = AutoModelForImageTextToText.from_pretrained(vlm, dtype=dtype).to(random_model.device).eval()
    for beams, name in ((1, "greedy"), (3, "3 beams")):
        trained.to(dtype)
        found[f"in-context VLM, {name}"] = _compared(trained, small, own, beams, forced=False)
    return found


def _compared(model: Any, processor: Any, prompts: Sequence[ScoringPrompt], beams: int, *, forced: bool) -> dict[str, Any]:
    texts = {
        "ours": _ours(model, processor, prompts, beams),
        "stock": _stock(model, processor, prompts, beams, forced=forced),
    }
    model.float()
    texts["stock float32"] = _stock(model, processor, prompts, beams, forced=forced)
    texts["ours float32"] = _ours(model, processor, prompts, beams)

    def share(one: str, other: str) -> float:
        return sum(a != b for a, b in zip(texts[one], texts[other], strict=True)) / len(prompts)

    pairs = (("ours", "stock"), ("ours", "stock float32"), ("stock", "stock float32"), ("ours float32", "stock float32"))
    return {"prompts": len(prompts), "differ": {f"{one} / {other}": share(one, other) for one, other in pairs}}


def _ours(model: Any, processor: Any, prompts: Sequence[ScoringPrompt], beams: int) -> list[str]:
    engine = TransformersEngine(Path(), arguments=GenerationArguments(5, beams, 0.0), batch_size=32)
    engine.attach(model, processor)
    return all_texts(engine.generate(prompts))


def _stock(model: Any, processor: Any, prompts: Sequence[ScoringPrompt], beams: int, *, forced: bool) -> list[str]:
    ask: Callable[[Sequence[ScoringPrompt]], list[str]] = lambda some: stock_texts(  # noqa: E731
        model, processor, SHORT_ANSWER, some, beams=beams, new_tokens=5, forced=forced
    )
    starts = range(0, len(prompts), _STOCK_BATCH)
    return [text for start in starts for text in ask(prompts[start : start + _STOCK_BATCH])]


def _words_prompts(folder: Path) -> list[ScoringPrompt]:
    """Two-shot prompts of generated questions that the VLM was trained to answer from its demonstrations."""
    generate(folder / "words", name="words", seed=5, train=64, val=1, test=_WORDS_PROMPTS // 8)
    dataset = Dataset.open(folder / "words")

    def shot(item_id: int, *, solved: bool) -> Shot:
        item = dataset.item(item_id)
        return Shot(dataset.image_path(item_id), item.question, item.answer if solved else None)

    prompts: list[ScoringPrompt] = []
    for query in dataset.split_ids("test"):
        for turn in range(8):
            first = (query * 7 + turn * 5) % 64
            shots = tuple(shot(item_id, solved=True) for item_id in (first, (first + 1 + turn) % 64))
            prompts.append(ScoringPrompt(shots, shot(query, solved=False)))
    return prompts
