"""What is taken inside a group: scaled rewards, weights, advantages; and what a group counts in a batch's loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def leave_one_out_advantage(rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], clip: float = 5.0) -> Float[Tensor, "B C"]:
    """clip(r_i − mean of the group's other rewards, ±clip), 0 outside the mask and in a group of one.

    Not divided by a standard deviation, which would weigh groups by how alike their rewards are (RLOO, Ahmadian et al. 2024,
    arXiv 2402.14740; Dr. GRPO, Liu et al. 2025, arXiv 2503.20783). With n candidates it is n/(n − 1) · (r − mean).
    """
    centred, _ = _centre(rewards, mask)
    count = mask.sum(-1, keepdim=True).to(centred.dtype)
    return (centred * count / (count - 1).clamp_min(1)).clamp(-clip, clip)


def softmax_weights(rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"], temperature: float) -> Float[Tensor, "B C"]:
    """softmax(r / temperature) over each group's candidates, 0 outside the mask; an empty group is all 0."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, it must be above 0")
    return masked_log_softmax(rewards / temperature, mask).exp().masked_fill(~mask, 0.0)


def flat_groups(rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Bool[Tensor, "B"]:
    """True where a group's rewards are all equal, also of a group of one or none: it prefers no candidate to another."""
    lowest = rewards.masked_fill(~mask, math.inf).amin(-1)
    return rewards.masked_fill(~mask, -math.inf).amax(-1) <= lowest


def best_over_mean(rewards: Float[Tensor, "B C"], mask: Bool[Tensor, "B C"]) -> Float[Tensor, "B"]:
    """max r − mean r, what choosing well is worth in a group; exactly 0 in a flat or an empty one."""
    centred, _ = _centre(rewards, mask)
    return centred.masked_fill(~mask, -math.inf).amax(-1).clamp_min(0.0)


def group_coefficients(
    mask: Bool[Tensor, "B C"],
    shots: Int[Tensor, "B"],
    *,
    group_weights: Float[Tensor, "B"] | None = None,
    shot_weights: Mapping[int, float] | None = None,
) -> Float[Tensor, "B"]:
    """c_g = λ_s · w_g / Σ w of the groups with as many shots, so that Σ_g c_g L_g = Σ_s λ_s · (weighted mean of L over shots s).

    `group_weights` are the w_g ≥ 0 (1 without them; an empty group's is 0), `shot_weights` the λ_s (1 where s is not named).
    Groups of one number of shots and no weights: the mean over groups. All w_g of a number of shots 0: it adds nothing.
    """
    weights = torch.ones_like(shots, dtype=torch.float64) if group_weights is None else group_weights.detach()
    weights = weights.masked_fill(~mask.any(-1), 0.0)
    most = int(shots.max()) + 1 if len(shots) else 1
    totals = weights.new_zeros(most).index_add(0, shots, weights)
    scale = weights.new_tensor([(shot_weights or {}).get(count, 1.0) for count in range(most)])
    return torch.where(weights > 0, weights / totals.clamp_min(torch.finfo(weights.dtype).tiny)[shots], 0.0) * scale[shots]


def first_best(values: Tensor, mask: Tensor) -> Tensor:
    """[B]: index of the first largest value under the mask: argmax promises nothing about ties."""
    return values.masked_fill(~mask, -math.inf).sort(dim=-1, descending=True, stable=True).indices[:, 0]


def masked_log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """log softmax over the mask. The entries outside, and those of an empty row, are finite and mean nothing."""
    lowest = torch.finfo(values.dtype).min
    return values.masked_fill(~mask, lowest).log_softmax(-1)


def over_groups(per_group: Tensor, mask: Tensor, coefficients: Tensor | None) -> Tensor:
    """Σ_g c_g · per_group; without coefficients the mean over groups that are not empty."""
    filled = mask.any(-1)
    known = per_group.masked_fill(~filled, 0.0)
    return known.sum() / filled.sum().clamp_min(1) if coefficients is None else (coefficients.to(known.dtype) * known).sum()


def group_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[B]: mean over each group's candidates, 0 for an empty group."""
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1).clamp_min(1)


def mean_over_candidates(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all candidates of the batch."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum().clamp_min(1)


def _centre(rewards: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(r − mean, 0 outside the mask) [B, C] and the sample's standard deviation [B, 1], 0 for fewer than two candidates."""
    count = mask.sum(-1, keepdim=True)
    known = rewards.masked_fill(~mask, 0.0)
    # Equal rewards have to give exactly 0, which a rounded mean does not promise: measure from the group's first candidate.
    first = known.gather(1, mask.int().argmax(-1, keepdim=True))
    shifted = (known - first).masked_fill(~mask, 0.0)
    centred = (shifted - shifted.sum(-1, keepdim=True) / count.clamp_min(1)).masked_fill(~mask, 0.0)
    return centred, (centred.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
