"""What the clients of scorer and trainer send again, and what they do not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from leverplus import errors
from leverplus.client import ScorerClient, TrainerClient
from leverplus.retrying import RetryPolicy
from leverplus.scoring import ScoreQuery, ScoreRequest, ScoreStats, StreamEnd, StreamStart

QUICK = RetryPolicy(attempts=4, total_s=20.0, first_wait_s=0.001, longest_wait_s=0.002)
URL = "http://service:8000"
AWAY = httpx.Response(503, json={"type": "Unavailable", "status": 503, "detail": "it is away"})
FULL = httpx.Response(429, json={"type": "QueueFull", "status": 429, "detail": "it is full"})
JOB = httpx.Response(202, json={"job_id": "job-1"})
STATS = ScoreStats.total([])
SCORES = httpx.Response(200, json={"fingerprint": {}, "results": [], "stats": STATS.model_dump()})
REQUEST = ScoreRequest(dataset="toy", queries=[ScoreQuery(query_id=0, pointers=[[]])])
Answer = httpx.Response | Exception


class Server:
    """Gives its answers in turn, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.asked.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        # A response can be read by one client only.
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def trainer(server: Server) -> TrainerClient:
    return TrainerClient(URL, retry=QUICK, transport=httpx.MockTransport(server))


def scorer(server: Server) -> ScorerClient:
    return ScorerClient(URL, retry=QUICK, transport=httpx.MockTransport(server))


@pytest.mark.parametrize("failure", [AWAY, FULL, httpx.Response(500), httpx.ReadError("reset"), httpx.ConnectError("refused")])
@pytest.mark.parametrize(
    "call",
    [
        lambda server: trainer(server).jobs(),
        lambda server: trainer(server).train(["rl-1"], {}),
        lambda server: scorer(server).stats(),
        lambda server: scorer(server).score(REQUEST),
        lambda server: scorer(server).score_stream(REQUEST),
    ],
    ids=["jobs", "train", "stats", "score", "stream"],
)
def test_what_may_be_done_twice_is_sent_again_and_no_more_than_so_often(call: Callable[[Server], Any], failure: Answer) -> None:
    staying = Server(failure)
    with pytest.raises(errors.LeverPlusError):
        call(staying)
    assert len(staying.asked) == 4


def test_what_passes_is_answered() -> None:
    assert trainer(Server(AWAY, FULL, httpx.Response(200, json={"jobs": []}))).jobs() == []
    assert scorer(Server(AWAY, SCORES)).score(REQUEST).results == []
    lines = StreamStart(fingerprint={}).model_dump_json() + "\n" + StreamEnd(stats=STATS).model_dump_json() + "\n"
    server = Server(AWAY, httpx.RemoteProtocolError("gone"), httpx.Response(200, text=lines))
    with scorer(server).score_stream(REQUEST) as stream:
        assert list(stream) == []
    assert [request.headers["Accept"] for request in server.asked] == ["application/x-ndjson"] * 3


def test_a_job_that_is_asked_for_again_is_the_same_job() -> None:
    server = Server(httpx.ReadTimeout("slow"), AWAY, JOB)
    with trainer(server) as client:
        assert client.train(["rl-1"], {}) == "job-1"
        assert client.train(["rl-1"], {}) == "job-1"
        client.embed("toy", idempotency_key="mine")
    first, second, third, other, named = (request.headers["Idempotency-Key"] for request in server.asked)
    assert first == second == third != other
    assert named == "mine"


ONCE: dict[str, Callable[[TrainerClient], Any]] = {
    "promote": lambda client: client.promote("ckpt-1", alias="production", by="me"),
    "rollback": lambda client: client.rollback("production", by="me"),
    "resume": lambda client: client.resume("job-1"),
    "cancel": lambda client: client.cancel("job-1"),
    "prune": lambda client: client.prune_checkpoints({}),
    "delete": lambda client: client.delete_checkpoint("ckpt-1"),
    "ready": lambda client: client.ready(),
    "name": lambda client: client.name(),
}


@pytest.mark.parametrize("failure", [AWAY, FULL, httpx.ReadError("reset"), httpx.ReadTimeout("slow")])
@pytest.mark.parametrize("call", ONCE.values(), ids=ONCE)
def test_what_may_have_been_done_is_not_sent_again(call: Callable[[TrainerClient], Any], failure: Answer) -> None:
    server = Server(failure)
    with trainer(server) as client, pytest.raises(errors.LeverPlusError):
        call(client)
    assert len(server.asked) == 1


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")])
def test_what_was_never_sent_is(tmp_path: Path, failure: Exception) -> None:
    done = httpx.Response(200, json={"checkpoint_id": "ckpt-1"})
    server = Server(failure, failure, done)
    with trainer(server) as client:
        assert client.rollback("production", by="me") == {"checkpoint_id": "ckpt-1"}
    assert [json.loads(request.content) for request in server.asked] == [{"by": "me"}] * 3


def test_what_a_service_refuses_is_raised_at_once() -> None:
    server = Server(httpx.Response(422, json={"type": "InvalidConfig", "status": 422, "detail": "rce_lr: -1"}))
    with trainer(server) as client, pytest.raises(errors.InvalidConfig, match="rce_lr: -1"):
        client.train(["rl-1"], {"rce_lr": -1})
    assert len(server.asked) == 1


def test_a_retry_after_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    asking = httpx.Response(429, headers={"Retry-After": "7"}, json={"type": "QueueFull", "status": 429, "detail": "full"})
    with trainer(Server(asking, asking, JOB)) as client:
        assert client.embed("toy") == "job-1"
    assert waits == [7.0, 7.0]
    late = httpx.Response(429, headers={"Retry-After": "20"}, json={"type": "QueueFull", "status": 429, "detail": "full"})
    with trainer(Server(late)) as client, pytest.raises(errors.QueueFull):
        client.embed("toy")
    assert waits == [7.0, 7.0], "it would end past the 20 s"
