"""Cross-entropy on the demonstrations whose answers tell what the query's own answer is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def telling_targets(asked: Bool[Tensor, "B A"], told: Bool[Tensor, "B K A"], taken: Bool[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """What the next demonstration should be, after those `taken`: each in proportion to the words that it would add.

    asked: the words of each query's answer; told: which of them each item's answer holds. Where what is taken tells all words
    (or all that the pool can tell), items count by the words that they tell again. A row sums to 1, or is all 0 where no item
    that is left tells anything.
    """
    known = (told & taken[:, :, None]).any(1)
    added = (told & (asked & ~known)[:, None]).sum(-1)
    again = told.sum(-1)
    gain = torch.where((added.masked_fill(taken, 0) > 0).any(1, keepdim=True), added, again).masked_fill(taken, 0).float()
    return gain / gain.sum(1, keepdim=True).clamp_min(1e-9)


def telling_loss(logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"]) -> Tensor:
    """Mean cross-entropy over the queries that have a target; 0, with a gradient of 0, where none has. Logits may be -inf where
    the target is 0."""
    nothing_left = (logits == -torch.inf).all(1, keepdim=True)
    logits = logits.masked_fill(nothing_left, 0.0)  # or their softmax would be NaN, and so its gradient
    logprobs = torch.log_softmax(logits, dim=1)
    per_query = -(targets * logprobs.masked_fill(targets == 0, 0.0)).sum(1)
    return per_query.sum() / (targets.sum(1) > 0).sum().clamp_min(1)
