"""What a selector would score, estimated from pointers that another policy drew and that were scored then.

Every row is an independent draw a ~ μ(·|query) with known propensity μ(a|query); w = π(a|query) / μ(a|query) weighs it for the
policy π that is asked about. What is estimated is the mean over queries of π's expected accuracy.

* direct: the mean of a reward model under π. It needs no weights, and is biased by whatever the model cannot express.
* SNIPS: Σ w r / Σ w, importance weights that normalise themselves (A. Swaminathan, T. Joachims: The self-normalized estimator for
  counterfactual learning, NeurIPS 2015).
* doubly robust: direct plus the weighted residuals of the model: right if either the model or the propensities are (M. Dudík,
  J. Langford, L. Li: Doubly robust policy evaluation and learning, ICML 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leverplus.errors import InvalidInput
from leverplus.evaluation.bootstrap import Clusters, Floats, interval, resampled_sums

LEAST_EFFECTIVE_SHARE = 0.05
LARGEST_MEAN_WEIGHT = 1000.0
"""Weights are 0 or more and 1 in expectation: by Markov's inequality their mean is above this in one file of 1000 at most."""


@dataclass(frozen=True)
class LoggedDraws:
    """Rows of draws. `query` [n]: row of the query, 0 to Q - 1. `count` [n]: how often the pointer was drawn. `reward` [n]:
    accuracy, 0 to 1. `weight` [n]: π/μ. `predicted` [n]: the reward model there. `expected` [Q]: its mean under π for each query.

    The model of a query must not have seen its rows."""

    query: NDArray[np.int64]
    count: Floats
    reward: Floats
    weight: Floats
    predicted: Floats
    expected: Floats


@dataclass(frozen=True)
class Estimate:
    estimator: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OffPolicy:
    """`effective_sample_size`: (Σ w)² / Σ w², in draws; `effective_share`: of all `draws`. `largest_weight`: π/μ."""

    estimates: tuple[Estimate, ...]
    queries: int
    images: int
    draws: int
    effective_sample_size: float
    effective_share: float
    largest_weight: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "estimates": [asdict(one) for one in self.estimates]}


def estimate(logged: LoggedDraws, image_ids: Sequence[str], *, bootstrap_draws: int = 10_000, seed: int = 0) -> OffPolicy:
    """The three estimates with 95 % intervals: a bootstrap over images, in which every query counts alike.

    `image_ids`: of each of the Q queries. InvalidInput where the effective sample size is below 5 % of the draws: the few draws
    that count then say little, and their interval too little of that. So for weights whose mean is 1000 or more, or no number:
    whatever the policy is, propensities that belong to the draws do not give such.
    """
    images = Clusters.of(image_ids)
    queries = len(image_ids)
    total = float(logged.count.sum())
    weights = logged.count * logged.weight
    mean_weight = float((weights / total).sum())
    if not mean_weight < LARGEST_MEAN_WEIGHT:
        raise InvalidInput(
            f"the mean weight is {mean_weight:.3g}, expected 1: the propensities are not those of these draws; "
            "log them again with `leverplus rl generate --logging-draws`"
        )
    squares = float((logged.count * logged.weight**2).sum())
    effective = float(weights.sum()) ** 2 / squares if squares > 0 else 0.0
    share = effective / total
    if share < LEAST_EFFECTIVE_SHARE:
        raise InvalidInput(
            f"the effective sample size is {effective:.1f} of {total:.0f} draws, {100 * share:.1f} %, below "
            f"{100 * LEAST_EFFECTIVE_SHARE:.0f} %: this policy is too far from the one that drew them; draw with a checkpoint "
            "nearer to it, with more uniform draws, or estimate at a higher temperature",
            effective_sample_size=effective,
            effective_share=share,
        )
    if len(images) < 2:
        raise InvalidInput(f"{len(images)} image leaves nothing to draw for an interval; use more queries")
    drawn_of = np.bincount(logged.query, weights=logged.count, minlength=queries)
    if not (drawn_of > 0).all():
        raise InvalidInput(f"{int((drawn_of == 0).sum())} of {queries} queries have no draw; leave them out")
    per_draw = 1 / drawn_of[logged.query]

    def of_query(values: Floats) -> Floats:
        return np.bincount(logged.query, weights=values * per_draw, minlength=queries).astype(np.float64)

    weighted, weight = of_query(weights * logged.reward), of_query(weights)
    robust = logged.expected + of_query(weights * (logged.reward - logged.predicted))
    # A query that is drawn twice counts twice: the last column counts them.
    columns = np.stack([logged.expected, weighted, weight, robust, np.ones(queries)], axis=1)
    sums = images.sums(columns)

    def values(sums: Floats) -> Floats:
        """[..., 5] → [..., 3]: direct, SNIPS, doubly robust."""
        direct, weighted, weight, robust, count = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw of images whose weights are all 0
            return np.stack([direct / count, np.where(weight > 0, weighted / weight, 0.0), robust / count], axis=-1)

    point = values(sums.sum(axis=0))
    spread = values(resampled_sums(sums, bootstrap_draws, seed))
    names = ("direct", "snips", "doubly_robust")
    estimates = tuple(Estimate(name, float(point[i]), *interval(spread[:, i])) for i, name in enumerate(names))
    return OffPolicy(estimates, queries, len(images), round(total), effective, share, float(logged.weight.max()))


@dataclass(frozen=True)
class RewardModel:
    """One ridge regression a fold: `coefficients` [folds, f]. Rows and queries of a fold use the one that did not see them."""

    coefficients: Floats

    def predict(self, features: Floats, fold: NDArray[np.int64]) -> Floats:
        """features [n, f], fold [n] → [n]; of mean features it is the mean prediction, since the model is linear."""
        return np.einsum("nf,nf->n", features, self.coefficients[fold])


def fit_reward_model(
    features: Floats, rewards: Floats, counts: Floats, fold: NDArray[np.int64], folds: int, *, ridge: float = 1.0
) -> RewardModel:
    """Fits a linear model a fold on the rows of all other folds: features [n, f] (one of them constant), weighted by counts [n].

    `fold` [n]: of the row's image, 0 to folds - 1, so that no query is predicted by what was fitted on its image.
    """
    width = features.shape[1]
    coefficients = np.zeros((folds, width))
    for number in range(folds):
        others = fold != number
        weighted = features[others] * counts[others, None]
        normal = weighted.T @ features[others] + ridge * np.eye(width)
        coefficients[number] = np.linalg.solve(normal, weighted.T @ rewards[others])
    return RewardModel(coefficients)
