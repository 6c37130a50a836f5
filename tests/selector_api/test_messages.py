"""Chat messages: what they hold, and what has none."""

from __future__ import annotations

import base64
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from leverplus.fingerprint import Fingerprint
from leverplus.pools import PoolPolicy
from leverplus.prompts import SHORT_ANSWER
from selector_api import messages
from selector_api.app import create_app
from selector_api.encoding import Encoding
from selector_api.settings import SelectorSettings

POLICY = PoolPolicy("random", k=8, seed=3)
SCORED = {"prompt": SHORT_ANSWER.fingerprint(), "arguments": {"max_new_tokens": 5, "num_beams": 1}}


class FakeEncoder:
    def encode(self, queries: Any, manifest: Any) -> Any:
        return np.ones((len(queries), 16), dtype=np.float32)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, make_toy: Callable[..., Any]) -> Any:
    toy = make_toy(tmp_path_factory.mktemp("toy"), items=60, train=40)
    contract = Fingerprint(toy.dataset.fingerprint(), toy.pools(POLICY).fingerprint(), SCORED)
    toy.add_checkpoint("ckpt-scored", POLICY, fingerprint=contract)
    toy.add_checkpoint("ckpt-unknown", POLICY)
    odd = replace(contract, generation={"prompt": {"name": "odd", "version": 1}})
    toy.add_checkpoint("ckpt-odd", POLICY, fingerprint=odd)
    return toy


@pytest.fixture(scope="module")
def client(toy: Any) -> Generator[TestClient]:
    app = create_app(SelectorSettings(data=toy.root.path), encoding=Encoding(FakeEncoder))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def url_of(toy: Any, item_id: int) -> dict[str, Any]:
    encoded = base64.b64encode(toy.dataset.image_path(item_id).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}


def test_the_choice_and_the_query_are_in_the_prompt_that_was_scored(toy: Any, client: TestClient) -> None:
    answer = client.get("/messages?query_id=45&shots=2&checkpoint=ckpt-scored").json()
    assert answer["selection"] == client.get("/select?query_id=45&shots=2&checkpoint=ckpt-scored").json()
    first, second = answer["selection"]["pointer"]
    assert answer["messages"] == [
        {"role": "system", "content": SHORT_ANSWER.system},
        {
            "role": "user",
            "content": [
                url_of(toy, first),
                {"type": "text", "text": f"Question: what is {first}? Short answer: answer {first}\n"},
                url_of(toy, second),
                {"type": "text", "text": f"Question: what is {second}? Short answer: answer {second}\n"},
                url_of(toy, 45),
                {"type": "text", "text": "Question: what is 45? Short answer:"},
            ],
        },
    ]
    assert answer["prompt"] == {"name": "short-answer", "version": 1}
    assert answer["arguments"] == SCORED["arguments"]
    by_question = client.get("/messages?question_id=q45&shots=2&checkpoint=ckpt-scored").json()
    assert by_question == answer


def test_many_queries_and_unseen_ones(toy: Any, client: TestClient) -> None:
    image = toy.dataset.image_path(50).read_bytes()
    sent = {"image": base64.b64encode(image).decode(), "question": "and here?"}
    body = {"queries": [{"query_id": 45}, sent], "shots": 1, "checkpoint": "ckpt-scored"}
    item, unseen = client.post("/messages", json=body).json()["results"]
    assert item == client.get("/messages?query_id=45&shots=1&checkpoint=ckpt-scored").json()
    assert unseen["selection"]["query_id"] is None
    *_, shown, asked = unseen["messages"][1]["content"]
    assert (shown, asked["text"]) == (url_of(toy, 50), "Question: and here? Short answer:")


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"queries": [{"embedding": [1.0] * 16}], "checkpoint": "ckpt-scored"}, "queries.0: an embedding shows neither"),
        ({"queries": [{"query_id": 1}] * 101}, "at most 100"),
        ({"queries": [{"query_id": 1}], "checkpoint": "ckpt-unknown"}, "ckpt-unknown: does not say which prompt"),
        ({"queries": [{"query_id": 1}], "checkpoint": "ckpt-odd"}, "prompt: a fingerprint of no prompt template"),
        ({"queries": [{"query_id": 1}, {"image": "R0lGODlh", "question": "?"}], "checkpoint": "ckpt-scored"}, "cannot be read"),
    ],
)
def test_what_has_no_messages(client: TestClient, body: dict[str, Any], detail: str) -> None:
    response = client.post("/messages", json=body)
    assert response.status_code == 422
    assert detail in response.json()["detail"]


def test_the_images_of_an_answer_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MOST_IMAGE_BYTES", 500)
    body = {"queries": [{"query_id": 45}] * 9, "shots": 1, "checkpoint": "ckpt-scored"}
    response = client.post("/messages", json=body)
    assert response.status_code == 422
    assert "more than 500 bytes as data URLs; ask for fewer at a time" in response.json()["detail"]
