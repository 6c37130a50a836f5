"""Trains a pointer selector on scored candidates: reward-weighted cross-entropy, judged on held-out queries.

A run is a function of its config and its data: on the CPU the same seed gives the same weights to the last bit. Every epoch
is judged on queries that were not trained on; the epoch that does best there, by `keep_epoch`, is the one that is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from pointer_trainer import losses
from pointer_trainer.batches import QueryExample, RlBatch, build_examples, collate
from pointer_trainer.contract import under_one_contract
from pointer_trainer.curves import plot_training_curve
from pointer_trainer.held_out import measure_held_out
from pointer_trainer.metrics_writers import NOBODY, MetricsWriters
from pointer_trainer.splits import split_queries
from pointer_trainer.train_config import TrainConfig

METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "training_curve.png"
HELD_OUT_BATCH = 256

Progress = Callable[[str, int, int, Mapping[str, Any]], None]
"""phase, step, total steps of the phase, further values."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """`metrics` are those of the best epoch, which is the one in the checkpoint; `epochs` are all rows of metrics.jsonl."""

    checkpoint_id: str
    metrics: Mapping[str, Any]
    curve_path: Path
    epochs: Sequence[Mapping[str, Any]]


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
    watchers: MetricsWriters = NOBODY,
) -> TrainResult:
    """Trains, writes metrics.jsonl and training_curve.png into `run_folder`, and the best epoch into `checkpoint_folder`.

    `checkpoint_folder`: the folder that will hold the checkpoint; its name is the checkpoint's id, and it must not exist yet.
    `rl_data_refs`: {"id", "sha256"} of each file of `rl_data`, in the same order. `progress` is called, and `should_stop` asked,
    at every optimiser step. `logger` is told what a user may not expect: settings without effect, pools that were replaced.
    `watchers` are given each row of metrics.jsonl as it is written.
    Raises FingerprintMismatch, InvalidInput (too little to train on), InvalidConfig (no such device), Conflict,
    Cancelled, TrainingDiverged. Nothing is written to `checkpoint_folder` unless the run comes to its end.
    """
    if checkpoint_folder.exists():
        raise Conflict(
            f"checkpoint {checkpoint_folder.name} exists already; checkpoints are never overwritten, choose another id"
        )
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
    data_metrics = {
        **counts.to_json(),
        "train_queries": len(train_examples),
        "held_out_queries": len(held_out_examples),
        **_unexpected(config, rl_data, pool_policy, logger),
    }

    # The caller's random state is left as it was, and has no part in the result.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        selector = _selector_config(config, embeddings)
        model = PointerSelectorV3(selector).to(device)
        held_out = [collate(part, embeddings, device) for part in _chunks(held_out_examples, HELD_OUT_BATCH)]
        rows: list[dict[str, Any]] = []
        best: dict[str, Any] = {}
        best_tensors: dict[str, NDArray[np.float32]] = {}
        for row in _rce_epochs(config, model, train_examples, held_out, embeddings, progress, should_stop):
            rows.append({**row, **data_metrics})
            _write_metrics(run_folder / METRICS_FILE, rows)
            watchers.write(rows[-1])
            if row["epoch"] > 0 and (not best or _worth(row, config) > _worth(best, config)):
                best = rows[-1]
                best_tensors = model.tensors()

    curve_path = run_folder / CURVE_FILE
    plot_training_curve(rows, best["epoch"], curve_path)
    info = CheckpointInfo(
        checkpoint_id=checkpoint_folder.name,
        format=FORMAT,
        selector=selector.to_json(),
        dataset=dataset.name,
        pool_policy=pool_policy.to_json(),
        shots=sorted({int(shots) for example in train_examples for shots in (example.positions >= 0).sum(-1)}),
        fingerprint=fingerprint,
        training=config.model_dump(mode="json"),
        rl_data=[dict(ref) for ref in rl_data_refs],
        metrics=best,
        code_version=leverplus.__version__,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    save_checkpoint(checkpoint_folder, best_tensors, info)
    return TrainResult(checkpoint_folder.name, best, curve_path, rows)


def _worth(row: Mapping[str, Any], config: TrainConfig) -> float:
    """What an epoch is kept for: the larger the better."""
    return -row["held_out_rce"] if config.keep_epoch == "loss" else row["held_out_expected_reward"]


def _unexpected(
    config: TrainConfig, rl_data: Sequence[RlData], pool_policy: PoolPolicy, logger: logging.Logger
) -> dict[str, Any]:
    """What a run does that its config and data do not show by themselves: told to the log, and kept among the metrics."""
    found: dict[str, Any] = {}
    if config.grpo_epochs <= 0:
        logger.warning("grpo_epochs is %d: only RCE is run, and its checkpoint is the result", config.grpo_epochs)
        if settings := config.grpo_settings():
            logger.warning("without effect, because they are of GRPO and grpo_epochs is 0: %s", ", ".join(settings))
            found["settings_without_effect"] = settings
    own = sum(data.fingerprint.pool is None and record.pool_source == "file" for data in rl_data for record in data.records)
    if own and pool_policy.ids is not None:
        shared = len(pool_policy.ids)
        logger.warning("the pools of %d queries are replaced by one shared pool of %d ids, which is what will be served: the "
                       "files do not say how their own pools were made", own, shared)  # fmt: skip
        found |= {"queries_with_replaced_pool": own, "shared_pool_ids": shared}
    return found


def _rce_epochs(
    config: TrainConfig,
    model: PointerSelectorV3,
    examples: Sequence[QueryExample],
    held_out: Sequence[RlBatch],
    embeddings: Embeddings,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> Iterator[dict[str, Any]]:
    """Trains `model` in place; yields a row of metrics before the first epoch (number 0) and after each."""
    device = held_out[0].query_emb.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rce_lr, weight_decay=config.weight_decay)
    total = config.rce_epochs * -(-len(examples) // config.batch_size)
    step = 0
    judged = measure_held_out(model, held_out)
    yield {"phase": "rce", "epoch": 0, "step": 0, "train_loss": None, "temperature": None, "grad_norm": None, **judged}
    for epoch in range(1, config.rce_epochs + 1):
        model.train()
        order = np.random.default_rng([config.seed, epoch]).permutation(len(examples))
        loss_sum = group_sum = grad_norm_max = temperature = 0.0
        for chunk in _chunks([examples[index] for index in order], config.batch_size):
            if should_stop():
                raise Cancelled(what="training")
            temperature = losses.temperature_schedule(step, total, config.temperature_start, config.temperature_end)
            outputs = _rce_step(model, collate(chunk, embeddings, device), config, temperature)
            optimizer.zero_grad(set_to_none=True)
            outputs.loss.backward()
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            if not (torch.isfinite(outputs.loss) and torch.isfinite(grad_norm)):
                raise TrainingDiverged(
                    epoch=epoch, step=step, loss=outputs.loss.item(), grad_norm=grad_norm.item(), lr=config.rce_lr
                )
            optimizer.step()
            step += 1
            loss_sum += outputs.loss.item() * outputs.metrics["groups"]
            group_sum += outputs.metrics["groups"]
            grad_norm_max = max(grad_norm_max, grad_norm.item())
            progress("rce", step, total, {"epoch": epoch, "loss": outputs.loss.item(), **judged})
        judged = measure_held_out(model, held_out)
        yield {
            "phase": "rce",
            "epoch": epoch,
            "step": step,
            "train_loss": loss_sum / group_sum,
            "temperature": temperature,
            "grad_norm": grad_norm_max,
            **judged,
        }


def _rce_step(model: PointerSelectorV3, batch: RlBatch, config: TrainConfig, temperature: float) -> losses.LossOutputs:
    rows, mask, shots = batch.groups()
    if config.label_smoothing:
        logits = model.forced_logits(model.encode(batch.query_emb, batch.cand_emb, batch.pool_mask), batch.pointers)
        logp = losses.smoothed_log_prob(logits, batch.pointers, config.label_smoothing)[rows]
    else:
        logp = model.log_prob(batch.query_emb, batch.cand_emb, batch.pointers, batch.mask, batch.pool_mask)[rows]
    rewards = batch.rewards_raw[rows]
    if config.use_top1_only:
        return losses.top1_loss(logp, rewards, mask, shots)
    return losses.rce_loss(logp, rewards if config.rce_use_raw_reward else losses.zscore(rewards, mask), mask, temperature)


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
