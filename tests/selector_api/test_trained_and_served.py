"""What the trainer's selector chooses is what the service chooses; and a checkpoint made for other pools is not served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from leverplus.fingerprint import Fingerprint
from leverplus.pools import PoolPolicy
from leverplus.selector import PointerSelectorV3, selector_from_checkpoint

QUERIES, TRAIN, POOL = 1000, 200, 64
MARGIN = 1e-4
"""Above this the choice is certain: torch and numpy sum in different orders."""
POLICY = PoolPolicy("random", k=POOL, seed=5)
CHECKPOINT = "ckpt-served"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, make_toy: Callable[..., Any]) -> Any:
    toy = make_toy(tmp_path_factory.mktemp("toy"), items=TRAIN + QUERIES, train=TRAIN)
    toy.add_checkpoint(CHECKPOINT, POLICY, seed=3)
    return toy


def served_pointers(client: Any, query_ids: list[int], shots: int, beam: int, checkpoint: str) -> list[list[int]]:
    queries = [{"query_id": query_id} for query_id in query_ids]
    body = {"queries": queries, "shots": shots, "beam": beam, "checkpoint": checkpoint}
    response = client.post("/select", json=body)
    assert response.status_code == 200, response.text
    return [result["pointer"] for result in response.json()["results"]]


def smallest_margin(
    model: PointerSelectorV3, query: torch.Tensor, candidates: torch.Tensor, shots: int, beam: int
) -> torch.Tensor:
    """[B] how near a choice came to falling otherwise: in float64 and by the trainer's own forward pass, the smallest
    difference between neighbours among the best `beam` + 1 totals of any step."""
    batch, pool, _ = candidates.shape
    prefixes = torch.empty(batch, 1, 0, dtype=torch.long)
    totals = torch.zeros(batch, 1, dtype=torch.float64)
    margin = torch.full((batch,), torch.inf, dtype=torch.float64)
    for step in range(shots):
        width = prefixes.shape[1]
        # The last label only closes the row, so any that is free will do: the step is judged before it is taken.
        free = torch.ones(batch, width, pool).scatter(2, prefixes, 0.0).argmax(dim=2, keepdim=True)
        taught = torch.cat([prefixes, free], dim=2)
        logits = torch.stack(
            [model.forward(query, candidates, taught[:, w], shots=step + 1)[:, step] for w in range(width)], dim=1
        ).scatter(2, prefixes, -torch.inf)
        sums = (totals.unsqueeze(2) + torch.log_softmax(logits, dim=2)).reshape(batch, width * pool)
        best = sums.topk(beam + 1, dim=1)
        margin = torch.minimum(margin, (best.values[:, :-1] - best.values[:, 1:]).min(dim=1).values)
        totals, index = best.values[:, :beam], best.indices[:, :beam]
        kept = prefixes.gather(1, (index // pool).unsqueeze(2).expand(-1, -1, step))
        prefixes = torch.cat([kept, (index % pool).unsqueeze(2)], dim=2)
    return margin


@pytest.mark.parametrize("beam", [1, 3])
def test_the_served_choice_is_the_trainers(toy: Any, running: Callable[..., Any], beam: int) -> None:
    query_ids = list(range(TRAIN, TRAIN + QUERIES))
    drawn = toy.pools(POLICY)
    pools = np.stack([drawn.pool(query_id) for query_id in query_ids])
    query, candidates = torch.from_numpy(toy.embeddings.query[query_ids]), torch.from_numpy(toy.embeddings.candidate[pools])
    model = selector_from_checkpoint(toy.root.checkpoint(CHECKPOINT))
    exact = selector_from_checkpoint(toy.root.checkpoint(CHECKPOINT)).double()
    near_ties = differing = 0
    with running(toy.root) as client, torch.inference_mode():
        for shots in range(5):
            trained = model.select(query, candidates, shots, beam=beam).positions.numpy()
            served = np.asarray(served_pointers(client, query_ids, shots, beam, CHECKPOINT), dtype=np.int64)
            same = (np.take_along_axis(pools, trained, axis=1) == served.reshape(QUERIES, shots)).all(axis=1)
            certain = smallest_margin(exact, query.double(), candidates.double(), shots, beam).numpy() > MARGIN
            assert same[certain].all(), f"{shots} shots: queries {np.flatnonzero(certain & ~same)}"
            near_ties += int((~certain).sum())
            differing += int((~same).sum())
    print(f"beam {beam}: {near_ties} of {5 * QUERIES} choices within {MARGIN}, {differing} of them fell differently")
    assert near_ties <= 0.005 * 5 * QUERIES


def test_exact_ties_go_to_the_lowest_position(tmp_path: Path, make_toy: Callable[..., Any], running: Callable[..., Any]) -> None:
    # Items n and n + 20 have one vector, so that every best candidate has a twin behind it.
    first = np.random.default_rng(1).standard_normal((20, 16)).astype(np.float32)
    queries = np.random.default_rng(2).standard_normal((60, 16)).astype(np.float32)
    toy = make_toy(tmp_path, items=100, train=40, vectors=np.concatenate([first, first, queries]))
    policy = PoolPolicy("all")
    toy.add_checkpoint("ckpt-twins", policy)
    with running(toy.root) as client:
        for beam in (1, 3):
            pointers = served_pointers(client, list(range(40, 100)), 1, beam, "ckpt-twins")
            assert all(pointer[0] < 20 for pointer in pointers)
    model = selector_from_checkpoint(toy.root.checkpoint("ckpt-twins"))
    candidates = torch.from_numpy(toy.embeddings.candidate[:40]).expand(60, -1, -1)
    positions = model.select(torch.from_numpy(queries), candidates, 1).positions
    assert positions[:, 0].tolist() == [pointer[0] for pointer in pointers]


STATED: list[tuple[str, str, Any]] = [
    ("dataset", "name", "other"),
    ("dataset", "version", "2"),
    ("dataset", "items_sha256", "0" * 64),
    ("dataset", "answers_source", "human"),
    ("pool", "policy.sampler", "mixed"),
    ("pool", "policy.k", 65),
    ("pool", "policy.seed", 6),
    ("pool", "policy.candidate_split", "test"),
    ("pool", "policy.exclude", ["query"]),
    ("pool", "embeddings.encoder.name", "another"),
    ("pool", "embeddings.encoder.sha256", "1" * 64),
    ("pool", "embeddings.dataset_sha256", "0" * 64),
    ("pool", "embeddings.blocks", [{"name": "joint", "start": 0, "stop": 16}]),
    ("pool", "embeddings.d_model", 32),
    ("pool", "embeddings.candidate", "separate"),
    ("pool", "embeddings.source", "reference"),
]


@pytest.mark.parametrize(("part", "field", "stated"), STATED, ids=[f"{part}.{field}" for part, field, _ in STATED])
def test_another_contract_is_refused_and_its_field_named(
    toy: Any, running: Callable[..., Any], part: str, field: str, stated: Any
) -> None:
    found = {"dataset": toy.dataset.fingerprint(), "pool": toy.pools(POLICY).fingerprint()}
    changed, inner = {**found, part: _with(found[part], field.split("."), stated)}, found[part]
    for name in field.split("."):
        inner = inner.get(name) if isinstance(inner, dict) else None
    checkpoint = f"ckpt-{part}-{field.replace('.', '-').replace('_', '-')}"
    toy.add_checkpoint(checkpoint, POLICY, fingerprint=replace(Fingerprint(), **changed))
    with running(toy.root) as client:
        response = client.get(f"/select?query_id={TRAIN}&checkpoint={checkpoint}")
    problem = response.json()
    assert (response.status_code, problem["type"]) == (409, "FingerprintMismatch")
    here = orjson.loads(orjson.dumps(inner))
    assert problem["context"]["differences"] == {f"{part}.{field}": [stated, here]}
    assert f"{part}.{field}: expected {stated!r}, found" in problem["detail"]
    assert checkpoint in problem["detail"]


def _with(value: Any, path: list[str], stated: Any) -> dict[str, Any]:
    inner = stated if len(path) == 1 else _with(value[path[0]], path[1:], stated)
    return {**value, path[0]: inner}
