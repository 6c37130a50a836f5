"""Off-policy estimates: by hand, refused where they say nothing, and against the exact values of the reward table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leverplus.errors import InvalidInput
from leverplus.evaluation.off_policy import LoggedDraws, estimate, fit_reward_model
from leverplus.reward_table import RewardTable

TABLE = Path(__file__).parents[2] / "assets" / "reward-table"


def logged(**fields: object) -> LoggedDraws:
    """Two queries of two draws each."""
    values = {
        "query": np.array([0, 0, 1, 1]),
        "count": np.ones(4),
        "reward": np.array([1.0, 0.0, 1.0, 0.0]),
        "weight": np.array([1.5, 0.5, 0.5, 1.5]),
        "predicted": np.array([0.8, 0.2, 0.6, 0.0]),
        "expected": np.array([0.7, 0.3]),
    }
    return LoggedDraws(**{**values, **fields})  # pyright: ignore[reportArgumentType]


def test_the_three_estimates_by_hand() -> None:
    found = estimate(logged(), ["a", "b"], bootstrap_draws=200)
    direct, snips, robust = found.estimates
    assert direct.value == pytest.approx(0.5)
    # (1.5 + 0.5) / 4
    assert snips.value == pytest.approx(0.5)
    # 0.7 + (1.5 · 0.2 - 0.5 · 0.2) / 2 = 0.8 and 0.3 + (0.5 · 0.4 - 1.5 · 0) / 2 = 0.4
    assert robust.value == pytest.approx(0.6)
    # 4² / (2.25 + 0.25 + 0.25 + 2.25) of 4 draws
    assert found.effective_sample_size == pytest.approx(3.2)
    assert found.effective_share == pytest.approx(0.8)
    assert (found.queries, found.images, found.draws, found.largest_weight) == (2, 2, 4, 1.5)
    # Two images: a draw is of the one, the other or both.
    assert (robust.low, robust.high) == pytest.approx((0.4, 0.8))
    # a: 1.5 / 2, b: 0.5 / 2
    assert (snips.low, snips.high) == pytest.approx((0.25, 0.75))


def test_a_count_is_as_many_rows() -> None:
    twice = logged(
        query=np.array([0, 0, 0, 1, 1, 1]),
        count=np.ones(6),
        reward=np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0]),
        weight=np.array([1.5, 1.5, 0.5, 0.5, 1.5, 1.5]),
        predicted=np.array([0.8, 0.8, 0.2, 0.6, 0.0, 0.0]),
    )
    counted = logged(count=np.array([2.0, 1.0, 1.0, 2.0]))
    found, same = (estimate(each, ["a", "b"], bootstrap_draws=50) for each in (counted, twice))
    for one, other in zip(found.estimates, same.estimates, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
    assert (found.draws, found.effective_sample_size) == (same.draws, pytest.approx(same.effective_sample_size))


def test_a_policy_that_is_the_logging_one_scores_what_was_logged() -> None:
    same = logged(weight=np.ones(4), predicted=np.zeros(4), expected=np.zeros(2))
    found = estimate(same, ["a", "b"], bootstrap_draws=50)
    assert [one.value for one in found.estimates] == pytest.approx([0.0, 0.5, 0.5])
    assert found.effective_share == 1.0


def test_too_few_draws_that_count_are_refused() -> None:
    count = 100
    far = LoggedDraws(
        query=np.arange(count),
        count=np.ones(count),
        reward=np.ones(count),
        weight=np.array([1000.0, *[0.01] * (count - 1)]),
        predicted=np.zeros(count),
        expected=np.zeros(count),
    )
    images = [str(number) for number in range(count)]
    with pytest.raises(InvalidInput, match=r"effective sample size is 1\.0 of 100 draws, 1\.0 %, below 5 %") as refused:
        estimate(far, images)
    assert refused.value.context["effective_share"] == pytest.approx(0.01, rel=0.01)
    with pytest.raises(InvalidInput, match="effective sample size is 0"):
        estimate(replace(far, weight=np.zeros(count)), images)
    with pytest.raises(InvalidInput, match="1 image leaves nothing"):
        estimate(logged(), ["a", "a"])
    with pytest.raises(InvalidInput, match="1 of 3 queries have no draw"):
        estimate(logged(expected=np.zeros(3)), ["a", "b", "c"])


@pytest.mark.parametrize("weight", [1e4, 1e300, float("inf"), float("nan")])
def test_weights_that_no_draws_of_the_stated_mixture_have_are_refused(weight: float) -> None:
    # All alike: each draw counts as much as the next, and the effective sample size alone would see nothing wrong.
    with pytest.raises(InvalidInput, match=r"mean weight is .* expected 1: the propensities are not those of these draws"):
        estimate(logged(weight=np.full(4, weight)), ["a", "b"])


def test_a_reward_model_is_fitted_on_other_folds() -> None:
    features = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    fold = np.array([0, 0, 1, 1])
    model = fit_reward_model(features, np.array([0.0, 1.0, 1.0, 0.0]), np.ones(4), fold, 2, ridge=1e-9)
    # Each fold is predicted by the other, which says the opposite.
    assert model.predict(features, fold) == pytest.approx([1.0, 0.0, 0.0, 1.0], abs=1e-6)


def test_intervals_cover_the_exact_value_of_the_reward_table() -> None:
    """200 resamples of the table's val queries, two-shot pointers, draws of a mixture that knows a little of the rewards."""
    table = RewardTable.open(TABLE, "val")
    rewards = table.of_length(2)
    generator = np.random.default_rng(0)
    noise = generator.normal(size=rewards.shape)
    policy = _softmax(1.5 * rewards + noise)
    mixture = 0.3 / rewards.shape[1] + 0.7 * _softmax(noise)
    truth = float((policy * rewards).sum(axis=1).mean())
    assert truth > float((mixture * rewards).sum(axis=1).mean()) + 0.05
    # A reward model that knows the noise alone: poor, so that the direct estimate is off.
    features = np.stack([np.ones_like(noise), noise], axis=2)
    expected = np.einsum("qn,qnf->qf", policy, features)
    cumulative = np.cumsum(mixture, axis=1)
    covered = dict.fromkeys(("direct", "snips", "doubly_robust"), 0)
    for number in range(200):
        rows = generator.integers(len(rewards), size=150)
        levels = generator.random((150, 8))
        action = np.stack([np.searchsorted(cumulative[row], level) for row, level in zip(rows, levels, strict=True)]).ravel()
        query = np.repeat(np.arange(150), 8)
        row_of = rows[query]
        fold = rows % 2
        reward = rewards[row_of, action]
        model = fit_reward_model(features[row_of, action], reward, np.ones(len(query)), fold[query], 2)
        draws = LoggedDraws(
            query=query,
            count=np.ones(len(query)),
            reward=reward,
            weight=policy[row_of, action] / mixture[row_of, action],
            predicted=model.predict(features[row_of, action], fold[query]),
            expected=model.predict(expected[rows], fold),
        )
        found = estimate(draws, [str(place) for place in range(150)], bootstrap_draws=400, seed=number)
        for one in found.estimates:
            covered[one.estimator] += one.low <= truth <= one.high
    assert covered["snips"] >= 180
    assert covered["doubly_robust"] >= 180
    assert covered["direct"] < 150


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)
