"""What a selector is worth on queries that it was not trained on, judged by the candidates that were scored there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leverplus.rewards import RewardConfig
from leverplus.selector import Selector
from pointer_trainer import losses
from pointer_trainer.batches import RlBatch

ACCURACY = RewardConfig(mode="soft_only")
"""The reward that is a candidate's VQA accuracy, `vqa_acc_score`, whatever is trained on."""

NAMES = ("held_out_rce", "held_out_expected_reward", "held_out_greedy_reward", "held_out_uniform_reward", "held_out_best_reward")


class HeldOut(NamedTuple):
    """The held-out groups (query, shots), always in the same order: the query of each [G], and name -> its value in each [G]."""

    query_ids: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float64]]

    def means(self) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in self.values.items()}


@torch.no_grad()
def measure_held_out(model: Selector, batches: Iterable[RlBatch]) -> HeldOut:
    """All groups of `batches`, in eval mode; the model's own mode is put back. The values, by NAMES:

    RCE on raw rewards at τ = 1; the expected reward under softmax of log π over the scored candidates; the reward of the
    likeliest of them; and two references that no training moves: one drawn at random, and the best.
    """
    was_training = model.training
    model.eval()
    query_ids: list[Tensor] = []
    measured: list[Tensor] = []
    for batch in batches:
        rows, mask, _ = batch.groups()
        logp = model.log_prob(batch.query_emb, batch.cand_emb, batch.pointers, batch.mask, batch.pool_mask)[rows]
        rewards = batch.rewards_raw[rows]
        values = (
            losses.reward_cross_entropy(logp, rewards, mask, 1.0),
            losses.expected_reward(logp, rewards, mask),
            losses.greedy_reward(logp, rewards, mask),
            losses.expected_reward(torch.zeros_like(logp), rewards, mask),
            losses.greedy_reward(rewards, rewards, mask),
        )
        query_ids.append(batch.query_id[rows])
        measured.append(torch.stack(values).double())
    model.train(was_training)
    columns = torch.cat(measured, dim=1).cpu().numpy()
    return HeldOut(torch.cat(query_ids).cpu().numpy(), dict(zip(NAMES, columns, strict=True)))


@torch.no_grad()
def measure_accuracy(model: Selector, batches: Iterable[RlBatch]) -> dict[str, float | None]:
    """Means over all groups of `batches`, whose rewards are by ACCURACY: expected under the selector, and one drawn at random.

    In the same unit whatever the selector was trained on: over every held-out candidate whose accuracy is known, also one
    whose reward is not. None without such a candidate.
    """
    was_training = model.training
    model.eval()
    expected = uniform = 0.0
    total = 0
    for batch in batches:
        rows, mask, _ = batch.groups()
        logp = model.log_prob(batch.query_emb, batch.cand_emb, batch.pointers, batch.mask, batch.pool_mask)[rows]
        accuracies = batch.rewards_raw[rows]
        expected += losses.expected_reward(logp, accuracies, mask).sum().item()
        uniform += losses.expected_reward(torch.zeros_like(logp), accuracies, mask).sum().item()
        total += len(rows)
    model.train(was_training)
    return {
        "held_out_expected_accuracy": expected / total if total else None,
        "held_out_uniform_accuracy": uniform / total if total else None,
    }
