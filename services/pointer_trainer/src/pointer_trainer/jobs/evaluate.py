"""Comparing systems on the queries of a split, and saying which of them a checkpoint has seen in training."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leverplus.checkpoints import CheckpointInfo, load_checkpoint
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidInput
from leverplus.evaluation import Cell, Evaluation, accuracy_table, difference_table, summarise
from leverplus.files import atomic_file, write_json
from leverplus.fingerprint import Fingerprint, PartName
from leverplus.ids import ItemId
from leverplus.policies import selector_policy
from leverplus.pools import Pools
from pointer_trainer.context import JobContext
from pointer_trainer.pool_check import evaluation_policy
from pointer_trainer.query_sample import sample_queries
from pointer_trainer.replicas import Replicas
from pointer_trainer.requests import EvaluateRequest
from pointer_trainer.scored_queries import AskedQuery, ModeCounts, Scorer
from pointer_trainer.systems import Choices, Systems, accuracies, choose, selector_names
from pointer_trainer.trained_on import count_trained_on


@dataclass
class _Scored:
    """Accuracies of the queries whose every pointer has a score, and the ids of the others."""

    query_ids: list[ItemId] = field(default_factory=list[ItemId])
    accuracies: list[dict[Cell, float]] = field(default_factory=list[dict[Cell, float]])
    left_out: list[ItemId] = field(default_factory=list[ItemId])
    counts: ModeCounts = field(default_factory=ModeCounts)


def evaluate(context: JobContext) -> dict[str, Any]:
    """Table rows with intervals and paired differences; evaluation.json and evaluation.md in the run directory.

    A query with a pointer that has no score (no annotated answers) is left out for all systems, and counted. `trained_on`
    counts for each checkpoint the queries that are in its RL data (None: unknown), `beyond_training` lists the rows with more
    shots than the checkpoint was trained for; both are warned about in the log and in the Markdown.
    """
    request = EvaluateRequest.model_validate(context.config)
    root = context.data_root
    dataset = Dataset.open(root.dataset(request.dataset))
    embeddings = Embeddings.open(root.embeddings(request.dataset), dataset)
    loaded = [load_checkpoint(root.checkpoint(checkpoint_id)) for checkpoint_id in request.checkpoints]
    infos = [info for _, info in loaded]
    pools = Pools(dataset, embeddings, evaluation_policy(request, infos))
    own = Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint())
    _require_same(infos, own, ("dataset", "pool"))
    policies = [selector_policy(tensors, info.selector_config) for tensors, info in loaded]
    selectors = dict(zip(selector_names(infos), policies, strict=True))
    systems = Systems(selectors, request.shots, request.draws, request.beam, request.seed)
    query_ids = sample_queries(dataset, request.split, request.queries, request.seed)
    with Replicas(context.scorer_urls, key=context.scorer_key) as replicas:
        scorer = Scorer(
            replicas, request.dataset, flavour=request.flavour, postprocessing=request.postprocessing, check=context.check
        )
        scored = _score(context, scorer, systems, embeddings, pools, query_ids, infos)
    if not scored.query_ids:
        raise InvalidInput(
            f"none of {len(query_ids)} queries of split {request.split!r} has annotated answers: nothing to compare"
        )
    cells = list(scored.accuracies[0])
    per_query = {cell: np.asarray([row[cell] for row in scored.accuracies]) for cell in cells}
    images = [dataset.item(query_id).image_id for query_id in scored.query_ids]
    context.step("bootstrap", 0, 1)
    evaluation = summarise(per_query, images, draws=request.bootstrap_draws, seed=request.seed, baselines=request.baselines)
    context.step("bootstrap", 1, 1, **scored.counts.to_json())
    fingerprint = scorer.fingerprint or Fingerprint()
    trained_on = {info.checkpoint_id: count_trained_on(root, info, scored.query_ids) for info in infos}
    beyond = _beyond_training(selectors, infos, request.shots)
    warnings = [*_warnings(trained_on, beyond, len(scored.query_ids)), *scored.counts.warnings]
    for warning in warnings:
        context.logger.warning(warning)
    result = {
        **evaluation.to_json(),
        "dataset": request.dataset,
        "split": request.split,
        "answers_source": dataset.info.answers_source,
        "queries": len(scored.query_ids),
        "queries_left_out": len(scored.left_out),
        "random_draws": request.draws,
        "checkpoints": dict(zip(selectors, request.checkpoints, strict=True)),
        "trained_on": trained_on,
        "beyond_training": beyond,
        "scores": scored.counts.to_json(),
        "fingerprint": Fingerprint(own.dataset, own.pool, fingerprint.generation, fingerprint.metric).to_json(),
        "markdown": _markdown(request, dataset, evaluation, scored, warnings),
    }
    _write(context, result, scored, cells)
    return result


def _require_same(infos: Sequence[CheckpointInfo], found: Fingerprint, parts: Sequence[PartName]) -> None:
    """FingerprintMismatch unless every checkpoint was made for these parts of `found`."""
    for info in infos:
        subject = f"this evaluation, for checkpoint {info.checkpoint_id!r},"
        info.fingerprint.require_same(found, subject=subject, parts=parts)


def _score(
    context: JobContext,
    scorer: Scorer,
    systems: Systems,
    embeddings: Embeddings,
    pools: Pools,
    query_ids: Sequence[ItemId],
    infos: Sequence[CheckpointInfo],
) -> _Scored:
    waiting: dict[int, Choices] = {}
    scored = _Scored()

    def asked() -> Generator[AskedQuery]:
        for query_id in query_ids:
            waiting[query_id] = choices = choose(systems, embeddings, pools, query_id)
            yield AskedQuery(query_id, tuple(dict.fromkeys(pointer for pointers in choices.values() for pointer in pointers)))

    context.step("score", 0, len(query_ids), **scored.counts.to_json())
    with closing(scorer.score(asked())) as batches:
        for batch in batches:
            if not scored.query_ids and not scored.left_out:
                own = Fingerprint(dataset=pools.dataset.fingerprint())
                own.require_same(batch.fingerprint, subject="the scorer's answer", parts=("dataset",))
                _require_same(infos, batch.fingerprint, ("generation", "metric"))
            scored.counts.add(batch.stats)
            for query, candidates in batch.queries:
                by_pointer = dict(zip(query.pointers, (candidate.vqa_acc_score for candidate in candidates), strict=True))
                row = accuracies(waiting.pop(query.query_id), by_pointer)
                if row is None:
                    scored.left_out.append(ItemId(query.query_id))
                else:
                    scored.query_ids.append(ItemId(query.query_id))
                    scored.accuracies.append(row)
            done = len(scored.query_ids) + len(scored.left_out)
            context.step("score", done, len(query_ids), **scored.counts.to_json())
    return scored


def _beyond_training(names: Iterable[str], infos: Sequence[CheckpointInfo], shots: Sequence[int]) -> list[dict[str, Any]]:
    """The rows whose number of shots is above all that the checkpoint states; one that states none is not judged."""
    return [
        {"system": name, "checkpoint": info.checkpoint_id, "shots": count, "trained_for": max(info.shots)}
        for name, info in zip(names, infos, strict=True)
        for count in sorted(shots)
        if info.shots and count > max(info.shots)
    ]


def _warnings(trained_on: Mapping[str, int | None], beyond: Sequence[Mapping[str, Any]], queries: int) -> list[str]:
    """A line for whatever makes a number say less than it seems to."""
    lines: list[str] = []
    for checkpoint, count in trained_on.items():
        if count is None:
            lines.append(f"It is not known whether {checkpoint} was trained on these queries: its RL data are not there.")
        elif count:
            lines.append(
                f"{checkpoint} was trained on {count} of these {queries} queries: its accuracy is not that on unseen ones."
            )
    lines.extend(
        f"{row['system']} at {row['shots']} shots is beyond training: {row['checkpoint']} was trained for at most "
        f"{row['trained_for']}."
        for row in beyond
    )
    return lines


def _markdown(
    request: EvaluateRequest, dataset: Dataset, evaluation: Evaluation, scored: _Scored, warnings: Sequence[str]
) -> str:
    answers = {
        "human": "human answers",
        "replicated": "one answer, repeated ten times in place of ten annotators'",
        "simulated": "simulated answers of ten annotators",
    }[dataset.info.answers_source]
    counts = scored.counts
    head = (
        f"VQA accuracy in percent with 95 % intervals, {len(scored.query_ids)} queries of {request.dataset}, split "
        f"{request.split}, {evaluation.images} images; {answers}. Scores: {counts.file} by the metric over ten answers, "
        f"{counts.fallback} by fallback, {counts.error} without; {len(scored.left_out)} queries left out. "
        f"random: mean of {request.draws} draws a query.\n\n"
    )
    noted = "".join(f"Warning: {warning}\n\n" for warning in warnings)
    return f"{head}{noted}{accuracy_table(evaluation)}\n{difference_table(evaluation)}"


def _write(context: JobContext, result: dict[str, Any], scored: _Scored, cells: Sequence[Cell]) -> None:
    write_json(context.run_folder / "evaluation.json", result, fence=context.fence)
    columns = [
        {"system": system, "shots": shots, "accuracy": [row[system, shots] for row in scored.accuracies]}
        for system, shots in cells
    ]
    per_query = {"query_ids": scored.query_ids, "left_out": scored.left_out, "cells": columns}
    write_json(context.run_folder / "per_query.json", per_query, fence=context.fence)
    with atomic_file(context.run_folder / "evaluation.md", fence=context.fence) as stream:
        stream.write(result["markdown"].encode())
