"""How much choosing could gain on a data set, and how much of that is luck, from scored candidates of each query.

The best of m scored pointers is biased upward as a measure of what a selector can reach: among enough pointers some lead to the
right answer for no reason that anything could learn (J. E. Smith, R. L. Winkler: The optimizer's curse, Management Science,
2006). The split-candidate estimate has no such bias: a query's candidates are cut in two, what its items are worth is learned
from one half alone, and the choice that this suggests among the other half is judged by scores that had no part in it. It falls
short of the best possible choice where few candidates share items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leverplus.evaluation.bootstrap import Floats
from leverplus.random_order import derive_seed

FEWEST_CANDIDATES = 4
_SPLITS = 16
_PRIOR = 1.0
"""An item's worth is drawn towards 0 as if it had been seen once more and had made no difference."""


@dataclass(frozen=True)
class SplitChoice:
    """Of one query: mean accuracy of the choice that one half of its candidates suggests among the other half, and of that half
    as a whole. Their difference is what can be known about the choice; luck adds nothing to it on average."""

    chosen: float
    any_candidate: float


def split_choice(pointers: Sequence[Sequence[int]], accuracies: Floats, *, query_id: int, seed: int = 0) -> SplitChoice | None:
    """Over 16 random cuts, each half judged once by the other. None for fewer than four candidates.

    An item's worth: the sum of what the candidates showing it have above their half's mean, over their number plus one. The
    choice: the largest sum of worths; candidates that are equally good are averaged.
    """
    if len(pointers) < FEWEST_CANDIDATES:
        return None
    items = sorted({item for pointer in pointers for item in pointer})
    place = {item: number for number, item in enumerate(items)}
    shows = np.zeros((len(pointers), len(items)))
    for row, pointer in enumerate(pointers):
        shows[row, [place[item] for item in pointer]] = 1.0
    generator = np.random.default_rng(derive_seed("split candidates", seed, query_id) % 2**64)
    chosen: list[float] = []
    for _ in range(_SPLITS):
        order = generator.permutation(len(pointers))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for known, judged in (halves, halves[::-1]):
            seen = shows[known]
            worth = seen.T @ (accuracies[known] - accuracies[known].mean()) / (seen.sum(axis=0) + _PRIOR)
            value = shows[judged] @ worth
            chosen.append(float(accuracies[judged][value >= value.max() - 1e-12].mean()))
    return SplitChoice(float(np.mean(chosen)), float(accuracies.mean()))
