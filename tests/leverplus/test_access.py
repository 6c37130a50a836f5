"""Keys over HTTP: who is let in, what is told to who is not, and what is written down."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Request
from fastapi.testclient import TestClient

from leverplus import errors
from leverplus.client import ServiceClient
from leverplus.keys import Role, new_key
from leverplus.web import AccessSettings, create_service, read_settings
from leverplus.web.access import is_loopback

PROBLEM = "application/problem+json"


def service(tmp_path: Path, **access: Any) -> tuple[TestClient, dict[Role, str]]:
    """Routes named as some of our own, and a key of each role."""
    made: dict[Role, str] = {}
    lines: list[str] = []
    for role in ("read", "write", "admin"):
        made[role], line = new_key(f"{role}er", role)
        lines.append(line)
    (tmp_path / "keys").write_text("\n".join(lines))
    settings = AccessSettings.model_validate({"keys": tmp_path / "keys", **access})
    app = create_service("test", ready=lambda: None, access=settings, body_limit_mib=1, body_limit_exempt=("POST /train",))

    @app.get("/jobs/{job_id}")
    async def job(job_id: str) -> str:
        return job_id

    @app.post("/train")
    async def train(request: Request) -> int:
        return len(await request.body())

    @app.post("/checkpoints/{checkpoint_id}/promote")
    async def promote(checkpoint_id: str) -> str:
        return checkpoint_id

    @app.post("/jobs/{job_id}/resume")
    async def resume(job_id: str) -> None:
        raise ValueError("broken")

    later = APIRouter()

    @app.get("/forgotten/{name}")
    @later.get("/later/{name}", name="later")
    async def forgotten(name: str) -> str:
        return name

    app.include_router(later)
    return TestClient(app, raise_server_exceptions=False), made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_only_health_is_open(tmp_path: Path):
    client, made = service(tmp_path)
    assert client.get("/health/live").json() == {"status": "live", "service": "test"}
    assert client.get("/health/ready").status_code == 200
    for method, path in [("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/jobs/1"), ("POST", "/train")]:
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["content-type"]) == (401, PROBLEM), path
        assert answer.headers["www-authenticate"] == 'Bearer realm="leverplus"'
        assert answer.json()["type"] == "NotAuthenticated"
        assert client.request(method, path, headers=bearer(made["admin"])).status_code == 200, path


@pytest.mark.parametrize(
    "authorization", ["Bearer", "Bearer ", "Bearer x", "Basic {key}", "{key}", "bearer {key}x", "Bearer {key} {key}", "\xff"]
)
def test_a_wrong_key_is_not_told_back(tmp_path: Path, authorization: str):
    client, made = service(tmp_path)
    given = authorization.format(key=made["read"])
    answer = client.get("/jobs/1", headers={"Authorization": given.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="leverplus", error="invalid_token"'
    assert made["read"] not in answer.text
    assert client.get("/jobs/1", headers={"Authorization": f"bEARER  {made['read']}"}).status_code == 200


def test_each_role_does_what_those_before_it_do(tmp_path: Path):
    client, made = service(tmp_path)
    asked = [("GET", "/jobs/1"), ("POST", "/train"), ("POST", "/checkpoints/c/promote")]
    found = {role: [client.request(*each, headers=bearer(key)).status_code for each in asked] for role, key in made.items()}
    assert found == {"read": [200, 403, 403], "write": [200, 200, 403], "admin": [200, 200, 200]}
    refused = client.post("/train", headers=bearer(made["read"]))
    assert refused.json()["detail"] == "key 'reader' has the role read, POST /train needs write"
    assert "insufficient_scope" in refused.headers["www-authenticate"]


def test_a_route_that_no_role_was_given_for_is_refused(tmp_path: Path):
    client, made = service(tmp_path)
    assert client.get("/forgotten/x", headers=bearer(made["admin"])).status_code == 403
    assert client.get("/later/x", headers=bearer(made["admin"])).status_code == 403
    assert client.head("/docs", headers=bearer(made["read"])).status_code == 200
    assert client.get("/nowhere", headers=bearer(made["read"])).status_code == 404
    assert client.delete("/train", headers=bearer(made["read"])).status_code == 405
    for path in ("/train/", "//train", "/jobs/1/", "/jobs/../train", "/health/live/", "/health/%6cive/.."):
        answer = client.post(path, headers=bearer(made["read"]), follow_redirects=False)
        assert answer.status_code not in (200, 500), path
        assert client.post(path, follow_redirects=False).status_code == 401, path


def test_a_body_is_not_read_for_who_may_not_send_it(tmp_path: Path):
    client, made = service(tmp_path)
    sent: list[int] = []

    def body():
        for number in range(64):
            sent.append(number)
            yield b"x" * 65_536

    assert client.post("/train", content=body(), headers=bearer(made["write"])).json() == 64 * 65_536
    answer = client.post("/train", content=body(), headers=bearer(made["read"]))
    assert (answer.status_code, answer.headers["connection"]) == (403, "close")


def test_a_key_has_a_rate(tmp_path: Path):
    client, made = service(tmp_path, key_rate=1e-3)
    assert client.get("/jobs/1", headers=bearer(made["read"])).status_code == 200
    answer = client.get("/jobs/1", headers=bearer(made["read"]))
    assert (answer.status_code, answer.json()["type"]) == (429, "TooManyRequests")
    assert answer.headers["content-type"] == PROBLEM
    assert 900 <= int(answer.headers["retry-after"]) <= 1000
    assert client.get("/jobs/1", headers=bearer(made["write"])).status_code == 200, "another's is its own"
    assert client.get("/health/live").status_code == 200
    key, line = new_key("fast", "read", rate=1e6)
    with (tmp_path / "fast").open("w") as stream:
        stream.write(line)
    settings = AccessSettings.model_validate({"keys": tmp_path / "fast", "key_rate": 1e-3})
    fast = TestClient(create_service("test", ready=lambda: None, access=settings))
    assert {fast.get("/metrics", headers=bearer(key)).status_code for _ in range(20)} == {200}


def test_what_changes_something_is_written_down(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    client, made = service(tmp_path)
    with caplog.at_level(logging.INFO, "leverplus.audit"):
        client.get("/jobs/1", headers=bearer(made["read"]))
        client.post("/train", headers=bearer(made["write"]))
        client.post("/train", headers=bearer(made["read"]))
        client.post("/train")
        client.post("/jobs/1/resume", headers=bearer(made["write"]))
        client.post("/checkpoints/a%0Aadmin POST/promote", headers=bearer(made["admin"]))
    assert [record.getMessage() for record in caplog.records if record.name == "leverplus.audit"] == [
        "writeer POST /train: 200, from testclient",
        "reader POST /train: 403, from testclient",
        "anonymous POST /train: 401, from testclient",
        "writeer POST /jobs/1/resume: 500, from testclient",
        "adminer POST /checkpoints/a%0Aadmin%20POST/promote: 200, from testclient",
    ]
    assert not any(key in caplog.text for key in made.values())


def test_without_keys_writes_are_written_down_too(caplog: pytest.LogCaptureFixture):
    app = create_service("test", ready=lambda: None)

    @app.post("/train")
    async def train() -> None: ...

    with caplog.at_level(logging.INFO, "leverplus.audit"), TestClient(app) as client:
        assert client.post("/train").status_code == 200
        assert client.get("/metrics").status_code == 200
    assert [record.getMessage() for record in caplog.records] == ["anonymous POST /train: 200, from testclient"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1", "localhost"])
def test_a_service_without_keys_listens_on_the_loopback(host: str):
    assert AccessSettings.model_validate({"host": host}).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "", "192.168.1.2", "::ffff:10.0.0.1", "2001:db8::1"])
def test_and_on_nothing_wider(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert not is_loopback(host)
    assert AccessSettings.model_validate({"host": host, "allow_anonymous": "true"}).host == host
    assert AccessSettings.model_validate({"host": host, "keys": tmp_path}).host == host
    if host:
        with pytest.raises(SystemExit):
            read_settings(AccessSettings, {"LEVERPLUS_HOST": host})
        assert "without keys a service listens on this machine's loopback only" in capsys.readouterr().err


def test_a_name_with_one_wider_address_is_wider(monkeypatch: pytest.MonkeyPatch):
    found = [(socket.AF_INET, 0, 0, "", ("127.0.0.1", 0)), (socket.AF_INET6, 0, 0, "", ("2001:db8::1", 0, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
    assert not is_loopback("mixed")


def test_a_client_has_a_key_and_tells_what_was_wrong_with_it(tmp_path: Path):
    client, made = service(tmp_path)

    def answer(request: httpx.Request) -> httpx.Response:
        found = client.request(request.method, request.url.path, headers=dict(request.headers))
        return httpx.Response(found.status_code, content=found.content)

    asked = ServiceClient("http://testserver", key=made["read"], transport=httpx.MockTransport(answer))
    assert asked.request("GET", "/jobs/1").json() == "1"
    with pytest.raises(errors.NotAllowed, match="has the role read"):
        asked.request("POST", "/train")
    nobody = ServiceClient("http://testserver", transport=httpx.MockTransport(answer))
    with pytest.raises(errors.NotAuthenticated, match="asks for a key"):
        nobody.request("GET", "/jobs/1")
    with pytest.raises(errors.InvalidConfig) as error:
        ServiceClient("http://testserver", key="leverplus_\nx")
    assert "leverplus_\n" not in str(error.value)


def test_a_setting_that_is_a_key_is_not_repeated(capsys: pytest.CaptureFixture[str]):
    from vqa_scorer.settings import ScorerSettings

    with pytest.raises(SystemExit):
        read_settings(ScorerSettings, {"LEVERPLUS_KEY_RATE": "often", "LEVERPLUS_OPENAI_API_KEY": "secret"})
    told = capsys.readouterr().err
    assert "'often'" in told
    assert "secret" not in told
