"""`exclude`, the query's own image, and the fixed pointer: whatever is left out is never chosen, and the answer says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from typing import Any

import pytest

from leverplus.fingerprint import digest
from leverplus.pools import PoolPolicy

ITEMS, TRAIN = 60, 40
RANDOM = PoolPolicy("random", k=8, seed=3)
WITH_OWN_IMAGE = PoolPolicy("all", exclude=("query",))
FIXED = {"1": [[4], [30]], "2": [[5, 6], [10, 11], [4, 20]]}
CHOOSERS = ("v3", "random", "similar_image", "similar_text", "similar_joint")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, make_toy: Callable[..., Any]) -> Any:
    toy = make_toy(tmp_path_factory.mktemp("toy"), items=ITEMS, train=TRAIN)
    toy.add_checkpoint("ckpt-random", RANDOM, best_fixed=FIXED)
    toy.add_checkpoint("ckpt-all", WITH_OWN_IMAGE)
    return toy


@pytest.fixture(scope="module")
def client(toy: Any, running: Callable[..., Any]) -> Generator[Any]:
    with running(toy.root) as client:
        yield client


@pytest.mark.parametrize("policy", CHOOSERS)
def test_what_is_excluded_is_never_chosen_and_the_pool_shrinks(toy: Any, client: Any, policy: str) -> None:
    url = f"/select?query_id=45&checkpoint=ckpt-random&shots=2&policy={policy}"
    pool = toy.pools(RANDOM).pool(45).tolist()
    assert client.get(url).json()["pool"]["excluded"] == []
    while len(pool) > 2:
        chosen = client.get(url + "&exclude=" + ",".join(map(str, set(range(TRAIN)) - set(pool)))).json()
        assert set(chosen["pointer"]) <= set(pool)
        assert chosen["pool"]["size"] == len(pool)
        assert chosen["pool"]["sha256"] == digest(pool)
        assert sorted([*chosen["pool"]["excluded"], *pool]) == sorted(toy.pools(RANDOM).pool(45).tolist())
        pool.remove(chosen["pointer"][0])
    left_out = client.get(url + "&exclude=" + ",".join(map(str, set(range(TRAIN)) - set(pool[:1]))))
    assert left_out.status_code == 422
    assert "shots: 2, but the pool has 1 candidates after 7 were left out" in left_out.json()["detail"]


def test_exclude_may_be_repeated_listed_or_sent_as_json(client: Any) -> None:
    base = "/select?query_id=45&checkpoint=ckpt-all&shots=1"
    listed = client.get(f"{base}&exclude=1,2,3").json()
    assert listed["pool"]["excluded"] == [1, 2, 3]
    assert listed == client.get(f"{base}&exclude=1&exclude=2,3").json()
    body = {"queries": [{"query_id": 45}], "checkpoint": "ckpt-all", "shots": 1, "exclude": [1, 2, 3]}
    assert client.post("/select", json=body).json()["results"] == [listed]


@pytest.mark.parametrize(
    ("parameters", "status", "detail"),
    [
        ("exclude=one", 422, "query.exclude.0"),
        ("exclude=-1", 422, "query.exclude.0"),
        ("exclude=1,,2", 422, "query.exclude.1"),
        ("exclude=60", 404, "ids 0 to 59"),
        ("exclude=" + ",".join(["1"] * 1001), 422, "at most 1000"),
        ("shots=1&shots=2", 422, "'shots' is given more than once"),
    ],
)
def test_what_cannot_be_excluded(client: Any, parameters: str, status: int, detail: str) -> None:
    response = client.get(f"/select?query_id=45&checkpoint=ckpt-random&{parameters}")
    assert response.status_code == status
    assert detail in response.json()["detail"]


@pytest.mark.parametrize("policy", CHOOSERS)
def test_the_querys_own_image_is_left_out_whatever_the_pool_policy(toy: Any, client: Any, policy: str) -> None:
    assert 10 in toy.pools(WITH_OWN_IMAGE).pool(11)
    for query_id in range(TRAIN):
        answer = client.get(f"/select?query_id={query_id}&checkpoint=ckpt-all&shots=4&policy={policy}").json()
        assert not {query_id // 2 * 2, query_id // 2 * 2 + 1} & set(answer["pointer"])
        # The query itself is in no pool; its image's other item was.
        assert answer["pool"]["excluded"] == [query_id + 1 - 2 * (query_id % 2)]
        assert answer["pool"]["size"] == TRAIN - 2


def test_items_that_share_a_file_under_two_image_ids_are_of_one_image(
    tmp_path_factory: pytest.TempPathFactory, make_toy: Callable[..., Any], running: Callable[..., Any]
) -> None:
    from dataclasses import replace

    from leverplus.dataset import DatasetInfo, write_dataset

    toy = make_toy(tmp_path_factory.mktemp("twins"), items=ITEMS, train=TRAIN)
    items = [replace(item, image_id=f"own-{item.item_id}") for item in toy.dataset.items]
    write_dataset(toy.root.dataset("toy"), DatasetInfo("toy", "1", "CC0-1.0", "replicated"), items)
    shutil.rmtree(toy.root.embeddings("toy"))
    again = type(toy)(toy.root, type(toy.dataset).open(toy.root.dataset("toy")), toy.embeddings)
    manifest = replace(toy.embeddings.manifest, dataset_sha256=again.dataset.info.sha256)
    again = replace(again, embeddings=type(toy.embeddings)(toy.embeddings.query, toy.embeddings.candidate, manifest))
    again.embeddings.save(toy.root.embeddings("toy"))
    again.add_checkpoint("ckpt-own", PoolPolicy("all"))
    with running(toy.root) as client:
        assert client.get("/select?query_id=11&checkpoint=ckpt-own&shots=1").json()["pool"]["excluded"] == [10]


def test_the_fixed_pointer_is_one_for_all_queries_but_for_what_it_may_not_show(client: Any) -> None:
    def ask(query_id: int, more: str = "&shots=2") -> Any:
        return client.get(f"/select?query_id={query_id}&checkpoint=ckpt-random&policy=best_fixed{more}")

    for query_id in range(TRAIN, ITEMS):
        answer = ask(query_id).json()
        assert (answer["pointer"], answer["policy"], answer["logprob"]) == ([5, 6], "best_fixed", None)
        assert [icd["item_id"] for icd in answer["icds"]] == [5, 6]
    items = [4, 5, 6, 10, 11, 20]
    assert answer["pool"] == {"size": 6, "policy": {"sampler": "best_fixed"}, "sha256": digest(items), "excluded": []}
    # Items 4 and 5 are questions about one image, and so are 6 and 7.
    assert ask(7).json()["pointer"] == [10, 11]
    assert ask(7).json()["pool"]["excluded"] == [6]
    assert ask(45, "&shots=2&exclude=5,10").json()["pointer"] == [4, 20]
    assert ask(45, "&shots=1").json()["pointer"] == [4]
    assert ask(45, "&shots=0").json()["pointer"] == []
    nothing = ask(45, "&shots=2&exclude=5,10,4")
    assert nothing.status_code == 422
    assert "each of the 3 fixed pointers of 2 shots of checkpoint ckpt-random" in nothing.json()["detail"]
    assert "[4, 5, 10]" in nothing.json()["detail"]
    unranked = ask(45, "&shots=3")
    assert unranked.status_code == 422
    assert "ckpt-random holds no fixed pointer of 3 shots, only of 1, 2" in unranked.json()["detail"]
    assert ask(45, "&beam=2").status_code == 422


def test_a_checkpoint_without_a_fixed_pointer_says_so(client: Any) -> None:
    response = client.get("/select?query_id=45&checkpoint=ckpt-all&policy=best_fixed&shots=1")
    assert response.status_code == 422
    assert "ckpt-all holds no fixed pointer of 1 shots; it was made without scored training data" in response.json()["detail"]
