"""The statistics an evaluation rests on, against values worked out by hand and against coverage that they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from leverplus.evaluation import summarise
from leverplus.evaluation.bootstrap import Clusters, resampled_means, resampled_shares
from leverplus.evaluation.holm import holm, holm_levels
from leverplus.evaluation.minimum_effect import minimum_effect, queries_needed, standard_errors
from leverplus.evaluation.permutation import sign_flip_p


def test_holm_by_hand() -> None:
    # ascending .01, .02, .03, .04: times 4, 3, 2, 1 = .04, .06, .06, .04; none below one before it
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_levels_of_holm_by_hand() -> None:
    assert holm_levels([0.03, 0.01, 0.02], 0.06) == pytest.approx([0.06, 0.02, 0.03])


def test_sign_flips_of_four_images_by_hand() -> None:
    # All four images gain 1: of 16 sign patterns two are as far from 0, so p is near 2/16.
    clusters = Clusters.of(["a", "b", "c", "d"])
    found = sign_flip_p(np.ones((4, 1)), clusters, draws=20_000, seed=0)
    assert found[0] == pytest.approx(2 / 16, abs=0.01)


def test_an_image_changes_its_sign_as_a_whole() -> None:
    # Two images of two queries each: p is 2/4, as if each had one query.
    found = sign_flip_p(np.ones((4, 1)), Clusters.of(["a", "a", "b", "b"]), draws=20_000, seed=0)
    assert found[0] == pytest.approx(0.5, abs=0.01)


def test_no_difference_has_p_one_and_a_clear_one_the_smallest_there_is() -> None:
    clusters = Clusters.of([str(number) for number in range(100)])
    columns = np.stack([np.zeros(100), np.ones(100)], axis=1)
    assert sign_flip_p(columns, clusters, draws=999, seed=0).tolist() == [1.0, 0.001]


def test_p_is_uniform_where_nothing_differs() -> None:
    generator = np.random.default_rng(0)
    columns = generator.normal(size=(60, 400))
    found = sign_flip_p(columns, Clusters.of([str(number) for number in range(60)]), draws=1000, seed=1)
    assert 0.02 < (found <= 0.05).mean() < 0.085


def test_standard_error_by_hand() -> None:
    # 4 images of one query, values 0 0 1 1: sd with n - 1 is sqrt(1/3), over sqrt(4)
    values = np.array([[0.0], [0.0], [1.0], [1.0]])
    assert standard_errors(values, Clusters.of(["a", "b", "c", "d"]))[0] == pytest.approx(math.sqrt(1 / 3) / 2)
    # two images of two equal queries: sums about the mean are -1 and 1, sqrt(2/1 · 2) / 4
    assert standard_errors(values, Clusters.of(["a", "a", "b", "b"]))[0] == pytest.approx(0.5)


def test_minimum_effect_and_queries_by_hand() -> None:
    # z at 97.5 % is 1.96, at 80 % 0.8416
    assert minimum_effect(0.014) == pytest.approx(0.014 * 2.8016, rel=1e-4)
    # A gain of that size needs the queries there were; half of it four times as many.
    assert queries_needed(minimum_effect(0.014), 0.014, 800) in (800, 801)
    assert queries_needed(minimum_effect(0.014) / 2, 0.014, 800) == pytest.approx(3200, abs=1)


def test_the_minimum_effect_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(3)
    images = [str(number) for number in range(100)]
    effect = minimum_effect(0.5 / math.sqrt(100))
    trials = generator.normal(effect, 0.5, size=(100, 300))
    means, errors = trials.mean(axis=0), standard_errors(trials, Clusters.of(images))
    assert 0.72 < (means - 1.96 * errors > 0).mean() < 0.87


def test_draws_do_not_depend_on_what_else_is_drawn() -> None:
    generator = np.random.default_rng(0)
    clusters = Clusters.of([str(number // 2) for number in range(40)])
    columns = generator.random((40, 3))
    together = resampled_means(columns, clusters, 50, 7)
    assert np.allclose(together[:, 1:2], resampled_means(columns[:, 1:2], clusters, 50, 7))


def test_shares_of_two_seeds() -> None:
    shares = resampled_shares(2, 4000, 0)
    assert set(shares[:, 0]) == {0.0, 0.5, 1.0}
    assert (shares.sum(axis=1) == 1).all()
    assert (shares[:, 0] == 0.5).mean() == pytest.approx(0.5, abs=0.03)


def test_seeds_that_disagree_widen_the_interval_of_a_system() -> None:
    images = [str(number) for number in range(400)]
    seeds = np.stack([np.full(400, 0.2), np.full(400, 0.6)])
    cells = {("random", 1): np.zeros(400), ("v3", 1): seeds}
    averaged = summarise(cells, images, draws=1000, baselines=["random"])
    crossed = summarise(cells, images, draws=1000, baselines=["random"], seeded=["v3"])
    assert [row.seeds for row in averaged.rows] == [1, 1]
    assert [row.seeds for row in crossed.rows] == [1, 2]
    assert [averaged.rows[1].mean, crossed.rows[1].mean] == pytest.approx([0.4, 0.4])
    # Every image is alike: what is left are the seeds, drawn 0.2, 0.4 or 0.6.
    assert (averaged.rows[1].low, averaged.rows[1].high) == pytest.approx((0.4, 0.4))
    assert (crossed.rows[1].low, crossed.rows[1].high) == pytest.approx((0.2, 0.6))
    difference = crossed.differences[0]
    assert (difference.difference, difference.low, difference.high) == pytest.approx((0.4, 0.2, 0.6))


def test_intervals_over_images_and_seeds_cover_the_expected_seed() -> None:
    """Seeds spread by 0.05 about 0.5: 95 % intervals of five seeds cover it about as often as so few seeds can."""
    generator = np.random.default_rng(4)
    covered = alone = 0
    for trial in range(200):
        worth = generator.normal(0.5, 0.05, size=(5, 1))
        values = (generator.random((5, 150)) < worth).astype(float)
        images = [str(number) for number in range(150)]
        row = summarise({("v3", 1): values}, images, draws=300, seed=trial, baselines=[], seeded=["v3"]).rows[0]
        one = summarise({("v3", 1): values[0]}, images, draws=300, seed=trial, baselines=[]).rows[0]
        assert row.low is not None
        assert row.high is not None
        assert one.low is not None
        assert one.high is not None
        covered += row.low <= 0.5 <= row.high
        alone += one.low <= 0.5 <= one.high
    assert covered > alone
    assert covered >= 170


def test_holm_is_over_all_comparisons_made() -> None:
    generator = np.random.default_rng(2)
    cells = {(name, 1): generator.random(50) for name in ("random", "a", "b", "c")}
    found = summarise(cells, [str(number) for number in range(50)], draws=200, baselines=["random", "a"])
    p_values = [row.p for row in found.differences]
    assert len(p_values) == 5
    assert all(p is not None for p in p_values)
    assert [row.p_holm for row in found.differences] == pytest.approx(holm([p for p in p_values if p is not None]))


@pytest.mark.parametrize("gain", [0.0, 0.3, 1.0])
def test_where_all_queries_differ_alike_there_is_no_minimum_effect(gain: float) -> None:
    cells = {("zero-shot", 0): np.zeros(5), ("v3", 0): np.full(5, gain)}
    (found,) = summarise(cells, list("abcde"), draws=200, baselines=["zero-shot"]).differences
    assert (found.difference, found.minimum_effect) == (pytest.approx(gain), None)
