"""Imitating the better candidates: reward-weighted cross-entropy, or the best candidate alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pointer_trainer.losses.groups import LossOutputs, first_best, over_groups, softmax_weights

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def temperature_schedule(step: int, total: int, start: float = 2.0, end: float = 0.5) -> float:
    """Linear from `start` at step 0 to `end` at step total − 1, counted in mini-batches; `end` when total ≤ 1."""
    if total <= 1:
        return end
    progress = min(max(step / (total - 1), 0.0), 1.0)
    return start + (end - start) * progress


def reward_cross_entropy(
    logp: Float[Tensor, "B C"], rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], temperature: float
) -> Float[Tensor, "B"]:
    """Σ_i softmax(r / temperature)_i · (−log π_i) of each group; 0 for an empty one. The weights take no gradient.

    `rewards` are used as they come: z-score them first (`zscore`), or pass raw ones.
    """
    weights = softmax_weights(rewards, mask, temperature).detach()
    return -(weights * logp.masked_fill(~mask, 0.0)).sum(-1)


def rce_loss(
    logp: Float[Tensor, "B C"],
    rewards: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    temperature: float,
    coefficients: Float[Tensor, "B"] | None = None,
) -> LossOutputs:
    """Over groups, their `reward_cross_entropy`. Empty groups do not count."""
    per_group = reward_cross_entropy(logp, rewards, mask, temperature)
    metrics = {"groups": float(mask.any(-1).sum()), "temperature": temperature}
    return LossOutputs(over_groups(per_group, mask, coefficients), metrics)


def top1_loss(
    logp: Float[Tensor, "B C"],
    rewards: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    shots: Int[Tensor, "B"],
    coefficients: Float[Tensor, "B"] | None = None,
) -> LossOutputs:
    """Cross-entropy of each group's best candidate, averaged over its steps; the first one on a tie."""
    best = first_best(rewards, mask)
    chosen = logp.masked_fill(~mask, 0.0).gather(1, best[:, None])[:, 0]
    loss = over_groups(-chosen / shots.clamp_min(1), mask, coefficients)
    return LossOutputs(loss, {"groups": float(mask.any(-1).sum())})
