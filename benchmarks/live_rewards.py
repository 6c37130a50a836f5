"""What assets/reward-table does not hold is asked of its VLM itself: answers to more than two demonstrations, and InfoScores."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from provenance import ROOT

from leverplus.dataset import Dataset
from leverplus.ids import ItemId
from leverplus.metric import extract_answer, score_answer
from leverplus.prompts import Shot

if TYPE_CHECKING:
    from vqa_scorer.engines import Engine, ScoringPrompt

Asked = tuple[ItemId, tuple[ItemId, ...]]
"""A query and the demonstrations before it."""

_BATCH = {"cpu": 64, "cuda": 512}


class LiveRewards:
    """VQA accuracies of greedy answers, and probabilities of a query's own answer, each asked once: float32, as the table's."""

    def __init__(self, dataset: Dataset, device: str = "cpu", vlm: Path = ROOT / "assets" / "in-context-vlm") -> None:
        self._dataset, self._device, self._vlm = dataset, device, vlm
        self._known: dict[Asked, float] = {}
        self._probabilities: dict[Asked, float] = {}

    def ask(self, asked: Iterable[Asked]) -> None:
        for part in _batches(asked, self._known):
            texts = self._engine.generate([self._prompt(*one) for one in part])
            for (query_id, pointer), text in zip(part, texts, strict=True):
                if isinstance(text, Exception):
                    raise text
                accuracy = score_answer(extract_answer(text), self._dataset.item(query_id).answers).accuracy
                assert accuracy is not None, f"item {query_id} has no answers"
                self._known[query_id, pointer] = accuracy

    def reward(self, query_id: ItemId, pointer: tuple[ItemId, ...]) -> float:
        """Of a pointer that was asked for."""
        return self._known[query_id, pointer]

    def weigh(self, asked: Iterable[Asked]) -> None:
        """Asks for what `info_score` needs; pointers of at least one demonstration."""
        both = {(query_id, part) for query_id, pointer in asked for part in (pointer, pointer[1:])}
        for part in _batches(both, self._probabilities):
            answers = [[self._own_answer(query_id)] for query_id, _ in part]
            found = self._engine.answer_probabilities([self._prompt(*one) for one in part], answers)
            self._probabilities.update((one, own) for one, (own,) in zip(part, found, strict=True))

    def info_score(self, query_id: ItemId, pointer: tuple[ItemId, ...]) -> float:
        """leverplus.metric.probability's, of a pointer that was weighed."""
        return self._probabilities[query_id, pointer] - self._probabilities[query_id, pointer[1:]]

    def _own_answer(self, query_id: ItemId) -> str:
        answer = self._dataset.item(query_id).answer
        assert answer is not None, f"item {query_id} has no answer"
        return answer

    @cached_property
    def _engine(self) -> Engine:
        # Here: who stays within the table needs neither the scorer nor transformers.
        from vqa_scorer.engines import processor
        from vqa_scorer.engines.transformers import TransformersEngine

        processor.torchvision_works = lambda: False  # PIL's image processor, as in the table
        engine = TransformersEngine(self._vlm, device=self._device, dtype="float32", batch_size=_BATCH[self._device], threads=1)
        engine.load()
        return engine

    def _prompt(self, query_id: ItemId, pointer: tuple[ItemId, ...]) -> ScoringPrompt:
        from vqa_scorer.engines import ScoringPrompt

        shown = [self._dataset.item(item_id) for item_id in pointer]
        shots = tuple(Shot(self._dataset.image_path(one.item_id), one.question, one.answer) for one in shown)
        return ScoringPrompt(shots, Shot(self._dataset.image_path(query_id), self._dataset.item(query_id).question))


def _batches(asked: Iterable[Asked], known: Container[Asked]) -> Iterator[list[Asked]]:
    """Those that are not known, 1,024 at a time; an engine makes its own batches of them."""
    new = sorted({one for one in asked if one not in known})
    for begin in range(0, len(new), 1_024):
        yield new[begin : begin + 1_024]
