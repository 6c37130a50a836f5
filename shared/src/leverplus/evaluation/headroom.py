"""How much choosing could gain on a data set, and how much of that is luck, from scored candidates of each query.

The best of m scored pointers is biased upward as a measure of what a selector can reach: among enough pointers some lead to the
right answer for no reason that anything could learn (J. E. Smith, R. L. Winkler: The optimizer's curse, Management Science,
2006). The split-candidate estimate has no such bias: a query's candidates are cut in two, what its items are worth is learned
from one half alone, and the choice that this suggests among the other half is judged by scores that had no part in it. It falls
short of the best possible choice where few candidates share items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from leverplus.errors import InvalidInput
from leverplus.evaluation.bootstrap import Clusters, Floats
from leverplus.evaluation.comparison import Cell, Difference, Row, summarise
from leverplus.evaluation.minimum_effect import queries_needed, standard_errors
from leverplus.random_order import derive_seed

FEWEST_CANDIDATES = 4
_SPLITS = 16
_PRIOR = 1.0
"""An item's worth is drawn towards 0 as if it had been seen once more and had made no difference."""


@dataclass(frozen=True)
class SplitChoice:
    """Of one query: mean accuracy of the choice that one half of its candidates suggests among the other half, and of that other
    half as a whole. Their difference is what can be known about the choice; luck adds nothing to it on average."""

    chosen: float
    any_candidate: float


def split_choice(pointers: Sequence[Sequence[int]], accuracies: Floats, *, query_id: int, seed: int = 0) -> SplitChoice | None:
    """Over 16 random cuts, each half judged once by the other. None for fewer than four candidates, and where no two of them
    share an item, as at one shot: one half then says nothing of the other, whatever the items are worth.

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
    if (shows.sum(axis=0) < 2).all():
        return None
    generator = np.random.default_rng(derive_seed("split candidates", seed, query_id) % 2**64)
    chosen: list[float] = []
    judged_means: list[float] = []
    for _ in range(_SPLITS):
        order = generator.permutation(len(pointers))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        for known, judged in (halves, halves[::-1]):
            seen = shows[known]
            worth = seen.T @ (accuracies[known] - accuracies[known].mean()) / (seen.sum(axis=0) + _PRIOR)
            value = shows[judged] @ worth
            judged_means.append(float(accuracies[judged].mean()))
            chosen.append(float(accuracies[judged][value >= value.max() - 1e-12].mean()))
    return SplitChoice(float(np.mean(chosen)), float(np.mean(judged_means)))


ORACLE, SPLIT, ANY = "oracle", "split choice", "any candidate"
GAINS = (0.01, 0.02, 0.05, 0.10)
WORTHWHILE = 0.01
"""Less than this over the best baseline is not worth a selector."""

Verdict = Literal["none", "not shown", "shown"]


@dataclass(frozen=True)
class Headroom:
    """At one number of shots. `rows`: accuracy of each baseline, of the best scored candidate (ORACLE), of the split choice and
    of the candidates that it is made among (ANY). `best_baseline` did best on these same queries.

    `oracle_gain`: ORACLE less the best baseline, lucky hits included: an upper bound. `learnable`: SPLIT less ANY, which is
    free of luck: above 0 it shows that the scores tell good demonstrations from bad ones. None where too few queries have four
    candidates that share items. `queries_needed`: gain over the best baseline -> queries that show it four times in five, by the
    largest paired variance found here, or that of a gain on no more queries than it takes, where this is larger. `verdict`:
    "none" where even the oracle of 300 queries or more gains less than a point, "shown" where `learnable` is above 0, else
    "not shown".
    """

    shots: int
    queries: int
    images: int
    candidates: float
    rows: tuple[Row, ...]
    best_baseline: str
    oracle_gain: Difference
    learnable: Difference | None
    split_gain: Difference | None
    queries_needed: dict[str, int]
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def find_headroom(
    shots: int,
    baselines: Mapping[str, Floats],
    oracle: Floats,
    split: Sequence[SplitChoice | None],
    candidates: float,
    image_ids: Sequence[str],
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> Headroom:
    """`baselines`: name -> accuracies [n]; `oracle` [n]: of each query's best candidate; `candidates`: scored for a query, mean.

    Queries without a split choice are left out of SPLIT and ANY; where they are more than half, there is no such estimate.
    InvalidInput for a single image.
    """
    clusters = Clusters.of(image_ids)
    if len(clusters) < 2:
        raise InvalidInput(f"{len(clusters)} image says nothing about others; take more queries")
    cells: dict[Cell, Floats] = {(name, shots): values for name, values in baselines.items()} | {(ORACLE, shots): oracle}
    found = summarise(cells, image_ids, draws=draws, seed=seed, baselines=list(baselines), learned=[ORACLE])
    means = {row.system: row.mean for row in found.rows}
    best = max(baselines, key=lambda name: means[name])
    gain = next(row for row in found.differences if row.baseline == best)
    rows, learnable, split_gain = list(found.rows), None, None
    known = [index for index, one in enumerate(split) if one is not None]
    chosen = [one for one in split if one is not None]
    if 2 * len(known) >= len(split) and len({image_ids[index] for index in known}) > 1:
        parts: dict[Cell, Floats] = {
            (best, shots): baselines[best][known],
            (ANY, shots): np.asarray([one.any_candidate for one in chosen]),
            (SPLIT, shots): np.asarray([one.chosen for one in chosen]),
        }
        images = [image_ids[index] for index in known]
        judged = summarise(parts, images, draws=draws, seed=seed, baselines=[best, ANY], learned=[SPLIT])
        rows += [row for row in judged.rows if row.system in (ANY, SPLIT)]
        split_gain, learnable = (next(row for row in judged.differences if row.baseline == baseline) for baseline in (best, ANY))
    others = [values - baselines[best] for name, values in baselines.items() if name != best]
    error = float(standard_errors(np.stack([*others, oracle - baselines[best]], axis=1), clusters).max())
    return Headroom(
        shots=shots,
        queries=len(image_ids),
        images=len(clusters),
        candidates=candidates,
        rows=tuple(rows),
        best_baseline=best,
        oracle_gain=gain,
        learnable=learnable,
        split_gain=split_gain,
        queries_needed={f"{effect:g}": _queries_needed(effect, error, len(image_ids)) for effect in GAINS},
        verdict=_verdict(gain, learnable, len(image_ids)),
    )


def _queries_needed(effect: float, error: float, queries: int) -> int:
    # Where accuracies are 0 or 1, a gain of g changes g of the queries at least: a variance of g (1 - g).
    least = (effect * (1 - effect) / queries) ** 0.5
    return queries_needed(effect, max(error, least), queries)


def _verdict(gain: Difference, learnable: Difference | None, queries: int) -> Verdict:
    # Of n queries without a gain up to 3/n could have one, which no bootstrap of them draws.
    if gain.high is not None and gain.high < WORTHWHILE and 3 / queries <= WORTHWHILE:
        return "none"
    return "shown" if learnable is not None and learnable.low is not None and learnable.low > 0 else "not shown"
