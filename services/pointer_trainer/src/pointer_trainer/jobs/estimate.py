"""What a checkpoint would score, from draws that another policy made and the VLM judged then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from leverplus import rl_data
from leverplus.checkpoints import load_checkpoint
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidInput
from leverplus.evaluation.off_policy import LoggedDraws, OffPolicy, estimate, fit_reward_model
from leverplus.evaluation.tables import percent, shots_title
from leverplus.files import write_json
from leverplus.ids import ItemId
from leverplus.random_order import derive_seed
from leverplus.rl_data import Candidate, QueryRecord, RlData
from leverplus.selector import Selector
from leverplus.selector.model import selector_from_tensors
from pointer_trainer.context import JobContext
from pointer_trainer.pointer_features import item_features, pointer_features
from pointer_trainer.requests import EstimateRequest
from pointer_trainer.rl_files import open_heads
from pointer_trainer.tempered import tempered_logprobs
from pointer_trainer.trained_on import count_trained_on

FOLDS = 5
"""Cuts of the images: no query is predicted by a reward model that saw its image."""


@dataclass(frozen=True)
class _QueryDraws:
    """One query's draws of one length: reward, count, weight [n], features [n, f], and their mean under the policy [f]."""

    query_id: ItemId
    reward: list[float]
    count: list[int]
    weight: Any
    features: Any
    expected: Any


def estimate_selector(context: JobContext) -> dict[str, Any]:
    """For each number of shots the direct, SNIPS and doubly robust estimate of expected accuracy, with intervals.

    InvalidInput for RL data whose propensities are not those of independent draws, and where no number of shots has an effective
    sample size of 5 %; one that lacks it beside others is refused alone, with the reason.
    """
    torch.set_num_threads(context.threads)
    request = EstimateRequest.model_validate(context.config)
    root = context.data_root
    head = open_heads(root, [request.rl_data])
    tensors, info = load_checkpoint(root.checkpoint(request.checkpoint))
    dataset = Dataset.open(root.dataset(info.dataset))
    embeddings = Embeddings.open(root.embeddings(info.dataset), dataset)
    info.fingerprint.require_same(head, subject=f"RL data {request.rl_data}, for checkpoint {info.checkpoint_id!r},")
    data = rl_data.read(root.rl_data(request.rl_data), dataset)
    draws = _independent_draws(data, request.rl_data)
    selector = selector_from_tensors(tensors, info.selector_config).eval()
    rows: list[dict[str, Any]] = []
    for shots in sorted({len(one.pointer) for record in data.records for one in record.candidates if one.propensity is not None}):
        found = _draws_of(context, data.records, shots, draws, selector, embeddings, request)
        images = [dataset.item(one.query_id).image_id for one in found]
        rows.append(_judged(found, images, shots, request))
    if all(row["estimates"] is None for row in rows):
        raise InvalidInput(rows[0]["reason"] if rows else f"RL data {request.rl_data} hold no draw that has a propensity")
    result: dict[str, Any] = {
        "rl_data": request.rl_data,
        "checkpoint": request.checkpoint,
        "temperature": request.temperature,
        "logging_mixture": data.meta["logging_mixture"]["weights"],
        "rows": rows,
        "trained_on": count_trained_on(root, info, [record.query_id for record in data.records]),
        "fingerprint": data.fingerprint.to_json(),
    }
    result["markdown"] = _markdown(result)
    write_json(context.run_folder / "estimate.json", result, fence=context.fence)
    return result


def _independent_draws(data: RlData, name: str) -> int:
    """Draws a query and number of shots; InvalidInput unless all rows with a propensity are independent draws of one mixture."""
    mixture: Mapping[str, Any] = data.meta.get("logging_mixture") or {}
    if not mixture.get("independent") or not mixture.get("draws"):
        raise InvalidInput(
            f"RL data {name} hold no independent draws of a stated mixture: beams, retrievals and fixed numbers of samples say "
            "nothing about another policy. Make some with `leverplus rl generate --logging-draws`"
        )
    if data.meta.get("filtered"):
        raise InvalidInput(f"RL data {name} were filtered: draws left by their outcome are no sample; take the whole file")
    return int(mixture["draws"])


def _draws_of(
    context: JobContext,
    records: Sequence[QueryRecord],
    shots: int,
    draws: int,
    selector: Selector,
    embeddings: Embeddings,
    request: EstimateRequest,
) -> list[_QueryDraws]:
    """Of every query whose draws all have a score. InvalidInput where a query has not as many draws as the mixture says."""
    found: list[_QueryDraws] = []
    for number, record in enumerate(records, start=1):
        logged = [one for one in record.candidates if one.propensity is not None and len(one.pointer) == shots]
        count = sum(one.count for one in logged)
        if logged and count != draws:
            raise InvalidInput(
                f"query {record.query_id} has {count} draws of {shots} shots, the mixture made {draws}: rows are missing, and "
                "what is left is no sample; take the whole file"
            )
        if logged and all(one.vqa_acc_score is not None for one in logged):
            found.append(_weighed(record, logged, selector, embeddings, request))
        if number % 50 == 0 or number == len(records):
            context.step(f"weigh {shots_title(shots)}", number, len(records))
    return found


def _weighed(
    record: QueryRecord, logged: Sequence[Candidate], selector: Selector, embeddings: Embeddings, request: EstimateRequest
) -> _QueryDraws:
    pool = np.asarray(record.candidate_pool_ids, dtype=np.int64)
    place = {int(item_id): position for position, item_id in enumerate(pool)}
    pointers = np.asarray([[place[item_id] for item_id in one.pointer] for one in logged], dtype=np.int64)
    query = torch.from_numpy(embeddings.query[[record.query_id]])
    candidates = torch.from_numpy(embeddings.candidate[pool])[None]
    shots = pointers.shape[1]
    with torch.no_grad():
        encoded = selector.encode(query, candidates)
    logprobs = tempered_logprobs(selector, encoded, torch.from_numpy(pointers)[None], [request.temperature])[0, :, 0].numpy()
    generator = torch.Generator().manual_seed(derive_seed("estimate", request.seed, shots, record.query_id) % 2**63)
    sampled = selector.sample(
        query, candidates, shots, count=request.samples, temperature=request.temperature, generator=generator
    ).positions[0]
    items = item_features(embeddings, record.query_id, pool)
    propensities = np.asarray([one.propensity for one in logged], dtype=np.float64)
    return _QueryDraws(
        query_id=record.query_id,
        reward=[one.vqa_acc_score or 0.0 for one in logged],
        count=[one.count for one in logged],
        weight=np.exp(logprobs) / propensities,
        features=pointer_features(items, pointers),
        expected=pointer_features(items, sampled.numpy()).mean(axis=0),
    )


def _judged(found: Sequence[_QueryDraws], images: Sequence[str], shots: int, request: EstimateRequest) -> dict[str, Any]:
    """The estimates at one number of shots; None with the reason where they are refused."""
    row: dict[str, Any] = {"shots": shots, "queries": len(found), "logged_mean": None, "estimates": None, "reason": None}
    if not found:
        return {**row, "reason": f"no query's draws of {shots_title(shots)} all have a score"}
    row["logged_mean"] = float(np.mean([np.average(one.reward, weights=one.count) for one in found]))
    try:
        result = _estimate(found, images, request)
    except InvalidInput as exc:
        return {**row, "reason": f"{shots_title(shots)}: {exc}", **exc.context}
    return {**row, **result.to_json()}


def _estimate(found: Sequence[_QueryDraws], images: Sequence[str], request: EstimateRequest) -> OffPolicy:
    query = np.repeat(np.arange(len(found)), [len(one.reward) for one in found])
    fold = np.asarray([derive_seed("fold", request.seed, image) % FOLDS for image in images], dtype=np.int64)
    reward = np.concatenate([one.reward for one in found])
    count = np.concatenate([np.asarray(one.count, dtype=np.float64) for one in found])
    features = np.concatenate([one.features for one in found])
    model = fit_reward_model(features, reward, count, fold[query], FOLDS)
    logged = LoggedDraws(
        query=query,
        count=count,
        reward=reward,
        weight=np.concatenate([one.weight for one in found]),
        predicted=model.predict(features, fold[query]),
        expected=model.predict(np.stack([one.expected for one in found]), fold),
    )
    return estimate(logged, images, bootstrap_draws=request.bootstrap_draws, seed=request.seed)


def _markdown(result: Mapping[str, Any]) -> str:
    lines = [
        f"Expected accuracy in percent with 95 % intervals of {result['checkpoint']} at temperature {result['temperature']:g}, "
        f"from the draws in {result['rl_data']}; no VLM was asked. The direct estimate is biased by its model; the intervals of "
        "the other two are what to read.",
        "",
        "| shots | queries | draws | effective | as drawn | direct | SNIPS | doubly robust |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        if row["estimates"] is not None:
            values = [percent(one["value"], one["low"], one["high"]) for one in row["estimates"]]
            share, mean = f"{100 * row['effective_share']:.1f} %", f"{100 * row['logged_mean']:.1f}"
            cells = [str(row["shots"]), str(row["queries"]), str(row["draws"]), share, mean, *values]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [f"\nRefused: {row['reason']}." for row in result["rows"] if row["reason"]]
    if result["trained_on"]:
        lines.append(
            f"\nWarning: {result['checkpoint']} was trained on {result['trained_on']} of these queries: this is not what it "
            "scores on unseen ones."
        )
    return "\n".join(lines) + "\n"
