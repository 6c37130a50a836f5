"""Probes, problems and settings of every service."""

from __future__ import annotations

import gzip
import logging
from math import nan

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from prometheus_client import Counter
from pydantic import BaseModel, Field, field_validator

from leverplus.errors import FingerprintMismatch, NotFound, QueueFull, Unavailable
from leverplus.origin import origin
from leverplus.web import AccessSettings, ObservationSettings, create_service, read_settings


class Body(BaseModel):
    count: int
    numbers: list[int] = []

    @field_validator("count")
    @classmethod
    def _not_thirteen(cls, value: int) -> int:
        if value == 13:
            raise ValueError("13 is not counted")
        return value


@pytest.fixture
def client():
    faults: list[Exception] = []

    def ready() -> None:
        if faults:
            raise faults[0]

    app = create_service("test", ready=ready, body_limit_mib=1, body_limit_exempt=("POST /raw",))
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

    @app.post("/raw")
    async def raw(request: Request) -> int:
        return len(await request.body())

    @app.get("/asked")
    async def asked(query_id: int = 0) -> int:
        return query_id

    @app.get("/odd")
    async def odd() -> None:
        context = {"large": 2**70, "huge": 10**5000, "half": "a\ud800", "many": list(range(1000)), "\udfff": object(), "nan": nan}
        raise NotFound("there is no \ud800 in " + "x" * 9000, **context)

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


JSON = {"Content-Type": "application/json"}


def test_many_faults_are_counted_and_nothing_is_sent_back_in_full(client: TestClient):
    answer = client.post("/body", json={"count": "x" * 10_000, "numbers": ["y" * 1000] * 500})
    assert answer.status_code == 422
    document = answer.json()
    assert len(document["errors"]) == 20
    assert document["errors_left_out"] == 481
    assert document["detail"].startswith("501 faults, the first 20 of them: body.count: ")
    assert len(answer.content) < 10_000


def test_a_message_of_ours_stands_without_a_prefix(client: TestClient):
    answer = client.post("/body", json={"count": 13})
    assert answer.json()["detail"] == "body.count: 13 is not counted"


@pytest.mark.parametrize(
    ("content", "kind", "detail"),
    [
        (b'{"count": 1,}', "application/json", "body: the body is not JSON: "),
        (b'{"count": 1}', "text/plain", "application/json is expected, and the Content-Type is 'text/plain'"),
        (b'{"count": "\\ud800"}', "application/json", "body.count"),
        (b'{"count": 1, "numbers": [99999999999999999999.5]}', "application/json", "body.numbers.0"),
        (b'{"count": ' + b"9" * 5000 + b"}", "application/json", "cannot be read as JSON"),
        (b"[" * 200_000, "application/json", "cannot be read as JSON"),
        (b"\xff", "application/json", "cannot be read as JSON"),
    ],
)
def test_what_is_wrong_with_a_body(client: TestClient, content: bytes, kind: str, detail: str):
    answer = client.post("/body", content=content, headers={"Content-Type": kind})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert detail in answer.json()["detail"]


def test_a_problem_can_be_told_whatever_it_holds(client: TestClient):
    answer = client.get("/odd")
    assert answer.status_code == 404
    document = answer.json()
    assert document["detail"].startswith("there is no ? in xxx")
    assert len(document["detail"]) < 5000
    context = document["context"]
    assert context["large"] == str(2**70)
    assert context["huge"] == "an integer of 16610 bits"
    assert (context["half"], context["nan"]) == ("a?", None)
    assert len(context["many"]) == 101


def test_a_body_above_the_limit_is_refused_announced_or_not(client: TestClient):
    large = b'{"count": 1, "numbers": [' + b"1," * 600_000 + b"1]}"
    chunks = (large[start : start + 65_536] for start in range(0, len(large), 65_536))
    for content in (large, chunks):
        answer = client.post("/body", content=content, headers=JSON)
        assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
        assert "more than 1048576 bytes" in answer.json()["detail"]
    assert client.post("/raw", content=large).json() == len(large)
    fits = b'{"count": 1, "numbers": [' + b"1," * 500_000 + b"1]}"
    assert client.post("/body", content=fits, headers=JSON).json()["count"] == 1


@pytest.mark.parametrize("path", ["/body", "/raw"])
def test_a_compressed_body_is_refused_by_its_encoding(client: TestClient, path: str):
    content = b'{"count": 1}'
    answer = client.post(path, content=gzip.compress(content), headers={**JSON, "Content-Encoding": "gzip"})
    assert (answer.status_code, answer.headers["content-type"]) == (415, "application/problem+json")
    assert answer.json()["detail"].startswith("Content-Encoding is 'gzip', and compressed bodies are not read")
    assert answer.headers["accept-encoding"] == "identity"
    assert client.post(path, content=content, headers={**JSON, "Content-Encoding": "Identity"}).status_code == 200


def test_a_repeated_query_parameter_is_refused(client: TestClient):
    assert client.get("/asked?query_id=5&other=6").json() == 5
    answer = client.get("/asked?query_id=5&query_id=6")
    assert answer.status_code == 422
    assert answer.json()["detail"] == "query parameter 'query_id' is given more than once ('5', '6'); give it once"


def test_unknown_routes_are_problems_too(client: TestClient):
    assert client.get("/nowhere").json()["status"] == 404
    assert client.delete("/missing").json()["status"] == 405


def test_a_method_that_a_path_has_not_is_told_those_that_it_has(client: TestClient):
    app: FastAPI = client.app  # type: ignore[assignment]

    @app.get("/things/{name}")
    @app.delete("/things/{name}", name="delete")
    @app.post("/things/all", name="post")
    async def things() -> None: ...

    for path, methods in [("/things/one", "DELETE, GET"), ("/things/all", "POST"), ("/missing", "GET")]:
        answer = client.options(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods), path


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


@pytest.mark.parametrize("path", ["/health/live", "/missing", "/nowhere", "/broken", "/asked?query_id=1&query_id=2"])
def test_request_id_is_kept_or_made_whatever_the_answer(client: TestClient, path: str):
    assert client.get(path, headers={"X-Request-ID": "a:b/1"}).headers["x-request-id"] == "a:b/1"
    assert len(client.get(path).headers["x-request-id"]) == 16
    for odd in ("", "x" * 129, "two words", 'quote"', "tab\t", "é"):
        assert len(client.get(path, headers={"X-Request-ID": odd.encode()}).headers["x-request-id"]) == 16  # type: ignore[dict-item]


def test_an_unforeseen_error_is_logged_once_with_its_request_and_counted(client: TestClient, caplog: pytest.LogCaptureFixture):
    told: list[str | None] = []
    caplog.handler.addFilter(lambda _: told.append(origin.get().request_id) or True)
    answer = client.get("/broken", headers={"X-Request-ID": "abc"})
    assert answer.json()["detail"] == "ValueError; the service's log has the trace, under request id abc"
    failures = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in failures] == ["GET /broken failed"]
    assert "abc" in told
    assert 'leverplus_http_requests_total{method="GET",route="/broken",status="500"} 1.0' in client.get("/metrics").text


def test_requests_are_logged_when_asked_for(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "leverplus.requests")
    for share, lines in ((0.0, 0), (1.0, 3)):
        access = AccessSettings.model_validate({"LEVERPLUS_ACCESS_LOG": share})
        client = TestClient(create_service("test", ready=lambda: None, access=access))
        caplog.clear()
        for path in ("/health/live", "/metrics", "/a%0Ab"):
            client.get(path)
        assert len(caplog.records) == lines
    first, _, last = caplog.records
    assert first.fields["route"] == "/health/live"  # type: ignore[attr-defined]
    assert first.fields["status"] == 200  # type: ignore[attr-defined]
    assert last.getMessage() == "GET /a%0Ab: 404"


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


def test_a_bad_address_is_not_repeated(capsys: pytest.CaptureFixture[str]):
    for variable, field in (("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint"), ("LEVERPLUS_ACCESS_LOG", "access_log")):
        assert field in ObservationSettings.model_fields
        with pytest.raises(SystemExit):
            read_settings(ObservationSettings, {variable: "grpc://me:hunter2@collector"})
    first, second = capsys.readouterr().err.strip().splitlines()
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in first
    assert "hunter2" not in first
    assert "hunter2" in second
