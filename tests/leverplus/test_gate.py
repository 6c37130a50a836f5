"""The promotion gate as a function of accuracies."""

from __future__ import annotations

import numpy as np
import pytest

from leverplus.errors import InvalidInput
from leverplus.evaluation.gate import ALPHA, run_gate

IMAGES = [str(number) for number in range(200)]


def drawn(share: float, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(200) < share).astype(np.float64)


def test_a_clear_gain_over_every_baseline_passes() -> None:
    baselines = {"zero-shot": {0: drawn(0.2, 2)}, "random": {1: drawn(0.3, 3), 2: drawn(0.3, 4)}}
    gate = run_gate({1: drawn(0.8, 0), 2: drawn(0.9, 1)}, baselines, IMAGES, draws=2000)
    assert gate.passed
    assert [(one.shots, one.baseline, one.baseline_shots) for one in gate.comparisons] == [
        (1, "zero-shot", 0),
        (1, "random", 1),
        (2, "zero-shot", 0),
        (2, "random", 2),
    ]
    # Holm over the two baselines of one number of shots, not over all four comparisons.
    assert sorted(one.level for one in gate.comparisons if one.shots == 1) == pytest.approx([ALPHA / 2, ALPHA])
    assert gate.refusals == []


def test_one_baseline_that_is_not_beaten_refuses() -> None:
    same = drawn(0.8, 0)
    gate = run_gate({1: same}, {"random": {1: drawn(0.2, 1)}, "similar-joint": {1: same}}, IMAGES, draws=500)
    assert not gate.passed
    assert [one.passed for one in gate.comparisons] == [True, False]
    # Equal on every query: the bound is 0, which is not above 0.
    assert gate.comparisons[1].low == 0.0
    assert gate.refusals == ["at 1 shot its gain over similar-joint is +0.0 points, lower bound +0.0 (level 2.50 %)"]


def test_one_number_of_shots_that_fails_refuses() -> None:
    gate = run_gate({1: drawn(0.9, 0), 2: drawn(0.2, 1)}, {"zero-shot": {0: drawn(0.3, 2)}}, IMAGES, draws=500)
    assert [one.passed for one in gate.comparisons] == [True, False]
    assert not gate.passed


def test_a_baseline_of_other_shots_alone_is_left_to_those() -> None:
    gate = run_gate(
        {1: drawn(0.9, 0), 2: drawn(0.9, 1)},
        {"zero-shot": {0: drawn(0.1, 2)}, "best-fixed": {1: drawn(0.2, 3), 3: drawn(0.2, 3)}},
        IMAGES,
        draws=200,
    )
    assert [(one.shots, one.baseline) for one in gate.comparisons] == [(1, "zero-shot"), (1, "best-fixed"), (2, "zero-shot")]


def test_a_gain_by_chance_seldom_passes() -> None:
    passed = 0
    for seed in range(100):
        baselines = {name: {1: drawn(0.5, 1000 * index + seed)} for index, name in enumerate("abc", start=1)}
        passed += run_gate({1: drawn(0.5, seed)}, baselines, IMAGES, draws=300, seed=seed).passed
    assert passed <= 3


def test_images_count_not_questions() -> None:
    gain = np.zeros(200)
    gain[:20] = 1.0  # all on five images
    baseline = {"random": {1: np.zeros(200)}}
    assert run_gate({1: gain}, baseline, IMAGES, draws=1000).passed
    assert not run_gate({1: gain}, baseline, [str(number // 20) for number in range(200)], draws=1000).passed


def test_what_cannot_be_judged() -> None:
    with pytest.raises(InvalidInput, match="1 image says nothing"):
        run_gate({1: np.ones(3)}, {"random": {1: np.zeros(3)}}, ["a"] * 3)
    with pytest.raises(InvalidInput, match="no baseline was evaluated at 2 shots"):
        run_gate({2: np.ones(2)}, {}, ["a", "b"])


def test_so_few_images_that_chance_could_be_right_on_all_of_them_are_refused() -> None:
    # A bootstrap of two images that are both gained on has no draw without a gain, and one coin in four falls so.
    with pytest.raises(InvalidInput, match=r"2 images are too few to judge 1 comparison.*once in 4"):
        run_gate({1: np.ones(2)}, {"random": {1: np.zeros(2)}}, ["a", "b"])
    # 2.5 % over two comparisons is 1 in 80: six images reach 1 in 64, seven 1 in 128.
    baselines = {"zero-shot": {0: np.zeros(7)}, "random": {1: np.zeros(7)}}
    assert run_gate({1: np.ones(7)}, baselines, IMAGES[:7], draws=200).passed
    with pytest.raises(InvalidInput, match="6 images are too few to judge 2 comparisons"):
        run_gate({1: np.ones(7)}, baselines, [*IMAGES[:6], IMAGES[0]], draws=200)
