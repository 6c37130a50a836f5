"""POST /score as NDJSON: real servers, real connections, and clients that behave badly."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import islice, permutations
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI

from leverplus import errors
from leverplus.client import ONCE, ScorerClient
from leverplus.dataset import Dataset
from leverplus.fingerprint import digest
from leverplus.ids import ItemId
from leverplus.scoring import ScoredQuery, ScoreOptions, ScoreQuery, ScoreRequest
from leverplus.store import ScoreStore, open_store
from vqa_scorer.app import create_app
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings

Serving = Callable[[FastAPI], AbstractContextManager[ScorerClient]]

LIMIT_S = 30.0
EVERY_POINTER = 205
"""Ordered choices of 1 to 4 of 5 items."""


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def settled(value: Callable[[], int]) -> int:
    """The value once it has stayed the same for a while."""
    seen = value()
    end = time.monotonic() + LIMIT_S
    while True:
        assert time.monotonic() < end, "it never settled"
        time.sleep(0.3)
        before, seen = seen, value()
        if seen == before:
            return seen


def is_ready(client: ScorerClient) -> bool:
    try:
        client.ready()
    except errors.Unavailable:
        return False
    return True


def pointers(query_id: int, count: int = EVERY_POINTER) -> list[list[int]]:
    others = [item for item in range(6) if item != query_id]
    chosen = (list(pointer) for shots in (1, 2, 3, 4) for pointer in permutations(others, shots))
    return list(islice(chosen, count))


def request(*queries: tuple[int, list[list[int]]], **options: Any) -> ScoreRequest:
    listed = [ScoreQuery(query_id=query_id, pointers=asked) for query_id, asked in queries]
    return ScoreRequest(dataset="toy", queries=listed, options=ScoreOptions(**options))


def queue(client: ScorerClient) -> dict[str, int]:
    return client.stats()["queue"]


def read(client: ScorerClient, asked: ScoreRequest) -> list[ScoredQuery]:
    with client.score_stream(asked) as stream:
        return list(stream)


def test_a_stream_is_the_plain_answer_in_lines_and_may_be_larger_than_the_queue(
    settings: ScorerSettings, serving: Serving
) -> None:
    """The queue has 8 places, a batch 4; each query needs 205, is cut for the queue and comes in one line."""
    several = request((0, pointers(0)), (3, [[1], [], [1]]), (1, pointers(1)), (0, [[]]), (4, [[]]))
    with serving(create_app(settings, EchoEngine(zero_shot="red"))) as client:
        with pytest.raises(errors.InvalidInput, match="application/x-ndjson"):
            client.score(several)
        with client.score_stream(several) as stream:
            lines = list(stream)
        plain = ScorerClient.score(client, several)
        assert lines == plain.results
        assert stream.fingerprint == plain.fingerprint
        assert stream.stats is not None
        counts = stream.stats
        assert (counts.file, counts.fallback, counts.error, counts.cached) == (411, 3, 1, 0)
        assert counts.share["fallback"] == 3 / 415
        assert counts.warnings == []
        assert plain.stats.cached == 415
        assert client.stats()["totals"]["requests"] == 2


def test_the_lines_on_the_wire(settings: ScorerSettings, serving: Serving) -> None:
    with serving(create_app(settings, EchoEngine())) as client:
        body = request((0, [[1]]), (3, [[1]])).model_dump()
        answer = httpx.post(f"{client.base_url}/score", json=body, headers={"Accept": "application/x-ndjson"})
        assert answer.headers["content-type"].split(";")[0] == "application/x-ndjson"
        lines = [orjson.loads(line) for line in answer.text.splitlines()]
        assert [list(line) for line in lines] == [["fingerprint"], *[["query_id", "candidates"]] * 2, ["stats"]]
        assert lines[3]["stats"]["fallback"] == 1
        assert "1 of 2 candidates (50.0%)" in lines[3]["stats"]["warnings"][0]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (["Application/X-NDJSON"], "application/x-ndjson"),
        (["application/json;q=0.5, application/x-ndjson ; Q=0.9"], "application/x-ndjson"),
        (["application/json", "application/x-ndjson"], "application/x-ndjson"),
        (["application/x-ndjson;q=0"], "application/json"),
        (["application/x-ndjson; q=0.000, */*"], "application/json"),
        (["application/x-ndjson-seq"], "application/json"),
        (["*/*"], "application/json"),
    ],
)
def test_what_accept_asks_for(settings: ScorerSettings, serving: Serving, accept: list[str], kind: str) -> None:
    with serving(create_app(settings, EchoEngine())) as client:
        headers = [("Accept", value) for value in accept]
        answer = httpx.post(f"{client.base_url}/score", json=request((0, [[1]])).model_dump(), headers=headers)
        assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, kind)


@pytest.mark.parametrize("options", [{"gt_prob": True}, {"gt_prob": True, "info_score": True}])
def test_probabilities_are_streamed_likewise(settings: ScorerSettings, serving: Serving, options: dict[str, bool]) -> None:
    asked = request((0, pointers(0, 40)), (3, pointers(3, 3)), **options)
    roomy = settings.model_copy(update={"queue_size": 1000})
    with serving(create_app(settings, EchoEngine())) as client:
        lines = read(client, asked)
    with serving(create_app(roomy, EchoEngine())) as client:
        assert lines == client.score(asked).results


def test_what_is_shown_is_committed(settings: ScorerSettings, serving: Serving, dataset: Dataset) -> None:
    engine = EchoEngine()
    store = ScoreStore(open_store(settings.store_url))
    sets = digest(dataset.fingerprint()), digest(engine.generation_fingerprint())
    with serving(create_app(settings, engine)) as client, client.score_stream(request((0, pointers(0, 9)))) as stream:
        for query in stream:
            keys = [(ItemId(query.query_id), tuple(map(ItemId, each.pointer))) for each in query.candidates]
            assert store.committed(*sets, keys).keys() == set(keys)


def test_faults_before_the_first_line_are_plain_problems(settings: ScorerSettings, serving: Serving) -> None:
    with serving(create_app(settings, EchoEngine())) as client:
        with pytest.raises(errors.InvalidPointer, match="own demonstration"):
            client.score_stream(request((0, pointers(0)), (1, [[1]])))
        with pytest.raises(errors.InvalidInput, match="query 3 has 2 answers"):
            client.score_stream(request((0, pointers(0)), (3, [[]]), strict=True))


def test_an_image_that_cannot_be_read_ends_the_stream_where_it_stands(settings: ScorerSettings, serving: Serving) -> None:
    with (
        serving(create_app(settings, EchoEngine())) as client,
        client.score_stream(request((0, pointers(0)), (1, [[7]]))) as stream,
    ):
        assert next(stream).query_id == 0
        with pytest.raises(errors.InvalidInput, match=r"7\.png"):
            next(stream)
        assert queue(client)["waiting"] == 0


def test_a_client_that_vanishes_stops_the_feeding_and_frees_its_places(settings: ScorerSettings, serving: Serving) -> None:
    gate = Event()
    engine = EchoEngine(gate=gate)
    with serving(create_app(settings.model_copy(update={"queue_size": 64}), engine)) as client:
        stream = client.score_stream(request((0, pointers(0)), (1, pointers(1))))
        until(lambda: queue(client)["waiting"] >= 28)
        assert settled(lambda: queue(client)["waiting"]) == 28
        stream.close()
        until(lambda: client.stats()["totals"]["client_gone"] == 1)
        assert queue(client)["waiting"] == 0
        gate.set()
        until(lambda: queue(client)["in_progress"] == 0)
        assert len(engine.batches) == 1


@contextmanager
def lazy_client(client: ScorerClient, asked: ScoreRequest) -> Generator[None]:
    """Asks for a stream and reads nothing of it."""
    address = httpx.URL(client.base_url)
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((address.host, address.port))
        body = orjson.dumps(asked.model_dump())
        head = f"POST /score HTTP/1.1\r\nHost: x\r\nAccept: application/x-ndjson\r\nContent-Length: {len(body)}\r\n"
        lazy.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        yield


def test_a_client_that_takes_nothing_is_not_fed_and_ended_at_the_deadline(settings: ScorerSettings, serving: Serving) -> None:
    """4,000 lines of 64 KiB are more than the buffers of a connection hold."""
    asked = request(*[(0, [[]])] * 4_000)
    engine = EchoEngine(zero_shot="x" * 65_536)
    with serving(create_app(settings.model_copy(update={"deadline_s": 2.0}), engine)) as client, lazy_client(client, asked):
        until(lambda: client.stats()["totals"]["file"] > 0)
        shown = settled(lambda: client.stats()["totals"]["file"])
        assert shown < 4_000
        assert queue(client)["waiting"] == 0
        assert client.score(request((1, [[0]]))).stats.file == 1
        until(lambda: client.stats()["totals"]["client_gone"] == 1)
        assert client.stats()["totals"]["file"] == shown + 1


def test_streams_share_batches_and_a_small_request_need_not_wait_for_them(settings: ScorerSettings, serving: Serving) -> None:
    """Each stream holds at most 8 batches of 4, and both leave a quarter of the queue to others."""
    gate = Event()
    engine = EchoEngine(gate=gate)
    large = [request(*((query_id, pointers(query_id)) for query_id in ids)) for ids in ((0, 1, 2), (3, 4, 5))]
    with serving(create_app(settings.model_copy(update={"queue_size": 64}), engine)) as client, ThreadPoolExecutor() as threads:
        streams = [threads.submit(read, client, asked) for asked in large]
        until(lambda: queue(client)["waiting"] >= 48)
        assert settled(lambda: queue(client)["waiting"]) == 48
        small = threads.submit(client.score, request((8, [[0], [1]])))
        until(lambda: queue(client)["waiting"] == 50)
        gate.set()
        assert small.result(LIMIT_S).stats.error == 2
        for stream, asked in zip(streams, large, strict=True):
            assert [len(line.candidates) for line in stream.result(LIMIT_S)] == [len(each.pointers) for each in asked.queries]
    questions = [{prompt.query.question for prompt in batch} for batch in engine.batches]
    placed = next(number for number, asked in enumerate(questions) if "what is 8?" in asked)
    assert placed <= 50
    assert len(questions) > 6 * EVERY_POINTER / 4
    assert any(asked & {"what is 0?", "what is 1?", "what is 2?"} and asked & {"what is 3?", "what is 4?"} for asked in questions)


def test_a_queue_without_room_is_429_for_a_stream_before_it_is_for_others(settings: ScorerSettings, serving: Serving) -> None:
    gate = Event()
    engine = EchoEngine(gate=gate)
    with serving(create_app(settings, engine)) as client, ThreadPoolExecutor() as threads:
        running = threads.submit(client.score, request((0, [[]])))
        until(lambda: queue(client)["in_progress"] == 1)
        waiting = threads.submit(client.score, request((0, pointers(0, 5))))
        until(lambda: queue(client)["waiting"] == 5)
        with (
            ScorerClient(client.base_url, retry=ONCE) as once,
            pytest.raises(errors.QueueFull, match="holds 5 of 6 places") as refused,
        ):
            once.score_stream(request((1, pointers(1))))
        assert int(refused.value.context["retry_after_s"]) >= 1
        small = threads.submit(client.score, request((1, [[2]])))
        until(lambda: queue(client)["waiting"] == 6)
        assert client.stats()["totals"]["refused"] == 1
        gate.set()
        for answer in (running, waiting, small):
            assert answer.result(LIMIT_S).stats.file > 0


def test_a_failed_batch_ends_the_stream_with_its_problem(settings: ScorerSettings, serving: Serving) -> None:
    engine = EchoEngine(delay_s=0.005)
    with serving(create_app(settings, engine)) as client:
        with client.score_stream(request((0, [[1], [2]]), (1, pointers(1)), (2, pointers(2)))) as stream:
            assert next(stream).query_id == 0
            engine.failure = RuntimeError("out of memory")
            with pytest.raises(errors.GenerationFailed, match="out of memory"):
                list(stream)
        until(lambda: queue(client) == {"waiting": 0, "in_progress": 0, "capacity": 8})
        engine.failure = None
        assert client.score(request((0, [[1], [2]]))).stats.cached == 2


def test_without_progress_the_deadline_ends_a_stream(settings: ScorerSettings, serving: Serving) -> None:
    gate = Event()
    with serving(create_app(settings.model_copy(update={"deadline_s": 0.5}), EchoEngine(gate=gate))) as client:
        with client.score_stream(request((0, pointers(0)))) as stream, pytest.raises(errors.DeadlineExceeded, match=r"0\.5 s"):
            next(stream)
        assert queue(client)["waiting"] == 0
        assert client.stats()["totals"]["deadline_exceeded"] == 1
        gate.set()


SERVER = """
import sys
from pathlib import Path
from leverplus.web import serve
from vqa_scorer.app import create_app
from vqa_scorer.engines.echo import EchoEngine
from vqa_scorer.settings import ScorerSettings
data, port, delay_s, text = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), "x" * int(sys.argv[4])
settings = ScorerSettings(data=data, vlm=data, batch_size=4, queue_size=64)
serve(create_app(settings, EchoEngine(delay_s=delay_s, zero_shot=text, record=False)), host="127.0.0.1", port=port)
"""


@contextmanager
def process(data: Path, *, delay_s: float = 0.0, text_length: int = 3) -> Generator[tuple[subprocess.Popen[bytes], ScorerClient]]:
    """A scorer in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-c", SERVER, str(data), str(port), str(delay_s), str(text_length)]
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with ScorerClient(f"http://127.0.0.1:{port}", timeout_s=LIMIT_S) as client:
            until(lambda: is_ready(client))
            yield started, client
    finally:
        started.kill()
        started.wait(LIMIT_S)


def test_sigterm_hands_a_stream_back_and_keeps_what_was_shown(settings: ScorerSettings, dataset: Dataset) -> None:
    asked = request(*((query_id, [pointer]) for query_id in range(6) for pointer in pointers(query_id)))
    with process(settings.data, delay_s=0.02) as (server, client), ThreadPoolExecutor() as threads:
        plain = threads.submit(client.score, request((0, [[4, 5]])))
        with client.score_stream(asked) as stream:
            shown = list(islice(stream, 20))
            server.send_signal(signal.SIGTERM)
            with pytest.raises(errors.Unavailable, match="it is stopping"):
                shown.extend(stream)
        # Without a client that holds on, uvicorn's 10 s for open requests are not needed.
        assert server.wait(9) == -signal.SIGTERM
        assert plain.result(LIMIT_S).stats.file == 1
    assert 20 <= len(shown) < len(asked.queries)
    keys = [(ItemId(line.query_id), tuple(map(ItemId, line.candidates[0].pointer))) for line in shown]
    store = ScoreStore(open_store(settings.store_url))
    sets = digest(dataset.fingerprint()), digest(EchoEngine(zero_shot="xxx").generation_fingerprint())
    assert store.committed(*sets, keys) == {
        key: line.candidates[0].vqa_raw_generation for key, line in zip(keys, shown, strict=True)
    }


def test_sigterm_does_not_wait_for_a_client_that_takes_nothing(settings: ScorerSettings) -> None:
    asked = request(*[(0, [[]])] * 4_000)
    with process(settings.data, text_length=65_536) as (server, client), lazy_client(client, asked):
        until(lambda: client.stats()["totals"]["file"] > 0)
        settled(lambda: client.stats()["totals"]["file"])
        server.send_signal(signal.SIGTERM)
        assert server.wait(9) == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_pointers_in_one_request_take_little_memory(settings: ScorerSettings) -> None:
    """benchmarks/scorer_stream.py has 100,000, all distinct; here most are found in the store from the second round on."""
    asked = request(*((query_id, pointers(query_id)) for query_id in (0, 1, 2, 3, 4, 5) for _ in range(9)))

    def resident(name: str) -> float:
        lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024

    with process(settings.data) as (server, client):
        client.score(request((0, [[]])))
        before = resident("VmRSS")
        answered = sum(len(line.candidates) for line in client.score_stream(asked))
        assert answered == 6 * 9 * EVERY_POINTER > 10_000
        assert resident("VmHWM") - before < 100
