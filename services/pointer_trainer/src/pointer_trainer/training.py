"""Trains a pointer selector on scored candidates, in the phases of its config, judged on held-out queries.

A run is a function of its config and its data: on the CPU the same seed gives the same weights to the last bit. Every epoch
is judged on queries that were not trained on; of each phase the epoch that does best there, by `keep_epoch`, is kept. After
every epoch the run leaves in its folder what is needed to go on from there.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import torch

import leverplus
from leverplus.checkpoints import FORMAT, CheckpointInfo
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import Conflict, InvalidConfig, InvalidInput, TrainingDiverged
from leverplus.files import Fence, atomic_file, unfenced
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.rl_data import QueryRecord, RlData
from leverplus.selector import new_selector
from pointer_trainer.answer_table import AnswerTable
from pointer_trainer.batches import QueryExample, build_examples
from pointer_trainer.best_fixed import rank_fixed_pointers
from pointer_trainer.contract import under_one_contract
from pointer_trainer.epochs import HELD_OUT_BATCH, Progress, run_phase
from pointer_trainer.example_table import ExampleTable
from pointer_trainer.held_out import ACCURACY, HeldOut, measure_accuracy, measure_held_out
from pointer_trainer.metrics_writers import NOBODY, MetricsWriters
from pointer_trainer.phases import GRPO_NOTICE, Phase, grpo_guards, largest_spread, planned_phases
from pointer_trainer.recommendation import recommend, worth
from pointer_trainer.results import TrainResult, checkpoint_of, save_result, with_the_best_kept
from pointer_trainer.splits import split_queries
from pointer_trainer.train_config import TrainConfig
from pointer_trainer.training_state import StateFolder, TrainingState

METRICS_FILE = "metrics.jsonl"

_logger = logging.getLogger(__name__)


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
    run: int = 1,
    fence: Fence = unfenced,
    watchers: MetricsWriters = NOBODY,
) -> TrainResult:
    """Trains, writes metrics.jsonl and training_curve.png into `run_folder`, and the best epoch into `checkpoint_folder`.

    `checkpoint_folder`: the folder that will hold the checkpoint; its name is the checkpoint's id, and it must not exist yet.
    Phases around the main one have checkpoints and curves of their own: the same names followed by "-supervised" and "-grpo".
    `rl_data_refs`: {"id", "sha256"} of each file of `rl_data`, in the same order. `progress` is called, and `should_stop` asked,
    at every optimiser step. `logger` is told what a user may not expect: settings without effect, pools that were replaced.
    `run` numbers the runs of a job; a later one goes on after the last epoch that an earlier one left in `run_folder`, if
    config, data, code and threads are the same. `fence` is asked before any file gets its name, and what it raises ends the run.
    `watchers` are given each row of metrics.jsonl as it is written.
    Raises FingerprintMismatch, InvalidInput (too little to train on), InvalidConfig (no such device; weights that leave nothing),
    Conflict, Cancelled, TrainingDiverged. Nothing is written to `checkpoint_folder` unless the run comes to its end: it is
    written last.
    Where a phase before GRPO diverges, the best epoch before is kept beside it as checkpoint <id>-epoch-<number>, which the
    error names. GRPO that diverges ends with what was best before it: the log says so.
    """
    phases = planned_phases(config)
    for folder in (checkpoint_of(checkpoint_folder, phase) for phase in phases):
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
    imitating = next((phase for phase in phases if phase.name == "supervised"), None)
    imitated = _imitated(imitating, train_examples, rl_data, rl_data_refs, logger) if imitating is not None else {}
    material = {phase.name: phase.material(train_examples) for phase in phases}
    shots = {name: _shots(part) for name, part in material.items()}
    for counts_of_phase in shots.values():
        if not any(config.shot_weights.get(count, 1.0) for count in counts_of_phase):
            reason = f"{config.shot_weights} leaves nothing of data with shots {counts_of_phase}"
            raise InvalidConfig(field="shot_weights", reason=reason)
    for phase in (phase for phase in phases if phase.name != "answers"):
        _require_a_preference(phase, config, material[phase.name], logger)
    data_metrics = {
        **counts.to_json(),
        "train_queries": len(train_examples),
        "held_out_queries": len(held_out_examples),
        "train_queries_dropped": len(parts[0]) - len(train_examples),
        "held_out_queries_dropped": len(parts[1]) - len(held_out_examples),
        **imitated,
        **_unexpected(config, rl_data, pool_policy, logger),
    }

    selector = config.selector(embeddings.manifest.d_model)
    info = CheckpointInfo(
        checkpoint_id=checkpoint_folder.name,
        format=FORMAT,
        selector=selector.to_json(),
        dataset=dataset.name,
        pool_policy=pool_policy.to_json(),
        shots=[],
        fingerprint=fingerprint,
        training=config.model_dump(mode="json"),
        rl_data=[dict(ref) for ref in rl_data_refs],
        metrics={},
        code_version=leverplus.__version__,
        created_at="",
        best_fixed=rank_fixed_pointers(_records_of(files, set(parts[0]))),
    )
    infos = {name: replace(info, shots=counts_of_phase) for name, counts_of_phase in shots.items()}
    states = StateFolder(run_folder, run, _identity(info, embeddings, device), fence=fence, logger=logger)

    # The caller's random state is left as it was, and has no part in the result.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        model = new_selector(selector).to(device)
        held_out = ExampleTable(held_out_examples, embeddings, device)
        state = states.newest() or TrainingState()
        if state.rows:
            logger.info("goes on after epoch %d of phase %s", state.epoch, state.phase)
            _write_metrics(run_folder / METRICS_FILE, state.rows, fence)
        begun = next((phase.index for phase in phases if phase.name == state.phase), 0)
        for phase in phases[begun:]:
            if phase.index > 0:
                model.load_state_dict(state.best_weights(phases[phase.index - 1].name))
            if phase.name != state.phase:
                state.begin(phase.name)
            if phase.name == "answers":
                pools = Pools(dataset, embeddings, pool_policy)
                trained_on = AnswerTable(pools, embeddings, parts[0], parts[1], max(shots[phase.name]), device)
            else:
                trained_on = ExampleTable(material[phase.name], embeddings, device)
            try:
                epochs = run_phase(phase, config, model, trained_on, held_out, progress, should_stop, state, logger)
                for row in epochs:
                    state.rows.append({**row, **data_metrics})
                    best = state.best.get(phase.name)
                    if row["epoch"] > 0 and (best is None or worth(row, config) > worth(best, config)):
                        state.keep_best()
                    states.save(state)
                    _write_metrics(run_folder / METRICS_FILE, state.rows, fence)
                    watchers.write(state.rows[-1])
            except TrainingDiverged as exc:
                if phase.name != "grpo":
                    raise with_the_best_kept(exc, checkpoint_folder, phases, state, infos, fence) from exc
                logger.warning("%s diverged, and what was best before stays: %s", phase.name, exc)

        judges = _held_out_by_accuracy(files, set(parts[1]))
        judging = ExampleTable(judges, embeddings, device) if judges else None
        judged: dict[str, HeldOut] = {}
        for phase in (phase for phase in phases if phase.name in state.best):
            model.load_state_dict(state.best_weights(phase.name))
            judged[phase.name] = measure_held_out(model, held_out.batches(HELD_OUT_BATCH))
            accuracy = measure_accuracy(model, judging.batches(HELD_OUT_BATCH) if judging is not None else ())
            state.best[phase.name] = {**state.best[phase.name], **accuracy}

    recommendation = recommend(judged, image_ids, config)
    result = save_result(phases, recommendation, state, infos, checkpoint_folder, run_folder, fence, logger)
    states.remove()
    return result


def _held_out_by_accuracy(files: Sequence[RlData], query_ids: set[ItemId]) -> list[QueryExample]:
    """The held-out queries once more, with their candidates' accuracies for rewards."""
    held_out = [replace(data, records=[record for record in data.records if record.query_id in query_ids]) for data in files]
    return build_examples(held_out, ACCURACY)[0]


def _identity(info: CheckpointInfo, embeddings: Embeddings, device: torch.device) -> dict[str, Any]:
    """All that the last bit of a run's weights depends on: what its checkpoint says of its making, and what it does not."""
    described = info.to_json()
    named = ("selector", "pool_policy", "fingerprint", "training", "rl_data", "code_version")
    return {
        **{name: described[name] for name in named},
        "embeddings": embeddings.manifest.sha256,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }


def _unexpected(
    config: TrainConfig, rl_data: Sequence[RlData], pool_policy: PoolPolicy, logger: logging.Logger
) -> dict[str, Any]:
    """What a run does that its config and data do not show by themselves: told to the log, and kept among the metrics."""
    found: dict[str, Any] = {}
    if config.grpo_epochs <= 0:
        names = {"answers": "the answers phase", "supervised": "the supervised phase", "rce": "RCE"}
        first = " and then ".join(names.get(phase.name, phase.name) for phase in planned_phases(config))
        logger.warning("grpo_epochs is %d: only %s is run, and its checkpoint is the result", config.grpo_epochs, first)
    else:
        logger.warning(GRPO_NOTICE, grpo_guards(config))
    if settings := config.settings_without_effect():
        fields = ("objective", "answer_epochs", "supervised_epochs", "rce_epochs", "grpo_epochs")
        because = ", ".join(f"{name} is {getattr(config, name)}" for name in fields)
        logger.warning("without effect, because %s: %s", because, ", ".join(settings))
        found["settings_without_effect"] = settings
    own = sum(data.fingerprint.pool is None and record.pool_source == "file" for data in rl_data for record in data.records)
    if own and pool_policy.ids is not None:
        shared = len(pool_policy.ids)
        logger.warning("the pools of %d queries are replaced by one shared pool of %d ids, which is what will be served: the "
                       "files do not say how their own pools were made", own, shared)  # fmt: skip
        found |= {"queries_with_replaced_pool": own, "shared_pool_ids": shared}
    return found


def _imitated(
    phase: Phase,
    examples: Sequence[QueryExample],
    rl_data: Sequence[RlData],
    rl_data_refs: Sequence[Mapping[str, str]],
    logger: logging.Logger,
) -> dict[str, Any]:
    """How many queries have no beam to imitate, for metrics and log; InvalidInput, saying what each file has, where none has."""
    found = len(phase.material(examples))
    if not found:
        held = "; ".join(_methods(ref["id"], data) for ref, data in zip(rl_data_refs, rl_data, strict=True))
        raise InvalidInput(
            f"supervised_epochs is {phase.epochs}, but none of the {len(examples)} queries to be trained on has a beam with a "
            f"known reward to imitate: {held}. Generate with num_beams above 0, or leave supervised_epochs out"
        )
    without = len(examples) - found
    logger.info("the supervised phase imitates the best beams of %d queries; %d have none", found, without)
    return {"train_queries_without_beams": without}


def _require_a_preference(phase: Phase, config: TrainConfig, examples: Sequence[QueryExample], logger: logging.Logger) -> None:
    """InvalidConfig where groups of equal rewards are to weigh nothing and the phase has no others; a warning where none has."""
    if any(largest_spread(example) > 0 for example in examples):
        return
    told = f"phase {phase.name}: in each group of the {len(examples)} queries to be trained on all rewards are equal"
    way_out = "score more candidates a query, or choose another reward"
    for field, is_set in (
        ("group_weight", config.group_weight == "best_over_mean"),
        ("drop_flat_groups", config.drop_flat_groups),
    ):
        if is_set:
            raise InvalidConfig(field=field, reason=f"{getattr(config, field)!r} leaves nothing, {told}; {way_out}")
    if phase.name != "supervised":  # which looks at rewards only to choose among beams
        logger.warning("%s: they tell nothing; %s", told, way_out)


def _shots(examples: Sequence[QueryExample]) -> list[int]:
    return sorted({int(shots) for example in examples for shots in (example.positions >= 0).sum(-1)})


def _methods(name: str, data: RlData) -> str:
    """How many candidates a file has, by gen_method."""
    methods = Counter(candidate.gen_method or "unknown" for record in data.records for candidate in record.candidates)
    others = ", ".join(f"{count} {method}" for method, count in sorted(methods.items()) if method != "beam")
    return f"{name} has {methods['beam']} beams among {methods.total()} candidates" + (f" ({others})" if others else "")


def _device(config: TrainConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig(field="device", reason="cuda is asked for, and torch finds none here; use auto or cpu")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _of(examples: Sequence[QueryExample], query_ids: set[Any]) -> list[QueryExample]:
    return [example for example in examples if example.query_id in query_ids]


def _records_of(files: Sequence[RlData], query_ids: set[Any]) -> list[QueryRecord]:
    return [record for data in files for record in data.records if record.query_id in query_ids]


def _write_metrics(path: Path, rows: Sequence[Mapping[str, Any]], fence: Fence) -> None:
    """Whole and anew each time: a run that starts again leaves no rows of the one before."""
    with atomic_file(path, fence=fence) as stream:
        stream.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
