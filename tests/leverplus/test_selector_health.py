"""The numbers worked out by hand, and selectors that ignore the query."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from leverplus.checkpoints import FORMAT, CheckpointInfo
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.deployments import promote, read_deployment, rollback
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.errors import Cancelled
from leverplus.fingerprint import Fingerprint
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.selector import PointerSelectorV3, SelectorConfig
from leverplus.selector_health import checkpoint_health, health_warnings, measure_health, summarise_choices

D_MODEL = 8


def test_numbers():
    own = [(1, 2), (1, 2), (3, 4), (5, 6)]
    swapped = [(1, 2), (3, 4), (3, 4), (6, 5)]
    health = summarise_choices(own, swapped, split="val", shots=2)
    assert (health.queries, health.distinct_pointers, health.most_common, health.most_common_share) == (4, 3, (1, 2), 0.5)
    assert health.entropy == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))
    assert health.changed_when_swapped == 0.5
    assert health.warnings == ()
    assert health.to_json()["most_common"] == [1, 2]


def test_what_is_no_better_than_a_fixed_choice_is_warned_about():
    same = summarise_choices([(1,)] * 20, [(1,)] * 20, split="val", shots=1)
    assert (same.entropy, same.most_common_share, same.changed_when_swapped) == (0.0, 1.0, 0.0)
    ignores, alike = same.warnings
    assert ignores == "ignores the query: another query's embedding changed the choice for 0.0% of 20 queries (below 5%)"
    assert alike == "chooses [1] for 100.0% of 20 queries (above 50%)"
    assert health_warnings(same.to_json()) == list(same.warnings)
    assert health_warnings({"unknown": "no embeddings"}) == ["not measured: no embeddings"]
    assert health_warnings(None) == []


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    root = DataRoot(tmp_path)
    splits = ["train"] * 60 + ["val"] * 30
    items = [Item(ItemId(n), split, None, str(n), str(n), f"{n}?", "a", ("a",)) for n, split in enumerate(splits)]
    write_dataset(root.dataset("toy"), DatasetInfo("toy", "1", "CC0-1.0", "human"), items)
    dataset = Dataset.open(root.dataset("toy"))
    vectors = np.random.default_rng(0).standard_normal((90, D_MODEL)).astype(np.float32)
    manifest = EmbeddingManifest(
        {"name": "drawn"}, dataset.info.sha256, (Block("joint", 0, D_MODEL),), D_MODEL, 90, "same", "encoders"
    )
    Embeddings(vectors, vectors, manifest).save(root.embeddings("toy"))
    return root


def described(root: DataRoot, policy: PoolPolicy) -> CheckpointInfo:
    dataset = Dataset.open(root.dataset("toy"))
    pools = Pools(dataset, Embeddings.open(root.embeddings("toy")), policy)
    return CheckpointInfo(
        checkpoint_id="ckpt-a",
        format=FORMAT,
        selector=SelectorConfig(D_MODEL, hidden_dim=8).to_json(),
        dataset="toy",
        pool_policy=policy.to_json(),
        shots=[1, 2],
        fingerprint=Fingerprint(dataset.fingerprint(), pools.fingerprint()),
        training={},
        rl_data=[],
        metrics={},
        code_version="0.1.0",
        created_at="2026-01-01T00:00:00+00:00",
    )


def test_a_selector_that_looks_at_the_query_and_one_that_does_not(root: DataRoot):
    torch.manual_seed(0)
    looking = PointerSelectorV3(SelectorConfig(D_MODEL, hidden_dim=8)).tensors()
    info = described(root, PoolPolicy("random", k=16))
    health = checkpoint_health(root, looking, info)
    assert (health["split"], health["queries"], health["shots"]) == ("val", 30, 2)
    assert health["changed_when_swapped"] > 0.5
    assert health["warnings"] == []
    # A layer norm that lets nothing through: the state is the same for every query.
    blind = {**looking, "attn_norms.0.weight": np.zeros(8, np.float32), "attn_norms.0.bias": np.ones(8, np.float32)}
    found = checkpoint_health(root, blind, info)
    assert found["changed_when_swapped"] == 0.0
    assert [warning.split(":")[0] for warning in found["warnings"]] == ["ignores the query"]
    of_one_pool = checkpoint_health(root, blind, described(root, PoolPolicy("all")))
    assert (of_one_pool["distinct_pointers"], of_one_pool["most_common_share"]) == (1, 1.0)
    assert len(of_one_pool["warnings"]) == 2


def test_what_cannot_be_measured_is_unknown_and_says_why(root: DataRoot):
    tensors = PointerSelectorV3(SelectorConfig(D_MODEL, hidden_dim=8)).tensors()
    info = described(root, PoolPolicy("random", k=16))
    other = described(root, PoolPolicy("random", k=17))
    mixed = CheckpointInfo(**{**info.__dict__, "fingerprint": other.fingerprint})
    assert "pool.policy.k: expected 17, found 16" in checkpoint_health(root, tensors, mixed)["unknown"]
    root.embeddings("toy").rename(root.path / "away")
    assert "no embeddings 'toy'" in checkpoint_health(root, tensors, info)["unknown"]


def test_measuring_can_be_ended(root: DataRoot):
    pools = Pools(Dataset.open(root.dataset("toy")), Embeddings.open(root.embeddings("toy")), PoolPolicy("random", k=16))
    asked: list[int] = []

    def check() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise Cancelled(what="measuring")

    with pytest.raises(Cancelled):
        measure_health(lambda vector, pool: pool[:1].tolist(), pools, pools.embeddings, shots=1, check=check)
    assert len(asked) == 3


def test_a_deployment_keeps_it_through_promotion_and_roll_back(root: DataRoot):
    for name in ("ckpt-a", "ckpt-b"):
        root.checkpoint(name).mkdir(parents=True)
        (root.checkpoint(name) / "checkpoint.json").write_text("{}")
    promote(root, "production", "ckpt-a", by="test", reason="first", health={"queries": 1})
    promote(root, "production", "ckpt-b", by="test", reason="second", health={"unknown": "why"})
    assert read_deployment(root, "production").health == {"unknown": "why"}
    assert rollback(root, "production", "test").health == {"queries": 1}
    assert rollback(root, "production", "test").health == {"unknown": "why"}
