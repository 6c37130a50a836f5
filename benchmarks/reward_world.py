"""What benchmarks on assets/reward-table share: invented-words and its pools, the table's rewards, a run of the trainer.

    leverplus import invented-words --data DATA && leverplus embed invented-words --data DATA

makes the dataset and its embeddings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from live_rewards import LiveRewards
from provenance import ROOT

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import Structure, read_structures
from leverplus.embeddings import Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.reward_table import RewardTable
from leverplus.rl_data import Candidate, QueryRecord, RlData
from pointer_trainer.proposals import Proposal
from pointer_trainer.results import TrainResult
from pointer_trainer.train_config import read_train_config
from pointer_trainer.training import train

LONGEST = 2
"""Demonstrations of the table's longest pointers."""


@dataclass(frozen=True)
class Material:
    """The table's splits, and the pools that it was made over."""

    pools: Pools
    tables: Mapping[str, RewardTable]
    structures: Sequence[Structure]
    live: LiveRewards
    """For pointers longer than the table's, and for InfoScores."""

    @property
    def dataset(self) -> Dataset:
        return self.pools.dataset

    @property
    def embeddings(self) -> Embeddings:
        assert self.pools.embeddings is not None
        return self.pools.embeddings


def open_material(data: Path, device: str = "cpu") -> Material:
    """`device`: of the VLM, where it is asked."""
    root = DataRoot(data)
    dataset = Dataset.open(root.dataset("invented-words"))
    embeddings = Embeddings.open(root.embeddings("invented-words"), dataset)
    tables = {split: RewardTable.open(ROOT / "assets" / "reward-table", split) for split in ("train", "val", "test")}
    pools = Pools(dataset, embeddings, PoolPolicy.from_json(tables["val"].header["pool"]["policy"]))
    return Material(pools, tables, read_structures(root.dataset("invented-words")), LiveRewards(dataset, device))


def scored(
    proposals: Iterable[Proposal],
    table: RewardTable,
    material: Material,
    *,
    at_most: int | None = None,
    seed: int = 0,
    info_score: bool = False,
) -> RlData:
    """The proposals with the table's rewards, and the VLM's own beyond two shots; of each query's candidates `at_most`, drawn at
    random. `info_score`: asked of the VLM too."""
    kept = [(proposal, _kept(proposal, at_most, seed)) for proposal in proposals]
    pointers = [(proposal.query_id, one.pointer) for proposal, candidates in kept for one in candidates]
    material.live.ask((query_id, pointer) for query_id, pointer in pointers if len(pointer) > LONGEST)
    if info_score:
        material.live.weigh((query_id, pointer) for query_id, pointer in pointers if pointer)
    records: list[QueryRecord] = []
    for proposal, candidates in kept:
        place = {item_id: position for position, item_id in enumerate(proposal.pool)}

        def reward(pointer: tuple[ItemId, ...], query_id: ItemId = proposal.query_id, place: dict[ItemId, int] = place) -> float:
            if len(pointer) > LONGEST:
                return material.live.reward(query_id, pointer)
            return table.reward(query_id, [place[item_id] for item_id in pointer])

        def info(pointer: tuple[ItemId, ...], query_id: ItemId = proposal.query_id) -> float | None:
            return material.live.info_score(query_id, pointer) if info_score and pointer else None

        rewards = [reward(one.pointer) for one in candidates]
        judged = tuple(
            replace(one, vqa_correct=int(value > 0), vqa_acc_score=value, vqa_eval_mode="file", info_score=info(one.pointer))
            for one, value in zip(candidates, rewards, strict=True)
        )
        records.append(QueryRecord(proposal.query_id, {}, proposal.pool, judged))
    return RlData({}, Fingerprint(dataset=material.dataset.fingerprint(), pool=material.pools.fingerprint()), records)


def _kept(proposal: Proposal, at_most: int | None, seed: int) -> tuple[Candidate, ...]:
    if at_most is None or len(proposal.candidates) <= at_most:
        return proposal.candidates
    drawn = np.random.default_rng([seed, proposal.query_id]).choice(len(proposal.candidates), at_most, replace=False)
    return tuple(proposal.candidates[index] for index in sorted(drawn))


@contextmanager
def training(config: Mapping[str, Any], data: Sequence[RlData], material: Material) -> Generator[tuple[Path, TrainResult]]:
    """A run: the folder that its checkpoints lie in, by their ids, as long as the block lasts, and its result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = train(
            read_train_config(config),
            data,
            material.embeddings,
            dataset=material.dataset,
            pool_policy=material.pools.policy,
            rl_data_refs=[{"id": f"round-{number}", "sha256": ""} for number in range(len(data))],
            checkpoint_folder=folder / "ckpt",
            run_folder=folder / "run",
            progress=lambda phase, step, total, extra: None,
            should_stop=lambda: False,
        )
        yield folder, result
