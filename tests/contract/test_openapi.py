"""The OpenAPI documents in docs/openapi are the contract: a route or field that changes shows as a difference here.

`LEVERPLUS_WRITE_OPENAPI=1 pytest tests/contract/test_openapi.py` writes them anew after a change that is meant.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from fastapi import FastAPI

from leverplus.web.access import NEEDED, OPEN
from pointer_trainer.app import create_app as create_trainer
from pointer_trainer.settings import TrainerSettings
from selector_api.app import create_app as create_selector
from selector_api.settings import SelectorSettings
from vqa_scorer.app import create_app as create_scorer
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

GOLDENS = Path(__file__).parents[2] / "docs" / "openapi"

PROBES = {"/health/live", "/health/ready", "/metrics"}
ROUTES = {
    "vqa_scorer": {("post", "/score"), ("post", "/score/plan"), ("get", "/stats")},
    "pointer_trainer": {
        ("post", "/rl-data"),
        ("post", "/rl-data/generate"),
        ("post", "/embeddings"),
        ("post", "/train"),
        ("post", "/sweep"),
        ("post", "/evaluate"),
        ("post", "/headroom"),
        ("post", "/estimate"),
        ("get", "/jobs"),
        ("get", "/disk"),
        ("get", "/jobs/{job_id}"),
        ("get", "/jobs/{job_id}/events"),
        ("delete", "/jobs/{job_id}"),
        ("delete", "/jobs/{job_id}/run"),
        ("post", "/jobs/{job_id}/resume"),
        ("get", "/datasets"),
        ("get", "/rl-data"),
        ("get", "/checkpoints"),
        ("delete", "/checkpoints/{checkpoint_id}"),
        ("post", "/checkpoints/prune"),
        ("get", "/deployments"),
        ("post", "/checkpoints/{checkpoint_id}/promote"),
        ("post", "/deployments/{alias}/rollback"),
    },
    "selector_api": {
        ("get", "/select"),
        ("post", "/select"),
        ("get", "/messages"),
        ("post", "/messages"),
        ("get", "/items/{dataset}/{item_id}/image"),
        ("get", "/deployments"),
    },
}


def scorer(tmp_path: Path) -> FastAPI:
    return create_scorer(ScorerSettings(data=tmp_path, vlm=tmp_path), engine=EchoEngine())


def trainer(tmp_path: Path) -> FastAPI:
    return create_trainer(TrainerSettings(data=tmp_path, redis_url="redis://127.0.0.1:1/0"))


def selector(tmp_path: Path) -> FastAPI:
    return create_selector(SelectorSettings(data=tmp_path))


APPS: list[tuple[str, Callable[[Path], FastAPI]]] = [
    ("vqa_scorer", scorer),
    ("pointer_trainer", trainer),
    ("selector_api", selector),
]


@pytest.mark.parametrize(("name", "create"), APPS)
def test_openapi_equals_its_golden(name: str, create: Callable[[Path], FastAPI], tmp_path: Path):
    document = orjson.dumps(create(tmp_path).openapi(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
    golden = GOLDENS / f"{name}.json"
    if os.environ.get("LEVERPLUS_WRITE_OPENAPI"):
        golden.write_bytes(document)
    assert orjson.loads(document) == orjson.loads(golden.read_bytes())


@pytest.mark.parametrize("name", list(ROUTES))
def test_the_routes_that_were_promised_are_there(name: str):
    document = orjson.loads((GOLDENS / f"{name}.json").read_bytes())
    found = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert ROUTES[name] | {("get", path) for path in PROBES} == found


@pytest.mark.parametrize("name", list(ROUTES))
def test_every_operation_documents_its_problems(name: str):
    document = orjson.loads((GOLDENS / f"{name}.json").read_bytes())
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert "default" in operation["responses"], f"{method} {path}"
            assert operation.get("summary"), f"{method} {path}"
            assert operation.get("description"), f"{method} {path} says nothing of what it does"


@pytest.mark.parametrize(("name", "create"), APPS)
def test_every_operation_has_a_role(name: str, create: Callable[[Path], FastAPI], tmp_path: Path):
    document = create(tmp_path).openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            asked = (method.upper(), path)
            assert (asked in NEEDED) != (asked in OPEN), f"{asked} stands in leverplus.web.access.NEEDED, once"
            assert operation["security"] == ([] if asked in OPEN else [{"key": []}])
            if asked not in OPEN:
                assert {"401", "403", "429"} <= set(operation["responses"])


def test_no_role_is_kept_for_a_route_that_is_gone():
    documents = [orjson.loads((GOLDENS / f"{name}.json").read_bytes()) for name in ROUTES]
    found = {(method.upper(), path) for each in documents for path, methods in each["paths"].items() for method in methods}
    assert set(NEEDED) | OPEN == found | {("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/redoc")}
