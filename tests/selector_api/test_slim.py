"""The service answers in an interpreter that never loads torch, transformers, celery or sqlalchemy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.deployments import promote
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.selector.config import SelectorConfig, tensor_shapes

PROGRAM = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from selector_api.app import create_app
from selector_api.settings import SelectorSettings
import selector_api.main

with TestClient(create_app(SelectorSettings(data=Path(sys.argv[1])))) as client:
    assert client.get("/select?query_id=9&shots=2&beam=2").status_code == 200
    for policy in ("random", "similar_joint", "zero_shot"):
        assert client.get(f"/select?query_id=9&policy={policy}").status_code == 200
    vector = {"queries": [{"embedding": [0.1, 0.2, 0.3, 0.4]}, {"query_id": 3}], "exclude": [1]}
    assert client.post("/select", json=vector).status_code == 200
    assert client.get("/deployments").json()["deployments"][0]["checkpoint"] == "ckpt-a"
    assert client.get("/health/ready").status_code == 200
heavy = {"torch", "transformers", "celery", "sqlalchemy", "pandas", "matplotlib", "PIL"} & set(sys.modules)
sys.exit(f"loaded: {sorted(heavy)}" if heavy else 0)
"""


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    root = DataRoot(tmp_path)
    items = [Item(ItemId(n), "train", None, str(n), str(n), f"what is {n}?", "a", ("a",)) for n in range(10)]
    write_dataset(root.dataset("toy"), DatasetInfo("toy", "1", "CC0-1.0", "human"), items)
    dataset = Dataset.open(root.dataset("toy"))
    vectors = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
    manifest = EmbeddingManifest({"name": "drawn"}, dataset.info.sha256, (Block("joint", 0, 4),), 4, 10, "same", "encoders")
    embeddings = Embeddings(vectors, vectors, manifest)
    embeddings.save(root.embeddings("toy"))
    config = SelectorConfig(d_model=4, hidden_dim=8)
    policy = PoolPolicy("random", k=5)
    info = CheckpointInfo(
        checkpoint_id="ckpt-a",
        format=FORMAT,
        selector=config.to_json(),
        dataset="toy",
        pool_policy=policy.to_json(),
        shots=[2],
        fingerprint=Fingerprint(dataset=dataset.fingerprint(), pool=Pools(dataset, embeddings, policy).fingerprint()),
        training={},
        rl_data=[],
        metrics={},
        code_version="0.1.0",
        created_at="2026-01-01T00:00:00+00:00",
    )
    tensors = {name: np.full(shape, 0.1, dtype=np.float32) for name, shape in tensor_shapes(config).items()}
    save_checkpoint(root.checkpoint("ckpt-a"), tensors, info)
    promote(root, "production", "ckpt-a", by="test", reason="first")
    ended = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
