"""Several scorers behind one job, each a real application on a socket of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from leverplus import rl_data
from leverplus.data_root import DataRoot
from leverplus.errors import (
    DeadlineExceeded,
    FingerprintMismatch,
    GenerationFailed,
    InvalidInput,
    LeverPlusError,
    QueueFull,
    Unavailable,
)
from leverplus.scoring import ScoreOptions, ScoreQuery, ScoreRequest, ScoreResponse
from pointer_trainer.jobs.generate import generate
from pointer_trainer.replicas import Replicas
from pointer_trainer.requests import GenerateRequest
from pointer_trainer.settings import WorkerSettings
from vqa_scorer.engines.echo import EchoEngine

REQUEST = ScoreRequest(dataset="toy", queries=[ScoreQuery(query_id=0, pointers=[[]])], options=ScoreOptions())


class FakeClient:
    """Answers, or raises what `failure` holds; waits for `gate` first. Counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: Exception | None = None
        self.entered = Event()
        self.gate = Event()
        self.gate.set()

    def score(self, request: ScoreRequest) -> ScoreResponse:
        self.asked += 1
        self.entered.set()
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        return ScoreResponse.model_construct()

    def close(self) -> None:
        pass


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Generator[list[FakeClient]]:
    made: list[FakeClient] = []

    def make(url: str, **_: Any) -> FakeClient:
        made.append(FakeClient())
        return made[-1]

    monkeypatch.setattr("pointer_trainer.replicas.ScorerClient", make)
    yield made
    for client in made:
        client.gate.set()


def away(name: str) -> Unavailable:
    return Unavailable(what=name, reason="gone", hint="start it")


def asked(clients: list[FakeClient]) -> list[int]:
    return [client.asked for client in clients]


def test_requests_take_turns_and_avoid_the_busy_one(clients: list[FakeClient]) -> None:
    with Replicas(["a", "b", "c"]) as replicas:
        for _ in range(6):
            replicas.score(REQUEST)
        assert asked(clients) == [2, 2, 2]
        clients[0].gate.clear()
        clients[0].entered.clear()
        held = threading.Thread(target=replicas.score, args=(REQUEST,))
        held.start()
        assert clients[0].entered.wait(10)
        for _ in range(4):
            replicas.score(REQUEST)
        assert asked(clients) == [3, 4, 4]
        clients[0].gate.set()
        held.join(10)
        assert not held.is_alive()


def test_jobs_may_begin_with_another_scorer_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Named(FakeClient):
        def __init__(self, url: str, **_: Any) -> None:
            super().__init__()
            self.url = url

        def score(self, request: ScoreRequest) -> ScoreResponse:
            asked.append(self.url)
            return super().score(request)

    monkeypatch.setattr("pointer_trainer.replicas.ScorerClient", Named)
    for first in range(4):
        with Replicas(["a", "b", "c"], first=first) as replicas:
            replicas.score(REQUEST)
            replicas.score(REQUEST)
    assert asked == ["a", "b", "b", "c", "c", "a", "a", "b"]


def test_one_that_is_away_rests_and_comes_back(clients: list[FakeClient]) -> None:
    with Replicas(["a", "b"], rest_s=3600) as replicas:
        clients[0].failure = away("a")
        for _ in range(3):
            replicas.score(REQUEST)
        assert asked(clients) == [1, 3]
        # With all of them away each is tried, whether it rests or not, and the error is theirs.
        clients[1].failure = away("b")
        for _ in range(2):
            with pytest.raises(Unavailable):
                replicas.score(REQUEST)
        clients[0].failure = None
        replicas.score(REQUEST)
    with Replicas(["c", "d"], rest_s=0) as replicas:
        clients[2].failure = away("c")
        for _ in range(3):
            replicas.score(REQUEST)
        clients[2].failure = None
        before = clients[2].asked
        for _ in range(2):
            replicas.score(REQUEST)
        assert clients[2].asked == before + 1


def test_a_full_one_hands_on_and_other_errors_do_not(clients: list[FakeClient]) -> None:
    with Replicas(["a", "b"]) as replicas:
        clients[0].failure = QueueFull(what="the scoring queue", size=8, limit=8, retry_after_s=2)
        replicas.score(REQUEST)
        assert asked(clients) == [1, 1]
        clients[1].failure = QueueFull(what="the scoring queue", size=8, limit=8, retry_after_s=3)
        with pytest.raises(QueueFull):
            replicas.score(REQUEST)
        assert asked(clients) == [2, 2]
        clients[0].failure = clients[1].failure = InvalidInput("no such item")
        before = sum(asked(clients))
        with pytest.raises(InvalidInput):
            replicas.score(REQUEST)
        assert sum(asked(clients)) == before + 1


@pytest.mark.parametrize(
    "failure",
    [DeadlineExceeded(what="scoring", limit_s=1), GenerationFailed(prompts=8, reason="CUDA error"), LeverPlusError("?")],
)
def test_one_that_hangs_or_is_broken_hands_on_and_rests(clients: list[FakeClient], failure: LeverPlusError) -> None:
    with Replicas(["a", "b"]) as replicas:
        clients[0].failure = failure
        for _ in range(3):
            replicas.score(REQUEST)
        assert asked(clients) == [1, 3]
        # What may pass is told rather than what may not: the request is then made again.
        clients[1].failure = Unavailable(what="vqa_scorer", reason="down", hint="")
        with pytest.raises((DeadlineExceeded, Unavailable)):
            replicas.score(REQUEST)
        clients[1].failure = failure
        with pytest.raises(type(failure)):
            replicas.score(REQUEST)


def test_settings_name_one_or_several(tmp_path: Path) -> None:
    def urls(text: str) -> tuple[str, ...]:
        return WorkerSettings(data=tmp_path, redis_url="redis://broker", scorer_url=text).scorer_urls

    assert urls("http://one:1") == ("http://one:1",)
    assert urls("http://one:1, http://two:2,") == ("http://one:1", "http://two:2")
    with pytest.raises(ValueError, match="should match pattern"):
        urls(" ,")


@pytest.fixture
def second_scorer(data: DataRoot, scorer: Any) -> Generator[Any]:
    running = type(scorer)(EchoEngine(zero_shot="red"))
    running.start(data, unused_port())
    try:
        yield running
    finally:
        running.stop()


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_job_spreads_over_scorers_and_one_that_is_away_costs_nothing(
    run: Any, scorer: Any, second_scorer: Any, data: DataRoot
) -> None:
    request = GenerateRequest.model_validate({"dataset": "toy", "pool": {"sampler": "random", "k": 6}}).model_dump(mode="json")
    context = run.context(request, job_id="job-1")
    urls = (f"http://127.0.0.1:{unused_port()}", scorer.url, second_scorer.url)
    spread = generate(replace(context, scorer_urls=urls))
    for engine in (scorer.engine, second_scorer.engine):
        assert engine.batches
    assert spread["scores"]["cached"] == 0
    alone = generate(replace(run.context(request, job_id="job-2"), scorer_urls=(scorer.url,)))
    assert alone["scores"]["cached"] == alone["scores"]["scored"] == spread["scores"]["scored"]
    assert rl_data.read(data.rl_data("rl-1")).records == rl_data.read(data.rl_data("rl-2")).records


def test_scorers_of_different_vlms_are_not_mixed(run: Any, scorer: Any, second_scorer: Any) -> None:
    second_scorer.stop()
    other = type(scorer)(EchoEngine(zero_shot="blue"))
    other.start(run.data, unused_port())
    try:
        request = GenerateRequest.model_validate({"dataset": "toy", "pool": {"sampler": "random", "k": 6}})
        context = replace(run.context(request.model_dump(mode="json")), scorer_urls=(scorer.url, other.url))
        with pytest.raises(FingerprintMismatch, match=r"generation\.arguments"):
            generate(context)
    finally:
        other.stop()
