"""A data root written by the library: a dataset with pictures, embeddings of stated vectors, and checkpoints made for them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.selector import PointerSelectorV3, SelectorConfig
from selector_api.app import create_app
from selector_api.settings import SelectorSettings

Matrix = npt.NDArray[np.float32]
D_MODEL = 16


@dataclass(frozen=True)
class Toy:
    """`items` items, the first `train` of them in the train split, two questions an image, vectors [items, 16]."""

    root: DataRoot
    dataset: Dataset
    embeddings: Embeddings

    def pools(self, policy: PoolPolicy) -> Pools:
        return Pools(self.dataset, self.embeddings, policy)

    def add_checkpoint(
        self, checkpoint_id: str, policy: PoolPolicy, *, seed: int = 0, d_model: int = D_MODEL, **changes: Any
    ) -> CheckpointInfo:
        """A selector with the seed's weights, made for `policy`; `changes` replace fields of its description."""
        torch.manual_seed(seed)
        config = SelectorConfig(d_model=d_model, hidden_dim=8, num_heads=2, num_layers=2, state_update="gate", temperature=0.1)
        fingerprint = Fingerprint(dataset=self.dataset.fingerprint(), pool=self.pools(policy).fingerprint())
        info = CheckpointInfo(
            checkpoint_id=checkpoint_id,
            format=FORMAT,
            selector=config.to_json(),
            dataset=self.dataset.name,
            pool_policy=policy.to_json(),
            shots=[1, 2, 3, 4],
            fingerprint=fingerprint,
            training={},
            rl_data=[],
            metrics={},
            code_version="0.1.0",
            created_at="2026-01-01T00:00:00+00:00",
        )
        tensors = {name: tensor.detach().numpy() for name, tensor in PointerSelectorV3(config).state_dict().items()}
        return save_checkpoint(self.root.checkpoint(checkpoint_id), tensors, replace(info, **changes))


def drawn_vectors(count: int, seed: int = 0) -> Matrix:
    """[count, 16]: two blocks of eight, each of unit length."""
    blocks = np.random.default_rng(seed).standard_normal((count, 2, D_MODEL // 2)).astype(np.float32)
    return (blocks / np.linalg.norm(blocks, axis=2, keepdims=True)).reshape(count, D_MODEL)


def write_toy(
    path: Path, *, items: int, train: int, vectors: Matrix | None = None, encoder: Mapping[str, Any] | None = None
) -> Toy:
    root = DataRoot(path)
    folder = root.dataset("toy")
    (folder / "images").mkdir(parents=True)
    for number in range((items + 1) // 2):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(folder / "images" / f"{number}.png")
    listed = [
        Item(
            item_id=ItemId(n),
            split="train" if n < train else "test",
            image=f"images/{n // 2}.png",
            image_id=f"image-{n // 2}",
            question_id=f"q{n}",
            question=f"what is {n}?",
            answer=f"answer {n}",
            answers=(f"answer {n}",) * 10,
        )
        for n in range(items)
    ]
    write_dataset(folder, DatasetInfo("toy", "1", "CC0-1.0", "replicated"), listed)
    dataset = Dataset.open(folder)
    found = drawn_vectors(items) if vectors is None else vectors
    manifest = EmbeddingManifest(
        encoder=encoder or {"name": "drawn", "seed": 0},
        dataset_sha256=dataset.info.sha256,
        blocks=(Block("image", 0, D_MODEL // 2), Block("question", D_MODEL // 2, D_MODEL)),
        d_model=D_MODEL,
        count=items,
        candidate="same",
        source="encoders",
    )
    embeddings = Embeddings(found, found, manifest)
    embeddings.save(root.embeddings("toy"))
    return Toy(root, dataset, embeddings)


@pytest.fixture(scope="session")
def make_toy() -> Callable[..., Toy]:
    return write_toy


@pytest.fixture(scope="session")
def running() -> Callable[[DataRoot], AbstractContextManager[TestClient]]:
    @contextmanager
    def run(root: DataRoot) -> Generator[TestClient]:
        with TestClient(create_app(SelectorSettings(data=root.path)), raise_server_exceptions=False) as client:
            yield client

    return run
