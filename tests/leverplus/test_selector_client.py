"""What the clients send, and what they try again."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from leverplus import errors
from leverplus.retrying import RetryPolicy
from leverplus.selector_client import AsyncSelectorClient, SelectorClient, unseen_query

QUICK = RetryPolicy(attempts=4, total_s=20.0, first_wait_s=0.001, longest_wait_s=0.002)
Answer = httpx.Response | Exception
URL = "http://selector:8003"


def problem(status: int, kind: str = "Unavailable", headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, json={"type": kind, "status": status, "detail": f"it says {status}"}, headers=headers)


class Server:
    """Gives its answers in turn, then `{"pointer": …}` for ever, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if self._answers:
            answer = self._answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            # A response can be read by one client only.
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        if request.method == "GET":
            return httpx.Response(200, json={"pointer": [1, 2]})
        count = len(json.loads(request.content)["queries"])
        return httpx.Response(200, json={"results": [{"pointer": [n]} for n in range(count)]})


def blocking(server: Server, call: Callable[[Any], Any], retry: RetryPolicy) -> Any:
    with SelectorClient(URL, retry=retry, transport=httpx.MockTransport(server)) as client:
        return call(client)


def asynchronous(server: Server, call: Callable[[Any], Any], retry: RetryPolicy) -> Any:
    async def run() -> Any:
        async with AsyncSelectorClient(URL, retry=retry, transport=httpx.MockTransport(server)) as client:
            return await call(client)

    return asyncio.run(run())


@pytest.fixture(params=[blocking, asynchronous])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    def run(server: Server, call: Callable[[Any], Any] | None = None, retry: RetryPolicy = QUICK) -> Any:
        return request.param(server, call or (lambda client: client.select(7)), retry)

    return run


@pytest.mark.parametrize(
    "answer",
    [
        problem(429, "QueueFull"),
        problem(500),
        problem(502),
        problem(503),
        problem(504),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("gone"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ],
)
def test_what_may_pass_is_tried_again_and_no_more_than_so_often(ask: Callable[..., Any], answer: Answer) -> None:
    passing = Server(answer, answer, answer)
    assert ask(passing) == {"pointer": [1, 2]}
    assert len(passing.asked) == 4
    staying = Server(*[answer] * 9)
    with pytest.raises(errors.LeverPlusError):
        ask(staying)
    assert len(staying.asked) == 4


@pytest.mark.parametrize(
    ("status", "kind", "raised"),
    [
        (404, "NotFound", errors.NotFound),
        (409, "FingerprintMismatch", errors.Conflict),
        (413, "RequestTooLarge", errors.LeverPlusError),
        (422, "InvalidInput", errors.InvalidInput),
        (501, "NotInstalled", errors.NotInstalled),
    ],
)
def test_what_will_not_pass_is_raised_at_once(ask: Callable[..., Any], status: int, kind: str, raised: type[Exception]) -> None:
    server = Server(problem(status, kind))
    with pytest.raises(raised, match=f"it says {status}"):
        ask(server)
    assert len(server.asked) == 1


def test_a_wait_that_would_end_too_late_is_not_begun(ask: Callable[..., Any]) -> None:
    server = Server(problem(429, "QueueFull", {"Retry-After": "3600"}))
    with pytest.raises(errors.QueueFull):
        ask(server)
    assert len(server.asked) == 1


def test_what_is_sent(ask: Callable[..., Any]) -> None:
    server = Server()
    ask(server, lambda client: client.select(7, shots=2, exclude=[3, 4], policy="random"))
    ask(server, lambda client: client.messages(question_id="q7", exclude=[]))
    assert [str(request.url) for request in server.asked] == [
        f"{URL}/select?query_id=7&shots=2&exclude=3%2C4&policy=random",
        f"{URL}/messages?question_id=q7",
    ]


def test_many_queries_are_sent_in_parts_and_come_back_in_order(ask: Callable[..., Any]) -> None:
    server = Server()
    found = ask(server, lambda client: client.select_many([{"query_id": n} for n in range(2100)], shots=1))
    assert [len(json.loads(request.content)["queries"]) for request in server.asked] == [1000, 1000, 100]
    assert [answer["pointer"][0] for answer in found] == [*range(1000), *range(1000), *range(100)]
    assert json.loads(server.asked[2].content)["queries"][0] == {"query_id": 2000}
    prompts = Server()
    ask(prompts, lambda client: client.messages_many([{"query_id": n} for n in range(150)]))
    assert [request.url.path for request in prompts.asked] == ["/messages"] * 2
    assert ask(server, lambda client: client.select_many([])) == []


def test_a_fault_names_the_query_by_its_number_among_all(ask: Callable[..., Any]) -> None:
    fault = httpx.Response(404, json={"type": "NotFound", "status": 404, "detail": "queries.3: no item '9999'"})
    first = httpx.Response(200, json={"results": []})
    with pytest.raises(errors.NotFound, match=r"queries\.1003: no item"):
        ask(Server(first, fault), lambda client: client.select_many([{"query_id": n} for n in range(1004)]))
    with pytest.raises(errors.NotFound, match=r"queries\.103: no item"):
        ask(Server(first, fault), lambda client: client.messages_many([{"query_id": n} for n in range(104)]))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_vector_that_is_not_finite_is_refused_with_its_place_among_all(ask: Callable[..., Any], number: float) -> None:
    server = Server()
    queries: list[Any] = [{"embedding": [0.5, 0.25]} for _ in range(1004)]
    queries[1002] = {"embedding": [0.5, number]}
    with pytest.raises(errors.InvalidEmbeddings, match=rf"queries\.1002\.embedding\.1 is {number!r}, which JSON cannot hold"):
        ask(server, lambda client: client.select_many(queries))
    with pytest.raises(errors.InvalidEmbeddings, match=r"queries\.0\.embedding\.1"):
        ask(server, lambda client: client.messages_many(queries[1002:]))
    assert len(server.asked) == 1, "the first thousand alone"


def test_an_unseen_query(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    encoded = base64.b64encode(b"picture").decode()
    assert unseen_query(tmp_path / "a.png", "who?") == unseen_query(b"picture", "who?") == {"image": encoded, "question": "who?"}
    assert unseen_query(None, "who?") == {"question": "who?"}


def test_no_url_is_refused() -> None:
    for client in (SelectorClient, AsyncSelectorClient):
        with pytest.raises(errors.InvalidConfig, match="is no URL of a service"):
            client("selector:8003")
