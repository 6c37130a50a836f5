"""The phases of a run: the dataset's own answers, and imitation of beams, where those are asked for, RCE (or the expected
reward), GRPO where that is asked for. Each begins with the best epoch of the one before.

A phase is plain values. With the weights it begins with, the weights and optimizer state after an epoch, and the KL's weight, it
can be taken up again at that epoch: all else follows from config and seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from leverplus.selector import Selector
from pointer_trainer.batches import QueryExample
from pointer_trainer.train_config import Trainable, TrainConfig

PhaseName = Literal["answers", "supervised", "rce", "expected_reward", "grpo"]

SUFFIXES = ("", "-answers", "-supervised", "-grpo")
"""What a phase may add to the id of a run's checkpoint."""

GRPO_NOTICE = (
    "GRPO is experimental. What guards it: it starts from the best epoch of the phase before, as its own checkpoint; %s; "
    "it stops when the held-out expected reward falls; the checkpoint before it stays the one recommended unless GRPO's is "
    "shown to be better on held-out queries"
)


@dataclass(frozen=True)
class Phase:
    """`index`: its place in the run, part of the seed of its data order. `dropout`: whether it trains with it.

    `with_reference`: the loss compares with the policy that the phase began with. `stops_when_worse`: ends after an epoch
    whose held-out expected reward is below that of the epoch before. `suffix`, one of SUFFIXES, is added to the ids of
    checkpoint and curve: one phase of a run has none, and its checkpoint bears the run's own id.
    """

    name: PhaseName
    index: int
    epochs: int
    lr: float
    dropout: bool
    trainable: Trainable
    with_reference: bool
    stops_when_worse: bool
    curriculum: Literal["none", "spread"]
    suffix: str

    def material(self, examples: Sequence[QueryExample]) -> Sequence[QueryExample]:
        """What the phase can train on: all of it, or the beams among the candidates of the queries that have any."""
        if self.name != "supervised":
            return examples
        return [beams for example in examples if (beams := example.beams()) is not None]

    def rows(self, examples: Sequence[QueryExample], epoch: int) -> NDArray[np.int64]:
        """Indices of those of its material that epoch 1 to `epochs` trains on, in their order."""
        if self.curriculum == "none":
            return np.arange(len(examples))
        clearest = np.argsort([-largest_spread(example) for example in examples], kind="stable")
        return np.sort(clearest[: self._taken(len(examples), epoch)])

    def steps(self, queries: int, batch_size: int) -> int:
        """Optimiser steps of the whole phase, if it is not stopped."""
        return sum(ceil(self._taken(queries, epoch) / batch_size) for epoch in range(1, self.epochs + 1))

    def _taken(self, queries: int, epoch: int) -> int:
        return queries if self.curriculum == "none" else ceil(queries * epoch / self.epochs)


def planned_phases(config: TrainConfig) -> list[Phase]:
    """In the order in which they run."""
    first = Phase(
        name=config.objective,
        index=0,
        epochs=config.rce_epochs,
        lr=config.rce_lr,
        dropout=True,
        trainable="all",
        with_reference=config.objective == "expected_reward" and config.kl_beta > 0,
        stops_when_worse=False,
        curriculum="none",
        suffix="",
    )
    answers = replace(
        first,
        name="answers",
        epochs=config.answer_epochs,
        lr=config.answer_lr,
        with_reference=False,
        suffix="-answers" if config.supervised_epochs + config.rce_epochs > 0 else "",
    )
    supervised = replace(
        first,
        name="supervised",
        epochs=config.supervised_epochs,
        lr=config.supervised_lr,
        with_reference=False,
        suffix="-supervised" if config.rce_epochs > 0 else "",
    )
    grpo = Phase(
        name="grpo",
        index=0,
        epochs=config.grpo_epochs,
        lr=config.grpo_lr,
        # Old and new log-probabilities must come from the same network: with dropout their ratio would be noise.
        dropout=False,
        trainable=config.trainable_in_grpo,
        with_reference=True,
        stops_when_worse=True,
        curriculum=config.grpo_curriculum,
        suffix="-grpo",
    )
    run = [phase for phase in (answers, supervised, first, grpo) if phase.epochs > 0]
    return [replace(phase, index=index) for index, phase in enumerate(run)]


def grpo_guards(config: TrainConfig) -> str:
    """How the chosen form is guarded, for the log."""
    kl = f"weight {config.kl_beta:g}, {'adapted' if config.adapts_kl_beta else 'fixed'}"
    trained = {"head": "only the head is", "attention": "only the attention is", "all": "all weights are"}[
        config.trainable_in_grpo
    ]
    ratios = f"kept within {config.clip_epsilon:g} of 1"
    if config.grpo_form == "reference":
        return f"the reference's form, {trained} trained, ratios {ratios}, KL estimated from the candidates ({kl})"
    return (
        f"{trained} trained, ratios are exactly 1 at the first step and {ratios}, exact KL over the pool ({kl}), groups of equal "
        "rewards are dropped"
    )


def train_only(model: Selector, which: Trainable) -> list[nn.Parameter]:
    """Freezes the rest of `model`; the parameters that are left, in its order.

    head: query_proj, cand_proj and the state's update. attention: cross-attention and its norms, which is what the reference's
    code left trainable when it froze; or the layers of a decoder.
    """
    prefixes = {
        "head": ("query_proj.", "cand_proj.", "query_update_gate.", "state_mlp."),
        "attention": ("cross_attn_layers.", "attn_norms.", "decoder_layers."),
        "all": ("",),
    }[which]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def largest_spread(example: QueryExample) -> float:
    """Largest max r − min r among the query's groups."""
    shots = (example.positions >= 0).sum(-1)
    return max(float(example.rewards[shots == count].max() - example.rewards[shots == count].min()) for count in set(shots))
