"""Which phase is recommended. With two images a bootstrap draws each twice in a quarter of its draws and both in a half, so that
the 95 % interval of a mean is from the one image's mean to the other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from leverplus.ids import ItemId
from leverplus.selector import PointerSelectorV3, SelectorConfig
from pointer_trainer.batches import RlBatch
from pointer_trainer.held_out import NAMES, HeldOut, measure_held_out
from pointer_trainer.recommendation import Recommendation, recommend
from pointer_trainer.train_config import TrainConfig

REWARD, LOSS = "held_out_expected_reward", "held_out_rce"
IMAGES = {ItemId(1): "a", ItemId(2): "b", ItemId(3): "a"}


def recommended(
    phases: Mapping[str, Sequence[float]], queries: Sequence[int] = (1, 2), measure: str = REWARD, **config: Any
) -> Recommendation:
    """`phases`: the measure's values, one a group of `queries`."""
    judged = {name: HeldOut(np.array(queries), {measure: np.array(values)}) for name, values in phases.items()}
    return recommend(judged, IMAGES, TrainConfig(**config))


def test_a_phase_alone_is_the_one():
    found = recommended({"rce": [1.0, 0.5]})
    assert (found.phase, found.measure, found.queries, found.images) == ("rce", REWARD, 2, 2)
    assert found.to_json()["phases"] == {
        "rce": {"mean": 0.75, "taken": True, "over": None, "gain": None, "low": None, "high": None}
    }
    assert found.reason == "rce has no other phase beside it"


def test_a_gain_within_noise_keeps_the_earlier_phase():
    # Gains +1 and -0.8: the later mean is larger by 0.1.
    found = recommended({"answers": [0.0, 1.0], "rce": [1.0, 0.2]})
    assert found.phase == "answers"
    later = found.phases["rce"]
    assert (later.mean, later.gain, later.low, later.high) == pytest.approx((0.6, 0.1, -0.8, 1.0))
    assert (later.over, later.taken) == ("answers", False)
    assert found.reason == (
        "rce gains +0.1000 [-0.8000, +1.0000] over answers, not shown to be above 0 "
        "(held_out_expected_reward, paired, 2 held-out queries of 2 images)"
    )


def test_a_clear_gain_takes_the_later_phase():
    found = recommended({"answers": [0.0, 1.0], "rce": [0.2, 1.6]})
    later = found.phases["rce"]
    assert (later.gain, later.low, later.high) == pytest.approx((0.4, 0.2, 0.6))
    assert (found.phase, later.taken) == ("rce", True)
    assert found.reason.startswith("rce gains +0.4000 [+0.2000, +0.6000] over answers, above 0 (")


def test_equal_and_worse_phases_keep_the_earlier_one():
    assert recommended({"rce": [0.3, 0.6], "grpo": [0.3, 0.6]}).phase == "rce"
    worse = recommended({"rce": [0.3, 0.6], "grpo": [0.1, 0.5]})
    assert (worse.phase, worse.phases["grpo"].high) == ("rce", pytest.approx(-0.1))


def test_each_phase_is_compared_with_the_one_recommended_before_it():
    # rce is within noise of supervised, so grpo has to beat supervised; it does, though rce would be ahead of it on query 1.
    found = recommended({"supervised": [0.0, 1.0], "rce": [1.0, 0.2], "grpo": [0.5, 1.5]})
    assert [(name, one.over, one.taken) for name, one in found.phases.items()] == [
        ("supervised", None, True), ("rce", "supervised", False), ("grpo", "supervised", True),
    ]  # fmt: skip
    assert found.phase == "grpo"
    assert found.phases["grpo"].low == pytest.approx(0.5)
    # Where rce was taken, grpo is measured against it.
    later = recommended({"supervised": [0.0, 0.0], "rce": [1.0, 0.2], "grpo": [0.9, 0.3]})
    assert (later.phases["grpo"].over, later.phase) == ("rce", "rce")


def test_a_lower_loss_is_a_gain():
    phases = {"answers": [3.0, 2.0], "rce": [2.5, 1.9]}
    found = recommended(phases, measure=LOSS, keep_epoch="loss")
    assert (found.phase, found.measure, found.phases["rce"].mean) == ("rce", LOSS, pytest.approx(2.2))
    assert (found.phases["rce"].gain, found.phases["rce"].low) == pytest.approx((0.3, 0.1))
    assert recommended({**phases, "rce": [3.5, 2.1]}, measure=LOSS, keep_epoch="loss").phase == "answers"


def test_queries_of_an_image_are_drawn_together():
    # Image a has three groups of two queries, gains +1, +1 and +1, image b one of -1: means 1, -1, and 2 of 4 with both.
    found = recommended({"answers": [0.0] * 4, "rce": [1.0, 1.0, 1.0, -1.0]}, queries=(1, 1, 3, 2))
    later = found.phases["rce"]
    assert (later.gain, later.low, later.high) == pytest.approx((0.5, -1.0, 1.0))
    assert (found.phase, found.queries, found.images) == ("answers", 3, 2)


def test_one_image_shows_nothing():
    found = recommended({"answers": [0.0, 0.0], "rce": [1.0, 1.0]}, queries=(1, 3))
    later = found.phases["rce"]
    assert (later.gain, later.low, later.high, found.phase) == (1.0, None, None, "answers")
    assert "rce gains +1.0000 [no interval] over answers, not shown to be above 0" in found.reason


def test_held_out_values_stand_beside_their_queries():
    """Two queries, the first with candidates of one and of two shots: three groups, whose means are what metrics.jsonl has."""
    torch.manual_seed(0)
    model = PointerSelectorV3(SelectorConfig(d_model=4, hidden_dim=4, dropout=0.5)).train()
    pointers = torch.tensor([[[0, -1], [1, -1], [0, 2]], [[2, -1], [0, -1], [-1, -1]]])
    rewards = torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    batch = RlBatch(
        torch.tensor([7, 9]), torch.randn(2, 4), torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), pointers, rewards, mask
    )
    found = measure_held_out(model, [batch])
    assert found.query_ids.tolist() == [7, 9, 7]
    assert found.values["held_out_uniform_reward"].tolist() == [0.5, 1.0, 0.5]
    assert found.values["held_out_best_reward"].tolist() == [1.0, 2.0, 0.5]
    assert found.means() == {name: pytest.approx(values.mean()) for name, values in found.values.items()}
    assert tuple(found.values) == NAMES
    assert model.training
