"""The choice behind every peer, with pools drawn beforehand.

By default the selector in numpy that GET /select is answered by, with its candidates prepared, in batches of the peer's own. With
SELECTOR_PEER=torch the trained model as it is, asked for one query after the other (some servers want batches of two at least).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from leverplus.checkpoints import load_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.deployments import read_deployment
from leverplus.embeddings import Embeddings
from leverplus.policies import selector_policy
from leverplus.pools import PoolPolicy, Pools

NAME = "drawn"
TORCH = os.environ.get("SELECTOR_PEER") == "torch"
BATCH, BATCH_WAIT_S = 2 if TORCH else 16, 0.002


class Chooser:
    """Query ids → pointers."""

    def __init__(self, data: Path) -> None:
        root = DataRoot(data)
        folder = root.checkpoint(read_deployment(root, "production").checkpoint_id)
        tensors, info = load_checkpoint(folder)
        dataset = Dataset.open(root.dataset(NAME))
        embeddings = Embeddings.open(root.embeddings(NAME))
        policy = PoolPolicy.from_json(info.pool_policy)
        pools = Pools(dataset, embeddings, policy)
        queries = dataset.split_ids("test")
        self._shots = max(info.shots)
        self._first = queries[0]
        self._candidates = pools.candidates
        # A whole split is one pool for all.
        self._pools = None if policy.sampler == "all" else np.stack([pools.pool(query) for query in queries])
        self._queries = embeddings.query
        if TORCH:
            import torch

            from leverplus.selector import selector_from_checkpoint

            torch.set_num_threads(1)
            self._model = selector_from_checkpoint(folder)
            self._vectors = torch.from_numpy(embeddings.candidate[self._candidates])
        else:
            self._policy = selector_policy(tensors, info.selector_config)
            self._prepared = self._policy.prepare(embeddings.candidate[self._candidates])

    def __call__(self, query_ids: list[int]) -> list[list[int]]:
        if TORCH:
            return [self._by_torch(query_id) for query_id in query_ids]
        queries = self._queries[query_ids]
        if self._pools is None:
            beams = self._policy.choose_many(queries, self._prepared, self._shots)
            return [self._candidates[list(choices[0].positions)].tolist() for choices in beams]
        # Candidates are the first items: ids are rows.
        pools = self._pools[[query_id - self._first for query_id in query_ids]]
        beams = self._policy.choose_many(queries, self._prepared.take(pools), self._shots)
        return [pool[list(choices[0].positions)].tolist() for pool, choices in zip(pools, beams, strict=True)]

    def _by_torch(self, query_id: int) -> list[int]:
        import torch

        pool = self._candidates if self._pools is None else self._pools[query_id - self._first]
        candidates = self._vectors if self._pools is None else self._vectors[torch.from_numpy(pool)]
        query = torch.from_numpy(self._queries[query_id][None])
        return pool[self._model.select(query, candidates[None], self._shots).positions[0].numpy()].tolist()
