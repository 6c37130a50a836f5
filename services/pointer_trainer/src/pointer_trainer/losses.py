"""The objectives, as pure functions of log-probabilities and rewards.

Shapes: B groups of up to C candidates. A group is one query with one number of shots; `mask` is True where a row holds
a candidate. Whatever stands under a False mask (also NaN) reaches neither a value nor a gradient. Standard deviations are the
sample's (n − 1). `logp` is log π(pointer), the sum over its steps, teacher-forced.

Formulas follow the reference, Lever-Plus v3 (RCE: reward-weighted cross-entropy; GRPO: Shao et al. 2024,
arXiv 2402.03300). Departures: a group of one has advantage 0 where the reference's is NaN, and the best candidate for `top1_loss`
is the best by reward, not the first in the file.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

_ZSCORE_MIN_STD = 1e-12


class LossOutputs(NamedTuple):
    """`loss` is a scalar with a gradient; `metrics` are plain numbers about the same batch."""

    loss: Tensor
    metrics: dict[str, float]


def temperature_schedule(step: int, total: int, start: float = 2.0, end: float = 0.5) -> float:
    """Linear from `start` at step 0 to `end` at step total − 1, counted in mini-batches; `end` when total ≤ 1."""
    if total <= 1:
        return end
    progress = min(max(step / (total - 1), 0.0), 1.0)
    return start + (end - start) * progress


def zscore(rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """(r − mean) / std inside each group, 0 outside the mask; a group with std ≤ 1e-12 is centred and left unscaled."""
    centred, std = _centre(rewards, mask)
    return centred / torch.where(std > _ZSCORE_MIN_STD, std, torch.ones_like(std))


def group_advantage(
    rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], clip: float = 5.0, min_std: float = 0.1
) -> Float[Tensor, "B C"]:
    """clip((r − mean) / max(std, min_std), ±clip) inside each group, 0 outside the mask.

    Sums to 0 over a group unless it was clipped; exactly 0 in a group of one or of equal rewards.
    """
    centred, std = _centre(rewards, mask)
    return (centred / std.clamp_min(min_std)).clamp(-clip, clip)


def softmax_weights(rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], temperature: float) -> Float[Tensor, "B C"]:
    """softmax(r / temperature) over each group's candidates, 0 outside the mask; an empty group is all 0."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, it must be above 0")
    return _masked_log_softmax(rewards / temperature, mask).exp().masked_fill(~mask, 0.0)


def rce_loss(
    logp: Float[Tensor, "B C"], rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], temperature: float
) -> LossOutputs:
    """Reward-weighted cross-entropy: mean over groups of Σ_i softmax(r / temperature)_i · (−log π_i).

    `rewards` are used as they come: z-score them first (`zscore`), or pass raw ones. Empty groups do not count.
    """
    weights = softmax_weights(rewards, mask, temperature).detach()
    per_group = -(weights * logp.masked_fill(~mask, 0.0)).sum(-1)
    return LossOutputs(_mean_over_groups(per_group, mask), {"groups": float(mask.any(-1).sum()), "temperature": temperature})


def smoothed_log_prob(logits: Float[Tensor, "B C S K"], pointers: Int[Tensor, "B C S"], smoothing: float) -> Float[Tensor, "B C"]:
    """Σ_t (1 − smoothing) · log π_t(a_t) + smoothing · mean of log π_t over what could be chosen at t; to be used as `logp`.

    The mean leaves out padding of the pool (−inf) and what the pointer has chosen already; the reference smoothed over those too.
    Places of −1 in `pointers` add nothing.
    """
    logprobs = logits.log_softmax(-1)
    given = pointers >= 0
    index = pointers.clamp_min(0).unsqueeze(-1)
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, given.unsqueeze(-1))
    taken_before = (chosen.int().cumsum(2) - chosen.int()) > 0
    free = logits.isfinite() & ~taken_before
    spread = logprobs.masked_fill(~free, 0.0).sum(-1) / free.sum(-1).clamp_min(1)
    steps = (1 - smoothing) * logprobs.gather(-1, index).squeeze(-1) + smoothing * spread
    return steps.masked_fill(~given, 0.0).sum(-1)


def top1_loss(
    logp: Float[Tensor, "B C"], rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], shots: Int[Tensor, "B"]
) -> LossOutputs:
    """Cross-entropy of each group's best candidate, averaged over its steps; the first one on a tie."""
    best = _first_best(rewards, mask)
    chosen = logp.masked_fill(~mask, 0.0).gather(1, best[:, None])[:, 0]
    return LossOutputs(_mean_over_groups(-chosen / shots.clamp_min(1), mask), {"groups": float(mask.any(-1).sum())})


def grpo_loss(
    logp: Float[Tensor, "B C"],
    logp_old: Float[Tensor, "B C"],
    advantages: Float[Tensor, "B C"],
    mask: Bool[Tensor, "B C"],
    clip: float = 0.2,
    kl_beta: float = 0.1,
    clip_high: float | None = None,
) -> LossOutputs:
    """−mean min(ρA, clip(ρ)A) + kl_beta · mean(ρ − 1 − log ρ), ρ = π_new/π_old, means over all candidates of the batch.

    ρ is kept in [1 − clip, 1 + clip], or up to 1 + clip_high where that is given. `logp_old` and `advantages` take no gradient.
    The second mean is an unbiased estimate of KL(π_old ‖ π_new) only for candidates drawn from π_old.
    """
    log_ratio = (logp - logp_old.detach()).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    advantage = advantages.detach().masked_fill(~mask, 0.0)
    bounded = ratio.clamp(1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    policy = -_mean_over_candidates(torch.minimum(ratio * advantage, bounded * advantage), mask)
    kl = _mean_over_candidates(ratio - 1.0 - log_ratio, mask)
    at_bound = (ratio != bounded) & mask
    metrics = {
        "policy_loss": policy.item(),
        "kl": kl.item(),
        "kl_beta": kl_beta,
        "ratio_mean": _mean_over_candidates(ratio, mask).item(),
        "clip_fraction": _mean_over_candidates(at_bound.to(ratio.dtype), mask).item(),
        "groups_without_signal": float(((advantage == 0).all(-1) & mask.any(-1)).sum()),
    }
    return LossOutputs(policy + kl_beta * kl, metrics)


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


def expected_reward(logp: Float[Tensor, "B C"], rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """Σ_i p_i r_i a group, p = softmax of log π over the scored candidates; 0 for an empty group."""
    probability = _masked_log_softmax(logp, mask).exp().masked_fill(~mask, 0.0)
    return (probability * rewards.masked_fill(~mask, 0.0)).sum(-1)


def greedy_reward(logp: Float[Tensor, "B C"], rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """Reward of the likeliest scored candidate of each group (the first on a tie); 0 for an empty group."""
    return rewards.masked_fill(~mask, 0.0).gather(1, _first_best(logp, mask)[:, None])[:, 0]


def _first_best(values: Tensor, mask: Tensor) -> Tensor:
    """Index of the first largest value under the mask: argmax promises nothing about ties."""
    return values.masked_fill(~mask, -math.inf).sort(dim=-1, descending=True, stable=True).indices[:, 0]


def _centre(rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(r − mean, 0 outside the mask) [B, C] and the sample's standard deviation [B, 1], 0 for fewer than two candidates."""
    count = mask.sum(-1, keepdim=True)
    known = rewards.masked_fill(~mask, 0.0)
    # Equal rewards have to give exactly 0, which a rounded mean does not promise: measure from the group's first candidate.
    first = known.gather(1, mask.int().argmax(-1, keepdim=True))
    shifted = (known - first).masked_fill(~mask, 0.0)
    centred = (shifted - shifted.sum(-1, keepdim=True) / count.clamp_min(1)).masked_fill(~mask, 0.0)
    return centred, (centred.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()


def _masked_log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """log softmax over the mask. The entries outside, and those of an empty row, are finite and mean nothing."""
    lowest = torch.finfo(values.dtype).min
    return values.masked_fill(~mask, lowest).log_softmax(-1)


def _mean_over_groups(per_group: Tensor, mask: Tensor) -> Tensor:
    filled = mask.any(-1)
    return per_group.masked_fill(~filled, 0.0).sum() / filled.sum().clamp_min(1)


def _mean_over_candidates(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)
