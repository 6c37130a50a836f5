"""Making RL data: candidate pointers of every query, scored by the VLM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

import leverplus
from leverplus import rl_data
from leverplus.checkpoints import load_checkpoint
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidInput
from leverplus.files import write_json
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import Pools
from leverplus.rl_data import Candidate, QueryRecord
from leverplus.scoring import ScoredCandidate
from leverplus.selector import PointerSelectorV3
from leverplus.selector.model import selector_from_tensors
from pointer_trainer.context import JobContext
from pointer_trainer.proposals import Proposal, initialised_selector, logging_mixture, propose
from pointer_trainer.query_sample import sample_queries
from pointer_trainer.replicas import Replicas
from pointer_trainer.requests import GenerateRequest
from pointer_trainer.scored_queries import AskedQuery, ModeCounts, Scorer


def generate(context: JobContext) -> dict[str, Any]:
    """Writes rl-data/rl-<job's suffix>.ndjson, whole or not at all, and returns its id, report and counts."""
    torch.set_num_threads(context.threads)
    request = GenerateRequest.model_validate(context.config)
    root = context.data_root
    dataset = Dataset.open(root.dataset(request.dataset))
    embeddings = Embeddings.open(root.embeddings(request.dataset), dataset)
    pools = Pools(dataset, embeddings, request.pool.policy())
    own = Fingerprint(dataset=dataset.fingerprint(), pool=pools.fingerprint())
    selector, origin = _selector(context, request, own, embeddings.manifest.d_model)
    query_ids = sample_queries(dataset, request.split, request.queries, request.seed)
    proposals = propose(selector, embeddings, pools, query_ids, request)
    if request.dry_run:
        return _count(context, proposals, len(query_ids))
    rl_data_id = f"rl-{context.suffix}"
    counts = ModeCounts()
    bare: list[ItemId] = []
    with Replicas(context.scorer_urls) as replicas:
        scorer = Scorer(
            replicas,
            request.dataset,
            flavour=request.flavour,
            postprocessing=request.postprocessing,
            gt_prob=request.gt_prob,
            info_score=request.info_score,
            check=context.check,
        )
        with closing(_scored(context, dataset, proposals, scorer, counts, len(query_ids), bare)) as records:
            first = next(records, None)
            if first is None:
                asked = f"none of the {len(query_ids)} queries has a candidate from {_sources(request)}"
                raise InvalidInput(f"{asked}; ask for other sources")
            found = scorer.fingerprint or Fingerprint()
            own.require_same(found, subject="the scorer's answer", parts=("dataset",))
            rl_data.write(
                root.rl_data(rl_data_id),
                chain([first], records),
                fingerprint=replace(own, generation=found.generation, metric=found.metric),
                meta=_meta(context, request, pools, origin),
                fence=context.fence,
            )
    for warning in counts.warnings:
        context.logger.warning(warning)
    report = rl_data.inspect(root.rl_data(rl_data_id))
    write_json(context.run_folder / "report.json", report, fence=context.fence)
    return {"rl_data_id": rl_data_id, "report": report, "scores": counts.to_json(), "queries_without_candidates": len(bare)}


def _sources(request: GenerateRequest) -> str:
    asked = {name: value for name, value in request.model_dump().items() if name.startswith("num_") and value}
    return ", ".join(f"{name} {value}" for name, value in asked.items())


def _selector(
    context: JobContext, request: GenerateRequest, own: Fingerprint, d_model: int
) -> tuple[PointerSelectorV3, dict[str, Any]]:
    if request.checkpoint is None:
        return initialised_selector(d_model, request.seed)
    tensors, info = load_checkpoint(context.data_root.checkpoint(request.checkpoint))
    info.fingerprint.require_same(
        own, subject=f"what checkpoint {request.checkpoint!r} is to choose from", parts=("dataset", "pool")
    )
    origin = {"source": "checkpoint", "checkpoint": request.checkpoint, "model_sha256": info.model_sha256}
    return selector_from_tensors(tensors, info.selector_config), origin


def _scored(
    context: JobContext,
    dataset: Dataset,
    proposals: Iterable[Proposal],
    scorer: Scorer,
    counts: ModeCounts,
    total: int,
    bare: list[ItemId],
) -> Generator[QueryRecord]:
    """Records in the queries' order; progress after every answer of the scorer. Queries without candidates go to `bare`."""
    waiting: dict[int, Proposal] = {}

    def asked() -> Generator[AskedQuery]:
        for proposal in proposals:
            if not proposal.candidates:
                bare.append(proposal.query_id)
                continue
            waiting[proposal.query_id] = proposal
            yield AskedQuery(proposal.query_id, tuple(candidate.pointer for candidate in proposal.candidates))

    context.step("score", 0, total, **counts.to_json())
    done = 0
    with closing(scorer.score(asked())) as batches:
        for batch in batches:
            counts.add(batch.stats)
            for query, scores in batch.queries:
                yield _record(dataset, waiting.pop(query.query_id), scores)
            done += len(batch.queries)
            context.step("score", done + len(bare), total, **counts.to_json())


def _record(dataset: Dataset, proposal: Proposal, scores: Iterable[ScoredCandidate]) -> QueryRecord:
    item = dataset.item(proposal.query_id)
    query = {
        "query_id": str(proposal.query_id),
        "question_id": item.question_id,
        "image_id": item.image_id,
        "question": item.question,
        "gt_answers_raw": list(item.answers),
    }
    candidates = tuple(_with_score(candidate, score) for candidate, score in zip(proposal.candidates, scores, strict=True))
    return QueryRecord(proposal.query_id, query, proposal.pool, candidates)


def _with_score(candidate: Candidate, score: ScoredCandidate) -> Candidate:
    return replace(
        candidate,
        vqa_raw_generation=score.vqa_raw_generation,
        vqa_pred_answer=score.vqa_pred_answer,
        vqa_correct=score.vqa_correct,
        vqa_acc_score=score.vqa_acc_score,
        vqa_eval_mode=score.vqa_eval_mode,
        vqa_gt_prob=score.vqa_gt_prob,
        info_score=score.info_score,
    )


def _meta(context: JobContext, request: GenerateRequest, pools: Pools, origin: dict[str, Any]) -> dict[str, Any]:
    return {
        "job_id": context.job_id,
        "code_version": leverplus.__version__,
        "request": request.model_dump(mode="json"),
        "pool_policy": pools.policy.to_json(),
        "selector": origin,
        "logging_mixture": {
            "weights": logging_mixture(request),
            "draws": None if request.logging is None else request.logging.draws,
            "independent": request.logging is not None,
            "meaning": "propensity is a pointer's probability in one draw of this mixture, among pointers of its length; count "
            "is how many of the draws it was. Independent: the part of each draw is drawn by these weights; otherwise every "
            "query has them in these shares exactly. What is not drawn from it has no propensity",
        },
    }


def _count(context: JobContext, proposals: Iterable[Proposal], total: int) -> dict[str, Any]:
    """What would be scored."""
    methods: Counter[str] = Counter()
    shots: Counter[int] = Counter()
    for number, proposal in enumerate(proposals):
        methods.update(candidate.gen_method or "unknown" for candidate in proposal.candidates)
        shots.update(len(candidate.pointer) for candidate in proposal.candidates)
        context.step("count", number + 1, total)
    return {
        "dry_run": True,
        "queries": total,
        "pointers": methods.total(),
        "gen_methods": dict(methods.most_common()),
        "shots": {str(count): shots[count] for count in sorted(shots)},
    }
