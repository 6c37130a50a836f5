"""`prefilter=`: an index by name in front of the selector, refused where it was made from something else than lies here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from leverplus.deployments import promote
from leverplus.errors import Conflict, InvalidConfig
from leverplus.fingerprint import digest
from leverplus.pools import PoolPolicy
from leverplus.prefilter.building import PrefilterConfig, build_prefilter

ITEMS, TRAIN = 400, 300
WHOLE = PrefilterConfig(handed_on=TRAIN, groups=TRAIN, lists=8, probes=8, queries=40)
NARROW = PrefilterConfig(handed_on=12, groups=16, lists=8, probes=2, queries=40)
URL = "/select?query_id={}&checkpoint=ckpt-all&shots=3"


@pytest.fixture
def toy(tmp_path: Path, make_toy: Callable[..., Any]) -> Any:
    toy = make_toy(tmp_path, items=ITEMS, train=TRAIN)
    toy.add_checkpoint("ckpt-all", PoolPolicy("all"))
    toy.add_checkpoint("ckpt-random", PoolPolicy("random", k=8))
    promote(toy.root, "production", "ckpt-all", by="test", reason="first")
    return toy


def test_an_index_that_hands_on_everything_chooses_what_the_exact_form_does(toy: Any, running: Callable[..., Any]) -> None:
    manifest = build_prefilter(toy.root, "ckpt-all", "whole", WHOLE)
    assert (manifest.measured.recall, manifest.measured.agreement) == (1.0, 1.0)
    assert (manifest.measured.split, manifest.measured.queries, manifest.measured.shots) == ("test", 20, 4)
    with running(toy.root) as client:
        # 5 shows the image of item 4, so the policy leaves it out; 350 shares no image with a candidate.
        for query_id in (4, 350, 399):
            exact = client.get(URL.format(query_id) + "&exclude=7,20,390").json()
            found = client.get(URL.format(query_id) + "&exclude=7,20,390&prefilter=whole").json()
            assert found["pointer"] == exact["pointer"]
            # Attention reads means of groups, in which what is left out has its small part.
            assert found["logprob"] == pytest.approx(exact["logprob"], abs=0.01)
            assert found["pool"] == exact["pool"]
            assert exact["prefilter"] is None
            assert found["prefilter"] == {
                "name": "whole", "handed_on": 300, "recall": 1.0, "agreement": 1.0, "accuracy": None,
                "queries": 20, "split": "test", "shots": 4,
            }  # fmt: skip
        vector = [float(value) for value in toy.embeddings.query[350]]
        body = {"queries": [{"query_id": 350}, {"embedding": vector}], "checkpoint": "ckpt-all", "shots": 3, "beam": 2}
        exact = client.post("/select", json=body).json()["results"]
        found = client.post("/select", json={**body, "prefilter": "whole"}).json()["results"]
        assert [one["pointer"] for one in found] == [one["pointer"] for one in exact]


def test_only_what_is_handed_on_is_chosen_and_the_answer_says_what_that_costs(toy: Any, running: Callable[..., Any]) -> None:
    manifest = build_prefilter(toy.root, "ckpt-all", "narrow", NARROW)
    exact = {}
    with running(toy.root) as client:
        agreed = []
        for query_id in range(TRAIN, ITEMS):
            found = client.get(URL.format(query_id) + "&prefilter=narrow").json()
            exact[query_id] = client.get(URL.format(query_id)).json()
            agreed.append(found["pointer"] == exact[query_id]["pointer"])
            assert found["pool"]["size"] == 12
            assert found["prefilter"]["recall"] == manifest.measured.recall < 1
            # What was handed on is gone: others are, and the first ones never come back.
            again = client.get(URL.format(query_id) + f"&prefilter=narrow&exclude={found['pointer'][0]}").json()
            assert found["pointer"][0] not in again["pointer"]
            assert again["pool"]["excluded"] == [found["pointer"][0]]
        assert 0 < np.mean(agreed) < 1
        assert client.get(URL.format(350)).json() == exact[350]
        assert client.get(URL.format(350) + "&prefilter=narrow&policy=random").status_code == 422


def test_a_querys_own_image_is_never_handed_on(toy: Any, running: Callable[..., Any]) -> None:
    toy.add_checkpoint("ckpt-own", PoolPolicy("all", exclude=("query",)))
    build_prefilter(toy.root, "ckpt-own", "near", PrefilterConfig(handed_on=4, lists=4, probes=4, queries=10))
    with running(toy.root) as client:
        for query_id in range(40):
            found = client.get(f"/select?query_id={query_id}&checkpoint=ckpt-own&prefilter=near&shots=4").json()
            twin = query_id + 1 - 2 * (query_id % 2)
            assert not {query_id, twin} & set(found["pointer"])
            assert found["pool"]["excluded"] == [twin]
            assert found["pool"]["sha256"] == digest(sorted(found["pointer"]))


def test_probes_are_as_many_as_the_recall_takes(toy: Any) -> None:
    few = build_prefilter(toy.root, "ckpt-all", "few", PrefilterConfig(handed_on=64, lists=16, recall=0.0, queries=40))
    all_of_them = build_prefilter(toy.root, "ckpt-all", "all", PrefilterConfig(handed_on=64, lists=16, recall=1.0, queries=40))
    assert few.probes == 1 < all_of_them.probes
    assert few.measured.recall < all_of_them.measured.recall
    # A second one of the name is not made over the first.
    with pytest.raises(Conflict, match="index-few exists already"):
        build_prefilter(toy.root, "ckpt-all", "few", NARROW)
    with pytest.raises(InvalidConfig, match="ckpt-random chooses from 8 items"):
        build_prefilter(toy.root, "ckpt-random", "few", NARROW)


def _change(path: Path, *keys: str, value: Any) -> None:
    manifest = orjson.loads(path.read_bytes())
    inner = manifest
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_bytes(orjson.dumps(manifest))


@pytest.mark.parametrize(
    ("keys", "value", "status", "reason"),
    [
        (("sources", "embeddings_sha256"), "0" * 64, 409, "embeddings_sha256: expected '000"),
        (("sources", "dataset_sha256"), "0" * 64, 409, "dataset_sha256: expected '000"),
        (("sources", "checkpoint_sha256"), "0" * 64, 409, "checkpoint_sha256: expected '000"),
        (("sources", "candidates"), 299, 409, "candidates: expected 299, found 300"),
        (("keys_sha256",), "0" * 64, 422, "keys.faiss: sha256 is"),
        (("groups_sha256",), "0" * 64, 422, "groups.safetensors: sha256 is"),
        (("format",), "leverplus-index-0", 422, "format is 'leverplus-index-0', expected 'leverplus-index-1'"),
        (("groups",), 17, 422, "shapes"),
        (("probes",), 0, 422, "'probes' is 0, expected a whole number above 0"),
        (("measured",), 1, 422, "not a manifest of an index"),
    ],
)
def test_an_index_of_something_else_is_refused(
    toy: Any, running: Callable[..., Any], keys: tuple[str, ...], value: Any, status: int, reason: str
) -> None:
    build_prefilter(toy.root, "ckpt-all", "near", NARROW)
    path = toy.root.prefilter("ckpt-all", "near") / "index.json"
    with running(toy.root) as client:
        url = URL.format(350) + "&prefilter=near"
        good = path.read_bytes()
        assert client.get(url).status_code == 200
        _change(path, *keys, value=value)
        # Asked before, or not: the answer that is known was another index's.
        for query_id in (350, 351):
            response = client.get(URL.format(query_id) + "&prefilter=near")
            assert response.status_code == status
            assert reason in response.json()["detail"]
        assert client.get(URL.format(350)).status_code == 200
        path.write_bytes(good)
        assert client.get(url).status_code == 200


def test_names_that_are_none(toy: Any, running: Callable[..., Any]) -> None:
    build_prefilter(toy.root, "ckpt-all", "near", NARROW)
    with running(toy.root) as client:
        missing = client.get(URL.format(350) + "&prefilter=far")
        assert missing.status_code == 404
        assert "no prefilter 'far'; checkpoint ckpt-all has near;" in missing.json()["detail"]
        for name in ("..%2Fx", "", "a/b"):
            assert client.get(URL.format(350) + f"&prefilter={name}").status_code == 422
        shutil.rmtree(toy.root.prefilter("ckpt-all", "near"))
        assert client.get(URL.format(350) + "&prefilter=near").status_code == 404


PROGRAM = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from selector_api.app import create_app
from selector_api.settings import SelectorSettings

with TestClient(create_app(SelectorSettings(data=Path(sys.argv[1])))) as client:
    assert client.get("/select?query_id=350").status_code == 200
    assert "faiss" not in sys.modules
    sys.modules["faiss"] = None  # as if it were not installed
    refused = client.get("/select?query_id=350&prefilter=near")
    assert refused.status_code == 501 and "leverplus[index]" in refused.json()["detail"], refused.text
    assert client.get("/select?query_id=350").status_code == 200
"""


def test_faiss_is_imported_by_who_asks_for_it_and_its_absence_is_told(toy: Any) -> None:
    build_prefilter(toy.root, "ckpt-all", "near", NARROW)
    command = [sys.executable, "-c", PROGRAM, str(toy.root.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_command_makes_one_for_what_is_deployed(toy: Any, running: Callable[..., Any]) -> None:
    def index(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("leverplus"), "index", *arguments, "--data", str(toy.root.path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    made = index("toy", "--name", "near", "--handed-on", "64", "--queries", "40", "--json")
    assert made.returncode == 0, made.stderr
    manifest = orjson.loads(made.stdout)
    assert (manifest["sources"]["checkpoint"], manifest["handed_on"]) == ("ckpt-all", 64)
    assert manifest["measured"]["queries"] == 20
    with running(toy.root) as client:
        assert client.get("/select?query_id=350&prefilter=near").json()["prefilter"]["name"] == "near"
    other = index("another", "--name", "near")
    assert other.returncode == 2
    assert "checkpoint ckpt-all is of dataset 'toy', not 'another'" in other.stderr
