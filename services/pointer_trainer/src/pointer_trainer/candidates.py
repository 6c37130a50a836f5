"""Candidate pointers without a model: retrieval, random draws, and what the mixture that drew a pointer was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from leverplus.ids import ItemId
from leverplus.metric import clean_whitespace, normalise_answer
from leverplus.policies import random_positions
from leverplus.rl_data import Candidate, merge_duplicates

Positions = tuple[int, ...]
METHODS = ("beam", "answer", "retrieval", "sample", "random", "zero_shot")
"""Ways in which a pointer is found, the more deliberate first: a pointer found twice keeps the first of them."""


def retrieval_windows(most_similar_first: Sequence[int], shots: int, count: int) -> list[Positions]:
    """`count` pointers from a ranking: the i-th is ranks i to i + shots - 1, the most similar of them last.

    Fewer where the ranking is too short.
    """
    return [
        tuple(reversed(most_similar_first[start : start + shots]))
        for start in range(min(count, len(most_similar_first) - shots + 1))
    ]


ANSWER_SHORTLIST = 16
"""So many of a pool's items, the most similar first, are combined to hold an answer."""


def answer_words(answer: str | None) -> frozenset[str]:
    """The words of an answer as the metric compares them; none of an unknown one."""
    return frozenset(normalise_answer(clean_whitespace(answer or "")).split())


def answer_pointers(
    wanted: AbstractSet[str], offered: Sequence[AbstractSet[str]], most_similar_first: Sequence[int], shots: int, count: int
) -> list[Positions]:
    """At most `count` pointers whose demonstrations' answers together hold every word of the query's own answer.

    wanted: words of the query's answer; offered [K]: words of each item's; most_similar_first: all K positions. Each
    demonstration shares a word with it. Small sums of similarity ranks come first; the most similar item stands last.
    None where the query's answer is unknown or the pool cannot tell it. What is found uses the query's answer, as its
    rewards do: these are candidates to train on, never a choice to be judged.
    """
    if not wanted:
        return []
    sharing = [position for position in most_similar_first if wanted & offered[position]][:ANSWER_SHORTLIST]
    telling = [
        ranks
        for ranks in combinations(range(len(sharing)), shots)
        if wanted <= frozenset[str]().union(*(offered[sharing[rank]] for rank in ranks))
    ]
    telling.sort(key=lambda ranks: (sum(ranks), ranks))
    return [tuple(sharing[rank] for rank in reversed(ranks)) for ranks in telling[:count]]


def random_pointers(
    pool_size: int, shots: int, count: int, *, seed: int, query_id: int, purpose: str = "draw"
) -> list[Positions]:
    """`count` independent draws, each uniform over the ordered pointers of that length; others for another purpose."""
    return [random_positions(pool_size, shots, seed=seed, query=f"{query_id}, {purpose} {draw}") for draw in range(count)]


def uniform_logprob(pool_size: int, shots: int) -> float:
    """Log-probability of one ordered pointer under uniform draws without replacement: -log(K (K-1) … (K-S+1))."""
    return -sum(math.log(pool_size - step) for step in range(shots))


def mixture_weights(temps: Sequence[float], num_samples_per_temp: int, num_random: int) -> dict[str, float]:
    """Share of the draws that each part makes: "random", and "sample@T" for each temperature. Empty without draws."""
    counts = {f"sample@{temperature:g}": num_samples_per_temp for temperature in temps} | {"random": num_random}
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items() if count}


def logging_weights(epsilon: float, temperatures: Sequence[float]) -> dict[str, float]:
    """The same for independent draws: "random" with probability epsilon, else one of the temperatures, all alike."""
    share = (1 - epsilon) / len(temperatures)
    weights = {f"sample@{temperature:g}": share for temperature in temperatures} | {"random": epsilon}
    return {name: weight for name, weight in weights.items() if weight}


def part_at(weights: Mapping[str, float], level: float) -> str:
    """The part of a mixture that a level in [0, 1) falls to: each as often as its weight."""
    *parts, last = weights
    below = 0.0
    for name in parts:
        below += weights[name]
        if level < below:
            return name
    return last


def mixture_propensity(weights: Mapping[str, float], logprobs: Mapping[str, float]) -> float:
    """Σ weight · exp(log-probability) over the parts: the probability that one draw of the mixture is this pointer."""
    return sum(weight * math.exp(logprobs[name]) for name, weight in weights.items())


def in_order(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """One row a pointer, sorted by how it was found; see leverplus.rl_data.merge_duplicates for what is kept."""
    return tuple(sorted(merge_duplicates(candidates), key=lambda row: METHODS.index(row.gen_method or "zero_shot")))


def to_items(pool: NDArray[np.int64], positions: Iterable[int]) -> tuple[ItemId, ...]:
    return tuple(ItemId(int(pool[position])) for position in positions)
