"""Making RL data: candidate pointers of every query, scored by the VLM, shard by shard.

A generation of several shards has a child job for each: any worker takes them, and whoever has the generation runs those that
wait. Its shards are files in its run directory until the RL data are there.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import torch

import leverplus
from leverplus import rl_data
from leverplus.errors import InvalidInput
from leverplus.files import remove_folder, write_json
from leverplus.fingerprint import Fingerprint
from leverplus.store import Job
from pointer_trainer.children import run_children
from pointer_trainer.context import Children, JobContext
from pointer_trainer.dry_run import estimate
from pointer_trainer.errors import ShardFailed
from pointer_trainer.generation import Generation, close_generation, open_generation
from pointer_trainer.proposals import logging_mixture
from pointer_trainer.replicas import Replicas
from pointer_trainer.requests import GenerateRequest, ShardConfig
from pointer_trainer.scored_queries import ModeCounts, Scorer
from pointer_trainer.scored_shards import write_shard
from pointer_trainer.shards import Shard, ShardTail, cut, lines, read_tail
from pointer_trainer.sharing import share_shard

_RESULT = "result.json"


def generate(context: JobContext) -> dict[str, Any]:
    """Writes rl-data/rl-<job's suffix>.ndjson, whole or not at all, and returns its id, report and counts.

    A later run of the job goes on with the shards that are missing. ShardFailed where one failed; the others are ended then.
    """
    torch.set_num_threads(context.threads)
    request = GenerateRequest.model_validate(context.config)
    try:
        generation = open_generation(context.data_root, request)
        if request.dry_run:
            return estimate(context, generation)
        result = context.run_folder / _RESULT
        if not (result.is_file() and _rl_data(context).is_file()):
            shards = cut(generation.query_ids, request.shard_queries, context.data_root.shards(context.job_id))
            _run_all(context, generation, shards)
            write_json(result, _finish(context, generation, shards), fence=context.fence)
        remove_folder(context.data_root.shards(context.job_id))
        return orjson.loads(result.read_bytes())
    finally:
        close_generation()


def generate_shard(context: JobContext) -> dict[str, Any]:
    """One shard of the job that this one belongs to."""
    torch.set_num_threads(context.threads)
    assert context.parent is not None, "a shard belongs to a generation"
    generation = open_generation(context.data_root, GenerateRequest.model_validate(context.parent.config))
    folder = context.data_root.shards(context.parent.id)
    shards = cut(generation.query_ids, generation.request.shard_queries, folder)
    shard = shards[ShardConfig.model_validate(context.config).shard - 1]
    # The first tells under which fingerprint the others were scored.
    for one in (shards[0], shard):
        context.data_root.shard(context.parent.id, one.path.name)
    tail = _done(context, generation, shards, shard)
    share_shard(context, shard.path, keep=shard is shards[0])
    return {"queries": tail.queries, "queries_without_candidates": tail.without_candidates, "scores": tail.scores.to_json()}


def _run_all(context: JobContext, generation: Generation, shards: Sequence[Shard]) -> None:
    """Returns when every shard is done."""
    children = context.children
    if children is not None and children.list():
        _run_children(context, children, generation, shards)
    before = 0
    for shard in shards:
        context.data_root.shard(context.job_id, shard.path.name)
        # With children it is one whose file was deleted since.
        if not shard.is_done:
            _done(context, generation, shards, shard, before=before, total=len(generation.query_ids))
        before += len(shard.query_ids)


def _run_children(context: JobContext, children: Children, generation: Generation, shards: Sequence[Shard]) -> None:
    total = len(generation.query_ids)

    def tell(jobs: Sequence[Job]) -> None:
        done, scores = 0, ModeCounts()
        for job, shard in zip(jobs, shards, strict=True):
            told = (job.result or {}).get("scores") or job.progress or {}
            done += len(shard.query_ids) if job.result is not None else int((job.progress or {}).get("step", 0))
            scores.add_json(told)
        states = {f"shards_{state}": sum(job.status == state for job in jobs) for state in ("succeeded", "running")}
        context.progress("score", done, total, {**scores.to_json(), "shards": len(shards), **states})

    ended = zip(run_children(context, children, tell, until_failure=True), shards, strict=True)
    unmade = [(job, shard) for job, shard in ended if job.status != "succeeded"]
    if unmade:
        # One that failed tells more than those that were cancelled for it.
        job, shard = next((pair for pair in unmade if pair[0].status == "failed"), unmade[0])
        reason = (job.error or {}).get("detail", job.status)
        raise ShardFailed(job_id=context.job_id, shard=shard.number, shards=len(shards), child=job.id, reason=reason)


def _done(
    context: JobContext,
    generation: Generation,
    shards: Sequence[Shard],
    shard: Shard,
    *,
    before: int = 0,
    total: int | None = None,
) -> ShardTail:
    """The shard's tail, of its file or of what is made now. Progress is told in queries: those of it, or of `total` with `before`
    of them done."""
    count = len(shard.query_ids) if total is None else total
    if shard.is_done:
        context.step("score", before + len(shard.query_ids), count)
        return read_tail(shard)
    request = generation.request

    def tell(done: int, counts: ModeCounts) -> None:
        context.step("score", before + done, count, **counts.to_json())

    with Replicas(context.scorer_urls, key=context.scorer_key, first=shard.number) as replicas:
        scorer = Scorer(
            replicas,
            request.dataset,
            flavour=request.flavour,
            postprocessing=request.postprocessing,
            gt_prob=request.gt_prob,
            info_score=request.info_score,
            check=context.check,
            fingerprint=_scored_under(shards),
        )
        return write_shard(shard, generation, scorer, tell, fence=context.fence)


def _scored_under(shards: Sequence[Shard]) -> Fingerprint | None:
    """The scorer's fingerprint in the first shard that is done; None before there is one."""
    for shard in shards:
        if shard.is_done and (found := read_tail(shard).fingerprint).generation is not None:
            return Fingerprint(dataset=found.dataset, generation=found.generation, metric=found.metric)
    return None


def _finish(context: JobContext, generation: Generation, shards: Sequence[Shard]) -> dict[str, Any]:
    """Puts the shards' lines one behind the other, and reports on them."""
    tails = [read_tail(shard) for shard in shards]
    scored = [tail for tail in tails if tail.queries]
    if not scored:
        asked = f"none of the {len(generation.query_ids)} queries has a candidate from {_sources(generation.request)}"
        raise InvalidInput(f"{asked}; ask for other sources")
    fingerprint = scored[0].fingerprint
    counts = ModeCounts()
    for shard, tail in zip(shards, tails, strict=True):
        subject = f"shard {shard.number} of {len(shards)}, beside the first,"
        fingerprint.require_same(tail.fingerprint, subject=subject)
        counts.add_json(tail.scores.to_json())

    def all_lines() -> Generator[bytes]:
        for shard, tail in zip(shards, tails, strict=True):
            yield from lines(shard, tail)
            context.step("write", shard.number, len(shards), **counts.to_json())

    path = _rl_data(context)
    with closing(all_lines()) as written:
        rl_data.write_lines(path, written, fingerprint=fingerprint, meta=_meta(context, generation), fence=context.fence)
    for warning in counts.warnings:
        context.logger.warning(warning)
    report = rl_data.inspect(path)
    write_json(context.run_folder / "report.json", report, fence=context.fence)
    bare = sum(tail.without_candidates for tail in tails)
    made = {"rl_data_id": path.stem, "report": report, "scores": counts.to_json()}
    return {**made, "queries_without_candidates": bare, "shards": len(shards)}


def _rl_data(context: JobContext) -> Path:
    return context.data_root.rl_data(f"rl-{context.suffix}")


def _sources(request: GenerateRequest) -> str:
    asked = {name: value for name, value in request.model_dump().items() if name.startswith("num_") and value}
    return ", ".join(f"{name} {value}" for name, value in asked.items())


def _meta(context: JobContext, generation: Generation) -> dict[str, Any]:
    request = generation.request
    return {
        "job_id": context.job_id,
        "code_version": leverplus.__version__,
        "request": request.model_dump(mode="json"),
        "pool_policy": generation.pools.policy.to_json(),
        "selector": generation.origin,
        "logging_mixture": {
            "weights": logging_mixture(request),
            "draws": None if request.logging is None else request.logging.draws,
            "independent": request.logging is not None,
            "meaning": "propensity is a pointer's probability in one draw of this mixture, among pointers of its length; count "
            "is how many of the draws it was. Independent: the part of each draw is drawn by these weights; otherwise every "
            "query has them in these shares exactly. What is not drawn from it has no propensity",
        },
    }
