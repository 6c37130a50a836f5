"""Each reward mode worked out by hand, and what happens to what is unknown."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leverplus.errors import InvalidConfig, InvalidRlData
from leverplus.ids import ItemId
from leverplus.rewards import REWARD_MODES, RewardConfig, compute_reward, compute_rewards
from leverplus.rl_data import Candidate

WRONG = {"vqa_correct": 0, "vqa_acc_score": 0.0, "vqa_gt_prob": 0.25, "vqa_rel_score": 0.5}
RIGHT = {"vqa_correct": 1, "vqa_acc_score": 0.6, "vqa_gt_prob": 0.75, "vqa_rel_score": 0.9}
WEIGHTS = {"hard_weight": 2.0, "soft_weight": 0.5, "rel_weight": 0.1}


@pytest.mark.parametrize(
    ("mode", "wrong", "right"),
    [
        ("hard_plus_soft", 0.0, 2 * 1 + 0.5 * 0.6),
        ("hard_plus_soft_v2", 0.0, 0.5 * 0.6 + 2 * 2 * 1),
        ("separated", 0.0, 2 * 2 + 0.5 * 0.6),
        ("hard_only", 0.0, 2.0),
        ("soft_only", 0.0, 0.3),
        ("hard01_plus_gtprob", 0.5 * 0.25, 2 + 0.5 * 0.75),
        ("hard01_plus_gtprob_separated", 0.5 * 0.25, 2 * 2 + 0.5 * 0.75),
        ("hard_plus_gtprob_plus_rel", 0.5 * 0.25 + 0.1 * 0.5, 2 + 0.5 * 0.75),
    ],
)
def test_modes(mode: str, wrong: float, right: float) -> None:
    config = RewardConfig(mode=mode, **WEIGHTS)  # pyright: ignore[reportArgumentType]
    assert compute_reward(WRONG, config) == pytest.approx(wrong)
    assert compute_reward(RIGHT, config) == pytest.approx(right)
    assert compute_rewards([WRONG, RIGHT], config) == pytest.approx([wrong, right])


def test_defaults_are_the_references() -> None:
    config = RewardConfig()
    assert (config.mode, config.hard_weight, config.soft_weight, config.rel_weight) == ("hard_plus_soft", 1, 1, 0.1)
    assert compute_reward(RIGHT, config) == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("mode", "needed"),
    [
        ("hard_plus_soft", ["vqa_correct", "vqa_acc_score"]),
        ("hard_plus_soft_v2", ["vqa_correct", "vqa_acc_score"]),
        ("separated", ["vqa_correct", "vqa_acc_score"]),
        ("hard_only", ["vqa_correct"]),
        ("soft_only", ["vqa_acc_score"]),
        ("hard01_plus_gtprob", ["vqa_correct", "vqa_gt_prob"]),
        ("hard01_plus_gtprob_separated", ["vqa_correct", "vqa_gt_prob"]),
        ("hard_plus_gtprob_plus_rel", ["vqa_correct", "vqa_gt_prob", "vqa_rel_score"]),
    ],
)
def test_unknown_is_none_and_what_is_not_needed_may_be_unknown(mode: str, needed: list[str]) -> None:
    config = RewardConfig(mode=mode)  # pyright: ignore[reportArgumentType]
    only_needed = {name: WRONG[name] for name in needed}
    assert compute_reward(only_needed, config) is not None
    for name in needed:
        assert compute_reward({**only_needed, name: None}, config) is None


def test_relevance_of_a_right_answer_is_not_needed() -> None:
    config = RewardConfig(mode="hard_plus_gtprob_plus_rel")
    assert compute_reward({**RIGHT, "vqa_rel_score": None}, config) == pytest.approx(1.75)


def test_a_term_of_weight_zero_needs_nothing() -> None:
    assert compute_reward({"vqa_correct": 1}, RewardConfig(soft_weight=0)) == 1.0


def candidate(*ids: int, **values: float | None) -> Candidate:
    return replace(Candidate(tuple(ItemId(number) for number in ids), "sample"), **values)  # pyright: ignore[reportArgumentType]


def test_hybrid_scales_the_info_score_in_the_group() -> None:
    config = RewardConfig(mode="hybrid", alpha=0.25)
    group = [
        candidate(1, info_score=-0.1, vqa_correct=0, vqa_acc_score=0.0),
        candidate(2, info_score=0.1, vqa_correct=1, vqa_acc_score=0.6),
        candidate(3, info_score=0.3, vqa_correct=1, vqa_acc_score=1.0),
        candidate(4, info_score=None, vqa_correct=1, vqa_acc_score=1.0),
    ]
    expected = [0.0, 0.25 * 0.5 + 0.75 * 1.6, 0.25 * 1.0 + 0.75 * 2.0, None]
    assert compute_rewards(group, config) == [pytest.approx(value, abs=1e-6) for value in expected]
    assert compute_reward(group[1], config, group) == pytest.approx(expected[1], abs=1e-6)


def test_hybrid_groups_by_shots_and_leaves_zero_shot_unknown() -> None:
    config = RewardConfig(mode="hybrid", alpha=1.0)
    rows = [
        candidate(),
        candidate(1, info_score=0.0),
        candidate(2, info_score=1.0),
        candidate(1, 2, info_score=5.0),
        candidate(2, 1, info_score=9.0),
    ]
    assert compute_rewards(rows, config) == [
        None,
        *(pytest.approx(value, abs=1e-6) for value in (0.0, 1.0, 0.0, 1.0)),
    ]


def test_hybrid_of_a_group_with_one_candidate_is_finite() -> None:
    config = RewardConfig(mode="hybrid", alpha=0.5)
    only = candidate(1, info_score=0.7, vqa_correct=1, vqa_acc_score=1.0)
    assert compute_rewards([only], config) == [pytest.approx(1.0)]


def test_hybrid_refuses_what_it_cannot_do() -> None:
    for alpha in (0, -0.1, 1.1):
        with pytest.raises(InvalidConfig, match="alpha"):
            RewardConfig(mode="hybrid", alpha=alpha)
    config = RewardConfig(mode="hybrid", alpha=0.5)
    with pytest.raises(InvalidRlData, match="none of the 2 candidates of a group has info_score"):
        compute_rewards([candidate(1, vqa_correct=1), candidate(2)], config)
    with pytest.raises(InvalidConfig, match="no group"):
        compute_reward(candidate(1, info_score=1.0), config)


def test_another_field_can_hold_the_info_score() -> None:
    config = RewardConfig(mode="hybrid", alpha=1.0, info_field="beam_score")
    rows = [candidate(1, beam_score=2.0), candidate(2, beam_score=4.0)]
    assert compute_rewards(rows, config) == [pytest.approx(0.0), pytest.approx(1.0)]
    with pytest.raises(InvalidConfig, match="no field 'nonsense'"):
        compute_rewards(rows, replace(config, info_field="nonsense"))


@pytest.mark.parametrize(
    ("settings", "values", "reward"),
    [
        ({"alpha": 1.0}, {"beam_score": 0.3}, 0.3),
        ({"alpha": 2.0, "use_logprob": True}, {"logprob_score": -1.5}, 3.0),
        ({"beta": 1.0}, {"vqa_correct": 1}, 1.0),
        ({"beta": 1.0, "correctness_mode": "pm1"}, {"vqa_correct": 0}, -1.0),
        ({"beta": 1.0, "correctness_mode": "pm1"}, {"vqa_correct": 1}, 1.0),
        ({"beta": 1.0}, {"vqa_correct": None, "vqa_acc_score": 0.6}, 0.6),
        ({"beta": 1.0, "correctness_mode": "pm1"}, {"vqa_acc_score": 0.6}, 0.2),
        ({"beta": 1.0}, {"vqa_correct": 0, "vqa_acc_score": 0.6}, 0.0),
        ({"alpha": 0.5, "beta": 2.0}, {"beam_score": 0.4, "vqa_correct": 1}, 2.2),
        ({"alpha": 0.5, "beta": 2.0}, {"beam_score": None, "vqa_correct": 1}, None),
        ({"alpha": 0.5, "beta": 2.0}, {"beam_score": 0.4}, None),
    ],
)
def test_legacy(settings: dict, values: dict, reward: float | None) -> None:
    expected = None if reward is None else pytest.approx(reward)
    assert compute_reward(values, RewardConfig(mode="legacy", **settings)) == expected


def test_rewards_are_clipped() -> None:
    assert compute_reward(RIGHT, RewardConfig(hard_weight=100)) == 5.0
    assert compute_reward({"beam_score": -7.0}, RewardConfig(mode="legacy", alpha=1)) == -5.0
    assert compute_reward(RIGHT, RewardConfig(reward_clip=(0, 1.2))) == 1.2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"mode": "legacy"}, "alpha and reward.beta"),
        ({"mode": "best"}, "mode"),
        ({"hard_weight": math.nan}, "hard_weight"),
        ({"soft_weight": "1"}, "soft_weight"),
        ({"rel_weight": True}, "rel_weight"),
        ({"correctness_mode": "pm2"}, "correctness_mode"),
        ({"reward_clip": (5, -5)}, "reward_clip"),
        ({"reward_clip": (5,)}, "reward_clip"),
        ({"reward_clip": (-math.inf, 5)}, "reward_clip"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, named: str) -> None:
    with pytest.raises(InvalidConfig, match=named):
        RewardConfig(**settings)


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", True])
def test_values_that_are_no_numbers_are_refused(value: object) -> None:
    with pytest.raises(InvalidRlData, match="vqa_acc_score"):
        compute_reward({"vqa_correct": 1, "vqa_acc_score": value}, RewardConfig())


unknown_or = st.none() | st.floats(0, 1)


@given(
    st.sampled_from([mode for mode in REWARD_MODES if mode not in ("hybrid", "legacy")]),
    st.fixed_dictionaries(
        {
            "vqa_correct": st.none() | st.integers(0, 1),
            "vqa_acc_score": unknown_or,
            "vqa_gt_prob": unknown_or,
            "vqa_rel_score": unknown_or,
        }
    ),
)
def test_a_candidate_and_its_json_fields_have_one_reward_in_the_clip(mode, values: dict) -> None:
    config = RewardConfig(mode=mode)
    reward = compute_reward(values, config)
    assert compute_reward(candidate(1, **values), config) == reward
    assert reward is None or -5 <= reward <= 5
