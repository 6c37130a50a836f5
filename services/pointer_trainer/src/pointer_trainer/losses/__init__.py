"""The objectives, as pure functions of log-probabilities and rewards.

Shapes: B groups of up to C candidates. A group is one query with one number of shots; `mask` is True where a row holds
a candidate. Whatever stands under a False mask (also NaN) reaches neither a value nor a gradient. Standard deviations are the
sample's (n − 1). `logp` is log π(pointer), the sum over its steps, teacher-forced.

A loss is Σ_g c_g · (loss of group g). `coefficients` [B] are the c_g; without them every group that is not empty counts alike,
and c_g is one over their number. `group_coefficients` makes them of weights for groups and for numbers of shots.

Formulas follow the reference, Lever-Plus v3 (RCE: reward-weighted cross-entropy; GRPO: Shao et al. 2024,
arXiv 2402.03300). Departures: a group of one has advantage 0 where the reference's is NaN, and the best candidate for `top1_loss`
is the best by reward, not the first in the file.
"""

from pointer_trainer.losses.groups import (
    LossOutputs,
    best_over_mean,
    flat_groups,
    group_advantage,
    group_coefficients,
    leave_one_out_advantage,
    softmax_weights,
    zscore,
)
from pointer_trainer.losses.imitation import rce_loss, reward_cross_entropy, temperature_schedule, top1_loss
from pointer_trainer.losses.policy import (
    adaptive_kl_beta,
    expected_reward,
    expected_reward_loss,
    greedy_reward,
    grpo_loss,
)
from pointer_trainer.losses.steps import pool_entropy, pool_kl, smoothed_log_prob
from pointer_trainer.losses.telling import telling_loss, telling_targets

__all__ = [
    "LossOutputs",
    "adaptive_kl_beta",
    "best_over_mean",
    "expected_reward",
    "expected_reward_loss",
    "flat_groups",
    "greedy_reward",
    "group_advantage",
    "group_coefficients",
    "grpo_loss",
    "leave_one_out_advantage",
    "pool_entropy",
    "pool_kl",
    "rce_loss",
    "reward_cross_entropy",
    "smoothed_log_prob",
    "softmax_weights",
    "telling_loss",
    "telling_targets",
    "temperature_schedule",
    "top1_loss",
    "zscore",
]
