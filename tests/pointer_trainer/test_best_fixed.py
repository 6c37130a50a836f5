"""The best fixed pointers, worked out by hand."""

from __future__ import annotations

from leverplus.ids import ItemId
from leverplus.rl_data import Candidate, QueryRecord
from pointer_trainer.best_fixed import RANKED, rank_fixed_pointers


def record(query_id: int, scored: dict[tuple[int, ...], float | None]) -> QueryRecord:
    candidates = tuple(
        Candidate(tuple(map(ItemId, pointer)), gen_method="random", vqa_acc_score=score) for pointer, score in scored.items()
    )
    return QueryRecord(ItemId(query_id), {}, tuple(map(ItemId, range(10))), candidates)


def test_pointers_that_most_queries_share_are_ranked_by_their_mean():
    records = [
        record(100, {(1, 2): 1.0, (2, 1): 0.0, (3, 4): 1.0}),
        record(101, {(1, 2): 0.5, (2, 1): 1.0, (5, 6): 1.0}),
        record(102, {(1, 2): 1.0, (2, 1): 1.0, (): 1.0}),
    ]
    # (1, 2) has 2.5 / 3, (2, 1) has 2 / 3; the others were scored for one query of three.
    assert rank_fixed_pointers(records) == {"2": [[1, 2], [2, 1]]}


def test_where_no_pointer_is_shared_items_are_composed_by_what_they_add():
    records = [
        record(100, {(1, 2): 1.0, (3, 4): 0.0}),
        record(101, {(2, 5): 1.0, (3, 6): 0.0}),
        record(102, {(7, 2): 0.4, (8, 9): 0.4}),
    ]
    # Above the query's mean: 2 has +.5, +.5, 0 of three queries (1 / 11); 1 and 5 have +.5 of one (.5 / 9); 7, 8, 9 nothing;
    # 4 and 6 have -.5 / 9; 3 has -1 / 10. The better stands last.
    assert rank_fixed_pointers(records) == {"2": [[1, 2], [7, 5], [9, 8], [6, 4]]}


def test_each_number_of_shots_is_ranked_by_itself_and_unknown_scores_count_for_nothing():
    records = [record(100 + n, {(1,): None, (2,): 0.3, (3,): 0.9, (2, 3): 1.0, (): 1.0}) for n in range(2)]
    assert rank_fixed_pointers(records) == {"1": [[3], [2]], "2": [[2, 3]]}
    assert rank_fixed_pointers([record(100, {(): 1.0, (1,): None})]) == {}


def test_no_more_are_kept_than_are_of_use():
    records = [record(100 + n, {(item,): 1 / (1 + item) for item in range(200)}) for n in range(2)]
    assert rank_fixed_pointers(records)["1"] == [[item] for item in range(RANKED)]
