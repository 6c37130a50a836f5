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
from provenance import ROOT

from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import Structure, read_structures
from leverplus.embeddings import Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.pools import PoolPolicy, Pools
from leverplus.reward_table import RewardTable
from leverplus.rl_data import QueryRecord, RlData
from pointer_trainer.proposals import Proposal
from pointer_trainer.results import TrainResult
from pointer_trainer.train_config import read_train_config
from pointer_trainer.training import train


@dataclass(frozen=True)
class Material:
    """The table's splits, and the pools that it was made over."""

    pools: Pools
    tables: Mapping[str, RewardTable]
    structures: Sequence[Structure]

    @property
    def dataset(self) -> Dataset:
        return self.pools.dataset

    @property
    def embeddings(self) -> Embeddings:
        assert self.pools.embeddings is not None
        return self.pools.embeddings


def open_material(data: Path) -> Material:
    root = DataRoot(data)
    dataset = Dataset.open(root.dataset("invented-words"))
    embeddings = Embeddings.open(root.embeddings("invented-words"), dataset)
    tables = {split: RewardTable.open(ROOT / "assets" / "reward-table", split) for split in ("train", "val", "test")}
    pools = Pools(dataset, embeddings, PoolPolicy.from_json(tables["val"].header["pool"]["policy"]))
    return Material(pools, tables, read_structures(root.dataset("invented-words")))


def scored(
    proposals: Iterable[Proposal], table: RewardTable, pools: Pools, *, at_most: int | None = None, seed: int = 0
) -> RlData:
    """The proposals with the table's rewards; of each query's candidates `at_most`, drawn at random."""
    records: list[QueryRecord] = []
    for proposal in proposals:
        place = {item_id: position for position, item_id in enumerate(proposal.pool)}
        kept = proposal.candidates
        if at_most is not None and len(kept) > at_most:
            drawn = np.random.default_rng([seed, proposal.query_id]).choice(len(kept), at_most, replace=False)
            kept = tuple(kept[index] for index in sorted(drawn))
        candidates = tuple(
            replace(one, vqa_correct=int(reward > 0), vqa_acc_score=reward, vqa_eval_mode="file")
            for one in kept
            for reward in (table.reward(proposal.query_id, [place[item_id] for item_id in one.pointer]),)
        )
        records.append(QueryRecord(proposal.query_id, {}, proposal.pool, candidates))
    return RlData({}, Fingerprint(dataset=pools.dataset.fingerprint(), pool=pools.fingerprint()), records)


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
