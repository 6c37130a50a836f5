"""Headroom: luck adds to the oracle and nothing to the split choice; what is to be seen takes so many queries."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from leverplus.errors import InvalidInput
from leverplus.evaluation.headroom import ANY, ORACLE, SPLIT, SplitChoice, find_headroom, split_choice

IMAGES = [str(number) for number in range(150)]


def test_the_choice_of_one_half_is_judged_by_the_other_by_hand() -> None:
    # Item 1 makes every pointer right, whichever half it is seen in: of four pointers two show it.
    found = split_choice([(1, 2), (3, 4), (1, 5), (6, 7)], np.array([1.0, 0.0, 1.0, 0.0]), query_id=0)
    assert found is not None
    assert found.any_candidate == 0.5
    # A half that holds both lets nothing be learned of the other two, which are both wrong; cut apart, item 1 is found.
    assert 0.5 < found.chosen < 1.0
    assert split_choice([(1,), (2,), (3,)], np.ones(3), query_id=0) is None
    alike = split_choice([(1, 2), (2, 3), (3, 4), (4, 1)], np.full(4, 0.3), query_id=0)
    assert alike is not None
    assert (alike.chosen, alike.any_candidate) == (pytest.approx(0.3), pytest.approx(0.3))


def test_candidates_that_share_no_item_teach_nothing_of_each_other() -> None:
    # At one shot every candidate is another item: what one half shows is never in the other.
    assert split_choice([(1,), (2,), (3,), (4,)], np.array([1.0, 0.0, 0.0, 0.0]), query_id=0) is None
    assert split_choice([(1, 2), (3, 4), (5, 6), (7, 8)], np.array([1.0, 0.0, 0.0, 0.0]), query_id=0) is None


def test_luck_raises_the_oracle_and_not_the_split_choice() -> None:
    """Answers that no demonstration has a part in: 30 % of the pointers are right at random."""
    generator = np.random.default_rng(0)
    pointers = list(permutations(range(6), 2))[:20]
    found, oracle = [], []
    for query in range(150):
        accuracies = (generator.random(20) < 0.3).astype(np.float64)
        oracle.append(accuracies.max())
        found.append(split_choice(pointers, accuracies, query_id=query))
    baseline = (generator.random(150) < 0.3).astype(np.float64)
    headroom = find_headroom(2, {"random": baseline}, np.array(oracle), found, 20, IMAGES, draws=1000)
    assert headroom.oracle_gain.difference > 0.6
    assert headroom.learnable is not None
    assert headroom.learnable.low is not None
    assert headroom.learnable.low <= 0 < 0.03 + headroom.learnable.difference
    assert headroom.verdict == "not shown"


def test_items_that_tell_are_found() -> None:
    """A pointer is right where it shows item 0, 3 or 5, by query."""
    pointers = list(permutations(range(6), 2))
    generator = np.random.default_rng(1)
    found = []
    for query in range(150):
        tells = generator.choice([0, 3, 5])
        accuracies = np.array([float(tells in pointer) for pointer in pointers])
        found.append(split_choice(pointers, accuracies, query_id=query))
    # Now and then a half holds hardly a pointer that shows the item.
    assert np.mean([one.chosen for one in found if one is not None]) > 0.9
    baselines = {"zero-shot": np.zeros(150), "random": np.full(150, 1 / 3)}
    headroom = find_headroom(2, baselines, np.ones(150), found, len(pointers), IMAGES, draws=500)
    assert (headroom.best_baseline, headroom.verdict) == ("random", "shown")
    means = {row.system: row.mean for row in headroom.rows}
    assert (means[ORACLE], means[ANY]) == pytest.approx((1.0, 1 / 3))
    assert headroom.split_gain is not None
    assert headroom.split_gain.difference == pytest.approx(means[SPLIT] - 1 / 3)


def test_nothing_to_gain_and_how_many_queries_would_show_it() -> None:
    right, images = np.ones(300), [str(number // 2) for number in range(300)]
    headroom = find_headroom(1, {"zero-shot": right, "random": right}, right, [None] * 300, 3, images, draws=200)
    assert (headroom.verdict, headroom.learnable, headroom.split_gain) == ("none", None, None)
    # No query differs, yet a gain of 10 points changes one in ten: 7.85 · 0.09 / 0.01 = 70.6 queries.
    assert headroom.queries_needed == {"0.01": 778, "0.02": 385, "0.05": 150, "0.1": 71}


def test_few_queries_without_a_gain_do_not_show_that_there_is_none() -> None:
    # Of 150 queries without a gain 3 / 150 = 2 points could have one.
    right = np.ones(150)
    assert find_headroom(1, {"zero-shot": right}, right, [None] * 150, 3, IMAGES, draws=200).verdict == "not shown"


def test_one_image_says_nothing_of_others() -> None:
    with pytest.raises(InvalidInput, match="1 image says nothing about others"):
        find_headroom(1, {"zero-shot": np.ones(2)}, np.ones(2), [None] * 2, 3, ["a", "a"])


def test_queries_without_a_split_choice_are_left_out_of_it() -> None:
    some = [SplitChoice(1.0, 0.5) if row % 3 else None for row in range(150)]
    headroom = find_headroom(1, {"random": np.full(150, 0.5)}, np.ones(150), some, 5, IMAGES, draws=100)
    assert {row.system: row.n for row in headroom.rows} == {"random": 150, ORACLE: 150, ANY: 100, SPLIT: 100}
    few = [SplitChoice(1.0, 0.5) if row < 70 else None for row in range(150)]
    assert find_headroom(1, {"random": np.full(150, 0.5)}, np.ones(150), few, 5, IMAGES, draws=100).learnable is None
