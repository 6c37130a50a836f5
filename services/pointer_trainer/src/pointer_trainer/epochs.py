"""One phase of a run, epoch after epoch."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from leverplus.errors import Cancelled, TrainingDiverged
from leverplus.selector import Selector
from leverplus.tracing import span
from pointer_trainer.answer_table import AnswerTable
from pointer_trainer.example_table import ExampleTable
from pointer_trainer.held_out import NAMES, measure_held_out
from pointer_trainer.objectives import COUNTS, LAST, MEANS, Objective, summarise
from pointer_trainer.phases import Phase, train_only
from pointer_trainer.train_config import TrainConfig
from pointer_trainer.training_state import TrainingState

HELD_OUT_BATCH = 256

Progress = Callable[[str, int, int, Mapping[str, Any]], None]
"""phase, step, total steps of the phase, further values."""

_Part = TypeVar("_Part")


def run_phase(
    phase: Phase,
    config: TrainConfig,
    model: Selector,
    examples: ExampleTable | AnswerTable,
    held_out: ExampleTable,
    progress: Progress,
    should_stop: Callable[[], bool],
    state: TrainingState,
    logger: logging.Logger,
) -> Iterator[dict[str, Any]]:
    """Trains `model` in place; yields a row of metrics before the phase's first epoch (number 0) and after each.

    `model` has the weights that the phase begins with, whether it begins now or `state` is of an epoch of it: then it goes on
    after that epoch. With every row `state` is that of the model then; the caller adds the row to those of `state`.
    Raises Cancelled, TrainingDiverged.
    """
    parameters = train_only(model, phase.trainable)
    optimizer = torch.optim.AdamW(parameters, lr=phase.lr, weight_decay=config.weight_decay)
    total = phase.steps(len(examples), config.batch_size)
    answer_shots = examples.shots if isinstance(examples, AnswerTable) else 0
    objective = Objective(config, phase, model, total, answer_shots)
    nothing = dict.fromkeys(("train_loss", "grad_norm", *MEANS, *COUNTS, *LAST))

    def judge() -> dict[str, float]:
        return measure_held_out(model, _unless(should_stop, held_out.batches(HELD_OUT_BATCH))).means()

    def keep(epoch: int, step: int) -> None:
        state.epoch, state.step = epoch, step
        state.values["kl_beta"] = objective.kl_beta
        state.capture(model, optimizer)

    if state.rows_of_phase():
        state.restore(model)
        state.restore_optimizer(optimizer)
        objective.kl_beta = state.values["kl_beta"]
        judged = {name: state.rows[-1][name] for name in NAMES}
    else:
        judged = judge()
        keep(0, 0)
        yield {"phase": phase.name, "epoch": 0, "step": 0, **nothing, **judged}
    step = state.step
    for epoch in range(state.epoch + 1, phase.epochs + 1):
        if phase.stops_when_worse and _has_become_worse(state, logger):
            return
        with span("training epoch", training__phase=phase.name, training__epoch=epoch) as traced:
            model.train(phase.dropout)
            generator = np.random.default_rng([config.seed, epoch, phase.index])
            rows = phase.rows(examples.examples, epoch) if isinstance(examples, ExampleTable) else np.arange(len(examples))
            order = generator.permutation(rows)
            steps: list[dict[str, float]] = []
            for batch in _unless(should_stop, examples.batches(config.batch_size, order, generator)):
                for group in optimizer.param_groups:
                    group["lr"] = phase.lr * learning_rate_factor(config.lr_schedule, step, total)
                outputs = objective.loss(model, batch, step)
                optimizer.zero_grad(set_to_none=True)
                outputs.loss.backward()
                grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
                if not (torch.isfinite(outputs.loss) and torch.isfinite(grad_norm)):
                    found = {"loss": outputs.loss.item(), "grad_norm": grad_norm.item()}
                    raise TrainingDiverged(epoch=epoch, step=step, lr=phase.lr, **found)
                optimizer.step()
                step += 1
                steps.append({**outputs.metrics, "train_loss": outputs.loss.item(), "grad_norm": grad_norm.item()})
                progress(phase.name, step, total, {"epoch": epoch, "loss": outputs.loss.item(), **judged})
            judged = judge()
            summary = summarise(steps)
            if not all(math.isfinite(value) for value in judged.values()):
                # The last step of an epoch has no loss after it that would show what it did.
                raise TrainingDiverged(
                    epoch=epoch, step=step, loss=judged["held_out_rce"], grad_norm=summary["grad_norm"], lr=phase.lr
                )
            traced.set(training__steps=len(steps), training__loss=summary["train_loss"])
        keep(epoch, step)
        yield {"phase": phase.name, "epoch": epoch, "step": step, **nothing, **summary, **judged}


def learning_rate_factor(schedule: Literal["constant", "cosine"], step: int, total: int) -> float:
    """Of step 0 to total - 1, in 0 to 1. cosine: linearly up over a tenth of the steps, then half a cosine down towards 0."""
    if schedule == "constant":
        return 1.0
    rising = max(1, total // 10)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising + 1) / (total - rising + 1)))


def _has_become_worse(state: TrainingState, logger: logging.Logger) -> bool:
    """Whether the phase's newest epoch is worth less than the one before it, which is told."""
    newest = [row["held_out_expected_reward"] for row in state.rows_of_phase()[-2:]]
    was, now = newest[0], newest[-1]
    if now < was:
        logger.warning(
            "%s stops after epoch %d: held-out expected reward fell from %.6f to %.6f", state.phase, state.epoch, was, now
        )
    return now < was


def _unless(should_stop: Callable[[], bool], parts: Iterable[_Part]) -> Iterator[_Part]:
    """The parts as they are, but Cancelled before the next one once the run is to stop."""
    for part in parts:
        if should_stop():
            raise Cancelled(what="training")
        yield part
