"""What is summed over the steps of a pointer and the items of its pool, from logits [B, C, S, K] along scored pointers.

Step t of pointer a stands in the state (query, a_<t). An item is free there if it is neither padding of the pool (−inf) nor in
a_<t. Places of −1 in `pointers` are no steps. Rows are queries or groups: nothing here is taken across candidates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pointer_trainer.losses.groups import masked_log_softmax

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def smoothed_log_prob(
    logits: Float[Tensor, "B C S K"], pointers: Int[Tensor, "B C S"], smoothing: float = 0.0
) -> Float[Tensor, "B C"]:
    """Σ_t (1 − smoothing) · log π_t(a_t) + smoothing · mean of log π_t over the free items; to be used as `logp`.

    Without smoothing it is log π(a). The reference smoothed over chosen items and padding too.
    """
    logprobs = logits.log_softmax(-1)
    steps = logprobs.gather(-1, pointers.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    if smoothing:
        free = _free_items(logits, pointers)
        spread = logprobs.masked_fill(~free, 0.0).sum(-1) / free.sum(-1).clamp_min(1)
        steps = (1 - smoothing) * steps + smoothing * spread
    return steps.masked_fill(pointers < 0, 0.0).sum(-1)


def pool_kl(
    logits: Float[Tensor, "B C S K"], reference_logits: Float[Tensor, "B C S K"], pointers: Int[Tensor, "B C S"]
) -> Float[Tensor, "B C"]:
    """Σ_t KL(π_θ(·|q, a_<t) ‖ π_ref(·|q, a_<t)) in nats, each summed exactly over the free items; no gradient into π_ref.

    A candidate's value is along its own steps. Averaged over the candidates of a group it is the KL of whole pointers where a
    pointer has one step; with more, the states of later steps are those of the scored pointers, not of pointers drawn from π_θ.
    """
    free = _free_items(logits, pointers)
    ours = masked_log_softmax(logits, free)
    theirs = masked_log_softmax(reference_logits.detach(), free)
    terms = (ours.exp() * (ours - theirs)).masked_fill(~free, 0.0).sum(-1)
    return terms.masked_fill(pointers < 0, 0.0).sum(-1)


def pool_entropy(logits: Float[Tensor, "B C S K"], pointers: Int[Tensor, "B C S"]) -> Float[Tensor, "B C"]:
    """Σ_t entropy of π(·|q, a_<t) in nats over the free items, along each candidate's own steps."""
    free = _free_items(logits, pointers)
    logprobs = masked_log_softmax(logits, free)
    terms = -(logprobs.exp() * logprobs).masked_fill(~free, 0.0).sum(-1)
    return terms.masked_fill(pointers < 0, 0.0).sum(-1)


def _free_items(logits: Tensor, pointers: Tensor) -> Bool[Tensor, "B C S K"]:
    given = pointers >= 0
    index = pointers.clamp_min(0).unsqueeze(-1)
    chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, given.unsqueeze(-1))
    taken_before = (chosen.int().cumsum(2) - chosen.int()) > 0
    return logits.isfinite() & ~taken_before
