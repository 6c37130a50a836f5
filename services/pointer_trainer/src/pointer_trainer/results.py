"""What a training run leaves at its end: of each phase the best epoch as a checkpoint, and its curve."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leverplus.checkpoints import CheckpointInfo, save_checkpoint
from leverplus.errors import TrainingDiverged
from leverplus.files import Fence
from pointer_trainer.curves import plot_training_curve
from pointer_trainer.phases import Phase
from pointer_trainer.recommendation import Recommendation
from pointer_trainer.training_state import TrainingState


@dataclass(frozen=True)
class TrainResult:
    """`checkpoints`: phase -> id, each holding its phase's best epoch. `checkpoint_id` is the one recommended, `metrics` and
    `curve_path` are its own; `recommendation` says why; `epochs` are all rows of metrics.jsonl."""

    checkpoint_id: str
    metrics: Mapping[str, Any]
    curve_path: Path
    epochs: Sequence[Mapping[str, Any]]
    checkpoints: Mapping[str, str]
    recommendation: Recommendation


def save_result(
    phases: Sequence[Phase],
    recommendation: Recommendation,
    state: TrainingState,
    infos: Mapping[str, CheckpointInfo],
    checkpoint_folder: Path,
    run_folder: Path,
    fence: Fence,
    logger: logging.Logger,
) -> TrainResult:
    """Saves checkpoint and curve of every phase that has a best epoch in `state`.

    `infos`: phase -> that of its checkpoint, but for id, metrics and time.
    """
    kept = [phase for phase in phases if phase.name in state.best]
    (recommended,) = (phase for phase in kept if phase.name == recommendation.phase)
    told = recommendation.to_json()
    rows: dict[str, dict[str, Any]] = {
        phase.name: {**state.best[phase.name], "recommended": phase is recommended, "recommendation": told} for phase in kept
    }
    # The one with the run's own id comes last: where it lies, the run came to its end.
    for phase in sorted(kept, key=lambda phase: phase.suffix, reverse=True):
        of_phase = [row for row in state.rows if row["phase"] == phase.name]
        plot_training_curve(of_phase, rows[phase.name]["epoch"], _curve_path(run_folder, phase), fence=fence)
        _save(checkpoint_of(checkpoint_folder, phase), phase, rows[phase.name], state, infos, fence)
    checkpoints = {phase.name: checkpoint_of(checkpoint_folder, phase).name for phase in kept}
    if len(kept) > 1:
        logger.info("recommended is %s: %s", checkpoints[recommended.name], recommendation.reason)
    return TrainResult(
        checkpoint_id=checkpoints[recommended.name],
        metrics=rows[recommended.name],
        curve_path=_curve_path(run_folder, recommended),
        epochs=state.rows,
        checkpoints=dict(checkpoints),
        recommendation=recommendation,
    )


def with_the_best_kept(
    error: TrainingDiverged,
    folder: Path,
    phases: Sequence[Phase],
    state: TrainingState,
    infos: Mapping[str, CheckpointInfo],
    fence: Fence,
) -> TrainingDiverged:
    """The error, saying where the best epoch before it is kept, which is one of the phase before where it came in the first.

    A resumed run that diverges again finds it there.
    """
    phase = next((phase for phase in reversed(phases) if phase.name in state.best), None)
    if phase is None:
        return TrainingDiverged(f"{error}; no epoch was finished before, so nothing is kept", **error.context, kept=None)
    best = state.best[phase.name]
    kept = folder.with_name(f"{checkpoint_of(folder, phase).name}-epoch-{best['epoch']}")
    if not kept.exists():
        _save(kept, phase, best, state, infos, fence)
    told = f"{error}; the best epoch before, {best['epoch']}, is kept as checkpoint {kept.name}"
    return TrainingDiverged(told, **error.context, kept=kept.name)


def checkpoint_of(folder: Path, phase: Phase) -> Path:
    """The folder of the phase's checkpoint; that of the phase without a suffix is `folder` itself."""
    return folder.with_name(folder.name + phase.suffix)


def _save(
    folder: Path,
    phase: Phase,
    row: Mapping[str, Any],
    state: TrainingState,
    infos: Mapping[str, CheckpointInfo],
    fence: Fence,
) -> None:
    tensors = {name: tensor.float().numpy() for name, tensor in state.best_weights(phase.name).items()}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    info = replace(infos[phase.name], checkpoint_id=folder.name, metrics=row, created_at=now)
    save_checkpoint(folder, tensors, info, fence=fence)


def _curve_path(run_folder: Path, phase: Phase) -> Path:
    # Sorted by name, the one with the run's own id comes first.
    return run_folder / f"training_curve{phase.suffix.replace('-', '_')}.png"
