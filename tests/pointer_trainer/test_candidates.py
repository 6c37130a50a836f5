from __future__ import annotations

import math
from itertools import permutations

import pytest
from pydantic import ValidationError

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.embeddings import Embeddings
from leverplus.errors import InvalidConfig
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.rl_data import Candidate
from pointer_trainer.candidates import (
    answer_pointers,
    answer_words,
    in_order,
    logging_weights,
    mixture_propensity,
    mixture_weights,
    part_at,
    random_pointers,
    retrieval_windows,
    uniform_logprob,
)
from pointer_trainer.proposals import Proposal, initialised_selector, logging_mixture, propose
from pointer_trainer.query_sample import sample_queries
from pointer_trainer.requests import GenerateRequest


def test_retrieval_shifts_along_the_ranking_with_the_most_similar_last() -> None:
    assert retrieval_windows([7, 3, 9, 1], 2, 5) == [(3, 7), (9, 3), (1, 9)]
    assert retrieval_windows([7, 3, 9, 1], 1, 2) == [(7,), (3,)]
    assert retrieval_windows([7], 2, 3) == []


def test_answer_words_are_those_the_metric_compares() -> None:
    assert answer_words("The Red, two!") == {"red", "2"}
    assert answer_words(" a ") == answer_words(None) == frozenset()


def test_answers_that_together_hold_the_querys_own_by_hand() -> None:
    # By similarity: 3 shares no word, 0 and 2 hold one each, 1 holds both, 4 repeats 0.
    offered = [{"red"}, {"red", "ring"}, {"ring"}, {"blue"}, {"red"}]
    ranking = [3, 0, 2, 1, 4]
    assert answer_pointers({"red"}, offered, ranking, 1, 9) == [(0,), (1,), (4,)]
    assert answer_pointers({"red", "ring"}, offered, ranking, 1, 9) == [(1,)]
    # Sums of ranks among the sharing (0, 2, 1, 4): 0+2 → 1, 0+1 → 2, 2+1 → 3, 1+4 → 5, 2+4 → 4; 0 and 4 lack the ring.
    pairs = [(2, 0), (1, 0), (1, 2), (4, 2), (4, 1)]
    assert answer_pointers({"red", "ring"}, offered, ranking, 2, 9) == pairs
    assert answer_pointers({"red", "ring"}, offered, ranking, 2, 2) == pairs[:2]
    assert answer_pointers({"green"}, offered, ranking, 1, 9) == []
    assert answer_pointers(set(), offered, ranking, 1, 9) == []
    assert answer_pointers({"red"}, offered, ranking, 4, 9) == []


def test_uniform_logprob_counts_ordered_pointers() -> None:
    assert uniform_logprob(4, 2) == pytest.approx(-math.log(12))
    assert uniform_logprob(5, 0) == 0.0


def test_random_pointers_are_distinct_positions_and_reproducible() -> None:
    drawn = random_pointers(6, 3, 50, seed=1, query_id=4)
    assert drawn == random_pointers(6, 3, 50, seed=1, query_id=4)
    assert drawn != random_pointers(6, 3, 50, seed=1, query_id=5)
    assert all(len(set(pointer)) == 3 and set(pointer) <= set(range(6)) for pointer in drawn)
    assert len(set(drawn)) > 30


def test_mixture_weights_are_shares_of_the_draws() -> None:
    assert mixture_weights([1.0, 1.3], 2, 1) == {"sample@1": 0.4, "sample@1.3": 0.4, "random": 0.2}
    assert mixture_weights([], 2, 1) == {"random": 1.0}
    assert mixture_weights([], 0, 0) == {}


def test_mixture_propensity_by_hand() -> None:
    # 0.4 · 1/2 + 0.4 · 1/4 + 0.2 · 1/10
    logprobs = {"sample@1": math.log(0.5), "sample@1.3": math.log(0.25), "random": math.log(0.1)}
    assert mixture_propensity(mixture_weights([1.0, 1.3], 2, 1), logprobs) == pytest.approx(0.32)


def test_the_parts_of_a_logging_mixture_by_hand() -> None:
    weights = logging_weights(0.2, [1.0, 2.0])
    assert weights == {"sample@1": 0.4, "sample@2": 0.4, "random": 0.2}
    assert logging_weights(1.0, [1.0]) == {"random": 1.0}
    levels = (0.0, 0.39, 0.4, 0.79, 0.8, 0.999)
    assert [part_at(weights, level) for level in levels] == ["sample@1"] * 2 + ["sample@2"] * 2 + ["random"] * 2


def test_a_pointer_found_twice_keeps_the_more_deliberate_way() -> None:
    a, b = (ItemId(1), ItemId(2)), (ItemId(2), ItemId(1))
    rows = in_order(
        [
            Candidate(a, "random", propensity=0.1),
            Candidate(a, "sample", temperature=1.0, propensity=0.1),
            Candidate(b, "retrieval"),
            Candidate(a, "beam", beam_rank=0, beam_score=-1.0),
            Candidate((), "zero_shot"),
        ]
    )
    assert [(row.pointer, row.gen_method) for row in rows] == [(a, "beam"), (b, "retrieval"), ((), "zero_shot")]
    assert rows[0].count == 2
    assert rows[0].propensity == 0.1


def proposals(data: DataRoot, k: int = 6, **fields: object) -> list[Proposal]:
    dataset = Dataset.open(data.dataset("toy"))
    embeddings = Embeddings.open(data.embeddings("toy"), dataset)
    pools = Pools(dataset, embeddings, PoolPolicy(sampler="random", k=k))
    selector, _ = initialised_selector(embeddings.manifest.d_model, seed=3)
    request = GenerateRequest.model_validate({"dataset": "toy", **fields})
    return list(propose(selector, embeddings, pools, dataset.split_ids("train"), request))


def test_proposals_hold_the_asked_sources_inside_their_pool(data: DataRoot) -> None:
    made = proposals(data, shots=[1, 2])
    assert [proposal.query_id for proposal in made] == list(range(12))
    for proposal in made:
        pointers = [candidate.pointer for candidate in proposal.candidates]
        assert len(set(pointers)) == len(pointers)
        assert all(set(pointer) <= set(proposal.pool) for pointer in pointers)
        assert proposal.query_id not in proposal.pool
        assert {len(pointer) for pointer in pointers} == {0, 1, 2}
        beams = [c for c in proposal.candidates if c.gen_method == "beam" and len(c.pointer) == 2]
        assert [c.beam_rank for c in beams] == [0, 1, 2, 3, 4]
        scores = [c.beam_score for c in beams]
        assert scores == sorted(scores, key=lambda score: -(score or 0))
        for candidate in proposal.candidates:
            assert (candidate.gen_method not in ("sample", "random")) or candidate.propensity is not None


def test_proposals_are_the_same_for_the_same_seed_and_others_for_another(data: DataRoot) -> None:
    assert proposals(data) == proposals(data)
    sources = {"num_beams": 0, "num_retrieval": 0, "zero_shot": False}
    assert proposals(data, **sources) != proposals(data, seed=1, **sources)


def test_propensities_are_those_of_a_distribution_over_all_ordered_pointers(data: DataRoot) -> None:
    # Enough random draws from 4 · 3 pointers find each of them: their probabilities must sum to 1.
    made = proposals(data, k=4, num_beams=0, num_retrieval=0, zero_shot=False, num_random=64, num_samples_per_temp=16)
    complete = [p for p in made if len(p.candidates) == len(list(permutations(range(4), 2)))]
    assert complete
    for proposal in complete:
        assert sum(candidate.propensity or 0 for candidate in proposal.candidates) == pytest.approx(1.0, abs=1e-5)
        assert sum(candidate.count for candidate in proposal.candidates) == 64 + 2 * 16


ONLY_LOGGING = {"num_beams": 0, "num_samples_per_temp": 0, "num_random": 0, "num_retrieval": 0, "zero_shot": False}


@pytest.mark.parametrize("shots", [1, 2, 3])
@pytest.mark.parametrize("checkpoint", [None, "ckpt-1"])
def test_logging_draws_come_as_often_as_their_propensity_says(data: DataRoot, shots: int, checkpoint: str | None) -> None:
    logging = {"draws": 1024, "temperatures": [0.5, 2.0]}
    made = proposals(data, k=4, shots=[shots], logging=logging, checkpoint=checkpoint, **ONLY_LOGGING)
    uniform = 1 / math.perm(4, shots)
    tried = 0
    for proposal in made:
        rows = proposal.candidates
        assert sum(row.count for row in rows) == 1024
        propensities = [row.propensity or 0.0 for row in rows]
        for row, propensity in zip(rows, propensities, strict=True):
            # Five standard deviations of a binomial number, and 1 where few are expected.
            assert abs(row.count - 1024 * propensity) <= 5 * math.sqrt(1024 * propensity) + 1
            assert propensity >= (0.2 if checkpoint else 1.0) * uniform * (1 - 1e-9)
        if checkpoint is None:
            assert propensities == [pytest.approx(uniform)] * len(rows)
        if len(rows) == math.perm(4, shots):
            tried += 1
            assert sum(propensities) == pytest.approx(1.0, abs=1e-5)
    assert tried, "1,024 draws find every pointer of some pool"


def test_only_logging_draws_have_a_propensity_where_they_are_asked_for(data: DataRoot) -> None:
    made = proposals(data, shots=[2], num_random=8, logging={"draws": 16})
    others: set[str | None] = set()
    for proposal in made:
        logged = [row for row in proposal.candidates if row.propensity is not None]
        assert sum(row.count for row in logged) == 16
        assert all(row.propensity == pytest.approx(1 / 30) for row in logged)
        others |= {row.gen_method for row in proposal.candidates if row.propensity is None}
    assert others == {"beam", "sample", "random", "retrieval", "zero_shot"}
    assert made == proposals(data, shots=[2], num_random=8, logging={"draws": 16})


def test_without_a_checkpoint_logging_is_uniform() -> None:
    request = GenerateRequest.model_validate({"dataset": "toy", "logging": {"draws": 4}})
    assert request.logging is not None
    assert request.logging.epsilon == 1.0
    assert logging_mixture(request) == {"random": 1.0}
    with_checkpoint = GenerateRequest.model_validate({"dataset": "toy", "checkpoint": "c", "logging": {"draws": 4}})
    assert logging_mixture(with_checkpoint) == {"sample@1": 0.8, "random": 0.2}
    with pytest.raises(ValidationError, match=r"logging\.epsilon is 0\.5, but no checkpoint is named"):
        GenerateRequest.model_validate({"dataset": "toy", "logging": {"draws": 4, "epsilon": 0.5}})
    # A job's config is read again when it runs.
    assert GenerateRequest.model_validate(request.model_dump(mode="json")) == request


def test_a_pool_smaller_than_the_pointer_is_refused(data: DataRoot) -> None:
    with pytest.raises(InvalidConfig, match="shots: 3, but a pool has 2 items"):
        proposals(data, k=2, shots=[3])


def test_one_source_alone_is_enough(data: DataRoot) -> None:
    only = {"num_beams": 0, "num_samples_per_temp": 0, "num_random": 0, "zero_shot": False}
    made = proposals(data, num_retrieval=2, **only)
    assert {candidate.gen_method for proposal in made for candidate in proposal.candidates} == {"retrieval"}
    assert all(len(proposal.candidates) == 2 for proposal in made)


def test_candidates_by_answer_hold_the_querys_answer(data: DataRoot) -> None:
    dataset = Dataset.open(data.dataset("toy"))
    only = {"num_beams": 0, "num_samples_per_temp": 0, "num_random": 0, "num_retrieval": 0, "zero_shot": False}
    made = proposals(data, num_answer=2, shots=[1, 2], **only)
    found = [(proposal, candidate) for proposal in made for candidate in proposal.candidates]
    assert found
    for proposal, candidate in found:
        assert candidate.gen_method == "answer"
        assert candidate.propensity is None
        told = {word for item_id in candidate.pointer for word in answer_words(dataset.item(item_id).answer)}
        assert answer_words(dataset.item(proposal.query_id).answer) <= told
    for proposal in made:
        lengths = [len(candidate.pointer) for candidate in proposal.candidates]
        assert max(lengths.count(1), lengths.count(2)) <= 2


def test_sampled_queries_are_distinct_ids_of_the_split(data: DataRoot) -> None:
    dataset = Dataset.open(data.dataset("toy"))
    for limit in range(1, 13):
        drawn = sample_queries(dataset, "train", limit, seed=limit)
        assert drawn == sorted(set(drawn))
        assert len(drawn) == limit
        assert set(drawn) <= set(range(12))
    assert sample_queries(dataset, "train", 6, seed=0) != sample_queries(dataset, "train", 6, seed=1)


def test_more_queries_than_the_split_has_are_refused(data: DataRoot) -> None:
    dataset = Dataset.open(data.dataset("toy"))
    assert sample_queries(dataset, "val", None, 0) == [12, 13, 14, 15]
    with pytest.raises(InvalidConfig, match="queries: 5, but split 'val' has 4"):
        sample_queries(dataset, "val", 5, 0)
