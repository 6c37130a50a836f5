"""What a generation would take, told without scoring anything: counted, or of a sample where there are many queries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from leverplus.errors import LeverPlusError
from leverplus.ids import ItemId
from leverplus.random_order import derive_seed, random_first
from leverplus.scoring import ScoreOptions, ScoreQuery, ScoreRequest
from pointer_trainer.context import JobContext
from pointer_trainer.generation import Generation
from pointer_trainer.proposals import Proposal, propose
from pointer_trainer.replicas import Replicas

SAMPLE = 1000
"""Queries at most whose pointers are proposed."""
_PLANNED_AT_ONCE = 100
"""Queries in one question to the scorer."""


def estimate(context: JobContext, generation: Generation) -> dict[str, Any]:
    """Of a sample, the counts are those of the sample times queries / sampled_queries, and `images` an upper bound.

    `committed`, `to_score` and `estimated_hours` are None where no scorer answers, the hours also where none has measured a rate.
    """
    total = len(generation.query_ids)
    taken = _sample(generation)
    methods: Counter[str] = Counter()
    shots: Counter[int] = Counter()
    items: set[ItemId] = set()
    plans: Counter[str] | None = Counter()
    reason: str | None = None
    bare = 0
    waiting: list[Proposal] = []
    with Replicas(context.scorer_urls, key=context.scorer_key) as replicas:
        for number, proposal in enumerate(
            propose(generation.selector, generation.embeddings, generation.pools, taken, generation.request), start=1
        ):
            methods.update(candidate.gen_method or "unknown" for candidate in proposal.candidates)
            shots.update(len(candidate.pointer) for candidate in proposal.candidates)
            items.update((proposal.query_id, *(item for candidate in proposal.candidates for item in candidate.pointer)))
            bare += not proposal.candidates
            waiting += [proposal] if proposal.candidates else []
            if plans is not None and waiting and (len(waiting) == _PLANNED_AT_ONCE or number == len(taken)):
                try:
                    plans.update(_planned(generation, replicas, waiting))
                except LeverPlusError as exc:
                    plans, reason = None, f"the scorers do not say what is scored already: {exc}"
                waiting = []
            context.step("count", number, len(taken))
        rates = replicas.rates()
    known = [rate for rate in rates if rate]
    # One that has measured nothing yet is taken to be like the others.
    rate = len(rates) * sum(known) / len(known) if known else None

    def scaled(count: int) -> int:
        return round(count * total / len(taken))

    to_score = None if plans is None else scaled(plans["to_score"])
    return {
        "dry_run": True,
        "queries": total,
        "sampled_queries": None if len(taken) == total else len(taken),
        "queries_without_candidates": scaled(bare),
        "pointers": scaled(methods.total()),
        "gen_methods": {name: scaled(count) for name, count in methods.most_common()},
        "shots": {str(count): scaled(shots[count]) for count in sorted(shots)},
        "images": _images(generation, items if len(taken) == total else None),
        "committed": None if plans is None else scaled(plans["committed"]),
        "to_score": to_score,
        "scorers": len(rates),
        "pointers_per_s": rate,
        "estimated_hours": None if rate is None or to_score is None else to_score / rate / 3600,
        "notes": list(_notes(len(taken), total, reason, rates)),
    }


def _sample(generation: Generation) -> list[ItemId]:
    ids = generation.query_ids
    if len(ids) <= SAMPLE:
        return ids
    drawn = random_first(np.asarray(ids, dtype=np.int64), SAMPLE, derive_seed("dry run", generation.request.seed))
    return [ItemId(int(item_id)) for item_id in np.sort(drawn)]


def _planned(generation: Generation, replicas: Replicas, proposals: Sequence[Proposal]) -> dict[str, int]:
    request = generation.request
    queries = [
        ScoreQuery(query_id=each.query_id, pointers=[list(candidate.pointer) for candidate in each.candidates])
        for each in proposals
    ]
    options = ScoreOptions(
        flavour=request.flavour,
        postprocessing=request.postprocessing,
        gt_prob=request.gt_prob,
        info_score=request.info_score,
    )
    plan = replicas.plan(ScoreRequest(dataset=request.dataset, queries=queries, options=options))
    return {"committed": plan.committed, "to_score": plan.to_score}


def _images(generation: Generation, items: set[ItemId] | None) -> int:
    """Distinct image files of these items; None: of all queries and of all that may be demonstrations."""
    dataset = generation.dataset
    if items is None:
        items = {*generation.query_ids, *dataset.split_ids(generation.request.pool.candidate_split)}
    return len({image for item_id in items if (image := dataset.item(item_id).image) is not None})


def _notes(taken: int, total: int, reason: str | None, rates: Sequence[float | None]) -> list[str]:
    notes = [] if reason is None else [reason]
    if taken < total:
        notes.append(f"counted on {taken} of {total} queries, drawn with the seed, and scaled up; images are an upper bound")
    if rates and not any(rates):
        notes.append("no scorer has measured its rate yet: score something first to be told the hours")
    return notes
