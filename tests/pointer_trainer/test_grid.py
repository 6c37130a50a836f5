"""The grid of a sweep, and what the data must hold for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leverplus.data_root import DataRoot
from leverplus.errors import InvalidConfig
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.rewards import RewardConfig
from leverplus.rl_data import Candidate, QueryRecord, write
from pointer_trainer.children import child_id
from pointer_trainer.grid import read_grid
from pointer_trainer.reward_needs import unmet_needs

SCORED = Candidate((ItemId(1),), "random", vqa_correct=1, vqa_acc_score=1.0, vqa_eval_mode="file")
HYBRID = RewardConfig(mode="hybrid", alpha=0.5)


def test_the_last_axis_runs_fastest_and_a_group_varies_together() -> None:
    axes = {"reward.hard_weight, reward.soft_weight": [[1, 0.5], [0.5, 1]], "seed": [3, 4]}
    points = read_grid({"rce_epochs": 2, "reward": {"mode": "separated"}}, axes)
    found = [(p.number, p.config.reward.hard_weight, p.config.reward.soft_weight, p.config.seed) for p in points]
    assert found == [(1, 1, 0.5, 3), (2, 1, 0.5, 4), (3, 0.5, 1, 3), (4, 0.5, 1, 4)]
    assert {(p.config.rce_epochs, p.config.reward.mode) for p in points} == {(2, "separated")}
    assert points[2].values == {"reward.hard_weight": 0.5, "reward.soft_weight": 1, "seed": 3}
    assert points[2].label == "child 3 (reward.hard_weight=0.5, reward.soft_weight=1, seed=3)"
    assert child_id("job-1a2b", 3) == "job-1a2b-003"


def test_the_base_is_left_as_it_was() -> None:
    base: dict[str, Any] = {"reward": {"alpha": 0.5}}
    read_grid(base, {"reward.mode": ["hybrid", "separated"], "shot_weights.2": [0.5, 1]})
    assert base == {"reward": {"alpha": 0.5}}


def nested(depth: int) -> list[Any]:
    return [] if depth == 1 else [nested(depth - 1)]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({}, "no axis"),
        ({"seed": []}, "0 makes 0 children"),
        ({"seed": list(range(17)), "rce_epochs": list(range(1, 17))}, "17 x 16 makes 272 children, expected 1 to 256"),
        ({"sed": [1]}, "sed: Extra inputs are not permitted"),
        ({"reward.mod": ["separated"]}, "reward.mod"),
        ({"seed": [0, -1]}, "found -1, in child 2 (seed=-1)"),
        ({"seed": [0, "a"]}, "in child 2 (seed=a)"),
        ({"seed": [0, 1, 0]}, "child 1 (seed=0) and child 3 (seed=0) are one config"),
        ({"rce_lr": [1, 1.0]}, "are one config"),
        ({"seed": [1], "seed,rce_lr": [[2, 0.1]]}, "seed: varied twice"),
        ({"reward": [{"mode": "separated"}], "reward.hard_weight": [1]}, "reward and reward.hard_weight: varied twice"),
        ({"seed,rce_lr": [[1]]}, "[1] is not one value for each of 2 names"),
        ({"seed,rce_lr": [1]}, "1 is not one value for each of 2 names"),
        ({"seed,": [[1, 2]]}, "a name is empty"),
        ({"seed.x": [1]}, "seed has no fields in it"),
        ({"rce_epochs": [True]}, "rce_epochs: is true, expected a number; write 1, in child 1"),
        ({"reward.alpha": [True]}, "reward.alpha: is true, expected a number; write 1"),
        ({"shot_weights": [{"2": False}]}, "shot_weights.2: is false, expected a number; write 0"),
        ({"seed": [0, 2**70]}, "axes.seed: an integer of 71 bits"),
        ({"seed": [nested(17)]}, "axes.seed: nests deeper than 16"),
        ({"seed": [nested(900)]}, "axes.seed: nests deeper than 16"),
        ({"reward.info_field": ["\ud800"]}, "axes.reward.info_field': holds '\\ud800'"),
        ({",".join(f"a{n}" for n in range(100_000)): [list(range(100_000))]}, "Extra inputs are not permitted"),
        ({"reward.mode": ["separated", "hybrid"]}, "alpha: is 0.0; hybrid needs a stated weight of the InfoScore"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused_by_name(axes: dict[str, list[Any]], words: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        read_grid({"seed": 0}, axes)
    assert words in str(refused.value)


def rl_data(tmp_path: Path, **files: list[Candidate]) -> DataRoot:
    """Each file holds query 0 with one of these candidates, query 1 with the next, …"""
    root = DataRoot(tmp_path)
    for name, candidates in files.items():
        pool = (ItemId(10), ItemId(11))
        records = [
            QueryRecord(ItemId(query), {}, pool, (replace(candidate, pointer=(ItemId(10),)),))
            for query, candidate in enumerate(candidates)
        ]
        write(root.rl_data(name), records, fingerprint=Fingerprint(), meta={})
    return root


def test_hybrid_needs_an_info_score_in_every_group(tmp_path: Path) -> None:
    informed = replace(SCORED, info_score=0.2)
    root = rl_data(tmp_path, all=[informed, informed], some=[informed, SCORED], none=[SCORED, SCORED], rest=[SCORED, informed])
    assert unmet_needs(root, ["all"], [HYBRID, RewardConfig()]) == {}
    assert list(unmet_needs(root, ["some"], [HYBRID, RewardConfig()])) == [HYBRID]
    reason = unmet_needs(root, ["none"], [HYBRID])[HYBRID]
    assert reason.startswith("query 0, 1 shots: reward mode hybrid: none of the 1 candidates of a group has info_score")
    # What one file lacks the other has.
    assert unmet_needs(root, ["some", "rest"], [HYBRID]) == {}


def test_other_rewards_need_one_candidate_at_least(tmp_path: Path) -> None:
    likely = RewardConfig(mode="hard01_plus_gtprob")
    root = rl_data(tmp_path, one=[SCORED, replace(SCORED, vqa_gt_prob=0.5)], none=[SCORED])
    assert unmet_needs(root, ["one"], [likely]) == {}
    reason = "reward mode hard01_plus_gtprob: no candidate with demonstrations has a known reward, e.g. query 0, pointer [10]: "
    assert unmet_needs(root, ["none"], [likely, RewardConfig()]) == {likely: f"{reason}vqa_gt_prob unknown"}
    # A term of weight 0 needs nothing.
    assert unmet_needs(root, ["none"], [replace(likely, soft_weight=0.0)]) == {}
