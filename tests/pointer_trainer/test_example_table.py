"""Batches taken out of a table are the examples themselves, padded."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.ids import ItemId
from pointer_trainer.batches import QueryExample
from pointer_trainer.example_table import ExampleTable

ITEMS, WIDTH = 12, 2


def embeddings() -> Embeddings:
    query = np.arange(ITEMS * WIDTH, dtype=np.float32).reshape(ITEMS, WIDTH)
    manifest = EmbeddingManifest(
        {"name": "counting"}, "0" * 64, (Block("joint", 0, WIDTH),), WIDTH, ITEMS, "separate", "reference"
    )
    return Embeddings(query, -query, manifest)


@st.composite
def examples(draw: st.DrawFn) -> list[QueryExample]:
    made: list[QueryExample] = []
    for query_id in draw(st.lists(st.integers(0, ITEMS - 1), min_size=1, max_size=6, unique=True)):
        pool = draw(st.permutations(range(ITEMS)))[: draw(st.integers(1, ITEMS))]
        steps = draw(st.integers(1, min(4, len(pool))))
        count = draw(st.integers(1, 5))
        pointers = [draw(st.permutations(range(len(pool))))[:steps] for _ in range(count)]
        rewards = draw(st.lists(st.floats(-5, 5, width=32), min_size=count, max_size=count))
        made.append(QueryExample(ItemId(query_id), np.array(pool), np.array(pointers), np.array(rewards, dtype=np.float32)))
    return made


@given(examples(), st.randoms(use_true_random=False))
def test_a_batch_holds_its_examples_and_nothing_else(made: list[QueryExample], random: np.random.RandomState):
    order = list(range(len(made)))
    random.shuffle(order)
    table = ExampleTable(made, embeddings())
    seen = 0
    for batch in table.batches(2, np.array(order)):
        of_batch = [made[index] for index in order[seen : seen + 2]]
        seen += len(of_batch)
        assert batch.query_id.tolist() == [example.query_id for example in of_batch]
        assert batch.pool_mask.shape[1] == max(len(example.pool) for example in of_batch)
        assert batch.pointers.shape[1:] == (
            max(len(example.rewards) for example in of_batch),
            max(example.positions.shape[1] for example in of_batch),
        )
        for row, example in enumerate(of_batch):
            pool, count, steps = len(example.pool), len(example.rewards), example.positions.shape[1]
            np.testing.assert_array_equal(batch.query_emb[row], embeddings().query[example.query_id])
            np.testing.assert_array_equal(batch.cand_emb[row, :pool], embeddings().candidate[example.pool])
            np.testing.assert_array_equal(batch.pointers[row, :count, :steps], example.positions)
            np.testing.assert_array_equal(batch.rewards_raw[row, :count], example.rewards)
            assert batch.pool_mask[row].tolist() == [place < pool for place in range(batch.pool_mask.shape[1])]
            assert batch.mask[row].tolist() == [place < count for place in range(batch.mask.shape[1])]
            assert (batch.pointers[row, count:] == -1).all()
            assert (batch.pointers[row, :, steps:] == -1).all()
            assert (batch.rewards_raw[row, count:] == 0).all()
    assert seen == len(made)
