"""The real application on a dataset folder, embeddings and checkpoints written by the library."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from leverplus.checkpoints import FORMAT, CheckpointInfo, save_checkpoint
from leverplus.data_root import DataRoot
from leverplus.dataset import Dataset, DatasetInfo, Item, write_dataset
from leverplus.deployments import promote, rollback
from leverplus.embeddings import Block, EmbeddingManifest, Embeddings
from leverplus.fingerprint import Fingerprint, digest
from leverplus.ids import ItemId
from leverplus.pools import PoolPolicy, Pools
from leverplus.selector import SelectorConfig, new_selector, selector_from_checkpoint
from selector_api.app import create_app
from selector_api.settings import SelectorSettings

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000000301010018dd8db00000000049454e44ae426082"
)
D_MODEL = 16
ITEMS = 60
TRAIN = 40
POLICY = PoolPolicy("random", k=8, seed=3)


@dataclass(frozen=True)
class World:
    root: DataRoot
    dataset: Dataset
    embeddings: Embeddings

    def pools(self, policy: PoolPolicy = POLICY) -> Pools:
        return Pools(self.dataset, self.embeddings, policy)


def _write_dataset(root: DataRoot) -> Dataset:
    folder = root.dataset("toy")
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "0.png").write_bytes(PNG)
    (folder / "images" / "1.jpg").write_bytes(b"\xff\xd8\xff not looked into")
    (folder / "images" / "2.strange").write_bytes(b"?")
    (root.path / "secret.png").write_bytes(b"secret")
    images = {0: "images/0.png", 1: "images/1.jpg", 2: "images/2.strange", 3: "../../secret.png", 4: None, 5: "images/gone.png"}
    items = [
        Item(
            item_id=ItemId(n),
            split="train" if n < TRAIN else "test",
            image=images.get(n, f"images/of-{n // 2}.png"),
            image_id=f"image-{n // 2}",
            question_id=f"q{n}",
            question=f"what is {n}?",
            answer=f"answer {n}",
            answers=(f"answer {n}",) * 10,
        )
        for n in range(ITEMS)
    ]
    write_dataset(folder, DatasetInfo("toy", "1", "CC0-1.0", "replicated"), items)
    return Dataset.open(folder)


def _write_embeddings(root: DataRoot, dataset: Dataset) -> Embeddings:
    generator = np.random.default_rng(0)
    blocks = [generator.standard_normal((ITEMS, D_MODEL // 2)).astype(np.float32) for _ in range(2)]
    vectors = np.concatenate([block / np.linalg.norm(block, axis=1, keepdims=True) for block in blocks], axis=1)
    manifest = EmbeddingManifest(
        encoder={"name": "drawn", "seed": 0},
        dataset_sha256=dataset.info.sha256,
        blocks=(Block("image", 0, D_MODEL // 2), Block("question", D_MODEL // 2, D_MODEL)),
        d_model=D_MODEL,
        count=ITEMS,
        candidate="same",
        source="encoders",
    )
    embeddings = Embeddings(vectors, vectors, manifest)
    embeddings.save(root.embeddings("toy"))
    return embeddings


CONFIG = SelectorConfig(d_model=D_MODEL, hidden_dim=8, num_heads=2, num_layers=2, state_update="gate", temperature=0.1)


def _write_checkpoint(
    world: World,
    checkpoint_id: str,
    *,
    seed: int,
    policy: PoolPolicy = POLICY,
    config: SelectorConfig = CONFIG,
    **changes: Any,
) -> CheckpointInfo:
    torch.manual_seed(seed)
    model = new_selector(config)
    info = CheckpointInfo(
        checkpoint_id=checkpoint_id,
        format=FORMAT,
        selector=config.to_json(),
        dataset="toy",
        pool_policy=policy.to_json(),
        shots=[1, 2, 3],
        fingerprint=Fingerprint(dataset=world.dataset.fingerprint(), pool=world.pools(policy).fingerprint()),
        training={},
        rl_data=[],
        metrics={},
        code_version="0.1.0",
        created_at="2026-01-01T00:00:00+00:00",
    )
    tensors = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return save_checkpoint(world.root.checkpoint(checkpoint_id), tensors, replace(info, **changes))


def _write_world(path: Path) -> World:
    root = DataRoot(path)
    dataset = _write_dataset(root)
    world = World(root, dataset, _write_embeddings(root, dataset))
    _write_checkpoint(world, "ckpt-a", seed=1)
    _write_checkpoint(world, "ckpt-b", seed=2)
    decoder = SelectorConfig(D_MODEL, 8, num_heads=2, num_layers=2, architecture="autoregressive")
    _write_checkpoint(world, "ckpt-v0", seed=1, config=decoder)
    _write_checkpoint(world, "ckpt-v1", seed=1, config=SelectorConfig(D_MODEL, 8, num_layers=0))
    _write_checkpoint(world, "ckpt-similar", seed=1, policy=PoolPolicy("similar_joint", k=6))
    _write_checkpoint(world, "ckpt-stranger", seed=1, fingerprint=Fingerprint())
    return world


@contextmanager
def _running(root: DataRoot) -> Generator[TestClient]:
    with TestClient(create_app(SelectorSettings(data=root.path)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = _write_world(tmp_path_factory.mktemp("shared"))
    promote(world.root, "production", "ckpt-a", by="test", reason="first")
    return world


@pytest.fixture(scope="module")
def client(shared_world: World) -> Generator[TestClient]:
    with _running(shared_world.root) as client:
        yield client


@pytest.fixture
def world(tmp_path: Path) -> World:
    return _write_world(tmp_path)


def test_only_query_id_is_required(shared_world: World, client: TestClient) -> None:
    response = client.get("/select?query_id=45")
    assert response.status_code == 200
    answer = response.json()
    assert set(answer) == {"query_id", "pointer", "icds", "logprob", "policy", "checkpoint", "pool", "prefilter", "fingerprint"}
    pool = shared_world.pools().pool(45)
    assert answer["query_id"] == 45
    assert answer["checkpoint"] == "ckpt-a"
    assert answer["policy"] == "v3"
    assert answer["pool"] == {"size": 8, "policy": POLICY.fingerprint(), "sha256": digest(pool.tolist()), "excluded": []}
    assert set(answer["fingerprint"]) == {"dataset", "pool"}
    assert len(answer["pointer"]) == 3
    assert set(answer["pointer"]) <= set(pool.tolist())
    for item_id, icd in zip(answer["pointer"], answer["icds"], strict=True):
        assert (icd["item_id"], icd["question"], icd["answer"]) == (item_id, f"what is {item_id}?", f"answer {item_id}")
        assert icd["image_url"] == (None if item_id == 4 else f"/items/toy/{item_id}/image")
    assert answer["logprob"] == pytest.approx(sum(icd["step_logprob"] for icd in answer["icds"]))


@settings(max_examples=60)
@given(
    query_id=st.integers(0, ITEMS - 1),
    shots=st.integers(0, 3),
    beam=st.sampled_from([1, 4]),
    checkpoint=st.sampled_from(["ckpt-a", "ckpt-v0", "ckpt-v1"]),
)
def test_answers_are_the_trained_selectors(
    shared_world: World, client: TestClient, query_id: int, shots: int, beam: int, checkpoint: str
) -> None:
    parameters = {"query_id": query_id, "shots": shots, "beam": beam, "checkpoint": checkpoint}
    answer = client.get("/select", params=parameters).json()
    pool = shared_world.pools().pool(query_id)
    model = selector_from_checkpoint(shared_world.root.checkpoint(checkpoint))
    query = torch.from_numpy(shared_world.embeddings.query[[query_id]])
    candidates = torch.from_numpy(shared_world.embeddings.candidate[pool][None])
    chosen = model.select(query, candidates, shots, beam=beam)
    assert answer["pointer"] == pool[chosen.positions[0].numpy()].tolist()
    assert [icd["step_logprob"] for icd in answer["icds"]] == pytest.approx(chosen.step_logprobs[0].tolist(), abs=1e-4)
    assert answer["logprob"] == pytest.approx(float(chosen.logprob[0]), abs=1e-4)


def test_an_autoregressive_checkpoint_is_promoted_and_served_like_any_other(world: World) -> None:
    promote(world.root, "production", "ckpt-v0", by="test", reason="a baseline")
    with _running(world.root) as client:
        answer = client.get("/select?query_id=45&shots=3").json()
        again = client.post("/select", json={"queries": [{"query_id": 45}], "shots": 3}).json()
        refused = client.get("/select?query_id=45&shots=4")
    assert answer["checkpoint"] == "ckpt-v0"
    assert len(set(answer["pointer"])) == 3
    assert again["results"][0]["pointer"] == answer["pointer"]
    assert (refused.status_code, refused.json()["detail"]) == (
        422,
        "shots: 4, but checkpoint ckpt-v0 was trained for at most 3; ask for at most that many",
    )


def test_question_id_names_the_same_query(client: TestClient) -> None:
    assert client.get("/select?question_id=q45").json() == client.get("/select?query_id=45").json()


def test_checkpoint_and_alias(client: TestClient) -> None:
    by_alias = client.get("/select?query_id=45&alias=production&dataset=toy").json()
    assert by_alias == client.get("/select?query_id=45&checkpoint=ckpt-a").json()
    assert client.get("/select?query_id=45&checkpoint=ckpt-b").json()["checkpoint"] == "ckpt-b"


def test_policies_without_probabilities(shared_world: World, client: TestClient) -> None:
    pool = shared_world.pools().pool(50).tolist()
    vectors = shared_world.embeddings.query.astype(np.float64)
    for policy, columns in (("similar_image", slice(0, 8)), ("similar_text", slice(8, 16)), ("similar_joint", slice(0, 16))):
        answer = client.get(f"/select?query_id=50&shots=2&policy={policy}").json()
        # blocks have unit length, so cosines order as products do; the most similar one stands last
        nearest = sorted(pool, key=lambda item_id: -float(vectors[item_id, columns] @ vectors[50, columns]))
        assert answer["pointer"] == [nearest[1], nearest[0]]
        assert answer["logprob"] is None
        assert [icd["step_logprob"] for icd in answer["icds"]] == [None, None]
    drawn = client.get("/select?query_id=50&shots=4&policy=random").json()
    assert len(set(drawn["pointer"])) == 4
    assert set(drawn["pointer"]) <= set(pool)
    assert drawn == client.get("/select?query_id=50&shots=4&policy=random").json()
    nothing = client.get("/select?query_id=50&policy=zero_shot").json()
    assert (nothing["pointer"], nothing["icds"], nothing["logprob"]) == ([], [], None)


def test_many_queries_at_once(shared_world: World, client: TestClient) -> None:
    response = client.post("/select", json={"queries": [{"query_id": n % ITEMS} for n in range(1000)], "shots": 2})
    results = response.json()["results"]
    assert len(results) == 1000
    alone = client.get("/select?query_id=59&shots=2").json()
    # Sums over sixty queries at once round otherwise than over one.
    assert results[59].pop("logprob") == pytest.approx(alone.pop("logprob"), abs=1e-5)
    for together, single in zip(results[59]["icds"], alone["icds"], strict=True):
        assert together.pop("step_logprob") == pytest.approx(single.pop("step_logprob"), abs=1e-5)
    assert results[59] == alone
    mixed = {"queries": [{"question_id": "q7"}, {"query_id": 7}], "policy": "random", "checkpoint": "ckpt-b"}
    first, second = client.post("/select", json=mixed).json()["results"]
    assert first == second


@pytest.mark.parametrize("checkpoint", ["ckpt-a", "ckpt-similar"])
def test_a_query_by_its_embedding(shared_world: World, client: TestClient, checkpoint: str) -> None:
    policy = POLICY if checkpoint == "ckpt-a" else PoolPolicy("similar_joint", k=6)
    vector = shared_world.embeddings.query[45] + np.float32(0.01)
    pool = shared_world.pools(policy).pool_of_unseen(image=vector.tobytes(), question="", vector=vector)
    body = {"queries": [{"embedding": vector.tolist()}], "shots": 2, "checkpoint": checkpoint}
    answer = client.post("/select", json=body).json()["results"][0]
    assert answer["query_id"] is None
    assert answer["pool"]["sha256"] == digest(pool)
    model = selector_from_checkpoint(shared_world.root.checkpoint(checkpoint))
    chosen = model.select(torch.from_numpy(vector[None]), torch.from_numpy(shared_world.embeddings.candidate[pool][None]), 2)
    assert answer["pointer"] == pool[chosen.positions[0].numpy()].tolist()
    assert answer == client.post("/select", json=body).json()["results"][0]
    drawn = client.post("/select", json={**body, "policy": "random"}).json()["results"][0]
    assert set(drawn["pointer"]) <= set(pool.tolist())


@pytest.mark.parametrize(
    ("query", "status", "detail"),
    [
        ("", 422, "a query needs one of query_id, question_id"),
        ("query_id=45&question_id=q45", 422, "given: query_id, question_id"),
        ("query_id=60", 404, "dataset 'toy' has ids 0 to 59"),
        ("query_id=-1", 404, "has ids 0 to 59"),
        ("query_id=many", 422, "query.query_id"),
        ("question_id=q60", 404, "no question_id 'q60'"),
        ("query_id=45&shots=5", 422, "query.shots"),
        ("query_id=45&shots=-1", 422, "query.shots"),
        ("query_id=45&shots=4", 422, "ckpt-a was trained for at most 3"),
        ("query_id=45&shots=1&policy=zero_shot", 422, "policy zero_shot has none"),
        ("query_id=45&policy=best", 422, "query.policy: Input should be 'v3', 'random'"),
        ("query_id=45&policy=random&beam=2", 422, "policy random knows no beam"),
        ("query_id=45&beam=0", 422, "query.beam"),
        ("query_id=45&checkpoint=ckpt-x", 404, "no checkpoint 'ckpt-x'"),
        ("query_id=45&checkpoint=..%2F..%2Fetc", 422, "no valid name"),
        ("query_id=45&alias=staging", 404, "no deployment 'staging'; promote a checkpoint first"),
        ("query_id=45&alias=production&checkpoint=ckpt-a", 422, "both given; leave one out"),
        ("query_id=45&dataset=other", 409, "dataset.name: expected 'other', found 'toy'"),
        ("query_id=45&shot=1", 422, "query.shot"),
        ("query_id=45&checkpoint=ckpt-stranger", 422, "does not say which dataset"),
    ],
)
def test_what_cannot_be_asked(client: TestClient, query: str, status: int, detail: str) -> None:
    response = client.get(f"/select?{query}")
    assert response.headers["content-type"] == "application/problem+json"
    assert response.status_code == response.json()["status"] == status
    assert detail in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ('{"queries": []}', "body.queries"),
        (orjson.dumps({"queries": [{"query_id": 1}] * 1001}), "at most 1000"),
        (
            '{"queries": [{"query_id": 1}, {}]}',
            "queries.1: a query needs one of query_id, question_id, embedding, image and question; giv",
        ),
        ('{"queries": [{"query_id": 1, "embedding": [1]}]}', "given: query_id, embedding"),
        ('{"queries": [{"query": 1}]}', "body.queries.0.query"),
        ('{"queries": [{"embedding": [1, 2]}]}', "2 numbers, but the embeddings of dataset 'toy' have 16"),
        (f'{{"queries": [{{"embedding": [NaN{", 1" * 15}]}}]}}', "number 0 is not finite"),
        (f'{{"queries": [{{"embedding": [1, 1e300{", 1" * 14}]}}]}}', "number 1 is not finite in float32"),
        (orjson.dumps({"queries": [{"embedding": [1e38] * 16}]}), "queries.0: embedding: its length is not finite"),
        ('{"queries": [{"embedding": "abc"}]}', "body.queries.0.embedding"),
        ("nonsense", "body"),
    ],
)
def test_what_cannot_be_asked_at_once(client: TestClient, body: str | bytes, detail: str) -> None:
    response = client.post("/select", content=body, headers={"Content-Type": "application/json"})
    assert response.headers["content-type"] == "application/problem+json"
    assert response.status_code == 422
    assert detail in response.json()["detail"]


def test_images(client: TestClient) -> None:
    response = client.get("/items/toy/0/image")
    assert response.status_code == 200
    assert response.content == PNG
    assert response.headers["content-type"] == "image/png"
    assert response.headers["cache-control"] == "private, max-age=3600"
    again = client.get("/items/toy/0/image", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/items/toy/1/image").headers["content-type"] == "image/jpeg"
    assert client.get("/items/toy/2/image").headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("/items/toy/3/image", 422, "leaves the folder"),
        ("/items/toy/4/image", 404, "imported without images"),
        ("/items/toy/5/image", 404, "images/gone.png"),
        ("/items/toy/60/image", 404, "ids 0 to 59"),
        ("/items/other/0/image", 404, "no dataset 'other'"),
        ("/items/..%2f..%2fsecret.png/0/image", 404, "Not Found"),
        ("/items/../0/image", 404, "Not Found"),
        ("/items/.hidden/0/image", 422, "no valid name"),
        ("/items/toy/..%2f0/image", 404, "Not Found"),
    ],
)
def test_images_that_are_not_given(client: TestClient, path: str, status: int, detail: str) -> None:
    response = client.get(path)
    assert response.status_code == status
    assert detail in response.json()["detail"]
    assert b"secret" not in response.content.replace(b"secret.png", b"")


def test_promotion_and_roll_back_take_effect_at_once(world: World) -> None:
    with _running(world.root) as client:
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "promote a checkpoint first" in ready.json()["detail"]
        assert client.get("/select?query_id=1").status_code == 404
        assert client.get("/select?query_id=1&checkpoint=ckpt-a").status_code == 200
        promote(world.root, "production", "ckpt-a", by="test", reason="first")
        assert client.get("/health/ready").json() == {"status": "ready"}
        assert client.get("/select?query_id=1").json()["checkpoint"] == "ckpt-a"
        promote(world.root, "production", "ckpt-b", by="test", reason="better")
        assert client.get("/select?query_id=1").json()["checkpoint"] == "ckpt-b"
        rollback(world.root, "production", "test")
        assert client.get("/select?query_id=1").json()["checkpoint"] == "ckpt-a"
        world.root.deployment("production").unlink()
        assert client.get("/select?query_id=1").status_code == 404
        assert client.get("/health/ready").status_code == 503


def test_the_last_good_one_stays_while_its_successor_is_broken(world: World) -> None:
    promote(world.root, "production", "ckpt-a", by="test", reason="first")
    with _running(world.root) as client:
        world.root.deployment("production").write_text("{")
        assert client.get("/select?query_id=1").json()["checkpoint"] == "ckpt-a"
        ready = client.get("/health/ready")
        assert ready.status_code == 200
        assert ready.json()["warning"].startswith("deployment 'production' goes on with ckpt-a: ")
        assert "production.json: not a deployment" in ready.json()["warning"]
        hidden = world.root.path / "hidden"
        promoted = world.root.deployment("production")
        promoted.unlink()
        promote(world.root, "production", "ckpt-b", by="test", reason="better")
        world.root.checkpoint("ckpt-b").rename(hidden)
        assert client.get("/select?query_id=1").json()["checkpoint"] == "ckpt-a"
        assert "no checkpoint 'ckpt-b'" in client.get("/health/ready").json()["warning"]
        hidden.rename(world.root.checkpoint("ckpt-b"))
        assert client.get("/health/ready").json() == {"status": "ready"}
        assert client.get("/select?query_id=1").json()["checkpoint"] == "ckpt-b"


def test_another_contract_is_refused_field_by_field(world: World) -> None:
    promote(world.root, "production", "ckpt-a", by="test", reason="first")
    changed = replace(world.embeddings.manifest, encoder={"name": "drawn", "seed": 7})
    Embeddings(world.embeddings.query, world.embeddings.candidate, changed).save(world.root.embeddings("toy"), overwrite=True)
    with _running(world.root) as client:
        response = client.get("/select?query_id=1")
        assert response.status_code == 409
        assert response.json()["type"] == "FingerprintMismatch"
        assert response.json()["context"]["differences"] == {"pool.embeddings.encoder.seed": [0, 7]}
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "pool.embeddings.encoder.seed: expected 0, found 7" in ready.json()["detail"]


def test_another_dataset_and_policy_are_named_together(world: World) -> None:
    _write_checkpoint(world, "ckpt-k", seed=1, pool_policy=PoolPolicy("random", k=9, seed=3).to_json())
    shutil.rmtree(world.root.dataset("toy"))
    folder = world.root.dataset("toy")
    info = DatasetInfo("toy", "2", "CC0-1.0", "replicated")
    write_dataset(folder, info, [replace(item, answer="no") for item in world.dataset.items])
    found = Dataset.open(folder).info.sha256
    with _running(world.root) as client:
        response = client.get("/select?query_id=1&checkpoint=ckpt-k")
        assert response.status_code == 409
        assert response.json()["context"]["differences"] == {
            "dataset.items_sha256": [world.dataset.info.sha256, found],
            "dataset.version": ["1", "2"],
            "pool.policy.k": [8, 9],
        }


def test_missing_embeddings_and_damaged_weights(world: World) -> None:
    with _running(world.root) as client:
        weights = world.root.checkpoint("ckpt-b") / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
        damaged = client.get("/select?query_id=1&checkpoint=ckpt-b")
        assert damaged.status_code == 422
        assert "sha256" in damaged.json()["detail"]
        shutil.rmtree(world.root.embeddings("toy"))
        missing = client.get("/select?query_id=1&checkpoint=ckpt-a")
        assert missing.status_code == 404
        assert "leverplus embed" in missing.json()["detail"]


def test_metrics_count_queries_by_policy(world: World) -> None:
    with _running(world.root) as client:
        client.get("/select?query_id=1&checkpoint=ckpt-a&policy=random")
        client.post("/select", json={"queries": [{"query_id": 1}] * 3, "checkpoint": "ckpt-a"})
        text = client.get("/metrics").text
    assert 'leverplus_selections_total{policy="random"} 1.0' in text
    assert 'leverplus_selections_total{policy="v3"} 3.0' in text


def test_what_is_asked_again_is_known_until_its_alias_stands_for_another(shared_world: World, tmp_path: Path) -> None:
    root = DataRoot(tmp_path / "data")
    shutil.copytree(shared_world.root.path, root.path)
    with _running(root) as client:

        def known() -> float:
            return client.app.state.known.hits  # pyright: ignore

        first = client.get("/select?query_id=50&shots=2")
        assert known() == 0
        again = client.get("/select?query_id=50&shots=2")
        assert known() == 1
        assert again.content == first.content
        assert again.headers["content-type"] == first.headers["content-type"]
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        promote(root, "production", "ckpt-b", by="test", reason="another")
        assert client.get("/select?query_id=50&shots=2").json()["checkpoint"] == "ckpt-b"
        assert known() == 1
        for _ in range(2):
            assert client.get("/select?query_id=50&shots=2&checkpoint=ckpt-a").json()["checkpoint"] == "ckpt-a"
        assert known() == 2
        for _ in range(2):
            assert client.get("/select?query_id=1000").status_code == 404
        assert known() == 2
        metrics = client.get("/metrics").text
        assert 'leverplus_http_requests_total{method="GET",route="/select",status="200"} 5.0' in metrics
        assert 'leverplus_selections_total{policy="v3"} 5.0' in metrics
