"""One request through all services, as their logs tell it; and what no log ever tells."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from sqlalchemy import make_url

from leverplus.client import TrainerClient
from leverplus.errors import Unavailable
from leverplus.keys import new_key
from leverplus.launcher import EmbeddedValkey, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

DATASET = "easy-vqa-tiny"
LIMIT_S = 240.0
GENERATE: dict[str, Any] = {
    "dataset": DATASET, "split": "train", "shots": [1], "num_beams": 1, "temps": [], "num_random": 1, "num_retrieval": 1,
    "pool": {"sampler": "random", "k": 8}, "shard_queries": 8,
}  # fmt: skip
TRACE = "0af7651916cd43dd8448eb211c80319c"


def lines(data: Path, service: str) -> Iterator[dict[str, Any]]:
    """Every line is JSON, whichever library wrote it, but for the last words that Celery says from its handler of signals."""
    written = (data / "logs" / f"{service}.log").read_text().splitlines()
    return (json.loads(line) for line in written if line and line != "worker: Warm shutdown (MainProcess)")


def test_a_request_is_found_in_every_log_and_no_secret_in_any(
    tmp_path: Path, postgresql_url: str, tiny_data: Callable[..., Path], start_stack: Callable[..., Stack]
) -> None:
    data = tiny_data()
    made = {name: new_key(name, role) for name, role in (("worker", "write"), ("chief", "admin"))}
    (tmp_path / "keys").write_text("\n".join(line for _, line in made.values()))
    hidden = {name: secrets.token_urlsafe(16) for name in ("openai", "broker", "database")}
    variables = {
        "LEVERPLUS_LOG": "json",
        "LEVERPLUS_ACCESS_LOG": "1",
        "LEVERPLUS_KEYS": str(tmp_path / "keys"),
        "LEVERPLUS_SCORER_KEY": made["worker"][0],
        "LEVERPLUS_OPENAI_API_KEY": hidden["openai"],
    }
    with EmbeddedValkey(tmp_path / "valkey") as valkey:
        with Redis(port=valkey.port) as redis:
            redis.config_set("requirepass", hidden["broker"])
        secret_url = make_url(postgresql_url).set(password=hidden["database"]).render_as_string(hide_password=False)
        urls = {"redis_url": f"redis://:{hidden['broker']}@127.0.0.1:{valkey.port}/0", "database_url": secret_url}
        with (
            start_stack(data, variables=variables, **urls) as stack,
            TrainerClient(stack.trainer_url, key=made["chief"][0]) as trainer,
        ):
            trainer.wait(trainer.embed(DATASET), limit_s=LIMIT_S)
            headers = {"X-Request-ID": "from-alice:1", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            answer = trainer.request("POST", "/rl-data/generate", json=GENERATE, headers=headers)
            assert answer.headers["X-Request-ID"] == "from-alice:1"
            job_id = answer.json()["job_id"]
            trainer.wait(job_id, limit_s=LIMIT_S)
            assert trainer.job(job_id)["request_id"] == "from-alice:1"
            httpx.get(f"{stack.selector_url}/select", params={"query_id": 1}, headers={"Authorization": "Bearer wrong"})
            # What libraries say of a broker that is away, they say now.
            valkey.stop()
            with pytest.raises(Unavailable):
                trainer.embed(DATASET)
            time.sleep(3.0)
    followed = {"pointer_trainer": "pointer_trainer", "pointer_trainer.worker": "trainer_worker", "vqa_scorer": "vqa_scorer"}
    for log, service in followed.items():
        told = [line for line in lines(data, log) if line.get("request_id") == "from-alice:1"]
        assert told, log
        assert {line["service"] for line in told} == {service}
        assert {line["trace_id"] for line in told} == {TRACE}
        assert any(line.get("job_id", "").startswith(job_id) for line in told), log
    loggers = {line["logger"] for line in lines(data, "pointer_trainer.worker")}
    assert any(name.startswith("celery") for name in loggers)
    assert f"pointer_trainer.job.{job_id}" in loggers
    scored = [line for line in lines(data, "vqa_scorer") if line.get("route") == "/score"]
    assert {line["status"] for line in scored} == {200}
    assert "uvicorn.error" in {line["logger"] for line in lines(data, "selector_api")}
    keys = {name: key for name, (key, _) in made.items()}
    for path in (path for path in data.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for name, secret in (keys | hidden).items():
            assert secret.encode() not in content, (path, name)
