"""A shard of a generation: its queries' pointers are proposed, scored and written, a few requests' worth in memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain

from leverplus.files import Fence
from leverplus.ids import ItemId
from leverplus.rl_data import Candidate, QueryRecord, record_lines
from leverplus.scoring import ScoredCandidate
from pointer_trainer.generation import Generation
from pointer_trainer.proposals import Proposal, propose
from pointer_trainer.scored_queries import AskedQuery, ModeCounts, Scorer
from pointer_trainer.shards import Shard, ShardTail, write


def write_shard(
    shard: Shard, generation: Generation, scorer: Scorer, tell: Callable[[int, ModeCounts], None], *, fence: Fence
) -> ShardTail:
    """Proposes, has scored and writes the shard's queries. `tell` is given the number of queries done so far and their scores."""
    counts = ModeCounts()
    bare: list[ItemId] = []
    written = 0
    proposals = propose(generation.selector, generation.embeddings, generation.pools, shard.query_ids, generation.request)

    def lines(records: Iterator[QueryRecord]) -> Generator[bytes]:
        nonlocal written
        if (first := next(records, None)) is None:
            return
        for line in record_lines(shard.path, chain([first], records)):
            yield line
            written += 1

    def tail() -> ShardTail:
        found = scorer.fingerprint
        if found is None:
            return ShardTail(written, len(bare), counts, generation.own)
        generation.own.require_same(found, subject="the scorer's answer", parts=("dataset",))
        return ShardTail(written, len(bare), counts, replace(generation.own, generation=found.generation, metric=found.metric))

    with closing(_scored(generation, proposals, scorer, counts, bare, tell)) as records:
        write(shard, lines(records), tail, fence=fence)
    return tail()


def _scored(
    generation: Generation,
    proposals: Iterable[Proposal],
    scorer: Scorer,
    counts: ModeCounts,
    bare: list[ItemId],
    tell: Callable[[int, ModeCounts], None],
) -> Generator[QueryRecord]:
    """Records in the queries' order. Queries without candidates go to `bare`."""
    waiting: dict[int, Proposal] = {}

    def asked() -> Generator[AskedQuery]:
        for proposal in proposals:
            if not proposal.candidates:
                bare.append(proposal.query_id)
                continue
            waiting[proposal.query_id] = proposal
            yield AskedQuery(proposal.query_id, tuple(candidate.pointer for candidate in proposal.candidates))

    tell(0, counts)
    done = 0
    with closing(scorer.score(asked())) as batches:
        for batch in batches:
            counts.add(batch.stats)
            for query, scores in batch.queries:
                yield _record(generation, waiting.pop(query.query_id), scores)
            done += len(batch.queries)
            tell(done + len(bare), counts)


def _record(generation: Generation, proposal: Proposal, scores: Iterable[ScoredCandidate]) -> QueryRecord:
    item = generation.dataset.item(proposal.query_id)
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
