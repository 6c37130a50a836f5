"""Rewards of pointers that assets/reward-table does not hold, those of three and four demonstrations: asked of its VLM itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from provenance import ROOT

from leverplus.dataset import Dataset
from leverplus.ids import ItemId
from leverplus.metric import extract_answer, score_answer
from leverplus.prompts import Shot

Asked = tuple[ItemId, tuple[ItemId, ...]]
"""A query and the demonstrations before it."""


class LiveRewards:
    """VQA accuracies of greedy answers, as the table's: float32 on a processor, one thread. Each pointer is asked once."""

    def __init__(self, dataset: Dataset, vlm: Path = ROOT / "assets" / "in-context-vlm") -> None:
        self._dataset, self._vlm = dataset, vlm
        self._texts: Callable[[Sequence[Asked]], Sequence[str]] | None = None
        self._known: dict[Asked, float] = {}

    def ask(self, asked: Iterable[Asked]) -> None:
        new = sorted({one for one in asked if one not in self._known})
        if new and self._texts is None:
            self._texts = self._engine()
        for begin in range(0, len(new), 256):
            part = new[begin : begin + 256]
            assert self._texts is not None
            for (query_id, pointer), text in zip(part, self._texts(part), strict=True):
                answers = self._dataset.item(query_id).answers
                accuracy = score_answer(extract_answer(text), answers).accuracy
                assert accuracy is not None, f"item {query_id} has no answers"
                self._known[query_id, pointer] = accuracy

    def reward(self, query_id: ItemId, pointer: tuple[ItemId, ...]) -> float:
        """Of a pointer that was asked for."""
        return self._known[query_id, pointer]

    def _engine(self) -> Callable[[Sequence[Asked]], Sequence[str]]:
        # Here: who stays within the table needs neither the scorer nor transformers.
        from vqa_scorer.engines import ScoringPrompt, all_texts, processor
        from vqa_scorer.engines.transformers import TransformersEngine

        processor.torchvision_works = lambda: False  # PIL's image processor, as in the table
        engine = TransformersEngine(self._vlm, device="cpu", dtype="float32", batch_size=64, threads=1)
        engine.load()

        def prompt(query_id: ItemId, pointer: tuple[ItemId, ...]) -> ScoringPrompt:
            shown = [self._dataset.item(item_id) for item_id in pointer]
            shots = tuple(Shot(self._dataset.image_path(one.item_id), one.question, one.answer) for one in shown)
            return ScoringPrompt(shots, Shot(self._dataset.image_path(query_id), self._dataset.item(query_id).question))

        return lambda part: all_texts(engine.generate([prompt(*one) for one in part]))
