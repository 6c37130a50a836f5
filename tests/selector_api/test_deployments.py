"""Aliases: what is served under them while they change, and while what they name is broken."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from leverplus.deployments import promote, rollback
from leverplus.files import file_sha256
from leverplus.pools import PoolPolicy
from selector_api import library
from selector_api.health import HealthChecks
from selector_api.library import Library

POLICY = PoolPolicy("random", k=8, seed=3)
LIMIT_S = 30.0


@pytest.fixture
def toy(tmp_path: Path, make_toy: Callable[..., Any]) -> Any:
    toy = make_toy(tmp_path, items=60, train=40)
    toy.add_checkpoint("ckpt-a", POLICY, seed=1)
    toy.add_checkpoint("ckpt-b", POLICY, seed=2)
    promote(toy.root, "production", "ckpt-a", by="test", reason="first")
    return toy


def overview(client: Any) -> dict[str, dict[str, Any]]:
    return {found["alias"]: found for found in client.get("/deployments").json()["deployments"]}


def test_every_alias_is_listed_with_what_it_serves(toy: Any, running: Callable[..., Any]) -> None:
    promote(toy.root, "staging", "ckpt-b", by="test", reason="to be looked at")
    (toy.root.path / "deployments" / "broken.json").write_text("{")
    (toy.root.path / "deployments" / "no name.json").write_text("{")
    with running(toy.root) as client:
        found = overview(client)
        assert list(found) == ["broken", "production", "staging"]
        assert (found["production"]["checkpoint"], found["production"]["fault"]) == ("ckpt-a", None)
        assert found["production"]["dataset"] == "toy"
        assert found["production"]["shots"] == [1, 2, 3, 4]
        assert found["production"]["fingerprint"] == client.get("/select?query_id=1").json()["fingerprint"]
        assert found["staging"]["checkpoint"] == "ckpt-b"
        assert found["broken"]["checkpoint"] is None
        assert "broken.json: not a deployment" in found["broken"]["fault"]


def _hide(folder: Path) -> None:
    folder.rename(folder.with_name("away"))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _truncate_knowingly(folder: Path) -> None:
    before = file_sha256(folder / "model.safetensors")
    _truncate(folder)
    info = folder / "checkpoint.json"
    info.write_text(info.read_text().replace(before, file_sha256(folder / "model.safetensors")))


def _make_unreadable(folder: Path) -> None:
    """Every read is an error of the system, whoever reads."""
    path = folder / "model.safetensors"
    path.unlink()
    path.symlink_to("/proc/self/mem")


def _spoil_description(folder: Path) -> None:
    (folder / "checkpoint.json").write_text("{}")


def _change_pool(folder: Path) -> None:
    info = folder / "checkpoint.json"
    text = info.read_text()
    assert text.count('"k": 8') == 2
    head, tail = text.rsplit('"k": 8', 1)
    info.write_text(f'{head}"k": 9{tail}')


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_hide, "no checkpoint 'ckpt-b'"),
        (_truncate, "model.safetensors: sha256 is"),
        (_truncate_knowingly, "model.safetensors: not a safetensors file"),
        (_make_unreadable, "cannot be read: "),
        (_spoil_description, "format is None"),
        (_change_pool, "pool.policy.k: expected"),
    ],
)
def test_the_last_good_one_stays_while_its_successor_cannot_be_served(
    toy: Any, running: Callable[..., Any], spoil: Callable[[Path], None], reason: str
) -> None:
    with running(toy.root) as client:
        before = client.get("/select?query_id=45").json()
        kept = toy.root.path / "kept"
        shutil.copytree(toy.root.checkpoint("ckpt-b"), kept)
        promote(toy.root, "production", "ckpt-b", by="test", reason="better")
        spoil(toy.root.checkpoint("ckpt-b"))
        for _ in range(3):
            assert client.get("/select?query_id=45").json() == before
        ready = client.get("/health/ready")
        assert ready.status_code == 200
        assert reason in ready.json()["warning"]
        found = overview(client)["production"]
        assert found["checkpoint"] == "ckpt-a"
        assert reason in found["fault"]
        # Nothing was served from it: it is refused by its own name.
        assert client.get("/select?query_id=45&checkpoint=ckpt-b").status_code in (404, 409, 422)
        shutil.rmtree(toy.root.checkpoint("ckpt-b"), ignore_errors=True)
        kept.rename(toy.root.checkpoint("ckpt-b"))
        # A probe tries again at once, requests after a while.
        assert overview(client)["production"]["fault"] is None
        assert client.get("/select?query_id=45").json()["checkpoint"] == "ckpt-b"


def test_requests_alone_bring_back_what_was_repaired(
    toy: Any, running: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("selector_api.library.monotonic", lambda: now[0])
    loads: list[str] = []
    load = Library._load  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(Library, "_load", lambda self, name: (loads.append(name), load(self, name))[1])
    with running(toy.root) as client:
        folder = toy.root.checkpoint("ckpt-b")
        folder.rename(toy.root.path / "kept")
        shutil.copytree(toy.root.path / "kept", folder)
        promote(toy.root, "production", "ckpt-b", by="test", reason="better")
        _truncate(folder)
        loads.clear()
        for _ in range(20):
            assert client.get("/select?query_id=45").json()["checkpoint"] == "ckpt-a"
        # Twenty requests, one try.
        assert loads == ["ckpt-b"]
        shutil.rmtree(folder)
        (toy.root.path / "kept").rename(folder)
        assert client.get("/select?query_id=45").json()["checkpoint"] == "ckpt-a"
        now[0] += 5.1
        # The first that comes later sets it right, whether its answer was known or not.
        assert client.get("/select?query_id=45").json()["checkpoint"] == "ckpt-b"
        assert loads == ["ckpt-b", "ckpt-b"]


def test_what_serves_nothing_is_not_loaded_for_every_request(
    toy: Any, running: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("selector_api.library.monotonic", lambda: now[0])
    _truncate(toy.root.checkpoint("ckpt-a"))
    loads: list[str] = []
    load = Library._load  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(Library, "_load", lambda self, name: (loads.append(name), load(self, name))[1])
    with running(toy.root) as client:
        for _ in range(20):
            response = client.get("/select?query_id=45")
            assert (response.status_code, response.headers["retry-after"]) == (503, "5")
            assert "model.safetensors: sha256 is" in response.json()["detail"]
        assert len(loads) == 1
        promote(toy.root, "production", "ckpt-b", by="test", reason="whole")
        assert client.get("/select?query_id=45").json()["checkpoint"] == "ckpt-b"


@pytest.mark.parametrize(("spoil", "reason"), [(_hide, "no checkpoint 'ckpt-a'"), (_truncate, "model.safetensors: sha256 is")])
def test_an_alias_that_nothing_can_be_served_under_is_asked_again_later(
    toy: Any, running: Callable[..., Any], spoil: Callable[[Path], None], reason: str
) -> None:
    """Who asks by an alias can do nothing about its files; who names a checkpoint can name another."""
    spoil(toy.root.checkpoint("ckpt-a"))
    (toy.root.path / "deployments" / "broken.json").write_text("{")
    with running(toy.root) as client:
        told = {alias: client.get(f"/select?query_id=45&alias={alias}") for alias in ("production", "broken", "absent")}
        asked = {"queries": [{"query_id": 45}]}
        answers = [
            told["production"],
            client.get("/select?query_id=45"),
            client.post("/select", json=asked),
            client.get("/messages?query_id=45"),
            client.post("/messages", json=asked),
            client.get("/health/ready"),
        ]
        for answer in answers:
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["type"] == "Unavailable"
            assert answer.json()["detail"].startswith("deployment 'production' is away: ")
            assert reason in answer.json()["detail"]
        assert (told["broken"].status_code, told["absent"].status_code) == (503, 404)
        assert "broken.json: not a deployment: not JSON" in told["broken"].json()["detail"]
        assert client.get("/select?query_id=45&checkpoint=ckpt-a").status_code in (404, 422)
        assert client.get("/select?query_id=45&alias=..%2fproduction").status_code == 422


def _remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_hide, "served from memory: no checkpoint 'ckpt-a'"),
        (_truncate, "model.safetensors: sha256 is"),
        (_remove_weights, "model.safetensors: missing"),
        (_truncate_knowingly, "checkpoint.json: no longer what was loaded"),
        (_make_unreadable, "cannot be read: "),
        (_spoil_description, "checkpoint.json: format is None"),
        (_change_pool, "checkpoint.json: no longer what was loaded"),
    ],
)
def test_damage_to_what_is_served_is_told_while_it_goes_on(
    toy: Any, running: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], reason: str
) -> None:
    read: list[str] = []
    unchanged = library.require_unchanged
    monkeypatch.setattr(library, "require_unchanged", lambda folder, info: (read.append(folder.name), unchanged(folder, info)))
    folder, kept = toy.root.checkpoint("ckpt-a"), toy.root.path / "kept"
    shutil.copytree(folder, kept)
    with running(toy.root) as client:
        before = client.get("/select?query_id=45").json()
        for _ in range(3):
            assert client.get("/health/ready").json() == {"status": "ready"}
        assert read == []
        spoil(folder)
        for _ in range(3):
            ready = client.get("/health/ready")
            assert ready.status_code == 200
            assert ready.json()["warning"].startswith("deployment 'production' goes on with ckpt-a: served from memory: ")
            assert reason in ready.json()["warning"]
        assert reason in overview(client)["production"]["fault"]
        assert 'leverplus_deployment_fault{alias="production"} 1.0' in client.get("/metrics").text
        assert client.get("/select?query_id=45").json() == before
        # Looked at as often as asked for, read once.
        assert read == ["ckpt-a"]
        shutil.rmtree(folder, ignore_errors=True)
        kept.rename(folder)
        assert client.get("/health/ready").json() == {"status": "ready"}
        assert overview(client)["production"]["fault"] is None
        assert 'leverplus_deployment_fault{alias="production"} 0.0' in client.get("/metrics").text
        assert client.get("/select?query_id=46").status_code == 200
        assert read == ["ckpt-a"] * 2


def test_files_that_are_touched_and_hold_the_same_are_whole(toy: Any, running: Callable[..., Any]) -> None:
    with running(toy.root) as client:
        for path in toy.root.checkpoint("ckpt-a").iterdir():
            path.touch()
        assert client.get("/health/ready").json() == {"status": "ready"}


def test_each_answer_is_one_checkpoints_while_the_alias_is_swapped(toy: Any, running: Callable[..., Any]) -> None:
    requests, swaps = 500, 10
    answered = 0
    counted = threading.Condition()

    def swap() -> None:
        for number in range(swaps):
            due = number * requests // swaps
            with counted:
                assert counted.wait_for(lambda due=due: answered >= due, LIMIT_S)
            if number % 3 == 2:
                rollback(toy.root, "production", "test")
            else:
                promote(toy.root, "production", ("ckpt-b", "ckpt-a")[number % 2], by="test", reason="swapped")

    with running(toy.root) as client:
        expected = {
            (checkpoint, query_id): client.get(f"/select?query_id={query_id}&checkpoint={checkpoint}").json()
            for checkpoint in ("ckpt-a", "ckpt-b")
            for query_id in range(40, 60)
        }
        swapper = threading.Thread(target=swap)
        swapper.start()
        seen: set[str] = set()
        for number in range(requests):
            query_id = 40 + number % 20
            response = client.get(f"/select?query_id={query_id}")
            assert response.status_code == 200, response.text
            answer = response.json()
            assert answer == expected[answer["checkpoint"], query_id]
            seen.add(answer["checkpoint"])
            with counted:
                answered += 1
                counted.notify()
        swapper.join(LIMIT_S)
        assert seen == {"ckpt-a", "ckpt-b"}


def test_health_is_measured_beside_the_requests(toy: Any, running: Callable[..., Any]) -> None:
    folder = toy.root.checkpoint("ckpt-b")
    tensors = load_file(folder / "model.safetensors")
    before = file_sha256(folder / "model.safetensors")
    blind = {"attn_norms.1.weight": np.zeros(8, np.float32), "attn_norms.1.bias": np.ones(8, np.float32)}
    save_file({**tensors, **blind}, folder / "model.safetensors")
    info = folder / "checkpoint.json"
    info.write_text(info.read_text().replace(before, file_sha256(folder / "model.safetensors")))
    promote(toy.root, "blind", "ckpt-b", by="test", reason="to be warned about")
    with running(toy.root) as client:
        end = time.monotonic() + LIMIT_S
        while any(found["health"] is None for found in overview(client).values()):
            assert time.monotonic() < end
            time.sleep(0.02)
        found = overview(client)
        assert found["production"]["health"]["queries"] == 20
        assert found["production"]["health"]["split"] == "test"
        assert found["production"]["health"]["warnings"] == []
        assert found["blind"]["health"]["changed_when_swapped"] == 0.0
        assert "ignores the query" in found["blind"]["health"]["warnings"][0]
        text = client.get("/metrics").text
    assert 'leverplus_selector_changed_when_swapped{alias="blind",checkpoint="ckpt-b"} 0.0' in text
    assert 'leverplus_selector_queries{alias="production",checkpoint="ckpt-a"} 20.0' in text
    assert 'leverplus_selector_entropy{alias="production",checkpoint="ckpt-a"}' in text


def test_a_fault_of_ours_in_a_health_check_is_told() -> None:
    """Once measured it is never asked again: without an answer the question would stay open for ever."""

    def fails(_check: Callable[[], None]) -> Any:
        raise ZeroDivisionError("division by zero")

    checks = HealthChecks()
    checks.begin(cast(Any, SimpleNamespace(info=SimpleNamespace(checkpoint_id="ckpt-a"), health=fails)))
    end = time.monotonic() + LIMIT_S
    while (found := checks.of("ckpt-a")) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    checks.close()
    assert found == {"unknown": "ZeroDivisionError: division by zero"}
