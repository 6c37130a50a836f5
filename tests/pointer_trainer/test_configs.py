"""The configs that come with the repository are what training and sweeps take."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from pointer_trainer.grid import read_grid
from pointer_trainer.requests import SweepRequest
from pointer_trainer.train_config import read_train_config

CONFIGS = {path.name: tomllib.loads(path.read_text()) for path in (Path(__file__).parents[2] / "configs").glob("*.toml")}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_taken_and_has_no_setting_without_effect(name: str) -> None:
    if "axes" in CONFIGS[name]:
        request = SweepRequest.model_validate({**CONFIGS[name], "base": {**CONFIGS[name].get("base", {}), "rl_data": ["rl-1"]}})
        configs = [point.config for point in read_grid(request.base.config, request.axes)]
    else:
        configs = [read_train_config(CONFIGS[name])]
    assert [config.settings_without_effect() for config in configs] == [[] for _ in configs]


def test_the_grid_of_rewards_is_whole() -> None:
    grid = CONFIGS["reward-grid.toml"]
    points = read_grid(grid["base"]["config"], grid["axes"])
    assert len(points) == 24
    assert Counter(point.config.reward.mode for point in points) == dict.fromkeys(
        ("hard_plus_soft", "hard_plus_soft_v2", "separated", "hybrid"), 6
    )
    weights = {(point.config.reward.hard_weight, point.config.reward.soft_weight) for point in points}
    assert weights == {(1, 1), (1, 0.5), (0.5, 1)}
    assert {point.config.rce_use_raw_reward for point in points} == {False, True}
    assert {point.config.grpo_epochs for point in points} == {0}
