"""Means by hand, intervals that cover, pairs that stay paired, images that count as one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leverplus.errors import InvalidInput
from leverplus.evaluation import Evaluation, accuracy_table, difference_table, summarise

IMAGES = ["a", "a", "b", "c"]


def test_means_and_differences_by_hand() -> None:
    found = summarise(
        {
            ("zero_shot", 0): np.array([0.0, 1.0, 0.0, 1.0]),
            ("random", 1): np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.3]]),
            ("v3", 1): np.array([1.0, 1.0, 0.3, 1.0]),
        },
        IMAGES,
        draws=500,
        baselines=["random"],
    )
    assert [(row.system, row.shots, row.n) for row in found.rows] == [("zero_shot", 0, 4), ("random", 1, 4), ("v3", 1, 4)]
    # random: the two runs' means per query are 0.5, 1, 0, 0.65
    assert [row.mean for row in found.rows] == pytest.approx([0.5, 0.5375, 0.825])
    # random is there at one number of shots only, so it is compared with all rows
    assert [(row.system, row.shots, row.baseline_shots) for row in found.differences] == [("zero_shot", 0, 1), ("v3", 1, 1)]
    assert [row.difference for row in found.differences] == pytest.approx([-0.0375, 0.2875])
    assert found.images == 3


def test_a_baseline_at_several_shots_is_compared_at_equal_shots() -> None:
    ones = np.ones(4)
    cells = {("random", 0): ones, ("random", 1): ones, ("v3", 0): ones, ("v3", 1): ones, ("v3", 2): ones}
    found = summarise(cells, IMAGES, draws=10, baselines=["random"])
    assert [(row.shots, row.baseline_shots) for row in found.differences] == [(0, 0), (1, 1)]


def test_percentiles_of_two_images_by_hand() -> None:
    # Two images with one query each: a draw's mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4; 2.5 % and 97.5 % are 0 and 1.
    row = summarise({("v3", 1): np.array([0.0, 1.0])}, ["a", "b"], draws=2000, baselines=[]).rows[0]
    assert (row.mean, row.low, row.high) == (0.5, 0.0, 1.0)


def test_the_interval_is_that_of_the_normal_approximation_for_many_images() -> None:
    generator = np.random.default_rng(5)
    values = (generator.random(2000) < 0.3).astype(float)
    row = summarise({("v3", 1): values}, [str(n) for n in range(2000)], baselines=[], draws=4000).rows[0]
    assert row.low is not None
    assert row.high is not None
    half = 1.96 * values.std() / np.sqrt(2000)
    assert row.low == pytest.approx(row.mean - half, abs=0.002)
    assert row.high == pytest.approx(row.mean + half, abs=0.002)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        values = (generator.random(200) < 0.6).astype(float)
        row = summarise({("v3", 1): values}, [str(n) for n in range(200)], baselines=[], draws=400).rows[0]
        assert row.low is not None
        assert row.high is not None
        covered += row.low <= 0.6 <= row.high
    assert 180 <= covered <= 199


def test_questions_of_one_image_widen_the_interval() -> None:
    values = np.repeat(np.array([0.0, 1.0] * 50), 4)
    alone = summarise({("v3", 1): values}, [str(n) for n in range(400)], baselines=[]).rows[0]
    together = summarise({("v3", 1): values}, [str(n // 4) for n in range(400)], baselines=[]).rows[0]
    assert alone.low is not None
    assert alone.high is not None
    assert together.low is not None
    assert together.high is not None
    # four identical questions an image carry a quarter of the information: twice the width
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(2.0, rel=0.1)


def test_pairing_narrows_the_difference() -> None:
    generator = np.random.default_rng(2)
    base = generator.random(300)
    found = summarise(
        {("random", 1): base, ("v3", 1): np.minimum(1.0, base + 0.01)}, [str(n) for n in range(300)], baselines=["random"]
    )
    difference = found.differences[0]
    assert difference.low is not None
    assert difference.high is not None
    assert 0.009 < difference.low <= difference.high <= 0.0101


@settings(max_examples=30)
@given(
    values=st.lists(st.floats(0, 1), min_size=2, max_size=30),
    images=st.integers(1, 10),
    shots=st.integers(0, 4),
)
def test_equal_systems_differ_by_exactly_nothing(values: list[float], images: int, shots: int) -> None:
    accuracies = np.array(values)
    clusters = [str(n % images) for n in range(len(values))]
    found = summarise({("random", shots): accuracies, ("v3", shots): accuracies.copy()}, clusters, draws=50, baselines=["random"])
    difference = found.differences[0]
    assert difference.difference == 0.0
    assert (difference.low, difference.high) == ((0.0, 0.0) if len(set(clusters)) > 1 else (None, None))
    row = found.rows[0]
    assert row.low is None or row.high is None or 0 <= row.low <= row.high <= 1


def test_same_seed_same_answer() -> None:
    cells = {("v3", 1): np.linspace(0, 1, 20)}
    clusters = [str(n) for n in range(20)]
    first = summarise(cells, clusters, draws=200, seed=3, baselines=[])
    assert first == summarise(cells, clusters, draws=200, seed=3, baselines=[])
    assert first.rows[0].low != summarise(cells, clusters, draws=200, seed=4, baselines=[]).rows[0].low


def test_json_both_ways() -> None:
    found = summarise({("random", 1): np.ones(4), ("v3", 1): np.zeros(4)}, IMAGES, draws=10, baselines=["random"])
    assert Evaluation.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([0.0, np.nan, 1.0, 1.0]), "number from 0 to 1"),
        (np.array([0.0, 1.1, 1.0, 1.0]), "number from 0 to 1"),
        (np.array([0.0, 1.0]), r"shape \[2\] for 4 queries"),
        (np.empty((0, 4)), r"shape \[0, 4\]"),
    ],
)
def test_unusable_accuracies(values: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidInput, match=f"v3 at 2 shots.*{message}"):
        summarise({("v3", 2): values}, IMAGES, baselines=[])


def test_unusable_calls() -> None:
    with pytest.raises(InvalidInput, match=r"no baseline 'random'; there are: v3"):
        summarise({("v3", 2): np.ones(4)}, IMAGES, baselines=["random"])
    with pytest.raises(InvalidInput, match="no system"):
        summarise({}, IMAGES, baselines=[])
    with pytest.raises(InvalidInput, match="draws is 0"):
        summarise({("v3", 2): np.ones(4)}, IMAGES, draws=0, baselines=[])


def test_tables() -> None:
    found = summarise(
        {("zero_shot", 0): np.zeros(2), ("random", 1): np.ones(2), ("v3", 1): np.ones(2), ("v3", 2): np.ones(2)},
        ["a", "b"],
        draws=10,
        baselines=["zero_shot"],
    )
    assert accuracy_table(found).splitlines() == [
        "| system | 0 shots | 1 shot | 2 shots |",
        "| --- | ---: | ---: | ---: |",
        "| zero_shot | 0.0 [0.0, 0.0] |  |  |",
        "| random |  | 100.0 [100.0, 100.0] |  |",
        "| v3 |  | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] |",
    ]
    assert difference_table(found).splitlines()[2] == "| random | 1 | zero_shot (0 shots) | +100.0 [+100.0, +100.0] | 1.0000 |  |"


def test_each_pair_of_a_system_and_a_baseline_comes_once() -> None:
    cells = {(name, 1): np.full(4, value) for name, value in (("random", 0.25), ("similar", 0.5), ("v3", 1.0))}
    found = summarise(cells, IMAGES, draws=10, baselines=["random", "similar"])
    assert [(row.system, row.baseline, row.difference) for row in found.differences] == [
        ("similar", "random", 0.25),
        ("v3", "random", 0.75),
        ("v3", "similar", 0.5),
    ]
