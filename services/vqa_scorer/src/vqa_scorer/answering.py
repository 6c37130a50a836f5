"""From what the VLM said to the answer of a request: the metric is applied here, to stored texts and probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from typing import Any

from leverplus.ids import ItemId, Pointer
from leverplus.metric import extract_answer, gt_probability, metric_fingerprint, score_answer
from leverplus.scoring import ScoredCandidate, ScoredQuery, ScoreResponse, ScoreStats
from vqa_scorer.planning import ScorePlan
from vqa_scorer.work import Outcome, WorkKey


def make_response(
    plan: ScorePlan, outcomes: Mapping[WorkKey, Outcome], committed: Set[WorkKey], generation: Mapping[str, Any]
) -> ScoreResponse:
    """`outcomes` holds all that the plan needs; those in `committed` were in the store before the request came."""
    results, stats = make_results(plan, outcomes, committed)
    return ScoreResponse(fingerprint=make_fingerprint(plan, generation), results=results, stats=stats)


def make_results(
    plan: ScorePlan, outcomes: Mapping[WorkKey, Outcome], committed: Set[WorkKey]
) -> tuple[list[ScoredQuery], ScoreStats]:
    """The plan's queries in their order, and the counts of their candidates."""
    reading = _Reading(plan, outcomes)
    modes: Counter[str] = Counter()
    cached = 0
    results: list[ScoredQuery] = []
    for query_id, pointers in plan.queries:
        candidates = [reading.candidate(query_id, pointer) for pointer in pointers]
        modes.update(candidate.vqa_eval_mode for candidate in candidates)
        cached += sum(reading.keys(query_id, pointer) <= committed for pointer in pointers)
        results.append(ScoredQuery(query_id=query_id, candidates=candidates))
    stats = ScoreStats.counted(file=modes["file"], fallback=modes["fallback"], error=modes["error"], cached=cached)
    return results, stats


def make_fingerprint(plan: ScorePlan, generation: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "dataset": plan.opened.dataset.fingerprint(),
        "generation": dict(generation),
        "metric": metric_fingerprint(plan.options.flavour, plan.options.postprocessing),
    }


class _Reading:
    def __init__(self, plan: ScorePlan, outcomes: Mapping[WorkKey, Outcome]) -> None:
        self._plan = plan
        self._outcomes = outcomes

    def keys(self, query_id: ItemId, pointer: Pointer) -> set[WorkKey]:
        """All that the pointer's candidate is made of."""
        dataset = self._plan.opened.digest
        weighed = (WorkKey(dataset, (query_id, part), "probabilities") for part in self._plan.weighed(query_id, pointer))
        return {WorkKey(dataset, (query_id, pointer)), *weighed}

    def candidate(self, query_id: ItemId, pointer: Pointer) -> ScoredCandidate:
        answers = self._plan.opened.dataset.item(query_id).answers
        raw = self._outcomes[WorkKey(self._plan.opened.digest, (query_id, pointer))]
        assert isinstance(raw, str), "the kind of the key is text"
        predicted = extract_answer(raw, self._plan.options.postprocessing)
        score = score_answer(predicted, answers, self._plan.options.flavour)
        wants = self._plan.options
        return ScoredCandidate(
            pointer=list(pointer),
            vqa_raw_generation=raw,
            vqa_pred_answer=predicted,
            vqa_correct=score.correct,
            vqa_acc_score=score.accuracy,
            vqa_eval_mode=score.mode,
            vqa_gt_prob=gt_probability(answers, self._probabilities(query_id, pointer)) if wants.gt_prob else None,
            info_score=self._info_score(query_id, pointer) if wants.info_score else None,
        )

    def _info_score(self, query_id: ItemId, pointer: Pointer) -> float | None:
        answer = self._plan.own_answer(query_id)
        if answer is None or not pointer:
            return None
        return self._probabilities(query_id, pointer)[answer] - self._probabilities(query_id, pointer[1:])[answer]

    def _probabilities(self, query_id: ItemId, pointer: Pointer) -> Mapping[str, float]:
        """Empty for a query without answers, of which none were asked for."""
        key = WorkKey(self._plan.opened.digest, (query_id, pointer), "probabilities")
        found = self._outcomes.get(key, {})
        assert not isinstance(found, str), "the kind of the key is probabilities"
        return found
