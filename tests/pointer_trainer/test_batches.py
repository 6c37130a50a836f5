"""Groups, positions, padding, and what is left out and counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.errors import Conflict, IdOutsidePool, InvalidRlData
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.rewards import RewardConfig
from leverplus.rl_data import Candidate, QueryRecord, RlData
from pointer_trainer.batches import build_examples
from pointer_trainer.example_table import ExampleTable

REWARD = RewardConfig(mode="soft_only")


def candidate(*pointer: int, accuracy: float | None = 0.0, mode: str = "file") -> Candidate:
    correct = None if accuracy is None else int(accuracy > 0)
    ids = tuple(ItemId(item) for item in pointer)
    return Candidate(ids, "random", vqa_correct=correct, vqa_acc_score=accuracy, vqa_eval_mode=mode)  # pyright: ignore[reportArgumentType]


def record(query_id: int, pool: list[int], *candidates: Candidate) -> QueryRecord:
    return QueryRecord(ItemId(query_id), {}, tuple(ItemId(item) for item in pool), tuple(candidates))


def rl_data(*records: QueryRecord) -> RlData:
    return RlData({}, Fingerprint(), list(records))


def embeddings(count: int = 10, width: int = 3) -> Embeddings:
    """Row i is (i, i, i), candidates are negative."""
    rows = np.repeat(np.arange(count, dtype=np.float32)[:, None], width, axis=1)
    manifest = EmbeddingManifest(
        {"name": "counting"}, "0" * 64, (Block("joint", 0, width),), width, count, "separate", "reference"
    )
    return Embeddings(rows, -rows, manifest)


def test_a_ragged_batch_by_hand():
    data = rl_data(
        record(5, [9, 3], candidate(3, accuracy=1.0)),
        record(2, [7, 4, 8], candidate(8, 4, accuracy=0.3), candidate(7, accuracy=0.6), candidate(4, accuracy=0.0)),
    )
    examples, counts = build_examples([data], REWARD)
    batch = ExampleTable(examples, embeddings()).batch(np.array([0, 1]))
    assert batch.query_id.tolist() == [2, 5]
    assert batch.query_emb[:, 0].tolist() == [2.0, 5.0]
    assert batch.cand_emb[0, :, 0].tolist() == [-7.0, -4.0, -8.0]
    assert batch.cand_emb[1, :2, 0].tolist() == [-9.0, -3.0]
    assert batch.pool_mask.tolist() == [[True, True, True], [True, True, False]]
    # One shot before two, in file order inside a group.
    assert batch.pointers.tolist() == [[[0, -1], [1, -1], [2, 1]], [[1, -1], [-1, -1], [-1, -1]]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    torch.testing.assert_close(batch.rewards_raw, torch.tensor([[0.6, 0.0, 0.3], [1.0, 0.0, 0.0]]))
    assert batch.logprobs is None
    rows, mask, shots = batch.groups()
    assert rows.tolist() == [0, 1, 0]
    assert mask.tolist() == [[True, True, False], [True, False, False], [False, False, True]]
    assert shots.tolist() == [1, 1, 2]
    assert (counts.queries, counts.groups, counts.candidates_used) == (2, 3, 4)


def test_what_is_left_out_is_counted():
    data = rl_data(
        record(
            0,
            [1, 2, 3],
            candidate(accuracy=1.0),
            candidate(1, accuracy=None, mode="error"),
            candidate(2, accuracy=0.5, mode="fallback"),
            candidate(3, accuracy=0.9),
            candidate(3, accuracy=0.9),
            candidate(1, 2, accuracy=0.2),
            candidate(2, 1, accuracy=0.2),
        ),
        record(4, [1, 2], candidate(accuracy=0.0)),
    )
    examples, counts = build_examples([data], REWARD)
    assert [example.query_id for example in examples] == [0]
    np.testing.assert_allclose(examples[0].rewards, [0.5, 0.9, 0.2, 0.2])
    assert counts.to_json() == {
        "queries": 2,
        "queries_without_candidates": 1,
        "groups": 2,
        "groups_of_equal_rewards": 1,
        "candidates": 8,
        "candidates_used": 4,
        "zero_shot": 2,
        "unknown_reward": 1,
        "skipped_fallback": 0,
        "duplicates": 1,
        "file_share": 6 / 8,
        "fallback_share": 1 / 8,
        "error_share": 1 / 8,
        "unknown_share": 0.0,
    }
    assert counts.first_unknown is not None
    assert "query 0, pointer [1]: vqa_acc_score unknown, which reward mode 'soft_only' needs" in counts.first_unknown
    examples, counts = build_examples([data], REWARD, skip_fallback=True)
    np.testing.assert_allclose(examples[0].rewards, [0.9, 0.2, 0.2])
    assert counts.skipped_fallback == 1


def test_shares_of_nothing_are_unknown():
    counts = build_examples([rl_data(record(0, [1]))], REWARD)[1].to_json()
    assert counts["file_share"] is None
    assert counts["unknown_share"] is None


def test_candidates_that_do_not_say_how_they_were_scored_are_a_share_of_their_own():
    data = rl_data(record(0, [1, 2], candidate(1, mode="unknown"), candidate(2)))
    assert build_examples([data], REWARD)[1].to_json()["unknown_share"] == 0.5


def test_two_files_are_joined_by_query():
    first, second = rl_data(record(0, [1, 2], candidate(1))), rl_data(record(0, [1, 2], candidate(2), candidate(1)))
    examples, counts = build_examples([first, second], REWARD)
    assert examples[0].positions.tolist() == [[0], [1]]
    assert counts.duplicates == 1


def test_files_that_contradict_each_other_are_refused():
    first = rl_data(record(0, [1, 2], candidate(1, accuracy=1.0)))
    with pytest.raises(InvalidRlData, match=r"query 0.*candidate_pool_ids"):
        build_examples([first, rl_data(record(0, [2, 1], candidate(2)))], REWARD)
    with pytest.raises(Conflict, match=r"\[1\]"):
        build_examples([first, rl_data(record(0, [1, 2], candidate(1, accuracy=0.0)))], REWARD)


def test_a_pointer_outside_its_pool_is_refused():
    with pytest.raises(IdOutsidePool, match=r"query 0.*item 7"):
        build_examples([rl_data(record(0, [1, 2], candidate(1, 7)))], REWARD)


def test_an_objective_without_its_input_names_the_query():
    with pytest.raises(InvalidRlData, match=r"query 3.*info_score"):
        build_examples([rl_data(record(3, [1, 2], candidate(1)))], RewardConfig(mode="hybrid", alpha=0.5))
