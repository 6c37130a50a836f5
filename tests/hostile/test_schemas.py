"""A few hundred requests made from each OpenAPI document to the real service; `make hostile` makes thousands."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from hostile_schemas import ask_by_schema
from hostile_services import Services, hostile_services, is_ready

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Generator[Services]:
    with hostile_services(tmp_path_factory.mktemp("schemas")) as running:
        yield running


@pytest.mark.parametrize("service", ["vqa_scorer", "pointer_trainer", "selector_api"])
@pytest.mark.parametrize("named", [False, True])
def test_no_request_is_answered_by_a_fault(service: str, named: bool, services: Services, tmp_path: Path):
    found = ask_by_schema(services, service, tmp_path, cases=2, seed=7, named=named, limit_s=180)
    assert not found["failures"], found["account"]
    assert not found["errors"], found["account"]
    assert found["cases"] >= 100
    assert is_ready(services, service)
