"""Having the pointers of every contender scored, on the same queries for all of them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leverplus.errors import InvalidInput
from leverplus.evaluation import Cell
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId, Pointer
from pointer_trainer.context import JobContext
from pointer_trainer.scored_queries import AskedQuery, ModeCounts, Scorer
from pointer_trainer.systems import Choices, Contender


@dataclass
class Measured:
    """Queries whose every pointer has a score, in order, and the ids of the others.

    `pointers[contender][row]`, `accuracies[contender][row]`: what it chose for `query_ids[row]`, and an accuracy a pointer.
    """

    query_ids: list[ItemId] = field(default_factory=list[ItemId])
    left_out: list[ItemId] = field(default_factory=list[ItemId])
    pointers: dict[Contender, list[tuple[Pointer, ...]]] = field(default_factory=dict[Contender, list[tuple[Pointer, ...]]])
    accuracies: dict[Contender, list[list[float]]] = field(default_factory=dict[Contender, list[list[float]]])
    counts: ModeCounts = field(default_factory=ModeCounts)

    def means(self, contender: Contender) -> NDArray[np.float64]:
        """[n]: of the contender's pointers for each query."""
        return np.asarray(self.accuracies[contender], dtype=np.float64).mean(axis=1)

    def cells(self) -> dict[Cell, NDArray[np.float64]]:
        """Of each system and number of shots, [n], or [seeds, n] where several checkpoints are one system."""
        found: dict[Cell, list[NDArray[np.float64]]] = {}
        for contender in self.accuracies:
            found.setdefault((contender.system, contender.shots), []).append(self.means(contender))
        return {cell: values[0] if len(values) == 1 else np.stack(values) for cell, values in found.items()}

    def take(self, query_id: int, choices: Choices, scores: Mapping[Pointer, float | None]) -> None:
        """Puts a query's scores to its choices; the query is left out where one of them has none."""
        known = {contender: [scores[pointer] for pointer in pointers] for contender, pointers in choices.items()}
        if any(not values or None in values for values in known.values()):
            self.left_out.append(ItemId(query_id))
            return
        self.query_ids.append(ItemId(query_id))
        for contender, values in known.items():
            self.pointers.setdefault(contender, []).append(choices[contender])
            self.accuracies.setdefault(contender, []).append([value for value in values if value is not None])


def measure(
    context: JobContext,
    scorer: Scorer,
    choose: Callable[[ItemId], Choices],
    query_ids: Sequence[ItemId],
    *,
    own: Fingerprint,
    accept: Callable[[Fingerprint], None] = lambda found: None,
) -> Measured:
    """Scores the choices for every query; `accept` may refuse the scorer's fingerprint, which is known with its first answer.

    InvalidInput where no query is left.
    """
    waiting: dict[int, Choices] = {}
    measured = Measured()

    def asked() -> Generator[AskedQuery]:
        for query_id in query_ids:
            waiting[query_id] = choices = choose(query_id)
            yield AskedQuery(query_id, tuple(dict.fromkeys(pointer for pointers in choices.values() for pointer in pointers)))

    context.step("score", 0, len(query_ids), **measured.counts.to_json())
    is_first = True
    with closing(scorer.score(asked())) as batches:
        for batch in batches:
            if is_first:
                own.require_same(batch.fingerprint, subject="the scorer's answer", parts=("dataset",))
                accept(batch.fingerprint)
                is_first = False
            measured.counts.add(batch.stats)
            for query, candidates in batch.queries:
                scores = dict(zip(query.pointers, (candidate.vqa_acc_score for candidate in candidates), strict=True))
                measured.take(query.query_id, waiting.pop(query.query_id), scores)
            done = len(measured.query_ids) + len(measured.left_out)
            context.step("score", done, len(query_ids), **measured.counts.to_json())
    if not measured.query_ids:
        raise InvalidInput(f"none of {len(query_ids)} queries has annotated answers: nothing to compare")
    return measured
