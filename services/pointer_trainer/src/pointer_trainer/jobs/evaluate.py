"""Comparing systems on the queries of a split, and saying which of them a checkpoint has seen in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from leverplus.checkpoints import CheckpointInfo, load_checkpoint
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.evaluation import Evaluation, summarise
from leverplus.files import atomic_file, write_json
from leverplus.fingerprint import Fingerprint, PartName
from leverplus.policies import selector_policy
from leverplus.pools import Pools
from pointer_trainer.context import JobContext
from pointer_trainer.evaluation_report import as_html, as_markdown
from pointer_trainer.measuring import Measured, measure
from pointer_trainer.openings import read_openings, record_opening
from pointer_trainer.per_query import write_per_query
from pointer_trainer.pool_check import evaluation_policy
from pointer_trainer.query_sample import sample_queries
from pointer_trainer.replicas import Replicas
from pointer_trainer.requests import EvaluateRequest
from pointer_trainer.scored_queries import Scorer
from pointer_trainer.systems import Selector, Systems, Unavailable, available, choose, fixed_pointers, system_names
from pointer_trainer.trained_on import count_trained_on


@dataclass(frozen=True)
class _Contest:
    """Everything that an evaluation compares, opened."""

    dataset: Dataset
    embeddings: Embeddings
    pools: Pools
    infos: Sequence[CheckpointInfo]
    systems: Systems
    unavailable: Sequence[Unavailable]

    @property
    def own(self) -> Fingerprint:
        return Fingerprint(dataset=self.dataset.fingerprint(), pool=self.pools.fingerprint())

    @property
    def learned(self) -> dict[str, list[str]]:
        """System -> its checkpoints, one for each training seed."""
        found: dict[str, list[str]] = {}
        for selector in self.systems.selectors:
            found.setdefault(selector.system, []).append(selector.checkpoint)
        return found


def evaluate(context: JobContext) -> dict[str, Any]:
    """Table rows with intervals and paired differences, on all queries and on nested parts of them.

    evaluation.json, evaluation.md, evaluation.html and per_query.parquet in the run directory. A query with a pointer that has no
    score (no annotated answers) is left out for all systems, and counted. `trained_on` counts for each checkpoint the queries
    that are in its RL data (None: unknown), `beyond_training` lists the rows with more shots than the checkpoint was trained for;
    both are warned about in the log and in the reports. A test split is opened on the record, before it is scored.
    """
    request = EvaluateRequest.model_validate(context.config)
    root = context.data_root
    contest = _open(context, request)
    dataset, infos = contest.dataset, contest.infos
    query_ids = sample_queries(dataset, request.split, request.queries, request.seed)
    if request.final is not None:
        record_opening(
            root,
            request.dataset,
            job_id=context.job_id,
            by=request.final.by,
            split=request.split,
            queries=len(query_ids),
            checkpoints=request.checkpoints,
            dataset_sha256=dataset.info.sha256,
        )
    with Replicas(context.scorer_urls, key=context.scorer_key) as replicas:
        scorer = Scorer(
            replicas, request.dataset, flavour=request.flavour, postprocessing=request.postprocessing, check=context.check
        )
        measured = measure(
            context,
            scorer,
            lambda query_id: choose(contest.systems, contest.embeddings, contest.pools, query_id),
            query_ids,
            own=contest.own,
            accept=lambda found: _require_same(infos, found, ("generation", "metric")),
        )
    parts = _summaries(context, request, contest, measured)
    fingerprint = scorer.fingerprint or Fingerprint()
    trained_on = {info.checkpoint_id: count_trained_on(root, info, measured.query_ids) for info in infos}
    beyond = _beyond_training(contest.systems.selectors, infos, request.shots)
    warnings = [*_warnings(trained_on, beyond, len(measured.query_ids)), *measured.counts.warnings]
    for warning in warnings:
        context.logger.warning(warning)
    own = contest.own
    result: dict[str, Any] = {
        **parts[-1].to_json(),
        "sizes": [{"queries": part.rows[0].n, **part.to_json()} for part in parts],
        "dataset": request.dataset,
        "split": request.split,
        "answers_source": dataset.info.answers_source,
        "queries": len(measured.query_ids),
        "queries_left_out": len(measured.left_out),
        "random_draws": request.draws,
        "baselines": list(contest.systems.baselines),
        "unavailable": [one._asdict() for one in contest.unavailable],
        "checkpoints": contest.learned,
        "comparisons": len(parts[-1].differences),
        "trained_on": trained_on,
        "beyond_training": beyond,
        "scores": measured.counts.to_json(),
        "fingerprint": Fingerprint(own.dataset, own.pool, fingerprint.generation, fingerprint.metric).to_json(),
        "test_openings": [opening.model_dump() for opening in read_openings(root, request.dataset)],
        "warnings": warnings,
        "run_folder": str(context.run_folder),
        "per_query_sha256": write_per_query(context.run_folder, measured, dataset, fence=context.fence),
    }
    result["markdown"] = as_markdown(result)
    _write(context, result)
    return result


def _open(context: JobContext, request: EvaluateRequest) -> _Contest:
    root = context.data_root
    dataset = Dataset.open(root.dataset(request.dataset))
    embeddings = Embeddings.open(root.embeddings(request.dataset), dataset)
    loaded = [load_checkpoint(root.checkpoint(checkpoint_id)) for checkpoint_id in request.checkpoints]
    infos = [info for _, info in loaded]
    pools = Pools(dataset, embeddings, evaluation_policy(request, infos))
    _require_same(infos, Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint()), ("dataset", "pool"))
    fixed = fixed_pointers(infos)
    baselines, unavailable = available(request.baselines, request.shots, fixed, embeddings)
    selectors = [
        Selector(info.checkpoint_id, system, selector_policy(tensors, info.selector_config))
        for (tensors, info), system in zip(loaded, system_names(infos), strict=True)
    ]
    systems = Systems(baselines, selectors, fixed, request.shots, request.draws, request.beam, request.seed)
    return _Contest(dataset, embeddings, pools, infos, systems, unavailable)


def _require_same(infos: Sequence[CheckpointInfo], found: Fingerprint, parts: Sequence[PartName]) -> None:
    """FingerprintMismatch unless every checkpoint was made for these parts of `found`."""
    for info in infos:
        subject = f"this evaluation, for checkpoint {info.checkpoint_id!r},"
        info.fingerprint.require_same(found, subject=subject, parts=parts)


def _summaries(context: JobContext, request: EvaluateRequest, contest: _Contest, measured: Measured) -> list[Evaluation]:
    """One for each nested number of queries, the last over all.

    The checkpoints are compared with the baselines and each other; without any, the baselines are with each other.
    """
    cells, learned = measured.cells(), list(contest.learned)
    images = [contest.dataset.item(query_id).image_id for query_id in measured.query_ids]
    asked = len(measured.query_ids) + len(measured.left_out)
    parts = [
        set(sample_queries(contest.dataset, request.split, size, request.seed))
        for size in sorted(set(request.sizes))
        if size < asked
    ]
    found: list[Evaluation] = []
    context.step("bootstrap", 0, len(parts) + 1, **measured.counts.to_json())
    for number, part in enumerate([*parts, set(measured.query_ids)], start=1):
        rows = np.flatnonzero([query_id in part for query_id in measured.query_ids])
        if len(rows):
            evaluation = summarise(
                {cell: values[..., rows] for cell, values in cells.items()},
                [images[row] for row in rows],
                draws=request.bootstrap_draws,
                seed=request.seed,
                baselines=[*contest.systems.baselines, *learned],
                seeded=learned,
                learned=learned or None,
            )
            found.append(evaluation)
        context.step("bootstrap", number, len(parts) + 1, **measured.counts.to_json())
    return found


def _beyond_training(
    selectors: Sequence[Selector], infos: Sequence[CheckpointInfo], shots: Sequence[int]
) -> list[dict[str, Any]]:
    """The rows whose number of shots is above all that the checkpoint states; one that states none is not judged."""
    return [
        {"system": selector.system, "checkpoint": info.checkpoint_id, "shots": count, "trained_for": max(info.shots)}
        for selector, info in zip(selectors, infos, strict=True)
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


def _write(context: JobContext, result: Mapping[str, Any]) -> None:
    folder, fence = context.run_folder, context.fence
    write_json(folder / "evaluation.json", result, fence=fence)
    for name, text in (("evaluation.md", result["markdown"]), ("evaluation.html", as_html(result))):
        with atomic_file(folder / name, fence=fence) as stream:
            stream.write(text.encode())
