"""The demo's data that come with the repository: what is shipped fits what is made again, or is refused."""

from __future__ import annotations

import lzma
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leverplus import rl_data
from leverplus.checkpoints import CheckpointInfo, read_info
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset
from leverplus.dataset.invented_words import SIZES, generate
from leverplus.demo.ready_made import import_demo
from leverplus.deployments import promote, read_deployment
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.errors import FingerprintMismatch, InvalidRlData, NotFound
from leverplus.files import file_sha256

SHIPPED = Path(__file__).parents[2] / "assets" / "demo"
NAME = "invented-words-demo"


@pytest.fixture(scope="module")
def info() -> CheckpointInfo:
    return read_info(SHIPPED / "checkpoint")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, info: CheckpointInfo) -> DataRoot:
    """The true dataset; and vectors out of thin air under the manifest of the true ones, which take 40 s to make."""
    root = DataRoot(tmp_path_factory.mktemp("made"))
    generate(root.dataset(NAME), name=NAME, **SIZES["demo"])
    dataset = Dataset.open(root.dataset(NAME))
    assert info.fingerprint.pool is not None
    stated = info.fingerprint.pool["embeddings"]
    rows = np.random.default_rng(0).normal(size=(len(dataset.items), stated["d_model"])).astype(np.float32)
    manifest = EmbeddingManifest(
        encoder=stated["encoder"],
        dataset_sha256=dataset.info.sha256,
        blocks=tuple(Block(**block) for block in stated["blocks"]),
        d_model=stated["d_model"],
        count=len(dataset.items),
        candidate="same",
        source="encoders",
    )
    Embeddings(rows, rows, manifest).save(root.embeddings(NAME))
    return root


def test_an_empty_folder_is_filled_and_production_serves_the_checkpoint(made: DataRoot, info: CheckpointInfo, tmp_path: Path):
    root = DataRoot(tmp_path)
    said: list[str] = []
    import_demo(root, SHIPPED, made=made, report=said.append)
    deployment = read_deployment(root, "production")
    assert (deployment.checkpoint_id, deployment.by) == (info.checkpoint_id, "leverplus import demo")
    assert deployment.health is not None
    assert deployment.health["queries"] == 200
    (stated,) = info.rl_data
    assert file_sha256(root.rl_data(stated["id"])) == stated["sha256"]
    assert rl_data.inspect(root.rl_data(stated["id"]))["queries"] == info.metrics["queries"]
    assert said[-1] == f"production serves {info.checkpoint_id}"
    assert info.training["grpo_epochs"] == info.training["supervised_epochs"] == 0, "RCE only"


def test_what_was_deleted_since_stays_away(made: DataRoot, tmp_path: Path):
    root = DataRoot(tmp_path)
    import_demo(root, SHIPPED, made=made)
    shutil.rmtree(root.dataset(NAME))
    said: list[str] = []
    import_demo(root, SHIPPED, made=made, report=said.append)
    assert not root.dataset(NAME).exists()
    assert "left as it is" in said[0]


def test_a_run_that_was_cut_off_is_finished_by_the_next(made: DataRoot, info: CheckpointInfo, tmp_path: Path):
    root = DataRoot(tmp_path)
    shutil.copytree(made.dataset(NAME), root.dataset(NAME))
    import_demo(root, SHIPPED, made=made)
    assert read_deployment(root, "production").checkpoint_id == info.checkpoint_id


def test_what_production_serves_stays(made: DataRoot, info: CheckpointInfo, tmp_path: Path):
    root = DataRoot(tmp_path)
    shutil.copytree(SHIPPED / "checkpoint", root.checkpoint("ckpt-own"))
    promote(root, "production", "ckpt-own", by="me", reason="mine")
    said: list[str] = []
    import_demo(root, SHIPPED, made=made, report=said.append)
    assert read_deployment(root, "production").checkpoint_id == "ckpt-own"
    assert said[-1] == f"production goes on serving ckpt-own; {info.checkpoint_id} can be promoted"


def test_a_checkpoint_of_other_embeddings_is_refused(made: DataRoot, tmp_path: Path):
    other, root = DataRoot(tmp_path / "other"), DataRoot(tmp_path / "root")
    shutil.copytree(made.dataset(NAME), other.dataset(NAME))
    embeddings = Embeddings.open(made.embeddings(NAME))
    manifest = replace(embeddings.manifest, encoder={"name": "another"})
    Embeddings(embeddings.query, embeddings.candidate, manifest).save(other.embeddings(NAME))
    with pytest.raises(FingerprintMismatch, match=r"pool\.embeddings\.encoder\.name"):
        import_demo(root, SHIPPED, made=other)
    assert not root.deployment("production").exists()


def test_rl_data_that_did_not_train_the_checkpoint_are_refused(made: DataRoot, info: CheckpointInfo, tmp_path: Path):
    shipped, root = tmp_path / "shipped", DataRoot(tmp_path / "root")
    shutil.copytree(SHIPPED, shipped)
    (packed,) = shipped.glob("*.xz")
    packed.write_bytes(lzma.compress(b"{}\n"))
    with pytest.raises(InvalidRlData, match="the checkpoint was trained on"):
        import_demo(root, shipped, made=made)
    assert not root.deployment("production").exists()


def test_a_folder_without_the_demo_is_named(tmp_path: Path):
    with pytest.raises(NotFound, match="--shipped"):
        import_demo(DataRoot(tmp_path / "root"), tmp_path)
