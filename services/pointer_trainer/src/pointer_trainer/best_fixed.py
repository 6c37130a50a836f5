"""The demonstrations that did best whatever the query, by the scores that a selector is trained on: what it has to beat."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from leverplus.rl_data import Candidate, QueryRecord

RANKED = 16
"""Pointers kept for each number of shots: where the best shows a query's own image, the next one serves it."""

_SHARE_OF_QUERIES = 0.5
_PRIOR_QUERIES = 8.0
"""An item's worth is drawn towards 0 as if it had been shown to so many more queries, and had made no difference there."""


def rank_fixed_pointers(records: Iterable[QueryRecord]) -> dict[str, list[list[int]]]:
    """For each number of shots that has scores the RANKED best pointers, best first: {"2": [[item id, item id], …]}.

    Where pointers were scored for half of the queries or more (one shared pool, all of it scored), those with the highest mean
    accuracy. Elsewhere hardly any whole pointer comes twice, so they are composed of items by their worth: the mean over
    queries of what the candidates showing the item have above the query's mean. The better one stands next to the query.
    Ties go to the lower ids. Without demonstrations or without known accuracies nothing is ranked.
    """
    by_shots: dict[int, list[Sequence[Candidate]]] = defaultdict(list)
    for record in records:
        of_query: dict[int, list[Candidate]] = defaultdict(list)
        for candidate in record.candidates:
            if candidate.pointer and candidate.vqa_acc_score is not None:
                of_query[len(candidate.pointer)].append(candidate)
        for shots, candidates in of_query.items():
            by_shots[shots].append(candidates)
    return {str(shots): _by_pointer(queries) or _by_item(queries, shots) for shots, queries in sorted(by_shots.items())}


def _by_pointer(queries: Sequence[Sequence[Candidate]]) -> list[list[int]]:
    found: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for candidates in queries:
        for pointer, accuracy in {candidate.pointer: _accuracy(candidate) for candidate in candidates}.items():
            found[pointer].append(accuracy)
    shared = {pointer: values for pointer, values in found.items() if len(values) >= max(2, _SHARE_OF_QUERIES * len(queries))}
    ranked = sorted(shared, key=lambda pointer: (-float(np.mean(shared[pointer])), pointer))
    return [list(pointer) for pointer in ranked[:RANKED]]


def _by_item(queries: Sequence[Sequence[Candidate]], shots: int) -> list[list[int]]:
    gains: dict[int, list[float]] = defaultdict(list)
    for candidates in queries:
        mean = float(np.mean([_accuracy(candidate) for candidate in candidates]))
        showing: dict[int, list[float]] = defaultdict(list)
        for candidate in candidates:
            for item_id in candidate.pointer:
                showing[item_id].append(_accuracy(candidate))
        for item_id, values in showing.items():
            gains[item_id].append(float(np.mean(values)) - mean)
    worth = {item_id: sum(values) / (len(values) + _PRIOR_QUERIES) for item_id, values in gains.items()}
    ranked = sorted(worth, key=lambda item_id: (-worth[item_id], item_id))[: RANKED * shots]
    whole = len(ranked) // shots * shots
    return [ranked[start : start + shots][::-1] for start in range(0, whole, shots)]


def _accuracy(candidate: Candidate) -> float:
    assert candidate.vqa_acc_score is not None
    return candidate.vqa_acc_score
