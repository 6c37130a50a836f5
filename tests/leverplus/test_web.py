"""Probes, problems and settings of every service."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from prometheus_client import Counter
from pydantic import BaseModel, Field

from leverplus.errors import FingerprintMismatch, NotFound, QueueFull, Unavailable
from leverplus.web import create_service, read_settings


class Body(BaseModel):
    count: int


@pytest.fixture
def client():
    faults: list[Exception] = []

    def ready() -> None:
        if faults:
            raise faults[0]

    app = create_service("test", ready=ready)
    app.state.faults = faults

    @app.get("/missing")
    async def missing() -> None:
        raise NotFound(what="item", name="7", hint="there are 3")

    @app.get("/full")
    async def full() -> None:
        raise QueueFull(what="queue", size=4, limit=4, retry_after_s=2)

    @app.get("/differs")
    async def differs() -> None:
        raise FingerprintMismatch(subject="checkpoint c", differences={"pool.k": (64, 32)})

    @app.get("/broken")
    async def broken() -> None:
        raise ValueError("secret")

    @app.post("/body")
    async def body(body: Body) -> Body:
        return body

    return TestClient(app, raise_server_exceptions=False)


def test_errors_are_problems_with_their_values(client: TestClient):
    answer = client.get("/missing")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "NotFound",
        "title": "Not found",
        "status": 404,
        "detail": "no item '7'; there are 3",
        "context": {"what": "item", "name": "7", "hint": "there are 3"},
    }
    differs = client.get("/differs").json()
    assert differs["status"] == 409
    assert "pool.k: expected 64, found 32" in differs["detail"]
    assert differs["context"]["differences"] == {"pool.k": [64, 32]}


def test_a_full_queue_says_when_to_come_back(client: TestClient):
    answer = client.get("/full")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")


def test_an_unforeseen_error_hides_its_message(client: TestClient):
    answer = client.get("/broken")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"count": "x"}', b"\xff"])
def test_a_bad_body_names_the_field(client: TestClient, content: bytes):
    answer = client.post("/body", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


def test_unknown_routes_are_problems_too(client: TestClient):
    assert client.get("/nowhere").json()["status"] == 404
    assert client.delete("/missing").json()["status"] == 405


def test_readiness_gives_the_reason(client: TestClient):
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 200
    client.app.state.faults.append(Unavailable(what="weights", reason="loading", hint="wait"))  # type: ignore[attr-defined]
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert "weights is away: loading" in answer.json()["detail"]


def test_metrics_count_requests_by_route(client: TestClient):
    Counter("own_things", "things", registry=client.app.state.registry).inc()  # type: ignore[attr-defined]
    client.get("/health/live")
    text = client.get("/metrics").text
    assert 'leverplus_http_requests_total{method="GET",route="/health/live",status="200"} 1.0' in text
    assert "own_things_total 1.0" in text


def test_request_id_is_kept_or_made(client: TestClient):
    assert client.get("/health/live", headers={"X-Request-ID": "abc"}).headers["x-request-id"] == "abc"
    assert len(client.get("/health/live").headers["x-request-id"]) == 16


class Settings(BaseModel):
    port: int = Field(8001, validation_alias="LEVERPLUS_PORT", ge=1)
    url: str = Field(validation_alias="REDIS_URL")


def test_settings_come_from_their_variables():
    settings = read_settings(Settings, {"LEVERPLUS_PORT": "9", "REDIS_URL": "redis://x", "HOME": "/"})
    assert (settings.port, settings.url) == (9, "redis://x")
    assert read_settings(Settings, {"LEVERPLUS_PORT": "", "REDIS_URL": "r"}).port == 8001


def test_a_bad_setting_is_one_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        read_settings(Settings, {"LEVERPLUS_PORT": "many"})
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert any("LEVERPLUS_PORT" in line and "'many'" in line for line in lines)
    assert any("REDIS_URL" in line for line in lines)
