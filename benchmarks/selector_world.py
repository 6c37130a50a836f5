"""A data root to serve from: random embeddings of the reference's width, questions without images, an untrained selector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.deployments import promote
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.selector import PointerSelectorV3, SelectorConfig

D_MODEL, HIDDEN, LAYERS, SHOTS = 512, 256, 3, 4
NAME = "drawn"


@dataclass(frozen=True)
class World:
    """`candidates` items may be chosen; the `queries` items after them are what is asked for. `pool`: items of a pool."""

    root: DataRoot
    candidates: int
    queries: int
    pool: int

    @property
    def policy(self) -> PoolPolicy:
        return PoolPolicy("all") if self.pool == self.candidates else PoolPolicy("random", k=self.pool)


def build_world(folder: Path, *, candidates: int, queries: int, pool: int, clusters: int | None = None) -> World:
    """Writes dataset, embeddings and checkpoint, and deploys it as production.

    Vectors are drawn alike from the sphere, or around so many centres, with noise as long as those.
    """
    world = World(DataRoot(folder), candidates, queries, pool)
    count = candidates + queries
    items = (
        Item(
            item_id=ItemId(number),
            split="train" if number < candidates else "test",
            image=None,
            image_id=str(number),
            question_id=f"q{number}",
            question=f"What is in picture {number}?",
            answer=f"thing {number % 97}",
            answers=(f"thing {number % 97}",) * 10,
        )
        for number in range(count)
    )
    write_dataset(world.root.dataset(NAME), DatasetInfo(NAME, "1", "CC0-1.0", "replicated"), items)
    dataset = Dataset.open(world.root.dataset(NAME))
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((count, D_MODEL), dtype=np.float32)
    if clusters is not None:
        centres = draw.standard_normal((clusters, D_MODEL), dtype=np.float32)
        vectors += centres[draw.integers(clusters, size=count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    manifest = EmbeddingManifest(
        {"name": "random"}, dataset.info.sha256, (Block("joint", 0, D_MODEL),), D_MODEL, count, "same", "encoders"
    )
    embeddings = Embeddings(vectors, vectors, manifest)
    embeddings.save(world.root.embeddings(NAME))
    torch.manual_seed(0)
    config = SelectorConfig(d_model=D_MODEL, hidden_dim=HIDDEN, num_layers=LAYERS)
    info = CheckpointInfo(
        checkpoint_id=f"ckpt-{pool}",
        format=FORMAT,
        selector=config.to_json(),
        dataset=NAME,
        pool_policy=world.policy.to_json(),
        shots=[SHOTS],
        fingerprint=Fingerprint(dataset=dataset.fingerprint(), pool=Pools(dataset, embeddings, world.policy).fingerprint()),
        training={},
        rl_data=[],
        metrics={},
        code_version="benchmark",
        created_at="",
    )
    save_checkpoint(world.root.checkpoint(info.checkpoint_id), PointerSelectorV3(config).tensors(), info)
    promote(world.root, "production", info.checkpoint_id, by="benchmark", reason="to be measured")
    return world
