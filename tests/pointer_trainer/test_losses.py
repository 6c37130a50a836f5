"""Losses against numbers worked out by hand, closed forms and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pointer_trainer import losses


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def everything(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)


groups = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=12)


def test_softmax_weights_by_hand():
    # exp(ln 3) : exp(0) = 3 : 1; at temperature 2 it is sqrt 3 : 1.
    rewards = tensor([math.log(3), 0.0])
    assert losses.softmax_weights(rewards, everything(rewards), 1.0).tolist()[0] == pytest.approx([0.75, 0.25])
    root = math.sqrt(3)
    assert losses.softmax_weights(rewards, everything(rewards), 2.0).tolist()[0] == pytest.approx(
        [root / (root + 1), 1 / (root + 1)]
    )


def test_weights_leave_out_what_is_masked_even_nan():
    rewards = tensor([1.0, math.nan, 1.0], [math.nan] * 3)
    mask = torch.tensor([[True, False, True], [False] * 3])
    assert losses.softmax_weights(rewards, mask, 1.0).tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float):
    rewards = tensor([1.0])
    with pytest.raises(ValueError, match="temperature"):
        losses.softmax_weights(rewards, everything(rewards), temperature)


def test_rce_by_hand():
    # Weights 3/4 and 1/4 in the first group, 1 in the second (its other place is empty):
    # (0.75·1 + 0.25·3 + 1·2) / 2 = 1.75
    logp = tensor([-1.0, -3.0], [-2.0, math.nan])
    rewards = tensor([math.log(3), 0.0], [5.0, math.nan])
    mask = torch.tensor([[True, True], [True, False]])
    outputs = losses.rce_loss(logp, rewards, mask, 1.0)
    assert outputs.loss.item() == pytest.approx(1.75)
    assert outputs.metrics["groups"] == 2


def test_rce_does_not_count_empty_groups():
    logp, rewards = tensor([-1.0, -3.0], [-9.0, -9.0]), tensor([0.0, 0.0], [1.0, 1.0])
    mask = torch.tensor([[True, True], [False, False]])
    assert losses.rce_loss(logp, rewards, mask, 1.0).loss.item() == pytest.approx(2.0)


def test_rce_gradient_is_minus_weights_over_groups():
    logp = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    rewards = torch.randn(3, 4, dtype=torch.float64)
    mask = torch.rand(3, 4) > 0.3
    mask[:, 0] = True
    losses.rce_loss(logp, rewards, mask, 0.7).loss.backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, -losses.softmax_weights(rewards, mask, 0.7) / 3, atol=1e-12, rtol=0)


def test_top1_takes_the_best_by_reward_and_averages_over_steps():
    # Best is the second (a tie with the third); its two steps cost 3 in all. The other group has one step costing 4.
    logp = tensor([-1.0, -3.0, -5.0], [-4.0, math.nan, math.nan])
    rewards = tensor([0.0, 1.0, 1.0], [0.0, 9.0, 9.0])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert losses.top1_loss(logp, rewards, mask, torch.tensor([2, 1])).loss.item() == pytest.approx((1.5 + 4.0) / 2)


def test_smoothing_by_hand():
    # Pool of four, the last is padding; pointer (1, 0), then a one-step pointer. Logits ln 1, ln 3, ln 4 give 1/8, 3/8, 4/8;
    # after position 1 is chosen, 0 and 2 remain: 1/5, 4/5.
    first = [math.log(1), math.log(3), math.log(4), -math.inf]
    second = [math.log(1), -100.0, math.log(4), -math.inf]
    logits = torch.tensor([[[first, second], [first, second]]], dtype=torch.float64, requires_grad=True)
    pointers = torch.tensor([[[1, 0], [2, -1]]])
    found = losses.smoothed_log_prob(logits, pointers, 0.3)
    spread = math.log(1 / 8 * 3 / 8 * 4 / 8) / 3
    one = 0.7 * math.log(3 / 8) + 0.3 * spread + 0.7 * math.log(1 / 5) + 0.3 * math.log(1 / 5 * 4 / 5) / 2
    assert found.tolist()[0] == pytest.approx([one, 0.7 * math.log(4 / 8) + 0.3 * spread])
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_no_smoothing_is_the_log_probability():
    logits = torch.randn(1, 2, 2, 5, dtype=torch.float64)
    pointers = torch.tensor([[[1, 0], [4, 3]]])
    plain = logits.log_softmax(-1).gather(-1, pointers.unsqueeze(-1)).squeeze(-1).sum(-1)
    torch.testing.assert_close(losses.smoothed_log_prob(logits, pointers, 0.0), plain)


def test_temperature_schedule():
    assert [losses.temperature_schedule(step, 4) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]
    assert losses.temperature_schedule(0, 1) == losses.temperature_schedule(0, 0) == 0.5
    assert losses.temperature_schedule(1, 3, start=1.0, end=3.0) == 2.0


def test_zscore_by_hand():
    # 1, 2, 3: mean 2, the sample's standard deviation 1. A spread of 0 is centred only; one candidate likewise.
    rewards = tensor([1.0, 2.0, 3.0], [0.1, 0.1, 0.1], [7.0, math.nan, math.nan])
    mask = torch.tensor([[True] * 3, [True] * 3, [True, False, False]])
    assert losses.zscore(rewards, mask).tolist() == [[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_advantage_by_hand():
    # First: mean 1, std sqrt 2. Second: std 0.0141 is below the floor of 0.1. Third: alone.
    rewards = tensor([0.0, 2.0], [0.0, 0.02], [3.0, 99.0])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    found = losses.group_advantage(rewards, mask)
    torch.testing.assert_close(found, tensor([-1 / math.sqrt(2), 1 / math.sqrt(2)], [-0.1, 0.1], [0.0, 0.0]))


def test_advantage_is_clipped():
    # 35 zeros and a one: z of the one is 35/36 / (1/6) = 5.83.
    rewards = tensor([1.0] + [0.0] * 35)
    assert losses.group_advantage(rewards, everything(rewards))[0, 0].item() == 5.0
    assert losses.group_advantage(rewards, everything(rewards), clip=9.0)[0, 0].item() == pytest.approx(35 / 6)


@settings(max_examples=60)
@given(groups)
def test_advantages_sum_to_zero(values: list[float]):
    rewards = tensor(values)
    found = losses.group_advantage(rewards, everything(rewards), clip=math.inf)
    assert abs(found.sum().item()) < 1e-9
    assert torch.isfinite(found).all()


@settings(max_examples=40)
@given(st.floats(-5, 5, width=32), st.integers(1, 9))
def test_equal_rewards_have_exactly_no_advantage(value: float, size: int):
    rewards = torch.full((1, size), value, dtype=torch.float32)
    assert losses.group_advantage(rewards, everything(rewards)).eq(0).all()
    assert losses.zscore(rewards, everything(rewards)).eq(0).all()


@settings(max_examples=40)
@given(groups, st.floats(0.1, 5), st.floats(-3, 3))
def test_weights_sum_to_one_and_ignore_a_shift(values: list[float], temperature: float, shift: float):
    rewards = tensor(values)
    weights = losses.softmax_weights(rewards, everything(rewards), temperature)
    assert weights.sum().item() == pytest.approx(1.0)
    torch.testing.assert_close(losses.softmax_weights(rewards + shift, everything(rewards), temperature), weights)


def test_grpo_by_hand():
    # Ratios 1.5 and 0.5, advantages 1 and −1, clip 0.2.
    # Policy: min(1.5, 1.2) = 1.2 and min(−0.5, −0.8) = −0.8, so −(1.2 − 0.8)/2 = −0.2.
    # KL: 1.5 − 1 − ln 1.5 and 0.5 − 1 − ln 0.5, their mean is (−ln 0.75)/2.
    old = tensor([-2.0, -1.0])
    logp = old + tensor([math.log(1.5), math.log(0.5)])
    outputs = losses.grpo_loss(logp, old, tensor([1.0, -1.0]), everything(old), clip=0.2, kl_beta=0.1)
    kl = -math.log(0.75) / 2
    assert outputs.metrics["policy_loss"] == pytest.approx(-0.2)
    assert outputs.metrics["kl"] == pytest.approx(kl)
    assert outputs.metrics["clip_fraction"] == 1.0
    assert outputs.loss.item() == pytest.approx(-0.2 + 0.1 * kl)


def test_grpo_upper_bound_of_its_own():
    old = tensor([-2.0])
    outputs = losses.grpo_loss(old + math.log(1.5), old, tensor([1.0]), everything(old), kl_beta=0.0, clip_high=0.4)
    assert outputs.loss.item() == pytest.approx(-1.4)


def test_grpo_at_the_first_step_has_ratio_one_and_the_policy_gradient():
    # At ρ = 1 the gradient is −A/n, and the KL term adds nothing.
    old = torch.randn(2, 5, dtype=torch.float64)
    logp = old.clone().requires_grad_()
    rewards = torch.randn(2, 5, dtype=torch.float64)
    advantages = losses.group_advantage(rewards, everything(rewards))
    outputs = losses.grpo_loss(logp, old, advantages, everything(old), kl_beta=10.0)
    outputs.loss.backward()
    assert outputs.metrics["ratio_mean"] == 1.0
    assert outputs.metrics["kl"] == 0.0
    assert outputs.metrics["clip_fraction"] == 0.0
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, -advantages / 10, atol=1e-12, rtol=0)


def test_grpo_equal_rewards_give_no_gradient():
    old = torch.randn(2, 5, dtype=torch.float64)
    logp = old.clone().requires_grad_()
    rewards = torch.full((2, 5), 0.3, dtype=torch.float64)
    outputs = losses.grpo_loss(logp, old, losses.group_advantage(rewards, everything(rewards)), everything(old))
    outputs.loss.backward()
    assert logp.grad is not None
    assert logp.grad.eq(0).all()
    assert outputs.metrics["groups_without_signal"] == 2


def test_grpo_takes_nothing_from_masked_places():
    old = tensor([-2.0, math.nan])
    logp = old.clone().requires_grad_()
    mask = torch.tensor([[True, False]])
    outputs = losses.grpo_loss(logp, old, tensor([1.0, math.nan]), mask)
    outputs.loss.backward()
    assert outputs.loss.item() == -1.0
    assert logp.grad is not None
    assert logp.grad.tolist() == [[-1.0, 0.0]]


@pytest.mark.parametrize("seed", range(5))
def test_gradients_agree_with_finite_differences(seed: int):
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    logp = (old + 0.4 * torch.randn(3, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    rewards = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 4, generator=generator) > 0.2
    mask[:, 0] = True
    advantages = losses.group_advantage(rewards, mask)
    shots = torch.tensor([1, 2, 3])
    for function in (
        lambda x: losses.rce_loss(x, rewards, mask, 0.8).loss,
        lambda x: losses.top1_loss(x, rewards, mask, shots).loss,
        lambda x: losses.grpo_loss(x, old, advantages, mask).loss,
        lambda x: losses.expected_reward(x, rewards, mask).sum(),
    ):
        assert torch.autograd.gradcheck(function, (logp,), eps=1e-6, atol=1e-6)


def test_adaptive_kl_beta():
    assert losses.adaptive_kl_beta(0.1, 0.2) == pytest.approx(0.15)
    assert losses.adaptive_kl_beta(0.15, 0.001) == pytest.approx(0.1)
    assert losses.adaptive_kl_beta(0.1, 0.01) == losses.adaptive_kl_beta(0.1, 0.1) == 0.1
    assert losses.adaptive_kl_beta(9.0, 1.0) == 10.0
    assert losses.adaptive_kl_beta(0.001, 0.0) == 0.001
    with pytest.raises(ValueError, match="nan"):
        losses.adaptive_kl_beta(0.1, math.nan)


def test_expected_and_greedy_reward_by_hand():
    # p = 3/4, 1/4 of rewards 1 and 5: 2. The likelier is worth 1. An empty group counts 0.
    logp = tensor([math.log(3), 0.0, math.nan], [math.nan] * 3)
    rewards = tensor([1.0, 5.0, math.nan], [math.nan] * 3)
    mask = torch.tensor([[True, True, False], [False] * 3])
    assert losses.expected_reward(logp, rewards, mask).tolist() == pytest.approx([2.0, 0.0])
    assert losses.greedy_reward(logp, rewards, mask).tolist() == [1.0, 0.0]
