"""Queries that are sent as an image and a question. The encoder is a fake, but where it says so."""

from __future__ import annotations

import asyncio
import base64
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from leverplus.dataset import Dataset
from leverplus.embeddings.unseen import UnseenQuery
from leverplus.errors import InvalidInput, QueueFull
from leverplus.fingerprint import digest
from leverplus.pools import PoolPolicy
from selector_api import unseen
from selector_api.app import create_app
from selector_api.encoding import Encoding
from selector_api.settings import SelectorSettings

ITEMS, TRAIN = 60, 40
RANDOM = PoolPolicy("random", k=8, seed=3)
SIMILAR = PoolPolicy("similar_joint", k=6)


def vector_of(image: bytes | None, question: str) -> Any:
    seed = sum(image or b"") + sum(question.encode())
    return np.random.default_rng(seed).standard_normal(16).astype(np.float32)


class FakeEncoder:
    def __init__(self) -> None:
        self.threads: set[str] = set()

    def encode(self, queries: Sequence[UnseenQuery], manifest: Any) -> Any:
        self.threads.add(threading.current_thread().name)
        for query in queries:
            if query.image == b"broken":
                raise InvalidInput(f"{query.name}: image that was sent cannot be read")
        return np.stack([vector_of(query.image, query.question) for query in queries])


def sent(image: bytes, question: str) -> dict[str, str]:
    return {"image": base64.b64encode(image).decode(), "question": question}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, make_toy: Callable[..., Any]) -> Any:
    toy = make_toy(tmp_path_factory.mktemp("toy"), items=ITEMS, train=TRAIN)
    toy.add_checkpoint("ckpt-random", RANDOM, best_fixed={"1": [[4], [30]]})
    toy.add_checkpoint("ckpt-similar", SIMILAR)
    toy.add_checkpoint("ckpt-all", PoolPolicy("all", exclude=("query",)))
    return toy


@pytest.fixture(scope="module")
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture(scope="module")
def client(toy: Any, encoder: FakeEncoder) -> Generator[TestClient]:
    app = create_app(SelectorSettings(data=toy.root.path), encoding=Encoding(lambda: encoder))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, queries: list[dict[str, Any]], checkpoint: str = "ckpt-random", **more: Any) -> Any:
    return client.post("/select", json={"queries": queries, "checkpoint": checkpoint, "shots": 2, **more})


@pytest.mark.parametrize(("checkpoint", "policy"), [("ckpt-random", RANDOM), ("ckpt-similar", SIMILAR)])
def test_the_pool_is_seeded_by_image_and_question(toy: Any, client: TestClient, checkpoint: str, policy: PoolPolicy) -> None:
    image, question = b"a picture", "what is it?"
    answer = ask(client, [sent(image, question)], checkpoint).json()["results"][0]
    vector = vector_of(image, question)
    pool = toy.pools(policy).pool_of_unseen(image=image, question=question, vector=vector)
    assert answer["query_id"] is None
    assert answer["pool"]["sha256"] == digest(pool)
    assert set(answer["pointer"]) <= set(pool.tolist())
    by_url = {"image": f"data:image/png;base64,{sent(image, question)['image']}", "question": question}
    assert ask(client, [by_url], checkpoint).json()["results"][0] == answer
    other = ask(client, [sent(image, "what else?")], checkpoint).json()["results"][0]
    if policy.sampler == "random":
        assert other["pool"]["sha256"] != answer["pool"]["sha256"]


def test_ids_vectors_and_images_are_mixed_and_answered_in_order(toy: Any, client: TestClient, encoder: FakeEncoder) -> None:
    vector = toy.embeddings.query[50].tolist()
    kinds = [{"query_id": 45}, {"embedding": vector}, sent(b"x", "who?"), {"question_id": "q46"}]
    together = ask(client, kinds * 250).json()["results"]
    alone = [ask(client, [query]).json()["results"][0] for query in kinds]
    # Batched sums may differ in their last bits.
    told = [{name: value for name, value in answer.items() if name not in ("icds", "logprob")} for answer in together]
    assert told == [{name: answer[name] for name in told[0]} for answer in alone] * 250
    assert [answer["query_id"] for answer in alone] == [45, None, None, 46]
    assert len(encoder.threads) == 1


@pytest.mark.parametrize("policy", ["v3", "random", "similar_joint"])
def test_an_image_of_the_dataset_is_known_by_its_bytes(toy: Any, client: TestClient, policy: str) -> None:
    image = (toy.dataset.folder / "images" / "5.png").read_bytes()
    answer = ask(client, [sent(image, "new?")], "ckpt-all", policy=policy).json()["results"][0]
    assert answer["pool"]["excluded"] == [10, 11]
    assert answer["pool"]["size"] == TRAIN - 2
    assert not {10, 11} & set(answer["pointer"])
    # A policy that draws without the query's image draws a whole pool.
    drawn = ask(client, [sent(image, "new?")], policy=policy).json()["results"][0]
    pool = toy.pools(RANDOM).pool_of_unseen(image=image, question="new?", image_id="image-5")
    assert drawn["pool"] == {"size": 8, "policy": RANDOM.fingerprint(), "sha256": digest(pool), "excluded": []}
    fixed = ask(client, [sent((toy.dataset.folder / "images" / "2.png").read_bytes(), "?")], policy="best_fixed", shots=1)
    assert fixed.json()["results"][0]["pointer"] == [30]


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({"image": "%%", "question": "?"}, "queries.1: image is no base64"),
        ({"image": "QUJD"}, "queries.1: an image without a question"),
        (sent(b"broken", "?"), "queries.1: image that was sent cannot be read"),
        (sent(b"x" * 101, "?"), "queries.1: image has 101 bytes, at most 100 are read"),
        ({**sent(b"x", "?"), "query_id": 1}, "queries.1: a query needs one of"),
        (sent(b"x", "?" * 2001), "body.queries.1.question"),
    ],
)
def test_what_cannot_be_encoded(client: TestClient, monkeypatch: pytest.MonkeyPatch, query: dict[str, Any], detail: str) -> None:
    monkeypatch.setattr(unseen, "LARGEST_IMAGE_BYTES", 100)
    response = ask(client, [{"query_id": 45}, query])
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert detail in response.json()["detail"]


def test_without_the_encoders_the_extra_is_named(toy: Any, running: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "leverplus.embeddings.query_encoder", None)
    with running(toy.root) as client:
        response = ask(client, [sent(b"x", "?")])
        assert (response.status_code, response.json()["type"]) == (501, "NotInstalled")
        assert "leverplus[encoders]" in response.json()["detail"]
        assert "send the query's embedding" in response.json()["detail"]
        assert ask(client, [{"query_id": 45}]).status_code == 200


def test_requests_that_wait_for_the_encoder_are_bounded(toy: Any) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(FakeEncoder):
        def encode(self, queries: Sequence[UnseenQuery], manifest: Any) -> Any:
            begun.set()
            assert go_on.wait(30)
            return super().encode(queries, manifest)

    async def crowd() -> None:
        encoding = Encoding(Slow)
        asked = [UnseenQuery(b"x", "?")]
        waiting = [asyncio.create_task(encoding.vectors(asked, toy.embeddings.manifest)) for _ in range(8)]
        await asyncio.to_thread(begun.wait, 30)
        with pytest.raises(QueueFull, match="8 of 8 places"):
            await encoding.vectors(asked, toy.embeddings.manifest)
        go_on.set()
        assert len(await asyncio.gather(*waiting)) == 8
        assert (await encoding.vectors(asked, toy.embeddings.manifest)).shape == (1, 16)
        encoding.close()

    asyncio.run(crowd())


def test_the_real_encoder_finds_an_items_own_vector_and_refuses_other_embeddings(
    tmp_path: Path, make_toy: Callable[..., Any], running: Callable[..., Any]
) -> None:
    from dataclasses import replace

    from leverplus.embeddings import Embeddings
    from leverplus.embeddings.encoders import embed_dataset
    from leverplus.embeddings.query_encoder import QueryEncoder
    from leverplus.errors import FingerprintMismatch

    toy = make_toy(tmp_path, items=6, train=4)
    dataset: Dataset = toy.dataset
    embeddings = embed_dataset(dataset)
    encoder = QueryEncoder()
    asked = [UnseenQuery(dataset.image_path(n).read_bytes(), dataset.items[n].question) for n in range(6)]
    np.testing.assert_allclose(encoder.encode(asked, embeddings.manifest), embeddings.query, atol=1e-5)
    with pytest.raises(InvalidInput, match="query: image that was sent cannot be read"):
        encoder.encode([*asked, UnseenQuery(b"broken", "?")], embeddings.manifest)
    with pytest.raises(InvalidInput, match="no image was given"):
        encoder.encode([UnseenQuery(None, "?")], embeddings.manifest)
    other = {**embeddings.manifest.encoder, "image": {**embeddings.manifest.encoder["image"], "sha256": "0" * 64}}
    stranger = replace(embeddings.manifest, encoder=other)
    own = embeddings.manifest.encoder["image"]["sha256"]
    with pytest.raises(FingerprintMismatch, match=f"encoder.image.sha256: expected '{'0' * 64}', found '{own}'"):
        encoder.encode(asked, stranger)
    embeddings.save(toy.root.embeddings("toy"), overwrite=True)
    changed = replace(toy, embeddings=Embeddings.open(toy.root.embeddings("toy")))
    changed.add_checkpoint("ckpt-real", PoolPolicy("all"), d_model=embeddings.manifest.d_model)
    with running(toy.root) as client:
        image = base64.b64encode(asked[5].image or b"").decode()
        body = {"queries": [{"image": image, "question": "what is 5?"}, {"query_id": 5}], "checkpoint": "ckpt-real", "shots": 2}
        response = client.post("/select", json=body)
        assert response.status_code == 200, response.text
        unseen_one, item = response.json()["results"]
        assert unseen_one["pointer"] == item["pointer"]
        broken = client.post("/select", json={"queries": [sent(b"GIF89a nothing", "?")], "checkpoint": "ckpt-real"})
        assert broken.status_code == 422
        assert "queries.0: image that was sent cannot be read" in broken.json()["detail"]
