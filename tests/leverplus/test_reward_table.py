"""The reward table: a tiny one worked by hand, broken ones, and the shipped one against the real scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leverplus.errors import InvalidDataset, InvalidInput, InvalidPointer, NotFound
from leverplus.files import write_json
from leverplus.reward_table import (
    FORMAT,
    RewardTable,
    all_pointers,
    columns,
    pointer_count,
    pointer_index,
    pools_digest,
    write_codes,
)

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "reward-table"
LEVELS = [0.0, 0.3, 0.6, 0.9, 1.0]
#            ()  (0) (1) (2) (0,1) (0,2) (1,0) (1,2) (2,0) (2,1)
CODES = [[0, 1, 0, 4, 2, 4, 0, 0, 3, 1], [4, 4, 4, 4, 0, 0, 0, 0, 0, 2]]
POOLS = np.array([[7, 5, 9], [1, 2, 3]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Queries 20 and 21 with pools of 3, split val."""
    sha256 = write_codes(tmp_path / "rewards-val.npy.xz", np.array(CODES, dtype=np.uint8))
    entry = {"file": "rewards-val.npy.xz", "sha256": sha256, "query_ids": [20, 21], "pools_sha256": pools_digest(POOLS)}
    header = {"format": FORMAT, "pool_size": 3, "levels": LEVELS, "pool": {"policy": "by hand"}, "splits": {"val": entry}}
    write_json(tmp_path / "table.json", header)
    return tmp_path


@pytest.fixture
def table(folder: Path) -> RewardTable:
    return RewardTable.open(folder, "val")


def test_columns_of_a_pool_of_three_are_in_the_documented_order() -> None:
    expected = [(-1, -1), (0, -1), (1, -1), (2, -1), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert [tuple(row) for row in all_pointers(3).tolist()] == expected
    assert (columns(3, 0), columns(3, 1), columns(3, 2)) == (slice(0, 1), slice(1, 4), slice(4, 10))


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_every_pointer_stands_at_its_index(size: int) -> None:
    pointers = [tuple(place for place in row if place >= 0) for row in all_pointers(size).tolist()]
    assert [pointer_index(pointer, size) for pointer in pointers] == list(range(pointer_count(size)))
    assert pointer_count(64) == 4097


@pytest.mark.parametrize("positions", [(3,), (-1,), (1, 1), (0, 3), (0, 1, 2)])
def test_what_is_no_pointer_is_refused(positions: tuple[int, ...]) -> None:
    with pytest.raises(InvalidPointer):
        pointer_index(positions, 3)


def test_positions_may_be_an_array_but_are_whole_numbers() -> None:
    assert pointer_index(np.array([2, 1]), 3) == 9
    with pytest.raises(TypeError):
        pointer_index([0.5], 3)  # pyright: ignore[reportArgumentType]


def test_rewards_of_single_pointers(table: RewardTable) -> None:
    assert table.reward(20, ()) == 0.0
    assert table.reward(20, (2,)) == 1.0
    assert table.reward(20, (2, 0)) == 0.9
    assert table.reward(20, (0, 2)) == 1.0
    assert table.reward(21, (2, 1)) == 0.6
    with pytest.raises(NotFound):
        table.reward(7, ())
    assert table.chosen(np.array([[2, 0], [2, 1]])).tolist() == [0.9, 0.6]
    assert table.chosen(np.zeros((2, 0), dtype=np.int64)).tolist() == [0.0, 1.0]


def test_zero_shot_random_and_best(table: RewardTable) -> None:
    assert table.zero_shot().tolist() == [0.0, 1.0]
    assert table.random(0).tolist() == [0.0, 1.0]
    np.testing.assert_allclose(table.random(1), [(0.3 + 0 + 1) / 3, 1.0])
    np.testing.assert_allclose(table.random(2), [(0.6 + 1 + 0 + 0 + 0.9 + 0.3) / 6, 0.1])
    assert table.best(1).tolist() == [1.0, 1.0]
    assert table.best(2).tolist() == [1.0, 0.6]


def test_expected_accuracy_of_a_policy(table: RewardTable) -> None:
    probabilities = np.zeros((2, 6))
    probabilities[0, [0, 4]] = 0.25, 0.75  # (0, 1) and (2, 0)
    probabilities[1, 5] = 1.0  # (2, 1)
    np.testing.assert_allclose(table.expected(probabilities, 2), [0.25 * 0.6 + 0.75 * 0.9, 0.6])
    uniform = np.full((2, 6), 1 / 6)
    np.testing.assert_allclose(table.expected(uniform, 2), table.random(2))
    with pytest.raises(InvalidInput):
        table.expected(probabilities, 1)
    with pytest.raises(InvalidInput):
        table.expected(probabilities * 0.9, 2)


def test_pairs_as_a_square(table: RewardTable) -> None:
    expected = [[np.nan, 0.6, 1.0], [0.0, np.nan, 0.0], [0.9, 0.3, np.nan]]
    np.testing.assert_array_equal(table.pairs()[0], expected)


def test_pools_are_recognised(table: RewardTable) -> None:
    table.require_pools(POOLS, "val")
    with pytest.raises(InvalidInput):
        table.require_pools(POOLS[::-1], "val")
    with pytest.raises(NotFound, match=r"test.*there are: val"):
        table.require_pools(POOLS, "test")


def test_a_table_that_is_not_whole_is_refused(folder: Path) -> None:
    with pytest.raises(NotFound):
        RewardTable.open(folder, "test")
    with pytest.raises(NotFound):
        RewardTable.open(folder / "nowhere", "val")
    write_codes(folder / "rewards-val.npy.xz", np.array(CODES, dtype=np.uint8)[::-1].copy())
    with pytest.raises(InvalidDataset, match="sha256"):
        RewardTable.open(folder, "val")
    (folder / "rewards-val.npy.xz").unlink()
    with pytest.raises(NotFound):
        RewardTable.open(folder, "val")


@pytest.mark.parametrize("codes", [np.full((2, 10), 5, np.uint8), np.zeros((2, 9), np.uint8), np.zeros((2, 10), np.int64)])
def test_codes_that_do_not_fit_the_header_are_refused(folder: Path, codes: Any) -> None:
    sha256 = write_codes(folder / "rewards-val.npy.xz", codes)
    entry = {"file": "rewards-val.npy.xz", "sha256": sha256, "query_ids": [20, 21]}
    write_json(folder / "table.json", {"format": FORMAT, "pool_size": 3, "levels": LEVELS, "splits": {"val": entry}})
    with pytest.raises(InvalidDataset, match="expected uint8"):
        RewardTable.open(folder, "val")


@pytest.mark.skipif(not (SHIPPED / "table.json").is_file(), reason="the reward table is not in this checkout")
def test_the_shipped_table_agrees_with_the_scorer(tmp_path: Path) -> None:
    from leverplus.dataset import Dataset
    from leverplus.dataset.invented_words import generate
    from leverplus.metric import extract_answer, score_answer
    from leverplus.pools import PoolPolicy, Pools
    from leverplus.prompts import Shot
    from vqa_scorer.engines import ScoringPrompt
    from vqa_scorer.engines.transformers import TransformersEngine

    table = RewardTable.open(SHIPPED, "val")
    generate(tmp_path / "data")  # whole: its hash is that of the header
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.info.sha256 == table.header["dataset"]["items_sha256"]
    pools = Pools(dataset, None, PoolPolicy.from_json(table.header["pool"]["policy"]))
    table.require_pools(np.stack([pools.pool(int(query)) for query in table.query_ids]), "val")
    engine = TransformersEngine(SHIPPED.parent / "in-context-vlm", device="cpu", dtype="float32", batch_size=32, threads=1)
    engine.load()
    assert engine.generation_fingerprint() == table.header["generation"]

    def shot(item_id: int, *, shown: bool) -> Shot:
        item = dataset.item(item_id)
        return Shot(dataset.image_path(item_id), item.question, item.answer if shown else None)

    drawn = np.random.default_rng(0)
    chosen: list[tuple[int, tuple[int, ...]]] = []
    prompts: list[ScoringPrompt] = []
    for query in drawn.choice(table.query_ids, 32, replace=False).tolist():
        # every other pointer is a good one, since most are worth nothing
        row = table.codes[table.query_ids == query][0]
        index = int(np.argmax(row)) if query % 2 else int(drawn.integers(len(row)))
        positions = tuple(place for place in all_pointers(table.pool_size)[index].tolist() if place >= 0)
        chosen.append((query, positions))
        pool = pools.pool(query)
        prompts.append(ScoringPrompt(tuple(shot(int(pool[one]), shown=True) for one in positions), shot(query, shown=False)))
    texts = engine.generate(prompts)
    scored = [
        score_answer(extract_answer(text), dataset.item(query).answers).accuracy
        for (query, _), text in zip(chosen, texts, strict=True)
    ]
    assert scored == [table.reward(query, positions) for query, positions in chosen]
