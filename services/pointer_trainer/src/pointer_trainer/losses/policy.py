"""Raising the expected reward: its exact gradient over the scored candidates, and GRPO with clipped ratios."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pointer_trainer.losses.groups import (
    LossOutputs,
    first_best,
    group_mean,
    masked_log_softmax,
    mean_over_candidates,
    over_groups,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def expected_reward(logp: Float[Tensor, "B C"], rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """Σ_i p_i r_i a group, p = softmax of log π over the scored candidates; 0 for an empty group."""
    probability = masked_log_softmax(logp, mask).exp().masked_fill(~mask, 0.0)
    return (probability * rewards.masked_fill(~mask, 0.0)).sum(-1)


def greedy_reward(logp: Float[Tensor, "B C"], rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """Reward of the likeliest scored candidate of each group (the first on a tie); 0 for an empty group."""
    return rewards.masked_fill(~mask, 0.0).gather(1, first_best(logp, mask)[:, None])[:, 0]


def expected_reward_loss(
    logp: Float[Tensor, "B C"],
    rewards: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    kl: Float[Tensor, "B C"] | None = None,
    kl_beta: float = 0.1,
    coefficients: Float[Tensor, "B"] | None = None,
) -> LossOutputs:
    """Over groups, −Σ_i p_i r_i + kl_beta · (mean of `kl` over the group's candidates), p = softmax of log π over them.

    `kl` as `pool_kl` gives it; None: no such term. The gradient of the first term is exact, with J = Σ_i p_i r_i it is
    ∂J/∂log π_i = p_i (r_i − J), so that a group of equal rewards has none.
    """
    reward = over_groups(expected_reward(logp, rewards.detach(), mask), mask, coefficients)
    metrics = {"groups": float(mask.any(-1).sum())}
    if kl is None:
        return LossOutputs(-reward, metrics)
    metrics |= {"kl": mean_over_candidates(kl, mask).item(), "kl_beta": kl_beta}
    return LossOutputs(kl_beta * over_groups(group_mean(kl, mask), mask, coefficients) - reward, metrics)


def grpo_loss(
    logp: Float[Tensor, "B C"],
    logp_old: Float[Tensor, "B C"],
    advantages: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    clip: float = 0.2,
    kl_beta: float = 0.1,
    clip_high: float | None = None,
    kl: Float[Tensor, "B C"] | None = None,
    coefficients: Float[Tensor, "B"] | None = None,
) -> LossOutputs:
    """−mean min(ρA, clip(ρ)A) + kl_beta · mean KL, ρ = π_new/π_old.

    ρ is kept in [1 − clip, 1 + clip], or up to 1 + clip_high where that is given. `logp_old` and `advantages` take no gradient.
    The reference's form, without `kl` and `coefficients`: means over all candidates of the batch, KL estimated as ρ − 1 − log ρ,
    unbiased for KL(π_old ‖ π_new) only over candidates drawn from π_old. With `kl` (as `pool_kl` gives it) that is taken instead.
    With `coefficients` the means are over a group's candidates, then Σ_g c_g · mean_g.
    Metrics are over all candidates, whatever their groups count.
    """
    log_ratio = (logp - logp_old.detach()).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    advantage = advantages.detach().masked_fill(~mask, 0.0)
    bounded = ratio.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    gain = torch.minimum(ratio * advantage, bounded * advantage)
    divergence = ratio - 1.0 - log_ratio if kl is None else kl

    def averaged(values: Tensor) -> Tensor:
        if coefficients is None:
            return mean_over_candidates(values, mask)
        return over_groups(group_mean(values, mask), mask, coefficients)

    policy = -averaged(gain)
    metrics = {
        "groups": float(mask.any(-1).sum()),
        "policy_loss": policy.item(),
        "kl": mean_over_candidates(divergence, mask).item(),
        "kl_beta": kl_beta,
        "ratio_mean": mean_over_candidates(ratio, mask).item(),
        "ratio_error": (ratio - 1.0).abs().max().item(),
        "clip_fraction": mean_over_candidates((ratio != bounded).to(ratio.dtype), mask).item(),
        "groups_without_signal": float(((advantage == 0).all(-1) & mask.any(-1)).sum()),
    }
    return LossOutputs(policy + kl_beta * averaged(divergence), metrics)


def adaptive_kl_beta(
    beta: float,
    kl: float,
    low: float = 0.01,
    high: float = 0.1,
    factor: float = 1.5,
    smallest: float = 0.001,
    largest: float = 10.0,
) -> float:
    """beta · factor where kl is above `high`, beta / factor where it is below `low`, kept in [smallest, largest]."""
    if not math.isfinite(kl):
        raise ValueError(f"KL is {kl}; the update before it went wrong")
    if kl > high:
        beta *= factor
    elif kl < low:
        beta /= factor
    return min(max(beta, smallest), largest)
