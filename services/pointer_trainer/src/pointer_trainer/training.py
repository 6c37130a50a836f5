"""Trains a pointer selector on scored candidates, in the phases of its config, judged on held-out queries.

A run is a function of its config and its data: on the CPU the same seed gives the same weights to the last bit. Every epoch
is judged on queries that were not trained on; of each phase the epoch that does best there, by `keep_epoch`, is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

import leverplus
from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import Cancelled, Conflict, InvalidConfig, InvalidInput, TrainingDiverged
from leverplus.files import atomic_file
from leverplus.pools import PoolPolicy
from leverplus.rl_data import RlData
from leverplus.selector import PointerSelectorV3, SelectorConfig
from pointer_trainer.batches import QueryExample, RlBatch, build_examples, collate
from pointer_trainer.contract import under_one_contract
from pointer_trainer.curves import plot_training_curve
from pointer_trainer.held_out import measure_held_out
from pointer_trainer.objectives import COUNTS, LAST, MEANS, Objective, summarise
from pointer_trainer.phases import GRPO_NOTICE, Phase, grpo_guards, planned_phases, train_only
from pointer_trainer.splits import split_queries
from pointer_trainer.train_config import TrainConfig

METRICS_FILE = "metrics.jsonl"
HELD_OUT_BATCH = 256

Progress = Callable[[str, int, int, Mapping[str, Any]], None]
"""phase, step, total steps of the phase, further values."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """`checkpoints`: phase -> id, each holding its phase's best epoch. `checkpoint_id` is the one recommended, `metrics` and
    `curve_path` are its own; `epochs` are all rows of metrics.jsonl."""

    checkpoint_id: str
    metrics: Mapping[str, Any]
    curve_path: Path
    epochs: Sequence[Mapping[str, Any]]
    checkpoints: Mapping[str, str]


@dataclass
class _Best:
    """A phase's best epoch so far: its row, and its weights."""

    phase: Phase
    row: dict[str, Any]
    tensors: dict[str, NDArray[np.float32]]


def train(
    config: TrainConfig,
    rl_data: Sequence[RlData],
    embeddings: Embeddings,
    *,
    dataset: Dataset,
    pool_policy: PoolPolicy,
    rl_data_refs: Sequence[Mapping[str, str]],
    checkpoint_folder: Path,
    run_folder: Path,
    progress: Progress,
    should_stop: Callable[[], bool],
    logger: logging.Logger = _logger,
) -> TrainResult:
    """Trains, writes metrics.jsonl and training_curve.png into `run_folder`, and the best epoch into `checkpoint_folder`.

    `checkpoint_folder`: the folder that will hold the checkpoint; its name is the checkpoint's id, and it must not exist yet.
    GRPO, where it is asked for, has a checkpoint and a curve of its own: the same names followed by "-grpo".
    `rl_data_refs`: {"id", "sha256"} of each file of `rl_data`, in the same order. `progress` is called, and `should_stop` asked,
    at every optimiser step. `logger` is told what a user may not expect: settings without effect, pools that were replaced.
    Raises FingerprintMismatch, InvalidInput (too little to train on), InvalidConfig (no such device), Conflict,
    Cancelled, TrainingDiverged. Nothing is written to `checkpoint_folder` unless the run comes to its end: it is written last.
    GRPO that diverges ends with what was best before it: the log says so.
    """
    phases = planned_phases(config)
    for folder in (_with_suffix(checkpoint_folder, phase) for phase in phases):
        if folder.exists():
            raise Conflict(f"checkpoint {folder.name} exists already; checkpoints are never overwritten, choose another id")
    device = _device(config)
    files, fingerprint = under_one_contract(
        rl_data, rl_data_refs, dataset=dataset, embeddings=embeddings, pool_policy=pool_policy
    )
    examples, counts = build_examples(files, config.reward, skip_fallback=config.skip_fallback_reward)
    query_ids = {record.query_id for data in files for record in data.records}
    image_ids = {query_id: dataset.item(query_id).image_id for query_id in query_ids}
    parts = split_queries(sorted(query_ids), image_ids, config.train_ratio, config.split)
    train_examples, held_out_examples = (_of(examples, set(part)) for part in parts)
    for name, part in (("trained on", train_examples), ("held out", held_out_examples)):
        if not part:
            raise InvalidInput(
                f"none of the queries to be {name} has a candidate with demonstrations and a known reward"
                + (f", e.g. {counts.first_unknown}" if counts.first_unknown else "")
                + f": {counts.to_json()}"
            )
    shots = sorted({int(shots) for example in train_examples for shots in (example.positions >= 0).sum(-1)})
    if not any(config.shot_weights.get(count, 1.0) for count in shots):
        raise InvalidConfig(field="shot_weights", reason=f"{config.shot_weights} leaves nothing of data with shots {shots}")
    data_metrics = {
        **counts.to_json(),
        "train_queries": len(train_examples),
        "held_out_queries": len(held_out_examples),
        "train_queries_dropped": len(parts[0]) - len(train_examples),
        "held_out_queries_dropped": len(parts[1]) - len(held_out_examples),
        **_unexpected(config, rl_data, pool_policy, logger),
    }

    # The caller's random state is left as it was, and has no part in the result.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        selector = _selector_config(config, embeddings)
        model = PointerSelectorV3(selector).to(device)
        held_out = [collate(part, embeddings, device) for part in _chunks(held_out_examples, HELD_OUT_BATCH)]
        rows: list[dict[str, Any]] = []
        bests: list[_Best] = []
        for phase in phases:
            if bests:
                model.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in bests[-1].tensors.items()})
            best: _Best | None = None
            try:
                for row in _epochs(phase, config, model, train_examples, held_out, embeddings, progress, should_stop, logger):
                    rows.append({**row, **data_metrics})
                    _write_metrics(run_folder / METRICS_FILE, rows)
                    if row["epoch"] > 0 and (best is None or _worth(row, config) > _worth(best.row, config)):
                        best = _Best(phase, rows[-1], model.tensors())
            except TrainingDiverged as exc:
                if phase.index == 0:
                    raise
                logger.warning("%s diverged, and what was best before stays: %s", phase.name, exc)
            if best is not None:
                bests.append(best)

    recommended = max(bests, key=lambda best: _worth(best.row, config))  # the earlier phase where they are equal
    info = CheckpointInfo(
        checkpoint_id=checkpoint_folder.name,
        format=FORMAT,
        selector=selector.to_json(),
        dataset=dataset.name,
        pool_policy=pool_policy.to_json(),
        shots=shots,
        fingerprint=fingerprint,
        training=config.model_dump(mode="json"),
        rl_data=[dict(ref) for ref in rl_data_refs],
        metrics={},
        code_version=leverplus.__version__,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    # The first phase's comes last: where it lies, the run came to its end.
    for best in reversed(bests):
        folder = _with_suffix(checkpoint_folder, best.phase)
        best.row = {**best.row, "recommended": best is recommended}
        of_phase = [row for row in rows if row["phase"] == best.phase.name]
        plot_training_curve(of_phase, best.row["epoch"], _curve_path(run_folder, best.phase))
        save_checkpoint(folder, best.tensors, replace(info, checkpoint_id=folder.name, metrics=best.row))
    checkpoints = {best.phase.name: _with_suffix(checkpoint_folder, best.phase).name for best in bests}
    if len(checkpoints) > 1:
        logger.info("recommended is %s: %s", checkpoints[recommended.phase.name], _compared(bests, config))
    return TrainResult(
        checkpoint_id=checkpoints[recommended.phase.name],
        metrics=recommended.row,
        curve_path=_curve_path(run_folder, recommended.phase),
        epochs=rows,
        checkpoints=checkpoints,
    )


def _with_suffix(folder: Path, phase: Phase) -> Path:
    return folder.with_name(folder.name + phase.suffix)


def _curve_path(run_folder: Path, phase: Phase) -> Path:
    # Sorted by name, the first phase's comes first.
    return run_folder / f"training_curve{phase.suffix.replace('-', '_')}.png"


def _compared(bests: Sequence[_Best], config: TrainConfig) -> str:
    name = "held_out_rce" if config.keep_epoch == "loss" else "held_out_expected_reward"
    return ", ".join(f"{name} {best.row[name]:.4f} after {best.phase.name}" for best in bests)


def _worth(row: Mapping[str, Any], config: TrainConfig) -> float:
    """What an epoch is kept for: the larger the better."""
    return -row["held_out_rce"] if config.keep_epoch == "loss" else row["held_out_expected_reward"]


def _unexpected(
    config: TrainConfig, rl_data: Sequence[RlData], pool_policy: PoolPolicy, logger: logging.Logger
) -> dict[str, Any]:
    """What a run does that its config and data do not show by themselves: told to the log, and kept among the metrics."""
    found: dict[str, Any] = {}
    first = "RCE" if config.objective == "rce" else config.objective
    if config.grpo_epochs <= 0:
        logger.warning("grpo_epochs is %d: only %s is run, and its checkpoint is the result", config.grpo_epochs, first)
    else:
        logger.warning(GRPO_NOTICE, grpo_guards(config))
    if settings := config.settings_without_effect():
        logger.warning(
            "without effect, because objective is %s and grpo_epochs is %d: %s",
            config.objective, config.grpo_epochs, ", ".join(settings),
        )  # fmt: skip
        found["settings_without_effect"] = settings
    own = sum(data.fingerprint.pool is None and record.pool_source == "file" for data in rl_data for record in data.records)
    if own and pool_policy.ids is not None:
        shared = len(pool_policy.ids)
        logger.warning("the pools of %d queries are replaced by one shared pool of %d ids, which is what will be served: the "
                       "files do not say how their own pools were made", own, shared)  # fmt: skip
        found |= {"queries_with_replaced_pool": own, "shared_pool_ids": shared}
    return found


def _epochs(
    phase: Phase,
    config: TrainConfig,
    model: PointerSelectorV3,
    examples: Sequence[QueryExample],
    held_out: Sequence[RlBatch],
    embeddings: Embeddings,
    progress: Progress,
    should_stop: Callable[[], bool],
    logger: logging.Logger,
) -> Iterator[dict[str, Any]]:
    """Trains `model` in place; yields a row of metrics before the phase's first epoch (number 0) and after each."""
    device = held_out[0].query_emb.device
    parameters = train_only(model, phase.trainable)
    optimizer = torch.optim.AdamW(parameters, lr=phase.lr, weight_decay=config.weight_decay)
    total = phase.steps(examples, config.batch_size)
    objective = Objective(config, phase, model, total)
    step = 0
    judged = measure_held_out(model, held_out)
    nothing = dict.fromkeys(("train_loss", "grad_norm", *MEANS, *COUNTS, *LAST))
    yield {"phase": phase.name, "epoch": 0, "step": 0, **nothing, **judged}
    for epoch in range(1, phase.epochs + 1):
        model.train(phase.dropout)
        chosen = phase.examples(examples, epoch)
        order = np.random.default_rng([config.seed, epoch, phase.index]).permutation(len(chosen))
        steps: list[dict[str, float]] = []
        for chunk in _chunks([chosen[index] for index in order], config.batch_size):
            if should_stop():
                raise Cancelled(what="training")
            outputs = objective.loss(model, collate(chunk, embeddings, device), step)
            optimizer.zero_grad(set_to_none=True)
            outputs.loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            if not (torch.isfinite(outputs.loss) and torch.isfinite(grad_norm)):
                raise TrainingDiverged(epoch=epoch, step=step, loss=outputs.loss.item(), grad_norm=grad_norm.item(), lr=phase.lr)
            optimizer.step()
            step += 1
            steps.append({**outputs.metrics, "train_loss": outputs.loss.item(), "grad_norm": grad_norm.item()})
            progress(phase.name, step, total, {"epoch": epoch, "loss": outputs.loss.item(), **judged})
        before, judged = judged, measure_held_out(model, held_out)
        yield {"phase": phase.name, "epoch": epoch, "step": step, **nothing, **summarise(steps), **judged}
        was, now = before["held_out_expected_reward"], judged["held_out_expected_reward"]
        if phase.stops_when_worse and now < was:
            logger.warning(
                "%s stops after epoch %d: held-out expected reward fell from %.6f to %.6f", phase.name, epoch, was, now
            )
            return


def _selector_config(config: TrainConfig, embeddings: Embeddings) -> SelectorConfig:
    return SelectorConfig(
        d_model=embeddings.manifest.d_model,
        hidden_dim=config.hidden_dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        dropout=config.dropout,
        state_update=config.state_update,
    )


def _device(config: TrainConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig(field="device", reason="cuda is asked for, and torch finds none here; use auto or cpu")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _of(examples: Sequence[QueryExample], query_ids: set[Any]) -> list[QueryExample]:
    return [example for example in examples if example.query_id in query_ids]


def _chunks(examples: Sequence[QueryExample], size: int) -> Iterator[Sequence[QueryExample]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


def _write_metrics(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Whole and anew each time: a run that starts again leaves no rows of the one before."""
    with atomic_file(path) as stream:
        stream.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
