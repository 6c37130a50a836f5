"""Losses against numbers worked out by hand, closed forms and finite differences."""

from __future__ import annotations

import math
from typing import Any

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
    assert losses.reward_cross_entropy(logp, rewards, mask, 1.0).tolist() == pytest.approx([1.5, 2.0])


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


# Groups


def test_leave_one_out_by_hand():
    # 1, 2, 6: the others' means are 4, 3.5 and 1.5. A clip of 4 cuts the last. One candidate alone: 0.
    rewards = tensor([1.0, 2.0, 6.0], [7.0, math.nan, math.nan])
    mask = torch.tensor([[True] * 3, [True, False, False]])
    assert losses.leave_one_out_advantage(rewards, mask).tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]
    assert losses.leave_one_out_advantage(rewards, mask, clip=4.0)[0].tolist() == [-3.0, -1.5, 4.0]
    # Not divided by the spread: tenfold rewards give tenfold advantages, where the z-score stays.
    torch.testing.assert_close(losses.leave_one_out_advantage(rewards * 10, mask, clip=99)[0], tensor([-30.0, -15.0, 45.0])[0])


def test_flat_groups_and_best_over_mean_by_hand():
    rewards = tensor([1.0, 1.0, 1.0], [0.0, 3.0, 0.0], [5.0, math.nan, 9.0], [math.nan] * 3)
    mask = torch.tensor([[True] * 3, [True] * 3, [True, False, False], [False] * 3])
    assert losses.flat_groups(rewards, mask).tolist() == [True, False, True, True]
    assert losses.best_over_mean(rewards, mask).tolist() == [0.0, 2.0, 0.0, 0.0]


def test_coefficients_by_hand():
    # Groups of 1, 1, 2, 2 and 2 shots, the last empty. λ_1 = 1, λ_2 = 3; weights 1, 3 and 2, 0.
    mask = torch.tensor([[True]] * 4 + [[False]])
    shots = torch.tensor([1, 1, 2, 2, 2])
    plain = losses.group_coefficients(mask, shots)
    assert plain.tolist() == [0.5, 0.5, 0.5, 0.5, 0.0]
    weighted = losses.group_coefficients(
        mask, shots, group_weights=torch.tensor([1.0, 3.0, 2.0, 0.0, 9.0]), shot_weights={2: 3.0}
    )
    assert weighted.tolist() == [0.25, 0.75, 3.0, 0.0, 0.0]
    none = losses.group_coefficients(mask, shots, group_weights=torch.zeros(5))
    assert none.tolist() == [0.0] * 5


def test_joint_rce_is_the_sum_of_the_means_of_each_number_of_shots():
    generator = torch.Generator().manual_seed(3)
    logp, rewards = (torch.randn(7, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    mask, shots = torch.rand(7, 5, generator=generator) > 0.2, torch.tensor([1, 2, 4, 1, 2, 2, 2])
    mask[:, 0] = True
    coefficients = losses.group_coefficients(mask, shots, shot_weights={2: 0.5, 4: 2.0})
    joint = losses.rce_loss(logp, rewards, mask, 0.7, coefficients).loss
    means = {count: losses.rce_loss(logp[shots == count], rewards[shots == count], mask[shots == count], 0.7).loss
             for count in (1, 2, 4)}  # fmt: skip
    torch.testing.assert_close(joint, means[1] + 0.5 * means[2] + 2 * means[4], atol=1e-12, rtol=0)
    # One number of shots: the mean over groups, as without coefficients.
    single = losses.rce_loss(logp, rewards, mask, 0.7, losses.group_coefficients(mask, torch.full_like(shots, 3))).loss
    torch.testing.assert_close(single, losses.rce_loss(logp, rewards, mask, 0.7).loss, atol=1e-12, rtol=0)


def test_rce_without_flat_groups_takes_nothing_from_them():
    logp = tensor([-1.0, -3.0], [-2.0, -5.0]).requires_grad_()
    rewards = tensor([0.3, 0.3], [math.log(3), 0.0])
    mask = everything(rewards)
    weights = (~losses.flat_groups(rewards, mask)).double()
    loss = losses.rce_loss(
        logp, rewards, mask, 1.0, losses.group_coefficients(mask, torch.ones(2, dtype=torch.long), group_weights=weights)
    ).loss
    loss.backward()
    assert loss.item() == pytest.approx(0.75 * 2 + 0.25 * 5)
    assert logp.grad is not None
    assert logp.grad[0].tolist() == [0.0, 0.0]


# Steps along scored pointers


def plain_step_distributions(logits: Tensor, pointer: list[int], padded: list[int]) -> list[Tensor]:
    """Softmax over what can be chosen at each step, item by item."""
    found: list[Tensor] = []
    for step in range(len(pointer)):
        free = [item for item in range(logits.shape[-1]) if item not in padded and item not in pointer[:step]]
        found.append(torch.softmax(logits[step, free], -1))
    return found


def pool_logits(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two policies' logits [1, 3, 2, 5] as the selector makes them, along pointers (1, 0), (4) and (2, 3)."""
    generator = torch.Generator().manual_seed(seed)
    pointers = torch.tensor([[[1, 0], [4, -1], [2, 3]]])
    both: list[Tensor] = []
    for _ in range(2):
        logits = torch.randn(1, 3, 2, 5, dtype=torch.float64, generator=generator) * 3
        for row, first in enumerate((1, 4, 2)):
            logits[0, row, 1, first] = -100.0
        both.append(logits)
    return both[0], both[1], pointers


def test_pool_kl_by_hand():
    # One step over (1/2, 1/4, 1/4, padding) against (1/4, 1/4, 1/2, padding): ½ ln 2 + 0 − ¼ ln 2.
    ours = torch.tensor([[[[0.5, 0.25, 0.25, 0.0]]]], dtype=torch.float64).log()
    theirs = torch.tensor([[[[0.25, 0.25, 0.5, 0.0]]]], dtype=torch.float64).log()
    pointers = torch.tensor([[[2]]])
    assert losses.pool_kl(ours, theirs, pointers).item() == pytest.approx(0.25 * math.log(2))
    assert losses.pool_entropy(ours, pointers).item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert losses.pool_kl(ours, ours, pointers).item() == 0.0
    assert losses.pool_kl(ours, theirs, torch.tensor([[[-1]]])).item() == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_pool_kl_and_its_gradient_equal_the_sum_over_items_written_out(seed: int):
    ours, theirs, pointers = pool_logits(seed)
    ours.requires_grad_()
    expected: list[Tensor] = []
    for row, pointer in enumerate(([1, 0], [4], [2, 3])):
        pairs = zip(*(plain_step_distributions(each[0, row], pointer, []) for each in (ours, theirs)), strict=True)
        expected.append(sum(((p * (p / q).log()).sum() for p, q in pairs), torch.zeros(())))
    found = losses.pool_kl(ours, theirs, pointers)
    torch.testing.assert_close(found[0], torch.stack(expected), atol=1e-9, rtol=0)
    (gradient,) = torch.autograd.grad(found.sum(), ours)
    (wanted,) = torch.autograd.grad(torch.stack(expected).sum(), ours)
    torch.testing.assert_close(gradient, wanted, atol=1e-9, rtol=0)
    entropy = losses.pool_entropy(ours, pointers)[0, 0]
    steps = plain_step_distributions(ours[0, 0], [1, 0], [])
    torch.testing.assert_close(entropy, -sum(((p * p.log()).sum() for p in steps), torch.zeros(())), atol=1e-9, rtol=0)


def test_pool_kl_stays_finite_with_padding_and_a_pool_that_runs_out():
    ours = torch.tensor([[[[0.3, -math.inf], [-100.0, -math.inf]]]], dtype=torch.float64, requires_grad=True)
    found = losses.pool_kl(ours, ours.detach() * 2, torch.tensor([[[0, -1]]]))
    found.sum().backward()
    assert found.item() == 0.0
    assert ours.grad is not None
    assert ours.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_the_sampled_kl_of_the_reference_has_the_exact_one_as_its_mean(seed: int):
    # E over a ~ π_old of ρ − 1 − log ρ is KL(π_old ‖ π_new): one step, all five items as candidates, weighted by π_old.
    new, old, _ = pool_logits(seed)
    new, old = new[:, :1, :1].expand(1, 5, 1, 5), old[:, :1, :1].expand(1, 5, 1, 5)
    pointers = torch.arange(5)[None, :, None]
    log_ratio = losses.smoothed_log_prob(new, pointers) - losses.smoothed_log_prob(old, pointers)
    probability = losses.smoothed_log_prob(old, pointers).exp()
    estimate = (probability * (log_ratio.exp() - 1 - log_ratio)).sum()
    torch.testing.assert_close(estimate, losses.pool_kl(old, new, pointers)[0, 0], atol=1e-9, rtol=0)


# Expected reward


def test_expected_reward_loss_by_hand():
    # p = 3/4, 1/4 of rewards 1 and 5 is 2; p = 1 of 4. KL means 0.3 and 0.5: −(2 + 4)/2 + 0.1 · (0.3 + 0.5)/2.
    logp, rewards = tensor([math.log(3), 0.0], [-7.0, math.nan]), tensor([1.0, 5.0], [4.0, math.nan])
    mask = torch.tensor([[True, True], [True, False]])
    kl = tensor([0.2, 0.4], [0.5, math.nan])
    assert losses.expected_reward_loss(logp, rewards, mask).loss.item() == pytest.approx(-3.0)
    outputs = losses.expected_reward_loss(logp, rewards, mask, kl, 0.1)
    assert outputs.loss.item() == pytest.approx(-3.0 + 0.1 * 0.4)
    assert outputs.metrics["kl"] == pytest.approx((0.2 + 0.4 + 0.5) / 3)
    halved = losses.expected_reward_loss(logp, rewards, mask, kl, 0.1, tensor([0.0, 2.0])[0])
    assert halved.loss.item() == pytest.approx(2 * (-4.0 + 0.1 * 0.5))


def test_gradient_of_the_expected_reward_is_probability_times_advantage():
    logp = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    rewards = torch.randn(2, 4, dtype=torch.float64)
    losses.expected_reward_loss(logp, rewards, everything(rewards)).loss.backward()
    p = torch.softmax(logp.detach(), -1)
    wanted = -p * (rewards - (p * rewards).sum(-1, keepdim=True)) / 2
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, wanted, atol=1e-12, rtol=0)


# GRPO in the safe form


def test_safe_grpo_by_hand():
    # Group one: ratios 1.5 and 0.5, advantages 1 and −1, gain (1.2 − 0.8)/2 = 0.2. Group two: ratio 1.1, A = 2: 2.2.
    # Coefficients ½ and ¼; exact KL 0.4, 0.6 | 0.8.
    old = tensor([-2.0, -1.0], [-3.0, math.nan])
    logp = old + tensor([math.log(1.5), math.log(0.5)], [math.log(1.1), 0.0])
    mask = torch.tensor([[True, True], [True, False]])
    kl = tensor([0.4, 0.6], [0.8, math.nan])
    outputs = losses.grpo_loss(
        logp, old, tensor([1.0, -1.0], [2.0, math.nan]), mask, kl_beta=0.1, kl=kl, coefficients=tensor([0.5, 0.25])[0]
    )
    assert outputs.loss.item() == pytest.approx(-(0.5 * 0.2 + 0.25 * 2.2) + 0.1 * (0.5 * 0.5 + 0.25 * 0.8))
    assert outputs.metrics["kl"] == pytest.approx(0.6)
    assert outputs.metrics["ratio_error"] == pytest.approx(0.5)
    assert outputs.metrics["clip_fraction"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_the_new_losses_agree_with_finite_differences(seed: int):
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    logp = (old + 0.4 * torch.randn(3, 4, dtype=torch.float64, generator=generator)).requires_grad_()
    rewards = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 4, generator=generator) > 0.2
    mask[:, 0] = True
    weights = losses.group_coefficients(mask, torch.tensor([1, 2, 2]), group_weights=losses.best_over_mean(rewards, mask))
    advantages = losses.leave_one_out_advantage(rewards, mask)
    for function in (
        lambda x: losses.rce_loss(x, rewards, mask, 0.8, weights).loss,
        lambda x: losses.expected_reward_loss(x, rewards, mask, x.square(), 0.3, weights).loss,
        lambda x: losses.grpo_loss(x, old, advantages, mask, kl=x.square(), coefficients=weights).loss,
    ):
        assert torch.autograd.gradcheck(function, (logp,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_candidates_in_another_order_give_the_same_loss_and_their_gradients_in_that_order(seed: int):
    generator = torch.Generator().manual_seed(seed)
    logp, old, rewards, kl = (torch.randn(3, 5, dtype=torch.float64, generator=generator) for _ in range(4))
    mask = torch.rand(3, 5, generator=generator) > 0.3
    mask[:, 0] = True
    order = torch.randperm(5, generator=generator)

    def evaluated(function: Any, *values: Tensor) -> tuple[Tensor, Tensor]:
        x = values[0].clone().requires_grad_()
        loss = function(x, *values[1:]).loss
        return loss, torch.autograd.grad(loss, x)[0]

    for function in (
        lambda x, old, r, kl, m: losses.rce_loss(x, losses.zscore(r, m), m, 0.8),
        lambda x, old, r, kl, m: losses.expected_reward_loss(x, r, m, kl),
        lambda x, old, r, kl, m: losses.grpo_loss(x, old, losses.leave_one_out_advantage(r, m), m, kl=kl),
        lambda x, old, r, kl, m: losses.grpo_loss(x, old, losses.group_advantage(r, m), m),
    ):
        loss, gradient = evaluated(function, logp, old, rewards, kl, mask)
        other, permuted = evaluated(function, *(each[:, order] for each in (logp, old, rewards, kl, mask)))
        torch.testing.assert_close(other, loss, atol=1e-12, rtol=0)
        torch.testing.assert_close(permuted, gradient[:, order], atol=1e-12, rtol=0)


def test_equal_rewards_give_no_gradient_but_that_of_the_kl():
    logp = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    rewards = torch.full((2, 5), 0.3, dtype=torch.float64)
    mask = everything(rewards)
    for loss in (
        losses.expected_reward_loss(logp, rewards, mask).loss,
        losses.grpo_loss(logp, logp.detach(), losses.leave_one_out_advantage(rewards, mask), mask).loss,
    ):
        (gradient,) = torch.autograd.grad(loss, logp)
        assert gradient.abs().max() < 1e-15
