from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from leverplus.data_root import DataRoot
from leverplus.errors import GenerationFailed, InvalidConfig, InvalidInput, LeverPlusError, Unavailable
from leverplus.prompts import CHAT, SHORT_ANSWER, Shot
from leverplus.retrying import RetryPolicy
from leverplus.web import read_settings
from vqa_scorer.app import create_app
from vqa_scorer.engines import ScoringPrompt
from vqa_scorer.engines.data_urls import data_url
from vqa_scorer.engines.openai import OpenAIEngine
from vqa_scorer.engines.openai_server import LARGEST_ANSWER_BYTES
from vqa_scorer.settings import ScorerSettings

KEY = "sk-never-shown"
QUICK = RetryPolicy(attempts=4, total_s=20.0, attempt_s=10.0, first_wait_s=0.001, longest_wait_s=0.002)


def completion(text: Any, finish_reason: Any = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "tool_calls": None, **more}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


class Reply:
    """What the server does with a request: answers, hangs up before it where `status` is None, or in its middle where `cut`;
    where `endless` it writes the body again and again, until nobody reads it."""

    def __init__(
        self, status: int | None = 200, body: Any = None, *, cut: bool = False, endless: bool = False, **headers: str
    ) -> None:
        self.status, self.body, self.cut, self.endless, self.headers = status, body, cut, endless, headers


class ChatServer:
    """Speaks the protocol: lists `models`, and answers a prompt with its last question in capitals.

    `replies` are given first, one a request; a prompt whose last question is `refused` is answered with 500.
    While `gate` is not set, completions wait. `most` is the largest number of completions that were under way at once.
    """

    def __init__(self) -> None:
        self.models = ["small-vlm"]
        self.replies: list[Reply] = []
        self.refused: str | None = None
        self.seen: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.encodings: list[str | None] = []
        self.gate = threading.Event()
        self.gate.set()
        self.under_way = self.most = 0
        self.changed = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.authorizations.append(self.headers["Authorization"])
                listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in outer.models]}
                self.reply(outer.replies.pop(0) if outer.replies else Reply(200, listed if self.path == "/v1/models" else {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.changed:
                    outer.seen.append(body)
                    outer.encodings.append(self.headers["Accept-Encoding"])
                    outer.under_way += 1
                    outer.most = max(outer.most, outer.under_way)
                    reply = outer.replies.pop(0) if outer.replies else outer.reply_to(body)
                    outer.changed.notify_all()
                outer.gate.wait(20)
                with outer.changed:
                    outer.under_way -= 1
                self.reply(reply)

            def reply(self, reply: Reply) -> None:
                if reply.status is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                try:
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name.replace("_", "-"), value)
                    if not reply.endless:
                        self.send_header("Content-Length", str(len(content) + 100 * reply.cut))
                    self.end_headers()
                    self.wfile.write(content)
                    self.close_connection = reply.cut or reply.endless
                    while reply.endless:
                        self.wfile.write(content * 65536)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def reply_to(self, body: dict[str, Any]) -> Reply:
        question = body["messages"][-1]["content"][-1]["text"]
        return Reply(500, {"error": "out of memory"}) if question == self.refused else Reply(200, completion(question.upper()))

    def wait_for(self, under_way: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.under_way == under_way, timeout=10)

    def stop(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[ChatServer]:
    running = ChatServer()
    yield running
    running.stop()


Make = Callable[..., OpenAIEngine]
Running = Callable[[FastAPI], AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def make(server: ChatServer) -> Iterator[Make]:
    engines: list[OpenAIEngine] = []

    def engine(url: str | None = None, **options: Any) -> OpenAIEngine:
        wanted = {"model": "small-vlm", "revision": "r1", "api_key": KEY, "retry": QUICK, "template": CHAT} | options
        engines.append(OpenAIEngine(url or server.url, **wanted))
        return engines[-1]

    yield engine
    for each in engines:
        each.close()


@pytest.fixture
def shots(tmp_path: Path) -> list[Shot]:
    """A JPEG, a PNG, a WebP and a BMP."""
    found: list[Shot] = []
    for number, kind in enumerate(["jpg", "png", "webp", "bmp"]):
        path = tmp_path / f"{number}.{kind}"
        Image.new("RGB", (20, 10), (40 * number, 100, 0)).save(path)
        found.append(Shot(path, f"what is {number}?", f"number {number}"))
    return found


@pytest.fixture
def prompts(shots: list[Shot]) -> list[ScoringPrompt]:
    return [ScoringPrompt((), Shot(shots[0].image, f"question {number}?")) for number in range(12)]


def sent(path: Path, kind: str) -> dict[str, Any]:
    encoded = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{encoded}"}}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def answer(engine: OpenAIEngine, prompt: ScoringPrompt) -> str:
    (found,) = engine.generate([prompt])
    if isinstance(found, LeverPlusError):
        raise found
    return found


def test_a_turn_for_each_shot_with_the_images_as_data_urls(server: ChatServer, make: Make, shots: list[Shot]) -> None:
    assert make(max_new_tokens=7).generate([ScoringPrompt((shots[0], shots[1]), shots[2])]) == ["WHAT IS 2?"]
    assert server.seen == [
        {
            "model": "small-vlm",
            "temperature": 0,
            "repetition_penalty": 1.0,
            "max_tokens": 7,
            "messages": [
                {"role": "system", "content": CHAT.system},
                {"role": "user", "content": [sent(shots[0].image, "jpeg"), text("what is 0?")]},
                {"role": "assistant", "content": "number 0"},
                {"role": "user", "content": [sent(shots[1].image, "png"), text("what is 1?")]},
                {"role": "assistant", "content": "number 1"},
                {"role": "user", "content": [sent(shots[2].image, "webp"), text("what is 2?")]},
            ],
        }
    ]


def test_one_turn_with_the_images_where_the_template_has_them(server: ChatServer, make: Make, shots: list[Shot]) -> None:
    make(template=SHORT_ANSWER).generate([ScoringPrompt((shots[1],), shots[0])])
    assert server.seen[0]["messages"] == [
        {"role": "system", "content": SHORT_ANSWER.system},
        {
            "role": "user",
            "content": [
                sent(shots[1].image, "png"),
                text("Question: what is 1? Short answer: number 1\n"),
                sent(shots[0].image, "jpeg"),
                text("Question: what is 0? Short answer:"),
            ],
        },
    ]


def test_other_formats_are_sent_as_png(shots: list[Shot], tmp_path: Path) -> None:
    head, encoded = data_url(shots[3].image).split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert (image.format, image.size, image.getpixel((0, 0))) == ("PNG", (20, 10), (120, 100, 0))
    (tmp_path / "no.png").write_bytes(b"no image")
    for name in ("no.png", "absent.png"):
        with pytest.raises(InvalidInput, match=name):
            data_url(tmp_path / name)


def test_answers_keep_the_order_within_the_bound(server: ChatServer, make: Make, prompts: list[ScoringPrompt]) -> None:
    server.gate.clear()
    opened = threading.Thread(target=lambda: (server.wait_for(3), server.gate.set()))
    opened.start()
    assert make(concurrency=3).generate(prompts) == [f"QUESTION {number}?" for number in range(12)]
    opened.join()
    assert server.most == 3


@pytest.mark.parametrize(
    "passing",
    [Reply(429, {}, Retry_After="0"), Reply(500, {}), Reply(503, b"starting"), Reply(None), Reply(200, {}, cut=True)],
    ids=["429", "500", "503", "disconnect", "disconnect-in-the-answer"],
)
def test_what_may_pass_is_tried_again(server: ChatServer, make: Make, prompts: list[ScoringPrompt], passing: Reply) -> None:
    server.replies = [passing, passing]
    assert make().generate(prompts[:1]) == ["QUESTION 0?"]
    assert len(server.seen) == 3


def test_a_server_that_never_answers_is_given_up_on(server: ChatServer, make: Make, prompts: list[ScoringPrompt]) -> None:
    server.replies = [Reply(500, {"error": "out of memory"})] * 9
    with pytest.raises(Unavailable, match=r"attempt 4 of at most 4 .*HTTP 500 .*out of memory"):
        answer(make(), prompts[0])
    assert len(server.seen) == 4


def test_an_attempt_and_all_attempts_together_are_limited_in_time(
    server: ChatServer, make: Make, prompts: list[ScoringPrompt]
) -> None:
    server.gate.clear()
    slow = RetryPolicy(attempts=2, total_s=20.0, attempt_s=0.1, first_wait_s=0.001)
    with pytest.raises(Unavailable, match=r"attempt 2 of at most 2 .*no answer in time"):
        answer(make(retry=slow), prompts[0])
    total = RetryPolicy(attempts=100, total_s=0.3, attempt_s=0.1, first_wait_s=0.001)
    with pytest.raises(Unavailable, match=r"of at most 100 in 0\.3 s"):
        answer(make(retry=total), prompts[0])


def test_a_retry_after_past_the_limit_ends_it_at_once(server: ChatServer, make: Make, prompts: list[ScoringPrompt]) -> None:
    for value in ("3600", "Wed, 21 Oct 2099 07:28:00 GMT"):
        server.replies = [Reply(429, {}, Retry_After=value)]
        with pytest.raises(Unavailable, match=r"attempt 1 of .*HTTP 429 .*Retry-After"):
            answer(make(), prompts[0])
    assert len(server.seen) == 2


def test_waits_grow_with_jitter_and_respect_retry_after() -> None:
    policy = RetryPolicy(first_wait_s=1.0, longest_wait_s=5.0)
    for attempt, most in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (9, 5.0)):
        waits = {policy.wait_s(attempt, 0.0) for _ in range(50)}
        assert len(waits) > 1
        assert all(most / 2 <= wait <= most for wait in waits)
    assert policy.wait_s(1, 7.5) == 7.5


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (completion("", "content_filter"), "finish_reason is 'content_filter'"),
        (completion("yes", "abort"), "finish_reason is 'abort'"),
        (completion("yes", None), "finish_reason is None"),
        (completion(None, "length"), "content is no text"),
        (completion(None, reasoning_content="hm"), "content is no text"),
        (completion(None, refusal="no"), "content is no text"),
        (completion([text("yes")]), "content is no text"),
        ({"choices": []}, r"no answer in \{'choices': \[\]\}"),
        ({"choices": [{"text": "yes"}]}, "no answer in"),
        ([], r"no answer in \[\]"),
        (b"<html>", "no JSON: <html>"),
        (b"[" * 100_000, r"POST http://127.0.0.1:\d+/v1/chat/completions was answered with JSON that is nested too deep: \[\[\["),
        (b'{"choices": ' + b"[" * 3000 + b"]" * 3000 + b"}", "127.0.0.1"),
        (b" " * (LARGEST_ANSWER_BYTES + 1), r"POST http://127.0.0.1:.* with more than the 4194304 bytes"),
        (completion("\ud800"), r"127.0.0.1:\d+/v1 is no Unicode: surrogates not allowed in '\\ud800'"),
        (completion("y" * 1345), r"127.0.0.1:\d+/v1 has 1345 bytes, and 5 tokens have at most 1344: yyyy"),
        (completion("ü" * 673), "has 1346 bytes"),
    ],
)
def test_what_is_no_whole_answer_is_refused(
    server: ChatServer, make: Make, prompts: list[ScoringPrompt], body: Any, named: str
) -> None:
    server.replies = [Reply(200, body)]
    with pytest.raises(GenerationFailed, match=named):
        answer(make(), prompts[0])
    assert len(server.seen) == 1, "asking again would be paid for again"


def test_an_encoded_answer_is_refused_unread(server: ChatServer, make: Make, prompts: list[ScoringPrompt]) -> None:
    """Some kilobytes of a bomb would be gigabytes of text; a server that is told of no encoding has no reason for one."""
    server.replies = [Reply(200, gzip.compress(bytes(1000)), Content_Encoding="gzip")]
    with pytest.raises(GenerationFailed, match=r"http://127.0.0.1:.* encoded as 'gzip', though identity was asked for"):
        answer(make(), prompts[0])
    assert server.encodings == ["identity"]


def test_an_answer_without_end_is_left(server: ChatServer, make: Make, prompts: list[ScoringPrompt]) -> None:
    server.replies = [Reply(200, b"[", endless=True), *[Reply(500, b"[", endless=True)] * 4]
    with pytest.raises(GenerationFailed, match="with more than the 4194304 bytes"):
        answer(make(), prompts[0])
    with pytest.raises(Unavailable, match=r"attempt 4 of at most 4 .*HTTP 500 \[\[\["):
        answer(make(), prompts[0])


def test_the_longest_text_that_the_tokens_may_have_is_an_answer(
    server: ChatServer, make: Make, prompts: list[ScoringPrompt]
) -> None:
    server.replies = [Reply(200, completion("y" * 1344))]
    assert answer(make(max_new_tokens=5), prompts[0]) == "y" * 1344


@pytest.mark.parametrize(
    "broken",
    [completion("\ud800"), completion("y" * 2000), b"[" * 100_000, b" " * (LARGEST_ANSWER_BYTES + 1)],
    ids=["surrogate", "long", "nested", "large"],
)
def test_a_broken_answer_fails_alone(
    server: ChatServer, make: Make, data: DataRoot, running: Running, broken: dict[str, Any] | bytes
) -> None:
    """Up to the answer in JSON: what a server wrote may not break the error that tells of it, either."""
    settings = ScorerSettings(data=data.path, vlm=data.path)
    body = {"dataset": "toy", "queries": [{"query_id": query, "pointers": [[]]} for query in range(3)]}

    async def scenario() -> None:
        async with running(create_app(settings, engine=make(concurrency=1))) as client:
            server.replies = [Reply(200, broken)]
            refused = await client.post("/score", json=body)
            assert (refused.status_code, refused.json()["type"]) == (500, "GenerationFailed")
            assert "http://127.0.0.1:" in refused.json()["detail"]
            again = await client.post("/score", json=body)
            assert (again.status_code, again.json()["stats"]["cached"]) == (200, 2)

    asyncio.run(scenario())


@pytest.mark.parametrize("value", ["²", "soon", "-1", "1e3", "", "Wed, 21 Oct 2099 07:28:00 +99999999999999"])
def test_a_retry_after_that_says_nothing_is_passed_over(
    server: ChatServer, make: Make, prompts: list[ScoringPrompt], value: str
) -> None:
    server.replies = [Reply(429, {}, Retry_After=value)]
    assert answer(make(), prompts[0]) == "QUESTION 0?"


def test_an_empty_answer_and_one_that_was_cut_are_answers(server: ChatServer, make: Make, prompts: list[ScoringPrompt]) -> None:
    """SGLang writes null where vLLM writes an empty text."""
    server.replies = [Reply(200, completion("")), Reply(200, completion(None)), Reply(200, completion("the left", "length"))]
    assert make(concurrency=1).generate(prompts[:3]) == ["", "", "the left"]


def test_a_refused_request_fails_alone_and_names_its_prompt(server: ChatServer, make: Make, prompts: list[ScoringPrompt]) -> None:
    server.replies = [Reply(400, {"message": "maximum context length"}), Reply(200, completion(None, "tool_calls"))]
    first, second, *others = make(concurrency=1).generate(prompts)
    assert isinstance(first, GenerationFailed)
    assert re.search(r"HTTP 400 .*maximum context length.*'question 0\?' behind 0 demonstrations", str(first))
    assert isinstance(second, GenerationFailed)
    assert others == [f"QUESTION {number}?" for number in range(2, 12)]


def test_an_unreadable_image_fails_alone(make: Make, prompts: list[ScoringPrompt], tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no image")
    broken = ScoringPrompt((), Shot(tmp_path / "no.png", "what?"))
    found, kept = make().generate([broken, prompts[0]])
    assert isinstance(found, InvalidInput)
    assert kept == "QUESTION 0?"


def test_a_server_that_is_away_is_waited_for_once(server: ChatServer, make: Make, prompts: list[ScoringPrompt]) -> None:
    server.replies = [Reply(200, completion("yes")), *[Reply(503, b"gone")] * 99]
    first, *others = make(concurrency=1).generate(prompts)
    assert first == "yes"
    assert all(isinstance(found, Unavailable) for found in others)
    assert len(server.seen) == 1 + QUICK.attempts


def test_a_prompt_that_breaks_a_server_that_answers_the_others_fails_alone(
    server: ChatServer, make: Make, prompts: list[ScoringPrompt]
) -> None:
    server.refused = "question 1?"
    found = make(concurrency=2).generate(prompts)
    assert isinstance(found[1], Unavailable)
    assert [text for text in found if isinstance(text, str)] == [f"QUESTION {number}?" for number in range(12) if number != 1]


def test_the_service_keeps_what_a_failed_batch_did_answer(
    server: ChatServer, make: Make, data: DataRoot, running: Running
) -> None:
    server.refused = "what is 2?"
    settings = ScorerSettings(data=data.path, vlm=data.path)

    def body(query: int) -> dict[str, Any]:
        return {"dataset": "toy", "queries": [{"query_id": query, "pointers": [[]]}]}

    async def scenario() -> None:
        async with running(create_app(settings, engine=make())) as client:
            whole = {"dataset": "toy", "queries": [{"query_id": query, "pointers": [[]]} for query in range(3)]}
            refused = await client.post("/score", json=whole)
            assert (refused.status_code, refused.json()["type"]) == (503, "Unavailable")
            asked = len(server.seen)
            for query in range(2):
                answered = await client.post("/score", json=body(query))
                assert answered.json()["stats"]["cached"] == 1
            assert len(server.seen) == asked
            assert (await client.post("/score", json=body(2))).status_code == 503
            totals = (await client.get("/stats")).json()["totals"]
            assert (totals["generated"], totals["failed_batches"]) == (2, 2)

    asyncio.run(scenario())


def test_load_wants_a_server_that_lists_the_model(server: ChatServer, make: Make) -> None:
    server.replies = [Reply(503, b"starting")]
    make().load()
    assert server.authorizations == [f"Bearer {KEY}"] * 2
    with pytest.raises(InvalidConfig, match=r"does not serve 'large'; it serves: small-vlm"):
        make(model="large").load()
    server.replies = [Reply(404, b"nothing here")]
    with pytest.raises(InvalidConfig, match=r"LEVERPLUS_OPENAI_URL: .*HTTP 404 nothing here"):
        make().load()
    with pytest.raises(InvalidConfig, match="no list of models"):
        make(server.url.replace("/v1", "/v2")).load()


def test_a_url_without_a_path_gets_v1(server: ChatServer, make: Make) -> None:
    make(server.url.removesuffix("/v1")).load()
    make(server.url + "/", api_key=None).load()
    assert server.authorizations == [f"Bearer {KEY}", None]


def test_load_says_that_nothing_listens(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Unavailable, match=f"the VLM server at http://127.0.0.1:{port}/v1 is away: .*ConnectError"):
        make(f"http://127.0.0.1:{port}").load()


def test_the_key_is_shown_nowhere(
    server: ChatServer, make: Make, prompts: list[ScoringPrompt], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    errors: list[LeverPlusError] = []
    said = f"no such key: {KEY}"
    for reply, attempts in (
        (Reply(401, said.encode()), 1),
        (Reply(500, said.encode()), 4),
        (Reply(200, {"choices": [said]}), 1),
        (Reply(200, completion([said])), 1),
    ):
        server.replies = [reply] * attempts
        with pytest.raises(LeverPlusError) as raised:
            answer(make(), prompts[0])
        errors.append(raised.value)
    server.replies = [Reply(401, said.encode())]
    with pytest.raises(InvalidConfig, match=r"LEVERPLUS_OPENAI_API_KEY: .*no such key: \*\*\*") as refused:
        make().load()
    errors.append(refused.value)
    with pytest.raises(InvalidConfig, match="LEVERPLUS_OPENAI_API_KEY") as broken:
        make(api_key=f"{KEY}\n")
    errors.append(broken.value)
    shown = [f"{error} {error.context} {error.__cause__!r}" for error in errors]
    assert not [line for line in shown if KEY in line]
    assert KEY not in caplog.text
    assert KEY not in json.dumps(make().generation_fingerprint()) + repr(make())


def test_the_fingerprint_names_the_declared_model_and_revision(make: Make) -> None:
    assert make(revision="2025-09-01", max_new_tokens=9).generation_fingerprint() == {
        "vlm": {"server": "openai", "model": "small-vlm", "revision": "2025-09-01"},
        "prompt": CHAT.fingerprint(),
        "arguments": {"max_new_tokens": 9, "num_beams": 1, "length_penalty": None, "repetition_penalty": 1.0},
        "dtype": None,
    }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 3}, "LEVERPLUS_NUM_BEAMS: 3 beams"),
        ({"model": " "}, "LEVERPLUS_OPENAI_MODEL"),
        ({"revision": ""}, "LEVERPLUS_OPENAI_REVISION"),
        ({"url": "127.0.0.1:8000"}, "LEVERPLUS_OPENAI_URL"),
        ({"url": "ftp://host/v1"}, "LEVERPLUS_OPENAI_URL"),
        ({"url": f"http://user:{KEY}@host/v1"}, "may hold no user"),
    ],
)
def test_what_cannot_be_asked_is_refused(make: Make, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidConfig, match=named) as raised:
        make(**options)
    assert KEY not in str(raised.value)


def test_close_ends_the_requests_that_run(server: ChatServer, make: Make, prompts: list[ScoringPrompt]) -> None:
    server.gate.clear()
    engine = make(concurrency=2)
    raised: list[BaseException] = []

    def generate() -> None:
        try:
            engine.generate(prompts)
        except Unavailable as exc:
            raised.append(exc)

    worker = threading.Thread(target=generate)
    worker.start()
    server.wait_for(2)
    started = time.monotonic()
    engine.close()
    worker.join(10)
    assert not worker.is_alive()
    assert time.monotonic() - started < 5
    assert "is stopping" in str(raised[0])
    assert len(server.seen) == 2
    with pytest.raises(Unavailable, match="is stopping"):
        engine.generate(prompts[:1])


def test_the_service_scores_with_the_server_that_its_settings_name(
    server: ChatServer, data: DataRoot, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = read_settings(
        ScorerSettings,
        {
            "LEVERPLUS_DATA": str(data.path),
            "LEVERPLUS_OPENAI_URL": server.url,
            "LEVERPLUS_OPENAI_MODEL": "small-vlm",
            "LEVERPLUS_OPENAI_REVISION": "r1",
            "LEVERPLUS_OPENAI_API_KEY": KEY,
            "LEVERPLUS_OPENAI_CONCURRENCY": "2",
            "LEVERPLUS_PROMPT": "chat",
        },
    )
    body = {"dataset": "toy", "queries": [{"query_id": 0, "pointers": [[], [1], [2, 1]]}]}

    async def ask() -> tuple[dict[str, Any], dict[str, Any]]:
        async with running(create_app(settings)) as client:
            answers = [(await client.post("/score", json=body)).json() for _ in range(2)]
            return answers[0], answers[1]

    first, again = asyncio.run(ask())
    assert [candidate["vqa_raw_generation"] for candidate in first["results"][0]["candidates"]] == ["WHAT IS 0?"] * 3
    assert first["fingerprint"]["generation"]["vlm"] == {"server": "openai", "model": "small-vlm", "revision": "r1"}
    assert (first["stats"]["cached"], again["stats"]["cached"]) == (0, 3)
    assert len(server.seen) == 3, "a committed score is not asked for again"
    assert KEY not in caplog.text + repr(settings) + json.dumps([first, again])


def test_the_engine_is_closed_with_its_service(
    server: ChatServer, make: Make, data: DataRoot, running: Running, prompts: list[ScoringPrompt]
) -> None:
    engine = make()

    async def come_and_go() -> None:
        async with running(create_app(ScorerSettings(data=data.path, vlm=data.path), engine=engine)):
            pass

    asyncio.run(come_and_go())
    with pytest.raises(Unavailable, match="is stopping"):
        engine.generate(prompts[:1])


def test_probabilities_of_given_answers_are_refused(make: Make, prompts: list[ScoringPrompt]) -> None:
    engine = make()
    assert not engine.has_probabilities
    with pytest.raises(InvalidInput, match="no probability of an answer"):
        engine.answer_probabilities(prompts[:1], [["yes"]])
