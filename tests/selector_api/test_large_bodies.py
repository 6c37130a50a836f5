"""A large body is read as a small one is: the same request, the same faults."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any

import pytest
from pydantic import ValidationError

from leverplus.deployments import promote
from leverplus.pools import PoolPolicy
from selector_api import large_bodies
from selector_api.large_bodies import read_large
from selector_api.schemas import SelectRequest

VECTOR = [0.25] * 16


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, make_toy: Callable[..., Any], running: Callable[..., Any]) -> Generator[Any]:
    toy = make_toy(tmp_path_factory.mktemp("toy"), items=60, train=40)
    toy.add_checkpoint("ckpt-a", PoolPolicy("random", k=8, seed=3))
    promote(toy.root, "production", "ckpt-a", by="test", reason="first")
    with running(toy.root) as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [
        {"queries": [{"embedding": VECTOR}, {"query_id": 45}], "shots": 2, "exclude": [1, 2]},
        {"queries": [{"query_id": 45}] * 1000},
        {"queries": [{"query_id": 45}] * 1001},
        {"queries": []},
        {"queries": [{"query_id": 45}, {"query_id": "no"}, {"embedding": [1, "x"]}]},
        {"queries": [{"query_id": 45, "colour": 1}]},
        {"queries": [{"query_id": 45}], "colour": 1},
        {"queries": [{"query_id": 45}], "shots": 9},
        {"queries": [{"query_id": 45}], "exclude": None},
        {"queries": [{"query_id": 45}], "alias": None, "beam": 2, "shots": 2},
        {"queries": {"query_id": 45}},
        {"shots": 1},
        [1],
        "{",
        '{"queries": [{"query_id": 45},]}',
        '{"queries": [{"query_id": 45}]} x',
        '{"queries": [{"embedding": [NaN]}]}',
        '{"queries": [{"embedding": [1e999]}]}',
        '{"queries": [{"question": "}]"}, {"query_id": ' + "[" * 2000 + "}]}",
        b'{"queries": [{"question": "\xff"}]}',
    ],
)
def test_a_large_body_is_answered_as_a_small_one(client: Any, monkeypatch: pytest.MonkeyPatch, body: Any) -> None:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    small = client.post("/select", content=content, headers=headers)
    monkeypatch.setattr(large_bodies, "_LARGE_BYTES", 0)
    large = client.post("/select", content=content, headers=headers)
    assert (large.status_code, large.json()) == (small.status_code, small.json())
    assert small.status_code < 500


def test_a_body_of_too_many_queries_is_refused_without_reading_each(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    monkeypatch.setattr(large_bodies.time, "sleep", read.append)
    response = client.post("/select", json={"queries": [{"query_id": 45}] * 30_000})
    assert response.status_code == 422
    assert "at most 1000 items" in response.json()["detail"]
    assert not read


def test_a_part_that_is_larger_than_any_valid_one_is_refused_unread(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    response = client.post("/select", json={"queries": [{"query_id": 45}], "exclude": [1] * 200_000})
    assert (response.status_code, response.json()["type"]) == (422, "InvalidInput")
    assert response.json()["detail"].startswith("body.exclude: 400,")
    monkeypatch.setattr(large_bodies, "MAX_QUERY_BYTES", 300_000)
    response = client.post("/select", json={"queries": [{"query_id": 45}, {"embedding": [0.5] * 100_000}]})
    assert (response.status_code, response.json()["type"]) == (422, "InvalidInput")
    assert response.json()["detail"].startswith("body.queries.1: ")


def test_a_query_id_is_a_whole_number_and_nothing_that_can_be_taken_for_one(client: Any) -> None:
    for wrong in (True, "45", 45.5, [45]):
        response = client.post("/select", json={"queries": [{"query_id": wrong}]})
        assert response.status_code == 422, wrong
        assert "queries.0.query_id" in response.json()["detail"]


def test_text_is_taken_for_no_number(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    query = {"query_id": 45}
    wrong = [
        ({"queries": [query], "exclude": ["1"]}, "body.exclude.0"),
        ({"queries": [query], "exclude": ["1,2"]}, "body.exclude.0"),
        ({"queries": [query], "exclude": [True]}, "body.exclude.0"),
        ({"queries": [query, {"embedding": [*VECTOR[:-1], "0.1"]}]}, "body.queries.1.embedding.15"),
        ({"queries": [query, {"embedding": [*VECTOR[:-1], True]}]}, "body.queries.1.embedding.15"),
    ]
    for large in (large_bodies._LARGE_BYTES, 0):  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(large_bodies, "_LARGE_BYTES", large)
        for body, field in wrong:
            response = client.post("/select", json=body)
            assert (response.status_code, response.json()["errors"][0]["field"]) == (422, field)
        whole = client.post("/select", json={"queries": [{"embedding": [1, *VECTOR[1:]]}], "exclude": [1]})
        assert whole.status_code == 200, whole.text
    assert client.get("/select?query_id=45&exclude=1,2&exclude=3").status_code == 200


def test_a_vector_without_a_direction_is_refused_by_its_number(client: Any) -> None:
    for vector in ([0.0] * 16, [1e-30] * 16):
        response = client.post("/select", json={"queries": [{"query_id": 45}, {"embedding": vector}]})
        assert (response.status_code, response.json()["type"]) == (422, "InvalidEmbeddings")
        assert response.json()["detail"].startswith("queries.1: embedding: its length is 0 in float32")


def test_what_is_valid_is_cut_and_what_is_not_is_left_to_fastapi() -> None:
    body = {"queries": [{"embedding": VECTOR}, {"image": "aGk=", "question": 'a "}]" b'}], "exclude": [3], "dataset": "toy"}
    assert read_large(json.dumps(body).encode(), SelectRequest) == SelectRequest.model_validate(body)
    wrong = {**body, "shots": -1}
    with pytest.raises(ValidationError):
        SelectRequest.model_validate(wrong)
    assert read_large(json.dumps(wrong).encode(), SelectRequest) == wrong
