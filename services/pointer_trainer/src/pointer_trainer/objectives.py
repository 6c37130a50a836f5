"""From a batch to a loss, for each objective; the formulas are in `pointer_trainer.losses`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor

from leverplus.selector import Selector
from leverplus.selector.decoding import NEVER
from pointer_trainer import losses
from pointer_trainer.answer_table import AnswerBatch
from pointer_trainer.batches import Groups, RlBatch
from pointer_trainer.losses import LossOutputs
from pointer_trainer.phases import Phase
from pointer_trainer.train_config import TrainConfig

MEANS = ("policy_loss", "ratio_mean", "kl", "entropy", "clip_fraction")
"""Metrics of a step that an epoch averages over its groups. What an objective does not have is None in its rows."""

LAST = ("temperature", "kl_beta")
"""Metrics of a step of which an epoch tells the last."""

COUNTS = ("groups", "dropped_groups")
"""Metrics of a step that an epoch sums."""


class Objective:
    """One phase's loss. `kl_beta`, where it is adapted, is all that changes from step to step.

    The policy that a phase begins with, π_ref and in GRPO also π_old, is `model` as it is when the objective is made, without
    dropout.
    """

    def __init__(self, config: TrainConfig, phase: Phase, model: Selector, total_steps: int, answer_shots: int = 0) -> None:
        self.config = config
        self.phase = phase
        self.total_steps = total_steps
        self.answer_shots = answer_shots
        self.kl_beta = config.kl_beta
        self.reference = deepcopy(model).eval() if phase.with_reference else None

    def loss(self, model: Selector, batch: RlBatch | AnswerBatch, step: int) -> LossOutputs:
        """The loss of optimiser step `step`, counted from 0 in the phase; metrics as MEANS and COUNTS name them."""
        if isinstance(batch, AnswerBatch):
            return self._answers(model, batch)
        groups = batch.groups()
        rewards = batch.rewards_raw[groups.rows]
        dropped = losses.flat_groups(rewards, groups.mask) if self._drops_flat_groups else torch.zeros_like(groups.rows).bool()
        logits = _logits(model, batch)
        with torch.no_grad():
            entropy = losses.pool_entropy(logits, batch.pointers)[groups.rows]
        coefficients = self._coefficients(groups, rewards, dropped)
        if self.phase.name == "supervised":
            logp = losses.smoothed_log_prob(logits, batch.pointers, self.config.label_smoothing)[groups.rows]
            outputs = losses.top1_loss(logp, rewards, groups.mask, groups.shots, coefficients)
        elif self.phase.name == "rce":
            outputs = self._rce(logits, batch, groups, rewards, coefficients, step)
        elif self.phase.name == "expected_reward":
            outputs = self._expected_reward(logits, batch, groups, rewards, coefficients)
        else:
            outputs = self._grpo(logits, batch, groups, rewards, coefficients, step)
        own = {"entropy": entropy[groups.mask].mean().item(), "dropped_groups": float(dropped.sum())}
        return LossOutputs(outputs.loss, {**outputs.metrics, **own})

    @property
    def _drops_flat_groups(self) -> bool:
        safe = self.phase.name == "grpo" and self.config.grpo_form == "safe"
        return safe or self.config.drop_flat_groups or self.config.group_weight == "best_over_mean"

    def _coefficients(self, groups: Groups, rewards: Tensor, dropped: Tensor) -> Tensor:
        equal = torch.ones_like(rewards[:, 0])
        weights = losses.best_over_mean(rewards, groups.mask) if self.config.group_weight == "best_over_mean" else equal
        weights = weights.masked_fill(dropped, 0.0)
        return losses.group_coefficients(groups.mask, groups.shots, group_weights=weights, shot_weights=self.config.shot_weights)

    def _answers(self, model: Selector, batch: AnswerBatch) -> LossOutputs:
        """The sum over steps; a step goes on from a demonstration drawn by the target of the one before."""
        encoded = model.read(model.input_proj(batch.query_emb), model.input_proj(batch.pool_emb).unsqueeze(0), batch.open)
        state, taken = encoded.state, torch.zeros_like(batch.open)
        total = encoded.candidates.new_zeros(())
        told = 0.0
        for step in range(self.answer_shots):
            targets = losses.telling_targets(batch.asked, batch.told, taken)
            # What is made of the pool is made once, and seen by every query.
            logits = state.direction[:, 0] @ encoded.candidates[0].T / encoded.temperature
            logits = logits.masked_fill(taken | ~batch.open, NEVER)
            total = total + losses.telling_loss(logits, targets)
            if step == 0:
                told = float((targets.sum(1) > 0).sum())
            # A little for all: a pool may have nothing left for a query.
            anything = (batch.open & ~taken).float() + torch.finfo(torch.float32).tiny
            drawn = torch.multinomial(torch.where(targets.sum(1, keepdim=True) > 0, targets, anything), 1)
            taken = taken.scatter(1, drawn, True)
            state = model.advance(state, encoded.inputs[0, drawn])
        queries = float(len(batch.query_emb))
        return LossOutputs(total, {"groups": queries, "dropped_groups": queries - told})

    def _rce(
        self, logits: Tensor, batch: RlBatch, groups: Groups, rewards: Tensor, coefficients: Tensor, step: int
    ) -> LossOutputs:
        config = self.config
        temperature = losses.temperature_schedule(step, self.total_steps, config.temperature_start, config.temperature_end)
        logp = losses.smoothed_log_prob(logits, batch.pointers, config.label_smoothing)[groups.rows]
        if config.use_top1_only:
            return losses.top1_loss(logp, rewards, groups.mask, groups.shots, coefficients)
        scaled = rewards if config.rce_use_raw_reward else losses.zscore(rewards, groups.mask)
        return losses.rce_loss(logp, scaled, groups.mask, temperature, coefficients)

    def _expected_reward(
        self, logits: Tensor, batch: RlBatch, groups: Groups, rewards: Tensor, coefficients: Tensor
    ) -> LossOutputs:
        logp = losses.smoothed_log_prob(logits, batch.pointers)[groups.rows]
        kl = None
        if self.reference is not None:
            kl = losses.pool_kl(logits, _logits(self.reference, batch).detach(), batch.pointers)[groups.rows]
        return losses.expected_reward_loss(logp, rewards, groups.mask, kl, self.kl_beta, coefficients)

    def _grpo(
        self, logits: Tensor, batch: RlBatch, groups: Groups, rewards: Tensor, coefficients: Tensor, step: int
    ) -> LossOutputs:
        config, mask = self.config, groups.mask
        assert self.reference is not None
        # With gradients enabled, as for the model: torch may choose other kernels without, and ratios would not be exactly 1.
        old_logits = _logits(self.reference, batch).detach()
        logp = losses.smoothed_log_prob(logits, batch.pointers)[groups.rows]
        old = losses.smoothed_log_prob(old_logits, batch.pointers)[groups.rows]
        advantage = losses.group_advantage if config.grpo_advantage == "zscore" else losses.leave_one_out_advantage
        safe = config.grpo_form == "safe"
        outputs = losses.grpo_loss(
            logp,
            old,
            advantage(rewards, mask, config.advantage_clip),
            mask,
            clip=config.clip_epsilon,
            kl_beta=self.kl_beta,
            kl=losses.pool_kl(logits, old_logits, batch.pointers)[groups.rows] if safe else None,
            coefficients=coefficients if safe else None,
        )
        if step == 0 and outputs.metrics["ratio_error"] != 0.0:
            raise AssertionError(f"ratios differ from 1 by up to {outputs.metrics['ratio_error']} at GRPO's first step")
        if config.adapts_kl_beta and math.isfinite(outputs.metrics["kl"]):  # otherwise the loss is not finite either
            self.kl_beta = losses.adaptive_kl_beta(self.kl_beta, outputs.metrics["kl"])
        return outputs


def summarise(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """An epoch's metrics from those of its steps (at least one), with their train_loss and grad_norm, whose largest is told."""
    groups = sum(step["groups"] for step in steps)
    found = {
        name: sum(step[name] * step["groups"] for step in steps) / groups for name in ("train_loss", *MEANS) if name in steps[0]
    }
    found |= {name: steps[-1][name] for name in LAST if name in steps[-1]}
    found |= {name: sum(step[name] for step in steps) for name in COUNTS}
    return {**found, "grad_norm": max(step["grad_norm"] for step in steps)}


def _logits(model: Selector, batch: RlBatch) -> Tensor:
    return model.forced_logits(model.encode(batch.query_emb, batch.cand_emb, batch.pool_mask), batch.pointers)
